// Testing plugins natively: a pretend model for policies, a pretend host for evaluators.
// Written by `plastic-host plugin new` and `plugin build`; changes made here are lost.
//
//     const model = new Model(0.5).slice("q_proj", 64, 48, "fisher", [1, 0.5, 0.25]);
//     const plan = new Session(Halve, model).decide();

import { Observation } from "./index.js";

/** Slices with made-up spectra; of their parameters, `share` may stay awake. */
export class Model {
  metas = [];
  states = [];
  spectra = new Map();
  step = 1;
  last = null;
  metrics = [];
  proposed = null;

  constructor(share, steps = 8) {
    this.share = share;
    this.run = { phase: "compress", seed: 0, steps, parameters: 0, budget: 0, attributes: [] };
  }

  /** Adds a dense slice with its singular values, largest first, in one metric. */
  slice(name, rows, cols, metric = "fisher", spectrum = []) {
    const [id, maxRank, parameters] = [this.metas.length, Math.min(rows, cols), rows * cols];
    this.metas.push({
      name,
      layer: id,
      kind: name.split(".").at(-1),
      group: id,
      rows,
      cols,
      maxRank,
      denseParameters: parameters,
      componentParameters: rows + cols,
      attributes: [],
    });
    this.states.push({
      awake: maxRank,
      dense: true,
      denseAllowed: true,
      frozen: false,
      dwell: 0,
      parameters,
      bytes: 4 * parameters,
      parkedBytes: 0,
    });
    this.run.parameters += parameters;
    this.run.budget = Math.floor(this.share * this.run.parameters);
    this.spectra.set(`spectrum:${metric} ${id}`, [...spectrum]);
    return this;
  }

  /** What a policy with these needs is shown, as a record of the contract. */
  observe(needs) {
    const [series, values] = [[], []];
    needs.forEach((name, need) => {
      this.metas.forEach((_, slice) => {
        const found = this.spectra.get(`${name} ${slice}`) ?? [];
        if (found.length > 0) series.push({ slice, need, offset: values.length, len: found.length });
        values.push(...found);
      });
    });
    return {
      step: this.step,
      awake: this.states.reduce((sum, s) => sum + s.parameters, 0),
      slices: this.states,
      series,
      values,
      asleep: new Uint8Array(),
      metrics: this.metrics,
      last: this.last,
      proposed: this.proposed,
      attributes: [],
    };
  }
}

/** A policy at work on a pretend model, called the way the host calls it. */
export class Session {
  constructor(PolicyClass, model, options = {}) {
    this.policy = new PolicyClass();
    this.model = model;
    this.requests = [];
    this.policy.configure(PolicyClass.readOptions(JSON.stringify(options)));
    this.policy.start(model.run, model.metas);
  }

  /** Asks the policy about the next step. */
  decide() {
    const needs = [...this.policy.needs, ...this.requests];
    const plan = this.policy.decide(new Observation(this.model.run, this.model.metas, needs, this.model.observe(needs)));
    this.requests = plan.requests;
    this.model.step += 1;
    return plan;
  }
}

/** Answers with prepared scores: for each subject, the log-probabilities of every window. */
export class FakeMeasure {
  constructor(scores) {
    this.scores = scores;
  }

  /** Number of windows. */
  windows() {
    return Math.max(0, ...Object.values(this.scores).map((windows) => windows.length));
  }

  /** Log-probabilities of these windows. */
  scoreWindows(subject, indices) {
    if (!(subject in this.scores)) throw new Error(`the test has no scores of ${subject}`);
    return indices.map((i) => this.scores[subject][i]);
  }
}

/** The verdict of an evaluator. */
export function evaluate(EvaluatorClass, measure, options = {}) {
  const evaluator = new EvaluatorClass();
  evaluator.configure(EvaluatorClass.readOptions(JSON.stringify(options)));
  return evaluator.evaluate({ step: 1, seed: 0, attributes: [] }, measure);
}
