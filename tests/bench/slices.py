"""Comparison 8: slices in two thin factors beside the same slices dense, both of the same storage type, in the model's own code.

One process times every slice of the model in both forms in turn (`plastic-host bench speed --work slice`); ratios are
taken within processes.
"""

import statistics

import pairs
from section import Check, Section, spread, times

SHARE, ROWS = 0.6, (1, 256)
FORMS = {"float32": "", "8 bits": "_8bit"}
"""Storage types, and how their numbers are named."""
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
        f"Slices in factors of {SHARE:.0%} of their parameters",
        ["slices", "m x n", "rank", "rows", "type", "dense, us", "factors, us", "faster", "as the checkpoint has them, us"],
        raw={"runs": runs},
    )
    for k, shape in enumerate(runs[0]["shapes"]):
        kinds = ", ".join(kind.removesuffix("_proj") for kind in shape["kinds"])
        for i, at in enumerate(shape["times"]):
            for form, suffix in FORMS.items():
                if not at[f"dense{suffix}_us"]:
                    continue
                of = lambda name: pairs.summary(statistics.median(run["shapes"][k]["times"][i][f"{name}_us"]) for run in runs)
                cells = ["{:.1f}".format(of(f"{name}{suffix}")["median"]) for name in ("dense", "factored")]
                faster = pairs.summary(ratio(run["shapes"][k], i, suffix) for run in runs)
                stored = f"{of('stored')['median']:.1f} ({shape['stored_as']})"
                name = [kinds, f"{shape['m']} x {shape['n']}", shape["rank"], at["rows"], form]
                section.rows.append([*name, *cells, spread(faster, times), stored])
    for i, at in enumerate(runs[0]["shapes"][0]["times"]):
        for form, suffix in FORMS.items():
            if all(shape["times"][i][f"dense{suffix}_us"] for shape in runs[0]["shapes"]):
                checks(section, runs, i, f"{at['rows']} row{'' if at['rows'] == 1 else 's'}, {form}", suffix)
    return section


def checks(section, runs, i, what, suffix):
    """Adds what was promised at the i-th number of rows: of all slices of the model, and of the slowest shape."""
    together = pairs.summary(whole(run, i, f"dense{suffix}") / whole(run, i, f"factored{suffix}") for run in runs)
    each = [
        pairs.summary(ratio(run["shapes"][k], i, suffix) for run in runs)["median"] for k in range(len(runs[0]["shapes"]))
    ]
    for name, found, text in (
        ("all of them", together["median"], spread(together, times)),
        ("the slowest shape", min(each), times(min(each))),
    ):
        section.checks.append(Check(f"factored slices, {name}, {what}", f"at least {FASTER:g}x", text, found >= FASTER))


def ratio(shape, i, suffix):
    """Dense over factored, at the i-th number of rows."""
    return time(shape, i, f"dense{suffix}") / time(shape, i, f"factored{suffix}")


def whole(run, i, form):
    """Microseconds of all slices of the model, at the i-th number of rows."""
    return sum(shape["count"] * time(shape, i, form) for shape in run["shapes"])


def time(shape, i, form):
    """Median over the rounds of a process, microseconds."""
    return statistics.median(shape["times"][i][f"{form}_us"])
