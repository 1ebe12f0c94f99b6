// SDK for plastic-host plugins in JavaScript.
// Written by `plastic-host plugin new` and `plugin build`; changes made here are lost.
//
// A policy is told what a model looks like and answers which of its rank components sleep and wake:
//
//     import { Plan, Policy } from "./plastic_plugin/index.js";
//
//     export default class Halve extends Policy {
//       decide(seen) {
//         const plan = new Plan();
//         for (const s of seen.slices) plan.setRank(s, Math.floor(s.maxRank / 2), "half of everything");
//         return plan;
//       }
//     }
//
// `plastic_plugin/testing.js` runs it natively, without a host and without a model. Records of the
// contract (`seen.run`, `slice.meta`, `slice.state`, `seen.record`, a task) have the fields of rank.wit
// in camelCase; an option that is not there is null. Whole numbers are exact up to 2^53.

/** What policies and evaluators share. */
class Plugin {
  /**
   * Options, by name, each a property of a JSON Schema with `type` and `default`:
   * { keep: { type: "number", minimum: 0, maximum: 1, default: 0.5, description: "..." } }
   */
  static options = {};

  /** Takes the options, checked and with defaults filled in; called once. */
  configure(options) {
    this.options = options;
  }

  /** JSON Schema of the options. */
  static schema() {
    return JSON.stringify({ type: "object", properties: this.options, additionalProperties: false });
  }

  /** Options as JSON, checked, with defaults; a wrong one throws. */
  static readOptions(text) {
    const given = JSON.parse(text || "{}");
    const unknown = Object.keys(given).find((name) => !(name in this.options));
    if (unknown !== undefined) {
      throw new Error(`there is no option ${unknown}; it takes ${Object.keys(this.options).join(", ") || "none"}`);
    }
    const read = ([name, spec]) => [name, checked(name, spec, name in given ? given[name] : spec.default)];
    return Object.fromEntries(Object.entries(this.options).map(read));
  }
}

const TYPES = {
  number: (v) => typeof v === "number",
  integer: (v) => Number.isInteger(v),
  boolean: (v) => typeof v === "boolean",
  string: (v) => typeof v === "string",
  array: (v) => Array.isArray(v),
};

/** The value of an option, if it is what its schema says. */
function checked(name, spec, value) {
  const isOfType = TYPES[spec.type] ?? (() => true);
  if (!isOfType(value) || (spec.enum && !spec.enum.includes(value))) {
    throw new Error(`option ${name} is ${JSON.stringify(value)}, expected ${(spec.enum ?? [spec.type]).join("|")}`);
  }
  if (value < spec.minimum || value > spec.maximum) {
    throw new Error(`option ${name} is ${value}, expected ${spec.minimum} to ${spec.maximum}`);
  }
  return value;
}

/** A rank policy. The same input must give the same plan. */
export class Policy extends Plugin {
  /** Phases it serves. */
  phases = ["compress"];
  /** Statistics the host computes before `decide`; `configure` may set others. */
  needs = ["spectrum:fisher"];

  /** A run begins; `run` and `slices` are records of the contract. */
  start(_run, _slices) {}

  /** Answers a Plan for an Observation. An empty plan holds everything as it is. */
  decide(_seen) {
    throw new Error("this policy has no decide");
  }

  /** State to carry over a resume or a reload: bytes. */
  snapshot() {
    return new Uint8Array();
  }

  /** Puts a snapshot back, after `start`. */
  restore(state) {
    if (state.length > 0) throw new Error("this policy keeps no state");
  }
}

/** What a policy is shown at one step. */
export class Observation {
  constructor(run, metas, needs, record) {
    /** The run this step belongs to. */
    this.run = run;
    /** The record of the contract: metrics, last, proposed, attributes, ... */
    this.record = record;
    /** Step, from 1. */
    this.step = record.step;
    /** Parameters awake in all slices. */
    this.awake = record.awake;
    this.found = new Map(record.series.map((s) => [`${needs[s.need]} ${s.slice}`, s]));
    /** Every slice, in the host's order. */
    this.slices = record.slices.map((state, id) => new Slice(id, metas[id], state, this));
  }

  /** Values of a statistic of a slice; empty where the host sent none. */
  series(slice, need) {
    const found = this.found.get(`${need} ${slice.id}`);
    return found ? this.record.values.slice(found.offset, found.offset + found.len) : [];
  }
}

/** One slice as it is now. */
export class Slice {
  constructor(id, meta, state, seen) {
    /** Place in the host's list. */
    this.id = id;
    /** What never changes about it: name, layer, kind, group, rows, cols, maxRank, ... */
    this.meta = meta;
    /** What does: awake, dense, denseAllowed, frozen, dwell, parameters, ... */
    this.state = state;
    this.seen = seen;
  }

  /** Name in the checkpoint. */
  get name() {
    return this.meta.name;
  }

  /** `q_proj`, `down_proj`, ... */
  get kind() {
    return this.meta.kind;
  }

  /** Layer number. */
  get layer() {
    return this.meta.layer;
  }

  /** The number of components. */
  get maxRank() {
    return this.meta.maxRank;
  }

  /** Parameters while dense. */
  get denseParameters() {
    return this.meta.denseParameters;
  }

  /** Components awake now. */
  get awake() {
    return this.state.awake;
  }

  /** Parameters of factors of this rank. */
  parameters(rank) {
    return this.meta.componentParameters * rank;
  }

  /** Whether factors of this rank are smaller than the dense slice. */
  saves(rank) {
    return this.parameters(rank) < this.meta.denseParameters;
  }

  /** Singular values in a metric, largest first; empty where the host sent none. */
  spectrum(metric) {
    return this.seen.series(this, `spectrum:${metric}`);
  }
}

/** What should change: a slice at most once, each change with a reason for people. It is a record of the contract. */
export class Plan {
  actions = [];
  threshold = null;
  /** Predicted rise of the loss over the base, nats per token. */
  predicted = null;
  /** Statistics wanted at the next observation only. */
  requests = [];
  /** Ends the run after this step; the text says why. */
  stop = null;
  attributes = [];

  /** Exactly `rank` components awake, the largest first. */
  setRank(slice, rank, why) {
    return this.act(slice, { tag: "set-rank", val: rank }, why);
  }

  /** Puts the `n` smallest awake components to sleep. */
  sleep(slice, n, why) {
    return this.act(slice, { tag: "sleep-n", val: n }, why);
  }

  /** Wakes the `n` largest sleeping components. */
  wake(slice, n, why) {
    return this.act(slice, { tag: "wake-n", val: n }, why);
  }

  /** Puts these components to sleep (numbered by size, largest 0). */
  sleepThese(slice, components, why) {
    return this.act(slice, { tag: "sleep", val: [...components] }, why);
  }

  /** Wakes these components (numbered by size, largest 0). */
  wakeThese(slice, components, why) {
    return this.act(slice, { tag: "wake", val: [...components] }, why);
  }

  /** Back to the base's own weights. */
  dense(slice, why) {
    return this.act(slice, { tag: "dense" }, why);
  }

  /** No change of this slice is accepted from now on. */
  freeze(slice, why) {
    return this.act(slice, { tag: "freeze" }, why);
  }

  /** Changes of this slice are accepted again. */
  thaw(slice, why) {
    return this.act(slice, { tag: "thaw" }, why);
  }

  act(slice, change, why) {
    this.actions.push({ slice: slice.id ?? slice, change, reason: String(why) });
    return this;
  }
}

/** Measures a changed model and judges it. */
export class Evaluator extends Plugin {
  /** Answers a Verdict. `measure` has the functions of the contract's interface `measure`, in camelCase. */
  evaluate(_task, _measure) {
    throw new Error("this evaluator has no evaluate");
  }
}

/** What an evaluator answers. It is a record of the contract. */
export class Verdict {
  constructor(decision, reason) {
    this.decision = decision;
    this.reason = String(reason);
    this.metrics = [];
    this.attributes = [];
  }

  static accept(why) {
    return new Verdict("accept", why);
  }

  static reject(why) {
    return new Verdict("reject", why);
  }

  static abstain(why) {
    return new Verdict("abstain", why);
  }

  /** Adds a figure; name the rise of the loss over the base `loss-increase`. */
  metric(name, value, unit = "", higherIsBetter = false) {
    this.metrics.push({ name, value, unit, higherIsBetter, low: null, high: null });
    return this;
  }
}

/**
 * Mean loss of `base`, `current` or `candidate` over the evaluation text, in nats per token, and the
 * number of tokens it was taken over.
 */
export function meanLoss(measure, subject, batch = 8) {
  const windows = measure.windows();
  let [total, tokens] = [0, 0];
  for (let first = 0; first < windows; first += batch) {
    const indices = Array.from({ length: Math.min(batch, windows - first) }, (_, i) => first + i);
    for (const scores of measure.scoreWindows(subject, indices)) {
      tokens += scores.length;
      for (const score of scores) total -= score;
    }
  }
  if (tokens === 0) throw new Error("there is no evaluation text: the data is shorter than one window");
  return [total / tokens, tokens];
}

let sink = (level, text) => console.error(`${level}: ${text}`);

/** A line for the operator. Level: 0 trace, 1 debug, 2 info, 3 warning, 4 error. */
export function log(level, text) {
  sink(level, String(text));
}

/** Where lines for the operator go; in a component, to the host. */
export function setSink(to) {
  sink = to;
}
