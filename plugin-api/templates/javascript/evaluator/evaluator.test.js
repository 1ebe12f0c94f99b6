// Runs the evaluator natively on made-up scores: `node --test`.

import assert from "node:assert/strict";
import { test } from "node:test";
import Plugin from "./evaluator.js";
import { FakeMeasure, evaluate } from "./plastic_plugin/testing.js";

const windows = (score) => Array(3).fill(Array(4).fill(score));

function decision(score, options) {
  const measure = new FakeMeasure({ base: windows(-1), candidate: windows(score) });
  return evaluate(Plugin, measure, options).decision;
}

test("a rise beyond the limit is rejected", () => {
  assert.equal(decision(-1.05), "accept");
  assert.equal(decision(-1.2), "reject");
  assert.equal(decision(-1.2, { max_loss_increase: 0.5 }), "accept");
});
