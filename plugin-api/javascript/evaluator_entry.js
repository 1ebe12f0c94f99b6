// Between the contract's functions and an Evaluator. Written by `plugin build`, runs in the component only.
import host from "plastic:rank/host@@API@";
import measure from "plastic:rank/measure@@API@";
import Plugin from "@SOURCE@";
import { setSink } from "./index.js";

setSink((level, text) => host.log(level, text));

const plugin = new Plugin();

/** Calls the plugin; what it throws becomes the contract's error, a text. */
function answered(call) {
  try {
    return call();
  } catch (e) {
    throw e instanceof Error ? (e.name === "Error" ? e.message : `${e.name}: ${e.message}`) : String(e);
  }
}

export const judge = {
  describe: () => ({
    name: "@NAME@",
    version: "@VERSION@",
    summary: "@SUMMARY@",
    phases: [],
    needs: [],
    optionsSchema: Plugin.schema(),
    attributes: [],
  }),
  configure: (options) => answered(() => void plugin.configure(Plugin.readOptions(options))),
  evaluate: (task) => answered(() => plugin.evaluate(task, measure)),
};
