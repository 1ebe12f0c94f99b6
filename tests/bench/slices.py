"""Comparison 8: slices in two thin factors beside the same slices dense, both float32, through the model's own code.

One process times every slice of the model in both forms in turn (`plastic-host bench speed --work slice`); ratios are
taken within processes.
"""

import statistics

import pairs
from section import Check, Section, spread, times

SHARE, ROWS = 0.6, (1, 256)
FASTER = 1.3
"""Times as fast as the dense slice, promised."""


def measure(setting):
    """Answers the section."""
    count = 1 if setting.quick else 3
    windows = setting.windows(64, 1)
    runs = []
    for n in range(count):
        setting.say(f"slices: process {n + 1} of {count}")
        options = ["--share", SHARE, "--rows", ",".join(map(str, ROWS)), "--repeats", 2]
        said, cost = setting.host().speed("slice", windows, *options)
        runs.append({"shapes": said["slices"]["shapes"], **cost})
    return report(runs)


def report(runs):
    """The section of some processes' answers."""
    section = Section(
        f"Slices in factors of {SHARE:.0%} of their parameters, float32",
        ["slices", "m x n", "rank", "rows", "dense, us", "factors, us", "faster", "as the checkpoint has them, us"],
        raw={"runs": runs},
    )
    for k, shape in enumerate(runs[0]["shapes"]):
        kinds = ", ".join(kind.removesuffix("_proj") for kind in shape["kinds"])
        for i, at in enumerate(shape["times"]):
            found = [median_times(run["shapes"][k]["times"][i]) for run in runs]
            micro = "{:.1f}".format
            cells = [micro(pairs.summary(f[form] for f in found)["median"]) for form in ("dense", "factored")]
            stored = micro(pairs.summary(f["stored"] for f in found)["median"])
            faster = pairs.summary(f["dense"] / f["factored"] for f in found)
            name = [kinds, f"{shape['m']} x {shape['n']}", shape["rank"], at["rows"]]
            section.rows.append([*name, *cells, spread(faster, times), f"{stored} ({shape['stored_as']})"])
    for i, at in enumerate(runs[0]["shapes"][0]["times"]):
        rows = f"{at['rows']} row{'' if at['rows'] == 1 else 's'}"
        together = pairs.summary(whole(run, i, "dense") / whole(run, i, "factored") for run in runs)
        each = [pairs.summary(ratio(run["shapes"][k], i) for run in runs)["median"] for k in range(len(runs[0]["shapes"]))]
        ratio_all, least = together["median"], min(each)
        required = f"at least {FASTER:g}x"
        section.checks.append(Check(f"factored slices, all of them, {rows}", required, spread(together, times), ratio_all >= FASTER))
        section.checks.append(Check(f"factored slices, the slowest shape, {rows}", required, times(least), least >= FASTER))
    return section


def median_times(at):
    """Medians over the rounds of a process, microseconds."""
    return {form: statistics.median(at[f"{form}_us"]) for form in ("dense", "factored", "stored")}


def ratio(shape, i):
    """Dense over factored, at the i-th number of rows."""
    found = median_times(shape["times"][i])
    return found["dense"] / found["factored"]


def whole(run, i, form):
    """Microseconds of all slices of the model, at the i-th number of rows."""
    return sum(shape["count"] * median_times(shape["times"][i])[form] for shape in run["shapes"])
