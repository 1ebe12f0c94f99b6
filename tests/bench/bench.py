#!/usr/bin/env python3
"""Compares plastic-host with mlx-lm side by side, on the same model, windows, threads and precision.

`make bench` runs everything and renews the tables in docs/benchmarks.md; `make bench-quick` runs a shorter
form in under five minutes on two cores and writes only to target/bench. Needs the built program with its
plugins and default model, Python 3.10 with venv, and a package index for the first run. Every measurement
is a fresh process, pinned to the same cores, plastic-host and peer in turn.

Exit code: 0 when all bars are met, 1 when one is missed or a measurement failed, 2 wrong usage.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import elastic
import machine
import overhead
import pairs
import process
import report
import runs
import scoring
import setting as settings
import starting
import venv

ROOT = Path(__file__).resolve().parents[2]
BUSY = 0.5
"""Load average a CPU above which other work disturbs the numbers."""
BUDGETS = {"budget 0.9": ["--budget", "0.9"], "budget 0.6": ["--budget", "0.6", "--steps", "1", "--max-loss-increase", "5"]}
"""The second state is judged leniently: it is there to show what rank costs, not that it is worth it."""


def options():
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pairs, less work for the stock wheel, one elastic state; docs stay as they are")
    parser.add_argument("--only", nargs="+", choices=["scoring", "starting", "overhead", "elastic"], help="only these comparisons; docs stay as they are")
    parser.add_argument("--threads", type=int, default=2, help="cores and BLAS threads of both sides (default 2)")
    parser.add_argument("--base", default="smollm2-135m", help="model, as plastic-host names it")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "eval.jsonl", help="text to score")
    parser.add_argument("--host", type=Path, default=ROOT / "target" / "release" / "plastic-host", help="the program")
    parser.add_argument("--provisional", metavar="WHY", default="", help="mark the page as provisional and say why")
    return parser.parse_args()


def measure(setting, wanted):
    """Runs the wanted comparisons and answers their sections."""
    sections = []
    if "scoring" in wanted:
        sections.append(scoring.measure(setting))
    if "starting" in wanted:
        sections.append(starting.measure(setting))
    if {"overhead", "elastic"} & set(wanted):
        names = list(BUDGETS)[:1] if setting.quick else list(BUDGETS)
        made = {}
        for name in names:
            setting.say(f"running the loop: {name}")
            made[name] = runs.make(setting, name.replace(" ", "-"), BUDGETS[name])
        if "overhead" in wanted:
            sections.append(overhead.measure(made))
        if "elastic" in wanted:
            sections.append(elastic.measure(setting, made))
    return sections


def companies(node):
    """Every `company` in the raw numbers of the sections."""
    match node:
        case dict():
            own = [node["company"]] if node.get("company") is not None else []
            return own + [c for child in node.values() for c in companies(child)]
        case list() | tuple():
            return [c for child in node for c in companies(child)]
        case _:
            return []


def main():
    """Measures, writes, and answers the exit code."""
    args = options()
    whole = not args.quick and not args.only
    wanted = args.only or ["scoring", "starting", "overhead", "elastic"]
    load = machine.load_per_core()
    print(f"Load average a CPU: {load:.2f}", file=sys.stderr)
    if load > BUSY:
        print(f"warning: this machine is busy (load {load:.2f} a CPU); wait until it is calm, or do not trust the numbers", file=sys.stderr)
    if process.inherited():
        ignored = " ".join(f"{name}={value}" for name, value in process.inherited().items())
        print(f"Left out of the measured processes' environment: {ignored}", file=sys.stderr)
    try:
        setting = settings.prepare(ROOT, args.host.resolve(), args.base, args.data.resolve(), args.threads, args.quick)
        about = machine.describe(ROOT, setting.cores, args.threads)
        about["load_per_core_before"] = round(load, 2)
        about["plastic_host"] = subprocess.run([args.host, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
        about["provisional"] = args.provisional or (f"the machine was busy before it began (load {load:.2f} a CPU)" if load > BUSY else "")
        blas = settings.check_blas(setting)
        sections = measure(setting, wanted)
    except (settings.Unusable, venv.Unavailable, process.Failed) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    seen = [c for section in sections for c in companies(section.raw)]
    about["company"] = pairs.summary(seen) if seen else None
    packages = venv.installed(setting.python)
    name = "bench" if whole else "quick" if args.quick else "part"
    command = " ".join(["make bench" if whole else "bench.py", *([] if whole else sys.argv[1:])])
    text = report.markdown(about, blas, packages, sections, command)
    report.raw(setting.out / f"{name}.json", about, blas, packages, sections)
    report.write(setting.out / f"{name}.md", text)
    if whole:
        report.insert(ROOT / "docs" / "benchmarks.md", text)
    print(text)
    missed = [c for section in sections for c in section.checks if not c.met]
    for check in missed:
        print(f"missed: {check.what}: {check.measured}, required: {check.required}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
