// Runs the policy natively on a made-up model: `node --test`.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Model, Session } from "./plastic_plugin/testing.js";
import Plugin from "./policy.js";

const model = () => new Model(0.5).slice("q_proj", 64, 48, "fisher", Array.from({ length: 48 }, (_, i) => 1 / (i + 1)));

test("slices keep their share", () => {
  const plan = new Session(Plugin, model(), { keep: 0.25 }).decide();
  assert.deepEqual(plan.actions, [{ slice: 0, change: { tag: "set-rank", val: 12 }, reason: "12 of 48" }]);
});

test("a wrong option is refused", () => {
  assert.throws(() => new Session(Plugin, model(), { keep: 2 }), /option keep is 2, expected 0 to 1/);
});
