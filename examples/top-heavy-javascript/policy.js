// A policy in a few lines: the later a layer, the more of the budget it gets.

import { Plan, Policy } from "./plastic_plugin/index.js";

export default class TopHeavy extends Policy {
  decide(seen) {
    const last = seen.slices.reduce((most, s) => Math.max(most, s.layer), 1);
    const weight = (s) => s.denseParameters * (1 + s.layer / last);
    const total = seen.slices.reduce((sum, s) => sum + weight(s), 0);
    const plan = new Plan();
    for (const s of seen.slices.filter((s) => !s.state.frozen)) {
      const share = (seen.run.budget * weight(s)) / total;
      const rank = Math.trunc(share / s.parameters(1));
      const why = `layer ${s.layer} of ${last}: ${Math.trunc(share)} parameters`;
      if (s.saves(rank)) plan.setRank(s, rank, why);
      else plan.dense(s, why);
    }
    return plan;
  }
}
