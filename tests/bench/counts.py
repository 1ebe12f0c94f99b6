#!/usr/bin/env -S python3 -B
"""Instructions where wall clocks are too noisy: a call of a plugin, and what the step loop does around its work.

`make bench-counts` counts with valgrind's callgrind (Debian: packages valgrind and libc6-dbg) and renews its table in
docs/benchmarks.md; ten minutes. The program runs on one thread, and as valgrind knows no AVX-512 it takes its AVX2 loops,
which are no part of what is counted.

* A call: `plugin bench --calls N` does the same work but for the number of calls of `decide` on a made-up model, so the
  difference of two runs is that of the calls, with all that the host does around them.
* A step: the policy tests/guests/hold looks at every singular value and changes nothing. Only instructions of the thread
  that steps are counted, and only within a step; the difference of two runs that differ in their steps leaves the first
  step and its decompositions out. Nothing is factored and nothing is scored: what remains is the loop. It is taken for few
  slices and for more, so that the cost of a slice can be told from that of a step.

Each count is taken twice from runs of other lengths; the two must agree within a few percent.

Exit code: 0 when they do, 1 when they do not or a count failed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import machine
import process
import report
from section import Check, Section

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- counts -->", "<!-- /counts -->"
STEP = "plastic_host::plastic::step::Runner::try_step*"
"""The function of a step, as callgrind names it."""
CALLS = (50, 250, 450)
STEPS = (3, 13, 23)
SHAPE = "210x576"
LAYERS = {2: "model.layers.1", 60: "model.layers.*"}
"""Layers with so many slices: k and v of one, and of all thirty. Their decompositions are the quickest."""
AGREE = 0.05
"""Share by which two counts of the same may differ."""


@dataclass
class Counter:
    """Runs plastic-host under callgrind."""

    host: Path
    folder: Path
    cores: list

    def run(self, *arguments, only=None):
        """Instructions of a run; of the functions that match `only`, where given."""
        out = self.folder / "callgrind.out"
        for old in self.folder.glob("callgrind.out.*"):
            old.unlink()
        command = ["valgrind", "--tool=callgrind", "--trace-children=yes", f"--callgrind-out-file={out}.%p"]
        command += [f"--toggle-collect={only}"] if only else []
        # A cache of its own: compiled plugins fit the processor that compiled them, and valgrind's is another one.
        env = {"PLASTIC_CACHE": str(self.folder / "cache"), "PLASTIC_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        env |= {"PLASTIC_ISA": "avx2", "TMPDIR": str(self.folder)}
        process.run([*command, self.host, *arguments], self.cores, env)
        # The largest is the program's own; the others are of helpers that it started.
        return max(total(file.read_text()) for file in self.folder.glob("callgrind.out.*"))


def total(text):
    """Instructions that a file of callgrind's reports."""
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(("summary:", "totals:")))


def slope(counts):
    """(instructions of one more, the two figures it is the mean of) of counts by number of repeats, three of them."""
    (a, x), (b, y), (c, z) = sorted(counts.items())
    each = [(y - x) / (b - a), (z - y) / (c - b)]
    return sum(each) / 2, each


def calls(counter, plugin, shape=SHAPE):
    """Instructions of a run by number of calls."""
    command = ["plugin", "bench", plugin, "--shape", shape, "--json"]
    counter.run(*command, "--calls", 1)
    return {n: counter.run(*command, "--calls", n) for n in CALLS}


def steps(counter, base, policy, layers):
    """Instructions within steps of a run by number of steps."""
    found = {}
    for n in STEPS:
        out = counter.folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        command = ["run", "--policy", policy, "--base", base, "--budget", 1, "--steps", n, "--out", out, "--quiet"]
        command += ["--windows", 1, "--window", 4]
        for kind in ("k", "v"):
            command += ["--layers", f"{layers}.self_attn.{kind}_proj"]
        found[n] = counter.run(*command, only=STEP)
        if not found[n]:
            raise process.Failed(f"no instruction was counted in {STEP}: the program has no such symbol")
    return found


def measure(counter, base, sum_policy, hold_policy):
    """The section of all counts."""
    section = Section("", ["", "instructions", "two counts"], raw={})
    counted = {"a call": calls(counter, sum_policy)}
    for slices, layers in LAYERS.items():
        counted[f"a step, {slices} slices"] = steps(counter, base, hold_policy, layers)
    return report_of(counted, section)


def report_of(counted, section):
    """Rows and checks of counts by what was counted."""
    few, many = (f"a step, {n} slices" for n in LAYERS)
    titles = {
        "a call": f"a call of `decide`, {SHAPE.replace('x', ' x ')}, all of it",
        few: f"a step of the loop that changes nothing, {min(LAYERS)} slices",
        many: f"the same, {max(LAYERS)} slices",
    }
    means = {}
    for name, title in titles.items():
        means[name], each = slope(counted[name])
        apart = abs(each[0] - each[1]) / means[name]
        section.rows.append([title, f"{means[name]:,.0f}", " and ".join(f"{x:,.0f}" for x in each)])
        section.checks.append(Check(f"two counts of {name}", f"within {AGREE:.0%}", f"{apart:.2%} apart", apart <= AGREE))
    each = (means[many] - means[few]) / (max(LAYERS) - min(LAYERS))
    section.rows.append(["of it for one more slice of 192 singular values", f"{each:,.0f}", ""])
    section.raw = counted
    return section


def options():
    """The command line."""
    parser = argparse.ArgumentParser(prog="counts.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=ROOT / "target" / "release" / "plastic-host", help="the program")
    parser.add_argument("--base", default="smollm2-135m", help="model, as plastic-host names it; k and v of its layer 1 and of all")
    parser.add_argument("--dry", action="store_true", help="leave docs/benchmarks.md as it is")
    return parser.parse_args()


def main():
    """Counts, writes, and answers the exit code."""
    args = options()
    if not shutil.which("valgrind"):
        print("error: valgrind is not here; install the packages valgrind and libc6-dbg (named as on Debian)", file=sys.stderr)
        return 1
    out = ROOT / "target" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="counts-", dir=out) as name:
            folder = Path(name)
            found = process.run([args.host, "model", "inspect", args.base, "--json"], [])
            base = json.loads(found.stdout)["dir"]
            guests = {}
            for guest in ("sum", "hold"):
                guests[guest] = folder / f"{guest}.wasm"
                source = ROOT / "tests" / "guests" / guest
                process.run([args.host, "plugin", "build", source, "-o", guests[guest], "--quiet"], [])
            counter = Counter(args.host.resolve(), folder, machine.pick_cores(1))
            section = measure(counter, base, guests["sum"], guests["hold"])
    except process.Failed as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    valgrind = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    about = machine.describe(ROOT, [], 1)
    lines = [f"* {about['date']}, commit {about['commit']}, {valgrind}; {about['cpu']}; {about['system']}", ""]
    checks = [[c.what, c.required, c.measured, "yes" if c.met else "**no**"] for c in section.checks]
    lines += [*report.table(section.header, section.rows), "", *report.table(["", "required", "measured", "met"], checks)]
    text = "\n".join(lines) + "\n"
    report.write(out / "counts.json", json.dumps({"machine": about, "counts": section.raw}, indent=1) + "\n")
    if not args.dry:
        report.insert(ROOT / "docs" / "benchmarks.md", text, BEGIN, END)
    print(text)
    return 0 if all(c.met for c in section.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
