// A rank policy: every slice keeps the same share of its components.

import { Plan, Policy } from "./plastic_plugin/index.js";

export default class @Type@ extends Policy {
  static options = {
    keep: {
      type: "number",
      minimum: 0,
      maximum: 1,
      default: 0.5,
      description: "Share of its components that a slice keeps.",
    },
  };

  // Statistics to compute, such as "spectrum:fisher"; this policy looks at none.
  needs = [];

  decide(seen) {
    const plan = new Plan();
    for (const s of seen.slices) {
      const rank = Math.trunc(this.options.keep * s.maxRank);
      // A frozen slice stays as it is; factors of a high rank are larger than the slice itself.
      if (!s.state.frozen && s.saves(rank) && rank < s.awake) plan.setRank(s, rank, `${rank} of ${s.maxRank}`);
    }
    return plan;
  }
}
