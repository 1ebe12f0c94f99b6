"""An evaluator: accepts a change while the mean loss rises no more than allowed."""

import math

from plastic_plugin import Evaluator, Verdict, mean_loss


class @Type@(Evaluator):
    options = {
        "max_loss_increase": {
            "type": "number",
            "minimum": 0,
            "maximum": 100,
            "default": 0.1,
            "description": "Highest rise of the mean loss that is accepted, nats per token.",
        }
    }

    def evaluate(self, task, measure):
        base, _ = mean_loss(measure, "base")
        candidate, _ = mean_loss(measure, "candidate")
        rise = candidate - base
        if not math.isfinite(rise):
            return Verdict.reject("the candidate's loss is no number")
        is_good = rise <= self.options["max_loss_increase"]
        judge = Verdict.accept if is_good else Verdict.reject
        return judge(f"loss {base:.4f} -> {candidate:.4f} nats/token").metric("loss-increase", rise, "nats")


PLUGIN = @Type@
