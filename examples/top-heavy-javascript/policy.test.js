// Runs the policy natively on a made-up model: `node --test`.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Model, Session } from "./plastic_plugin/testing.js";
import Plugin from "./policy.js";

test("late layers keep more", () => {
  const model = new Model(0.4).slice("first", 64, 64).slice("last", 64, 64);
  const plan = new Session(Plugin, model).decide();
  // A third and two thirds of 0.4 of 2 x 64 x 64, at 128 a component: 8.5 and 17.
  assert.deepEqual(
    plan.actions.map((a) => a.change.val),
    [8, 17],
  );
});
