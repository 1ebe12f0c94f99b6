"""Testing plugins natively: a pretend model for policies, a pretend host for evaluators.
Written by `plastic-host plugin new` and `plugin build`; changes made here are lost.

    model = Model(share=0.5).slice("q_proj", 64, 48, "fisher", [1 / i for i in range(1, 49)])
    plan = Session(Halve, model).decide()
"""

import json
from types import SimpleNamespace

from . import Observation, Refused


class Model:
    """Slices with made-up spectra; of their parameters, `share` may stay awake."""

    def __init__(self, share, steps=8):
        self.share = share
        self.run = SimpleNamespace(phase="compress", seed=0, steps=steps, parameters=0, budget=0, attributes=[])
        self.metas, self.states, self.spectra = [], [], {}
        self.step, self.last, self.metrics, self.proposed = 1, None, [], None

    def slice(self, name, rows, cols, metric="fisher", spectrum=()):
        """Adds a dense slice with its singular values, largest first, in one metric."""
        id = len(self.metas)
        self.metas.append(SimpleNamespace(
            name=name, layer=id, kind=name.split(".")[-1], group=id, rows=rows, cols=cols, max_rank=min(rows, cols),
            dense_parameters=rows * cols, component_parameters=rows + cols, attributes=[]))
        self.states.append(SimpleNamespace(
            awake=min(rows, cols), dense=True, dense_allowed=True, frozen=False, dwell=0, parameters=rows * cols,
            bytes=4 * rows * cols, parked_bytes=0))
        self.run.parameters += rows * cols
        self.run.budget = int(self.share * self.run.parameters)
        self.spectra[f"spectrum:{metric}", id] = list(spectrum)
        return self

    def observe(self, needs):
        """What a policy with these needs is shown, as a record of the contract."""
        series, values = [], []
        for need, name in enumerate(needs):
            for id in range(len(self.metas)):
                found = self.spectra.get((name, id), [])
                if found:
                    series.append(SimpleNamespace(slice=id, need=need, offset=len(values), len=len(found)))
                    values += found
        return SimpleNamespace(
            step=self.step, awake=sum(s.parameters for s in self.states), slices=self.states, series=series,
            values=values, asleep=b"", metrics=self.metrics, last=self.last, proposed=self.proposed, attributes=[])


class Session:
    """A policy at work on a pretend model, called the way the host calls it."""

    def __init__(self, policy, model, options=None):
        self.policy, self.model = policy(), model
        self.policy.configure(policy.read_options(json.dumps(options or {})))
        self.policy.start(model.run, model.metas)
        self._requests = []

    def decide(self):
        """Asks the policy about the next step."""
        needs = list(self.policy.needs) + self._requests
        plan = self.policy.decide(Observation(self.model.run, self.model.metas, needs, self.model.observe(needs)))
        self._requests = list(plan.requests)
        self.model.step += 1
        return plan


class FakeMeasure:
    """Answers with prepared scores: for each subject, the log-probabilities of every window."""

    def __init__(self, scores):
        self.scores = scores

    def windows(self):
        """Number of windows."""
        return max((len(windows) for windows in self.scores.values()), default=0)

    def score_windows(self, subject, indices):
        """Log-probabilities of these windows."""
        if subject not in self.scores:
            raise Refused(f"the test has no scores of {subject}")
        return [self.scores[subject][i] for i in indices]


def evaluate(evaluator, measure, options=None, step=1, seed=0):
    """The verdict of an evaluator."""
    judge = evaluator()
    judge.configure(evaluator.read_options(json.dumps(options or {})))
    return judge.evaluate(SimpleNamespace(step=step, seed=seed, attributes=[]), measure)
