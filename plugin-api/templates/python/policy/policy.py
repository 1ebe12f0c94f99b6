"""A rank policy: every slice keeps the same share of its components."""

from plastic_plugin import Plan, Policy


class @Type@(Policy):
    options = {
        "keep": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "default": 0.5,
            "description": "Share of its components that a slice keeps.",
        }
    }
    # Statistics to compute, such as "spectrum:fisher"; this policy looks at none.
    needs = []

    def decide(self, seen):
        plan = Plan()
        for s in seen.slices:
            rank = int(self.options["keep"] * s.max_rank)
            # A frozen slice stays as it is; factors of a high rank are larger than the slice itself.
            if not s.state.frozen and s.saves(rank) and rank < s.awake:
                plan.set_rank(s, rank, f"{rank} of {s.max_rank}")
        return plan


PLUGIN = @Type@
