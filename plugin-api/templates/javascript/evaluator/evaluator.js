// An evaluator: accepts a change while the mean loss rises no more than allowed.

import { Evaluator, Verdict, meanLoss } from "./plastic_plugin/index.js";

export default class @Type@ extends Evaluator {
  static options = {
    max_loss_increase: {
      type: "number",
      minimum: 0,
      maximum: 100,
      default: 0.1,
      description: "Highest rise of the mean loss that is accepted, nats per token.",
    },
  };

  evaluate(_task, measure) {
    const [base] = meanLoss(measure, "base");
    const [candidate] = meanLoss(measure, "candidate");
    const rise = candidate - base;
    if (!Number.isFinite(rise)) return Verdict.reject("the candidate's loss is no number");
    const judge = rise <= this.options.max_loss_increase ? Verdict.accept : Verdict.reject;
    return judge(`loss ${base.toFixed(4)} -> ${candidate.toFixed(4)} nats/token`).metric("loss-increase", rise, "nats");
  }
}
