#!/usr/bin/env -S python3 -B
"""Skill packs beside `mlx_lm.lora`: training speed and memory, and with --learn what is learned.

`make bench-packs` measures speed and renews its table in docs/benchmarks.md; --learn trains both sides for
300 updates (forty minutes on two cores), scores them with the same code and renews the other table. Set-up as
for bench.py. Every measurement is a fresh process, pinned to the same cores, both sides in turn.

Exit code: 0 when all bars are met, 1 when one is missed or a measurement failed, 2 wrong usage.
"""

import argparse
import sys
from pathlib import Path

import bench
import learning
import machine
import pairs
import process
import report
import setting as settings
import training
import venv
import waking

ROOT = Path(__file__).resolve().parents[2]


def options():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="packs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--learn", action="store_true", help="what both sides learn, in the place of how fast")
    add("--ours", type=Path, metavar="DIR", help="with --learn: score this pack and train none")
    add("--theirs", type=Path, metavar="DIR", help="with --learn: score this adapter of mlx-lm and train none")
    add("--steps", type=int, help=f"timed updates a process (default {training.TIMED}); with --learn all (default 300)")
    add("--rounds", type=int, default=training.ROUNDS, help=f"rounds over all sides (default {training.ROUNDS})")
    add("--quick", action="store_true", help="two updates, one round, less for the stock wheel")
    add("--dry", action="store_true", help="leave docs/benchmarks.md as it is, as do fewer steps or rounds")
    add("--threads", type=int, default=2, help="cores and BLAS threads of both sides (default 2)")
    add("--host", type=Path, default=ROOT / "target" / "release" / "plastic-host", help="the program")
    add("--base", default="smollm2-135m", help="model, as plastic-host names it")
    add("--provisional", metavar="WHY", default="", help="mark the tables as provisional and say why")
    args = parser.parse_args()
    if args.threads < 1 or args.rounds < 1 or (args.steps is not None and args.steps < 1):
        parser.error("--threads, --rounds and --steps must be at least 1")
    if (args.ours or args.theirs) and not args.learn:
        parser.error("--ours and --theirs need --learn")
    return args


def measure(setting, args):
    """The sections, and whether they are the whole work."""
    if args.learn:
        section = learning.measure(setting, args.steps or 300, args.ours, args.theirs)
        return [section], args.steps in (None, 300)
    rounds = 1 if args.quick else args.rounds
    timed = 2 if args.quick else args.steps or training.TIMED
    sections = [training.measure(setting, timed, rounds), waking.measure(setting, rounds)]
    return sections, (timed, rounds) == (training.TIMED, training.ROUNDS)


def main():
    """Measures, writes, and answers the exit code."""
    args = options()
    # What is learned does not depend on who else computes.
    calm = not (args.quick or args.dry or args.learn)
    load = bench.wait_for_quiet(bench.WAIT if calm else 0.0)
    name = "learning" if args.learn else "training"
    try:
        data = ROOT / "data" / "plays_train.jsonl"
        setting = settings.prepare(ROOT, args.host.resolve(), args.base, data, args.threads, args.quick)
        about = machine.describe(ROOT, setting.cores, args.threads)
        about["load_per_core_before"] = round(load, 2)
        about["plastic_host"] = process.run([setting.program, "--version"], []).stdout.split()[-1]
        busy = f"the machine was busy before it began (load {load:.2f} a CPU)"
        about["provisional"] = args.provisional or (busy if load > bench.BUSY and not args.learn else "")
        blas = settings.check_blas(setting)
        sections, whole = measure(setting, args)
    except (settings.Unusable, venv.Unavailable, process.Failed) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    seen = [c for section in sections for c in bench.companies(section.raw)]
    about["company"] = pairs.summary(seen) if seen else None
    packages = venv.installed(setting.python)
    command = " ".join(["packs.py", *map(bench.shown, sys.argv[1:])]) if len(sys.argv) > 1 else "make bench-packs"
    text = report.markdown(about, blas, packages, sections, command)
    report.raw(setting.out / f"packs-{name}.json", about, blas, packages, sections)
    report.write(setting.out / f"packs-{name}.md", text)
    if whole and not args.dry:
        page = ROOT / "docs" / "benchmarks.md"
        report.insert(page, text, f"<!-- packs: {name} -->", f"<!-- /packs: {name} -->")
    print(text)
    missed = [c for section in sections for c in section.checks if not c.met]
    for check in missed:
        print(f"missed: {check.what}: {check.measured}, required: {check.required}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
