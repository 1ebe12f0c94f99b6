"""One comparison's part of the report, and the checks that can fail."""

from dataclasses import dataclass, field


@dataclass
class Check:
    """A bar: something that was promised, and what was measured."""

    what: str
    required: str
    measured: str
    met: bool


@dataclass
class Section:
    """A table with a heading, the bars that belong to it, and the raw numbers behind it."""

    title: str
    header: list
    rows: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    """Sentences under the table."""
    checks: list = field(default_factory=list)
    raw: dict = field(default_factory=dict)


LOSS_TOLERANCE = 3e-4
"""Nats a token. MLX sums the exponentials of the vocabulary in float32 and comes out 1.4e-4 low."""


def same_loss(what, ours, theirs, tolerance=LOSS_TOLERANCE):
    """The check that both sides computed the same mean loss, within `tolerance` nats."""
    apart = abs(ours - theirs)
    measured = f"{ours:.6f} and {theirs:.6f}: {apart:.1e} apart"
    return Check(f"same loss, {what}", f"within {tolerance:g} nats", measured, apart <= tolerance)


def spread(summary, form):
    """A summary as text: the median and the range, each number through `form`."""
    if summary["n"] == 1:
        return f"{form(summary['median'])} (n = 1)"
    return f"{form(summary['median'])} ({form(summary['min'])} to {form(summary['max'])}, n = {summary['n']})"


def times(ratio):
    """A ratio as text with as many digits as it deserves: 123x, 12.3x, 1.23x."""
    digits = 0 if ratio >= 100 else 1 if ratio >= 10 else 2
    return f"{ratio:.{digits}f}x"


def mib(size):
    """Bytes as MiB."""
    return f"{size / 2**20:,.0f} MiB"
