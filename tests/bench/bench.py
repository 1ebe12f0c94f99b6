#!/usr/bin/env -S python3 -B
"""Compares plastic-host with mlx-lm and llama.cpp side by side, on the same model, windows and threads.

`make bench` runs everything and renews the tables in docs/benchmarks.md; `make bench-quick` runs a shorter
form without llama.cpp, in under five minutes on two cores, and writes only to target/bench. Needs the built program with its
plugins and default model, Python 3.10 with venv, and a package index for the first run. Every measurement
is a fresh process, pinned to the same cores, plastic-host and peer in turn.

Exit code: 0 when all bars are met, 1 when one is missed or a measurement failed, 2 wrong usage.
"""

import argparse
import sys
import time
from pathlib import Path

import elastic
import generating
import llama
import machine
import overhead
import pairs
import process
import report
import runs
import scoring
import setting as settings
import slices
import starting
import training
import venv

ROOT = Path(__file__).resolve().parents[2]
COMPARISONS = ["scoring", "starting", "decode", "batch", "first-token", "slices", "training", "overhead", "elastic"]
WITH_LLAMA = {"scoring", "decode", "batch", "first-token"}
"""Those that llama.cpp takes part in."""
BUSY = 0.5
"""Load average a CPU above which other work disturbs the numbers."""
WAIT = 300.0
"""Seconds to wait at most for a machine that was just busy, say building the program."""
BUDGETS = {
    "budget 0.9": ["--budget", "0.9"],
    "budget 0.6": ["--budget", "0.6", "--steps", "1", "--max-loss-increase", "5"],
}
"""Runs of the loop. The second is judged leniently: it shows what rank costs, not that it is worth it."""


def options():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer pairs, less of everything, no llama.cpp; docs stay as they are")
    add("--only", nargs="+", choices=COMPARISONS, help="only these comparisons; docs stay as they are")
    add("--threads", type=int, default=2, help="cores and BLAS threads of both sides (default 2)")
    add("--base", default="smollm2-135m", help="model, as plastic-host names it")
    add("--data", type=Path, default=ROOT / "data" / "eval.jsonl", help="text to score")
    add("--host", type=Path, default=ROOT / "target" / "release" / "plastic-host", help="the program")
    add("--no-llama", action="store_true", help="leave llama.cpp out, which has to be built once")
    add("--gguf", type=Path, metavar="FILE", help="the model for llama.cpp, where --base is not the default one")
    add("--provisional", metavar="WHY", default="", help="mark the tables as provisional and say why")
    args = parser.parse_args()
    if args.threads < 1:
        parser.error("--threads must be at least 1")
    return args


def wait_for_quiet(longest):
    """Waits at most `longest` seconds for other work to end; answers the load average a CPU."""
    begun = time.monotonic()
    load = machine.load_per_core()
    while load > BUSY and time.monotonic() - begun < longest:
        print(f"\rLoad average a CPU: {load:.2f}, waiting for {BUSY}  ", end="", file=sys.stderr, flush=True)
        time.sleep(5)
        load = machine.load_per_core()
    print(f"\rLoad average a CPU: {load:.2f}{' ' * 20}", file=sys.stderr)
    if load > BUSY:
        print("warning: this machine is busy; do not trust the numbers", file=sys.stderr)
    return load


def measure(setting, wanted):
    """Runs the wanted comparisons and answers their sections."""
    sections = []
    if "scoring" in wanted:
        sections.append(scoring.measure(setting))
    if "starting" in wanted:
        sections.append(starting.measure(setting))
    if "decode" in wanted:
        sections.append(generating.decoding(setting))
    if "batch" in wanted:
        sections.append(generating.batched(setting))
    if "first-token" in wanted:
        sections.append(generating.first_token(setting))
    if "slices" in wanted:
        sections.append(slices.measure(setting))
    if "training" in wanted:
        sections.append(training.measure(setting, *((1, 1) if setting.quick else (4, 2)), stock=False, variants=not setting.quick))
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


def shown(argument):
    """A command line's word for the report: of a path only its name, for the page is read elsewhere."""
    return Path(argument).name if "/" in argument else argument


def main():
    """Measures, writes, and answers the exit code."""
    args = options()
    whole = not args.quick and not args.only and not args.no_llama
    load = wait_for_quiet(WAIT if whole else 0.0)
    if process.inherited():
        ignored = " ".join(f"{name}={value}" for name, value in process.inherited().items())
        print(f"Left out of the measured processes' environment: {ignored}", file=sys.stderr)
    try:
        setting = settings.prepare(ROOT, args.host.resolve(), args.base, args.data.resolve(), args.threads, args.quick)
        about = machine.describe(ROOT, setting.cores, args.threads)
        about["load_per_core_before"] = round(load, 2)
        wanted = args.only or COMPARISONS
        if WITH_LLAMA & set(wanted) and not (args.quick or args.no_llama):
            setting.llama = llama.prepare(setting, args.gguf)
        about["plastic_host"] = process.run([setting.program, "--version"], []).stdout.split()[-1]
        busy = f"the machine was busy before it began (load {load:.2f} a CPU)" if load > BUSY else ""
        about["provisional"] = args.provisional or busy
        blas = settings.check_blas(setting)
        sections = measure(setting, wanted)
    except (settings.Unusable, venv.Unavailable, process.Failed) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    seen = [c for section in sections for c in companies(section.raw)]
    about["company"] = pairs.summary(seen) if seen else None
    packages = venv.installed(setting.python)
    if setting.llama:
        packages[llama.PACKAGE] = venv.installed(setting.llama.python)[llama.PACKAGE]
    name = "bench" if whole else "quick" if args.quick else "part"
    command = "make bench" if len(sys.argv) == 1 else " ".join(["bench.py", *map(shown, sys.argv[1:])])
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
