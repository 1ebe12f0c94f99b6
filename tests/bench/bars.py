#!/usr/bin/env -S python3 -B
"""Perplexity of compressed models beside what an independent implementation reaches.

`make bars` compresses the default base by each method at each share of its slices' parameters, measures perplexity on
48 windows of 512 tokens, and prints a Markdown table with the bars of tests/golden/bars beside what was reached. The
first compression gathers calibration statistics, a minute or two; the cache keeps them. Each run then takes about a
minute on four calm cores; distillation (the row `refined`) some seconds more for each of its steps.

Rows: plain, input, fisher (the same share of every slice, in three metrics), water (one threshold for all slices),
pivoted (the same, stored as rows and coefficients), refined (distilled once, in 8 bits, one file), residual (a coarse quantisation
and repairs; shares are of the bytes in float16).

Exit code: 0 when every bar is reached, 1 when one is missed or a run failed, 2 wrong usage.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "bars"
BUDGETS = ("0.9", "0.8", "0.6", "0.4")
QUICK = ("0.8", "0.6")
ROWS = {
    "plain": "plain SVD, uniform",
    "input": "input-whitened SVD, uniform",
    "fisher": "two-sided whitening, uniform",
    "water": "two-sided whitening, one global threshold",
    "pivoted": "the same, pivoted storage (not nested)",
    "refined": "one global threshold, distilled; one file for all",
    "residual": "coarse weights and repairs, by bytes",
}
UNIFORM = ("plain", "input", "fisher")
BEAT = 0.85
"""Where it is to be beaten, the share of the fourth row's perplexity that may remain."""
TOLERANCE = 1.02
"""Calibration draws labels, so no two implementations agree to the last digit."""
CODES = (2, 3, 4, 5, 6, 8)
"""Bits that MLX quantises to."""


class Failed(Exception):
    """A command ended with an error; the text holds its last lines."""


def bar(bars, row, budget):
    """The perplexity to reach, or None where there is none."""
    if row in ("refined", "residual"):
        water = bars["water"].get(budget)
        return water and water * (BEAT if float(budget) <= 0.6 else 1.0)
    return bars.get(row, {}).get(budget)


def reached(row, goal, here):
    """Whether a bar is reached; None where there is none. What plain SVD leaves is noise: its order of size counts."""
    if goal is None:
        return None
    return here <= goal * (10.0 if row == "plain" else TOLERANCE)


def coarse_bits(budget, group=64, repairs=0.02):
    """The most bits of coarse weights that leave a share of the bytes for repairs; None where even two are too many."""
    fitting = [bits for bits in CODES if (bits + 32 / group) / 16 + repairs <= float(budget)]
    return fitting[-1] if fitting else None


def shown(perplexity):
    """A perplexity in a table."""
    if perplexity is None:
        return ""
    return f"{perplexity:.1e}".replace("e+0", "e").replace("e+", "e") if perplexity >= 1e5 else f"{perplexity:.4g}"


def markdown(results, bars, rows, budgets):
    """The table; a cell is `bar / here`, in bold where the bar is reached."""
    lines = [
        "| method (bar / here) | " + " | ".join(budgets) + " |",
        "| --- |" + " ---: |" * len(budgets),
    ]
    for row in rows:
        cells = []
        for budget in budgets:
            goal, found = bar(bars, row, budget), results.get((row, budget))
            here = shown(found["perplexity"]) if found else "-"
            if found and reached(row, goal, found["perplexity"]):
                here = f"**{here}**"
            cells.append(f"{shown(goal) or '-'} / {here}" if goal or found else "")
        lines.append(f"| {ROWS[row]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


class Bench:
    """The program, its texts and a folder for what it makes."""

    def __init__(self, args, golden, folder):
        self.args, self.golden, self.folder = args, golden, folder
        self.text = {}
        for name in ("cal", "eval"):
            path = folder / f"{name}.jsonl"
            path.write_bytes(gzip.decompress((GOLDEN / golden[name]["file"]).read_bytes()))
            self.text[name] = path

    def run(self, *command):
        """The document of a command."""
        command = [str(part) for part in (self.args.host, *command, "--json", "-q")]
        print("  " + " ".join(command), file=sys.stderr, flush=True)
        ran = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            raise Failed(f"{' '.join(command)}: exit code {ran.returncode}\n{ran.stderr[-2000:]}")
        return json.loads(ran.stdout)

    def compress(self, name, policy, budget, *more):
        """Compresses to the folder `name`; answers the document."""
        window = self.golden["cal"]
        texts = ["--calibration", self.text["cal"], "--calibration-windows", 0, "--window", window["tokens"]]
        texts += ["--gradient-windows", window["gradient_windows"], "--data", self.text["eval"], "--windows", 0]
        chosen = ["--policy", ROOT / "plugins" / f"{policy}.wasm"]
        place = ["--base", self.args.base, "--out", self.folder / name, "--force"]
        return self.run("compress", *place, *texts, *chosen, "--budget", budget, *more)

    def measured(self, row, budget):
        """One cell: perplexity, its standard error, the share kept and the bytes on disk."""
        factors = ["--factor-bits", 16]
        if row == "pivoted":
            return self.pivoted(budget)
        if row == "refined":
            return self.refined(budget)
        if row in UNIFORM:
            made = self.compress(row, "uniform", budget, "--policy-opt", f"metric={row}", *factors)
        elif row == "residual":
            mode = ["--mode", "residual", "--bits", coarse_bits(budget), "--factor-bits", 8]
            made = self.compress(row, "water-fill", budget, *mode)
        else:
            made = self.compress(row, "water-fill", budget, *factors)
        shutil.rmtree(self.folder / row)
        found = made["measured"]
        error = found["errors"][1] if found["errors"] else None
        cell = {"perplexity": found["after"], "standard_error": error, "share": made["share"], "bytes": made["disk"][1]}
        return {**cell, "base": found["before"]}

    def refined(self, budget):
        """The same of one file, distilled once at the largest budget and run at each."""
        made = self.folder / "refined"
        if not made.is_dir():
            largest = max(self.args.budgets, key=float)
            self.compress("refined", "water-fill", largest, "--refine", self.args.refine_steps, "--no-eval")
        found = self.scored(made, "--awake-budget", budget)
        size = sum(file.stat().st_size for file in made.glob("*.safetensors"))
        return {**found, "share": float(budget), "bytes": size}

    def scored(self, base, *more):
        """Perplexity of a checkpoint and its standard error."""
        window = self.golden["eval"]["tokens"]
        found = self.run("eval", "--base", base, "--data", self.text["eval"], "--window", window, *more)
        return {"perplexity": found["perplexity"], "standard_error": found["perplexity_standard_error"]}

    def pivoted(self, budget):
        """The same of a pivoted export. All components of all slices are stored once, for every budget."""
        whole, fixed = self.folder / "whole", self.folder / "fixed"
        if not whole.is_dir():
            self.compress("whole", "water-fill", 1, "--ladder", "full", "--factor-bits", 16, "--no-eval")
        made = self.run("export", "--pivoted", whole, "--awake-budget", budget, "--out", fixed, "--force")
        found = self.scored(fixed)
        shutil.rmtree(fixed)
        return {**found, "share": made["share"], "bytes": made["bytes"], "as_factors": made["share_as_factors"]}


def options():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bars.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", default=",".join(ROWS), help="some of the rows only, with commas (default: all)")
    add("--budgets", default=",".join(BUDGETS), help="shares, with commas (default: %(default)s)")
    add("--quick", action="store_true", help=f"only {' and '.join(QUICK)}")
    add("--refine-steps", type=int, default=48, metavar="N", help="updates of the row refined (default %(default)s)")
    add("--json", type=Path, default=ROOT / "target" / "bench" / "bars.json", metavar="FILE", help="raw numbers")
    add("--host", type=Path, default=ROOT / "target" / "release" / "plastic-host", help="the program")
    add("--base", default="smollm2-135m", help="model, as plastic-host names it; the bars are of the default one")
    add("--folder", type=Path, metavar="DIR", help="where checkpoints are made and deleted again (default: target/bench)")
    args = parser.parse_args()
    args.rows = args.rows.split(",")
    args.budgets = list(QUICK) if args.quick else args.budgets.split(",")
    if unknown := [row for row in args.rows if row not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    try:
        if not all(0 < float(budget) <= 1 for budget in args.budgets):
            raise ValueError
    except ValueError:
        parser.error("--budgets are shares above 0 and up to 1, such as 0.8,0.6")
    if not args.host.is_file():
        parser.error(f"{args.host} is missing: run `make build`")
    return args


def wanted(row, budget, bars):
    """Whether a cell is measured: pivoted storage where there is a bar, residual where codes fit."""
    if row == "pivoted":
        return budget in bars["pivoted"]
    return row != "residual" or coarse_bits(budget) is not None


def main():
    """Measures, prints, and answers the exit code."""
    args = options()
    golden = json.loads((GOLDEN / "bars.json").read_text())
    bars, results, failed = golden["bars"], {}, False
    parent = args.folder or ROOT / "target" / "bench"
    parent.mkdir(parents=True, exist_ok=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bars-", dir=parent) as folder:
        bench = Bench(args, golden, Path(folder))
        for row in args.rows:
            for budget in (b for b in args.budgets if wanted(row, b, bars)):
                begun = time.monotonic()
                try:
                    found = bench.measured(row, budget)
                except Failed as e:
                    print(f"error: {row} at {budget}: {e}", file=sys.stderr)
                    failed = True
                    continue
                found["seconds"] = round(time.monotonic() - begun, 1)
                found["bar"] = bar(bars, row, budget)
                results[row, budget] = found
                print(f"{row} at {budget}: {shown(found['perplexity'])}, bar {shown(found['bar'])}", file=sys.stderr)
                cells = [{"row": r, "budget": b, **cell} for (r, b), cell in results.items()]
                args.json.write_text(json.dumps({"base": golden["base"], "cells": cells}, indent=1) + "\n")
    print(markdown(results, bars, args.rows, args.budgets))
    base = next((cell["base"] for cell in results.values() if "base" in cell), None)
    print(f"\nThe base: {golden['base']:.2f} / {shown(base) if base else '-'}. Bold: the bar is reached.")
    missed = [key for key, cell in results.items() if reached(key[0], cell["bar"], cell["perplexity"]) is False]
    for row, budget in missed:
        print(f"missed: {row} at {budget}", file=sys.stderr)
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main())
