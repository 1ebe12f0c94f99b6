"""Comparison 4: the base against its own elastic states, tokens a second and memory, pair by pair."""

import math

import pairs
from section import Section, mib, spread, times

WINDOWS, LENGTH = 8, 512


def measure(setting, runs):
    """Answers the section for `runs.Run`s by name, each with a committed state."""
    section = Section(
        "The elastic model against its base (8 x 512 tokens)",
        [
            "state",
            "parameters awake",
            "perplexity, base / state",
            "base, tokens/s",
            "state, tokens/s",
            "speed-up within a pair",
            "process memory, base / state",
            "slices' weights",
        ],
    )
    windows = setting.windows(LENGTH, WINDOWS)
    for name, run in runs.items():
        step = run.committed()
        if step is None:
            section.notes.append(f"{name}: no state was committed ({run.steps[-1]['reason']}).")
            continue
        setting.say(f"elastic: {name}")
        base, state = setting.host(), setting.host(run.path)
        measured = pairs.alternate(lambda: base.score(windows), lambda: state.score(windows), 2 if setting.quick else 5)
        row(section, name, run, step, measured)
    return section


def row(section, name, run, step, measured):
    """Adds one row."""
    speed = pairs.compare(measured, lambda half: half["tokens_per_second"])
    faster = pairs.summary(b["tokens_per_second"] / a["tokens_per_second"] for a, b in measured)
    smaller = pairs.summary(b["peak_bytes"] / a["peak_bytes"] for a, b in measured)
    a, b = measured[0]
    before, after = run.steps[0]["before"], step["after"]
    share = after["parameters"] / run.header["parameters"]
    section.rows.append(
        [
            name,
            f"{share:.1%} of the slices'",
            f"{math.exp(a['loss']):.2f} / {math.exp(b['loss']):.2f}",
            spread(speed["first"], "{:.0f}".format),
            spread(speed["second"], "{:.0f}".format),
            spread(faster, times),
            f"{mib(a['peak_bytes'])} / {mib(b['peak_bytes'])}",
            f"{mib(before['bytes'])} / {mib(after['bytes'])} awake + {mib(after['parked_bytes'])} parked",
        ]
    )
    section.raw[name] = {
        "pairs": measured,
        "tokens_per_second": speed,
        "speed_up": faster,
        "memory": smaller,
        "step": {k: step[k] for k in ("step", "fate", "before", "after", "times")},
    }
