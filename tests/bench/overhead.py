"""Comparison 3: what a step costs beside decomposing (SVD), scoring and the disk.

Read from a run's journal, whose steps carry wall-clock seconds:

    overhead = total - spectra - apply - scoring - commit

`spectra` is the part of observing that decomposes, `scoring` the part of evaluating that runs the model,
`commit` the banks' way to the disk. What remains is building and hashing the observation, both plugins,
validating, switching between the base and the candidate, and keeping the record.
"""

import pairs
from section import Check, Section

LIMIT = 0.01


def parts(step):
    """Seconds of one step by what they were spent on."""
    t = step["times"]
    plugins = t["decide"] + t["evaluate"] - t["scoring"]
    work = t["spectra"] + t["apply"] + t["scoring"] + t["commit"]
    return {
        "total": t["total"],
        "decomposing": t["spectra"] + t["apply"],
        "scoring": t["scoring"],
        "disk": t["commit"],
        "plugins": plugins,
        "overhead": t["total"] - work,
    }


def measure(runs):
    """Answers the section for some `runs.Run`s by name."""
    section = Section(
        "Overhead of a step outside SVD, scoring and disk",
        [
            "run, step",
            "fate",
            "step, s",
            "decomposing, s",
            "scoring, s",
            "disk, s",
            "plugin calls, ms",
            "overhead, ms",
            "share of the step",
        ],
    )
    # A step that changes nothing consists of overhead alone: its share says nothing, its milliseconds do.
    shares, idle = [], []
    for name, run in runs.items():
        for step in run.steps:
            p = parts(step)
            share = p["overhead"] / p["total"]
            section.rows.append(
                [f"{name}, {step['step']}", step["fate"]]
                + [f"{p[k]:.2f}" for k in ("total", "decomposing", "scoring", "disk")]
                + [f"{p['plugins'] * 1e3:.1f}", f"{p['overhead'] * 1e3:.1f}", f"{share:.2%}"]
            )
            if step["fate"] in ("held", "refused"):
                idle.append(p["overhead"])
            else:
                shares.append(share)
        section.notes.append(f"{name}: {run.ran.wall:.0f} s for the whole process; calibration may come from the cache.")
        section.raw[name] = {
            "steps": [parts(s) for s in run.steps],
            "process": {"wall": run.ran.wall, "cpu": run.ran.cpu, "company": run.ran.company},
        }
    if idle:
        cost = pairs.summary(idle)["median"] * 1e3
        section.notes.append(f"A step whose plan changes nothing costs {cost:.1f} ms in all.")
    measured = f"at most {max(shares):.2%}" if shares else "no step changed anything"
    met = bool(shares) and max(shares) < LIMIT
    section.checks.append(Check("overhead of a step", f"under {LIMIT:.0%}", measured, met))
    return section
