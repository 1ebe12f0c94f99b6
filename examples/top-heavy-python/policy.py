"""A policy in a few lines: the later a layer, the more of the budget it gets."""

from plastic_plugin import Plan, Policy


class TopHeavy(Policy):
    def decide(self, seen):
        last = max((s.layer for s in seen.slices), default=0) or 1
        weights = [s.dense_parameters * (1 + s.layer / last) for s in seen.slices]
        total = 0.0
        for weight in weights:  # not sum(), which rounds otherwise
            total += weight
        plan = Plan()
        for s, weight in zip(seen.slices, weights):
            if s.state.frozen:
                continue
            share = seen.run.budget * weight / total
            rank = int(share / s.parameters(1))
            why = f"layer {s.layer} of {last}: {int(share)} parameters"
            if s.saves(rank):
                plan.set_rank(s, rank, why)
            else:
                plan.dense(s, why)
        return plan


PLUGIN = TopHeavy
