// Between the contract's functions and a Policy. Written by `plugin build`, runs in the component only.
import host from "plastic:rank/host@@API@";
import Plugin from "@SOURCE@";
import { Observation, setSink } from "./index.js";

setSink((level, text) => host.log(level, text));

const plugin = new Plugin();
let run = null;
let slices = [];
let requests = [];

/** Calls the plugin; what it throws becomes the contract's error, a text. */
function answered(call) {
  try {
    return call();
  } catch (e) {
    throw e instanceof Error ? (e.name === "Error" ? e.message : `${e.name}: ${e.message}`) : String(e);
  }
}

export const policy = {
  describe: () => ({
    name: "@NAME@",
    version: "@VERSION@",
    summary: "@SUMMARY@",
    phases: plugin.phases,
    needs: plugin.needs,
    optionsSchema: Plugin.schema(),
    attributes: [],
  }),

  configure: (options) => answered(() => void plugin.configure(Plugin.readOptions(options))),

  start: (aRun, itsSlices) =>
    answered(() => {
      plugin.start(aRun, itsSlices);
      [run, slices, requests] = [aRun, itsSlices, []];
    }),

  decide: (observation) =>
    answered(() => {
      if (observation.slices.length !== slices.length) {
        throw new Error(`the observation has ${observation.slices.length} slices, start announced ${slices.length}`);
      }
      const plan = plugin.decide(new Observation(run, slices, [...plugin.needs, ...requests], observation));
      requests = [...plan.requests];
      return plan;
    }),

  // What the last plan requested, whose names are ASCII, then the policy's own.
  snapshot: () => {
    const requested = requests.join("\n");
    const [own, bytes] = [plugin.snapshot(), [...requested].map((c) => c.charCodeAt(0))];
    const length = [0, 8, 16, 24].map((shift) => (bytes.length >>> shift) & 255);
    return new Uint8Array([...length, ...bytes, ...own]);
  },

  restore: (state) =>
    answered(() => {
      const length = [0, 1, 2, 3].reduce((sum, i) => sum + (state[i] ?? NaN) * 2 ** (8 * i), 0);
      if (!(4 + length <= state.length)) throw new Error("the snapshot is not one of this plugin");
      const text = [...state.slice(4, 4 + length)].map((b) => String.fromCharCode(b)).join("");
      plugin.restore(state.slice(4 + length));
      requests = text.split("\n").filter((r) => r !== "");
    }),
};
