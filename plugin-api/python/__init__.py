"""SDK for plastic-host plugins in Python.
Written by `plastic-host plugin new` and `plugin build`; changes made here are lost.

A policy is told what a model looks like and answers which of its rank components sleep and wake:

    from plastic_plugin import Plan, Policy

    class Halve(Policy):
        def decide(self, seen):
            plan = Plan()
            for s in seen.slices:
                plan.set_rank(s, s.max_rank // 2, "half of everything")
            return plan

    PLUGIN = Halve

`plastic_plugin.testing` runs it natively, without a host and without a model. Records of the contract
(`seen.run`, `slice.meta`, `slice.state`, `seen.record`, a task) have the fields of rank.wit, with
underscores.
"""

import json
import sys


class Refused(Exception):
    """Raised by a plugin that cannot do what it is asked: one sentence for the operator."""


class Plugin:
    """What policies and evaluators share."""

    #: Options, by name, each a property of a JSON Schema with `type` and `default`:
    #: {"keep": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5, "description": "..."}}
    options = {}

    def configure(self, options):
        """Takes the options, checked and with defaults filled in; called once."""
        self.options = options

    @classmethod
    def schema(cls):
        """JSON Schema of the options."""
        return json.dumps({"type": "object", "properties": cls.options, "additionalProperties": False})

    @classmethod
    def read_options(cls, text):
        """Options as JSON, checked, with defaults; a wrong one raises Refused."""
        given = json.loads(text or "{}")
        unknown = sorted(set(given) - set(cls.options))
        if unknown:
            raise Refused(f"there is no option {unknown[0]}; it takes {', '.join(cls.options) or 'none'}")
        return {name: _checked(name, spec, given.get(name, spec.get("default"))) for name, spec in cls.options.items()}


_TYPES = {"number": (int, float), "integer": int, "boolean": bool, "string": str, "array": list}


def _checked(name, spec, value):
    """The value of an option, if it is what its schema says."""
    kind = spec.get("type")
    wrong = not isinstance(value, _TYPES.get(kind, object)) or (isinstance(value, bool) and kind != "boolean")
    if wrong or ("enum" in spec and value not in spec["enum"]):
        raise Refused(f"option {name} is {value!r}, expected {'|'.join(map(str, spec.get('enum', [kind])))}")
    low, high = spec.get("minimum"), spec.get("maximum")
    if (low is not None and value < low) or (high is not None and value > high):
        raise Refused(f"option {name} is {value}, expected {low} to {high}")
    return value


class Policy(Plugin):
    """A rank policy. The same input must give the same plan."""

    #: Phases it serves.
    phases = ["compress"]
    #: Statistics the host computes before `decide`; `configure` may set others.
    needs = ["spectrum:fisher"]

    def start(self, run, slices):
        """A run begins; `run` and `slices` are records of the contract."""

    def decide(self, seen):
        """Answers a Plan for an Observation. An empty plan holds everything as it is."""
        raise NotImplementedError

    def snapshot(self):
        """State to carry over a resume or a reload, as bytes."""
        return b""

    def restore(self, state):
        """Puts a snapshot back, after `start`."""
        if state:
            raise Refused("this policy keeps no state")


class Observation:
    """What a policy is shown at one step."""

    def __init__(self, run, metas, needs, record):
        #: The run this step belongs to.
        self.run = run
        #: The record of the contract: metrics, last, proposed, attributes, ...
        self.record = record
        #: Step, from 1.
        self.step = record.step
        #: Parameters awake in all slices.
        self.awake = record.awake
        self._values = {(needs[s.need], s.slice): s for s in record.series if s.need < len(needs)}
        #: Every slice, in the host's order.
        self.slices = [Slice(i, meta, state, self) for i, (meta, state) in enumerate(zip(metas, record.slices))]

    def series(self, slice, need):
        """Values of a statistic of a slice; empty where the host sent none."""
        found = self._values.get((need, slice.id))
        return self.record.values[found.offset:found.offset + found.len] if found else []


class Slice:
    """One slice as it is now."""

    def __init__(self, id, meta, state, seen):
        #: Place in the host's list.
        self.id = id
        #: What never changes about it: name, layer, kind, group, rows, cols, max_rank, ...
        self.meta = meta
        #: What does: awake, dense, dense_allowed, frozen, dwell, parameters, ...
        self.state = state
        self._seen = seen

    name = property(lambda self: self.meta.name, doc="Name in the checkpoint.")
    kind = property(lambda self: self.meta.kind, doc="`q_proj`, `down_proj`, ...")
    layer = property(lambda self: self.meta.layer, doc="Layer number.")
    max_rank = property(lambda self: self.meta.max_rank, doc="The number of components.")
    dense_parameters = property(lambda self: self.meta.dense_parameters, doc="Parameters while dense.")
    awake = property(lambda self: self.state.awake, doc="Components awake now.")

    def parameters(self, rank):
        """Parameters of factors of this rank."""
        return self.meta.component_parameters * rank

    def saves(self, rank):
        """Whether factors of this rank are smaller than the dense slice."""
        return self.parameters(rank) < self.meta.dense_parameters

    def spectrum(self, metric):
        """Singular values in a metric, largest first; empty where the host sent none."""
        return self._seen.series(self, f"spectrum:{metric}")


class Plan:
    """What should change: a slice at most once, each change with a reason for people."""

    def __init__(self):
        #: Changes as (slice id, name in the contract, value or None, reason).
        self.actions = []
        #: Predicted rise of the loss over the base, nats per token.
        self.predicted = None
        #: Statistics wanted at the next observation only.
        self.requests = []
        #: Ends the run after this step; the text says why.
        self.stop = None

    def set_rank(self, slice, rank, why):
        """Exactly `rank` components awake, the largest first."""
        return self._act(slice, "set-rank", rank, why)

    def sleep(self, slice, n, why):
        """Puts the `n` smallest awake components to sleep."""
        return self._act(slice, "sleep-n", n, why)

    def wake(self, slice, n, why):
        """Wakes the `n` largest sleeping components."""
        return self._act(slice, "wake-n", n, why)

    def sleep_these(self, slice, components, why):
        """Puts these components to sleep (numbered by size, largest 0)."""
        return self._act(slice, "sleep", list(components), why)

    def wake_these(self, slice, components, why):
        """Wakes these components (numbered by size, largest 0)."""
        return self._act(slice, "wake", list(components), why)

    def dense(self, slice, why):
        """Back to the base's own weights."""
        return self._act(slice, "dense", None, why)

    def freeze(self, slice, why):
        """No change of this slice is accepted from now on."""
        return self._act(slice, "freeze", None, why)

    def thaw(self, slice, why):
        """Changes of this slice are accepted again."""
        return self._act(slice, "thaw", None, why)

    def _act(self, slice, change, value, why):
        self.actions.append((getattr(slice, "id", slice), change, value, why))
        return self


class Evaluator(Plugin):
    """Measures a changed model and judges it."""

    def evaluate(self, task, measure):
        """Answers a Verdict. `measure` has the functions of the contract's interface `measure`."""
        raise NotImplementedError


class Verdict:
    """What an evaluator answers: Verdict.accept(why), .reject(why) or .abstain(why)."""

    def __init__(self, decision, reason):
        self.decision = decision
        self.reason = reason
        #: Figures as (name, value, unit, higher is better).
        self.metrics = []

    accept = classmethod(lambda cls, why: cls("accept", why))
    reject = classmethod(lambda cls, why: cls("reject", why))
    abstain = classmethod(lambda cls, why: cls("abstain", why))

    def metric(self, name, value, unit="", higher_is_better=False):
        """Adds a figure; name the rise of the loss over the base `loss-increase`."""
        self.metrics.append((name, float(value), unit, higher_is_better))
        return self


def mean_loss(measure, subject, batch=8):
    """Mean loss of `base`, `current` or `candidate` over the evaluation text, in nats per token, and
    the number of tokens it was taken over."""
    total, tokens, windows = 0.0, 0, measure.windows()
    for first in range(0, windows, batch):
        for scores in measure.score_windows(subject, list(range(first, min(first + batch, windows)))):
            tokens += len(scores)
            for score in scores:
                total -= score
    if tokens == 0:
        raise Refused("there is no evaluation text: the data is shorter than one window")
    return total / tokens, tokens


def whereabouts(error):
    """An exception and where it was raised, without reading source files: in a component there are none."""
    lines, trace = [f"{type(error).__name__}: {error}"], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"  {code.co_filename}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next
    return "\n".join(lines)


#: Where lines for the operator go; in a component, to the host.
sink = lambda level, text: print(f"{level}: {text}", file=sys.stderr)


def log(level, text):
    """A line for the operator. Level: 0 trace, 1 debug, 2 info, 3 warning, 4 error."""
    sink(level, str(text))
