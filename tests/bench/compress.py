#!/usr/bin/env -S python3 -B
"""`plastic-host compress` beside an independent NumPy pass over the same slices: time and memory.

`make bench-compress` measures both in turn on the same cores and renews the table in docs/benchmarks.md. Both begin
with calibration statistics at hand, decompose all 210 slices of the default base weighed on both sides, and
write the factors; neither measures perplexity. NumPy brings its own OpenBLAS. Set-up as for bench.py.

Exit code: 0 when all bars are met, 1 when one is missed or a measurement failed.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import bench
import machine
import pairs
import process
import report
import setting as settings
import venv
from section import Check, Section, mib, spread, times

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).with_name("peer_svd.py")
FASTER = 2.0
"""Times as fast as the peer, promised."""
MEMORY = 1.5
"""Times the checkpoint, and the largest slice's workspace on top, promised."""


def options():
    """The command line."""
    parser = argparse.ArgumentParser(prog="compress.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="rounds over both sides (default 3)")
    add("--threads", type=int, default=2, help="cores and BLAS threads of both sides (default 2)")
    add("--host", type=Path, default=ROOT / "target" / "release" / "plastic-host", help="the program")
    add("--base", default="smollm2-135m", help="model, as plastic-host names it")
    add("--dry", action="store_true", help="leave docs/benchmarks.md as it is")
    return parser.parse_args()


def measure(setting, rounds):
    """Answers the section."""
    work = setting.out / "compress"
    work.mkdir(parents=True, exist_ok=True)
    statistics, theirs, ours = work / "statistics", work / "theirs.safetensors", work / "ours"
    if not statistics.is_dir():
        setting.say("compress: drawing covariances for the peer (once)")
        process.run([setting.python, PEER, "statistics", setting.base_dir, statistics], [])
    command = [setting.program, "compress", "--base", setting.base, "--out", ours, "--no-eval", "--force", "--quiet"]
    command += ["--budget", "0.8", "--factor-bits", "16", "--json"]
    setting.say("compress: gathering our statistics (once)")
    process.run(command, [], setting.env)
    found = {"ours": [], "theirs": []}
    for number in range(rounds):
        setting.say(f"compress: round {number + 1} of {rounds}")
        found["ours"].append(process.run(command, setting.cores, setting.env))
        peer = [setting.python, PEER, "factor", setting.base_dir, statistics, theirs]
        found["theirs"].append(process.run(peer, setting.cores, setting.env))
    said = json.loads(found["ours"][-1].stdout)
    shutil.rmtree(ours, ignore_errors=True)
    return report_of(found, said)


def report_of(found, said):
    """The section."""
    wall = {side: pairs.summary(r.wall for r in runs) for side, runs in found.items()}
    peak = {side: max(r.peak_rss for r in runs) for side, runs in found.items()}
    ratio = wall["theirs"]["median"] / wall["ours"]["median"]
    checkpoint, tensors = said["disk"][0], said["peak_mlx"]
    largest = max(s["rows"] * s["cols"] for s in said["stored"])
    side = max(min(s["rows"], s["cols"]) for s in said["stored"])
    # What decomposing one slice needs: it in float32 and float64, and a dozen float64 matrices of its smaller side.
    workspace = 12 * largest + 12 * 8 * side * side
    bound = MEMORY * checkpoint + said["workers"] * workspace
    seconds = "{:.1f} s".format
    section = Section(
        "Compressing",
        ["", "whole process", "peak of the process", "peak in MLX"],
        rows=[
            ["plastic-host compress", spread(wall["ours"], seconds), mib(peak["ours"]), mib(tensors)],
            ["NumPy", spread(wall["theirs"], seconds), mib(peak["theirs"]), ""],
            ["ratio", times(ratio), times(peak["theirs"] / peak["ours"]), ""],
        ],
        raw={side: [vars(r) for r in runs] for side, runs in found.items()},
    )
    section.checks += [
        Check("compressing beside NumPy", f"{FASTER:g}x", times(ratio), ratio >= FASTER),
        Check("memory of tensors", f"at most {mib(bound)}", mib(tensors), tensors <= bound),
    ]
    section.notes.append(
        f"Bound of the tensors: {MEMORY:g} times the checkpoint ({mib(checkpoint)}) and {mib(workspace)} of workspace for each of "
        f"{said['workers']} slices decomposed at once. NumPy decomposes one slice after the other."
    )
    return section


def main():
    """Measures, writes, and answers the exit code."""
    args = options()
    load = bench.wait_for_quiet(0.0 if args.dry else bench.WAIT)
    try:
        data = ROOT / "data" / "eval.jsonl"
        setting = settings.prepare(ROOT, args.host.resolve(), args.base, data, args.threads, True)
        about = machine.describe(ROOT, setting.cores, args.threads)
        about["load_per_core_before"] = round(load, 2)
        about["provisional"] = f"the machine was busy before it began (load {load:.2f} a CPU)" if load > bench.BUSY else ""
        about["plastic_host"] = process.run([setting.program, "--version"], []).stdout.split()[-1]
        section = measure(setting, args.rounds)
    except (settings.Unusable, venv.Unavailable, process.Failed) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    seen = bench.companies(section.raw)
    about["company"] = pairs.summary(seen) if seen else None
    packages = venv.installed(setting.python)
    command = " ".join(["compress.py", *map(bench.shown, sys.argv[1:])]) if len(sys.argv) > 1 else "make bench-compress"
    text = report.markdown(about, {}, packages, [section], command)
    report.raw(setting.out / "compress.json", about, {}, packages, [section])
    if not args.dry:
        page = ROOT / "docs" / "benchmarks.md"
        report.insert(page, text, "<!-- compress -->", "<!-- /compress -->")
    print(text)
    missed = [c for c in section.checks if not c.met]
    for check in missed:
        print(f"missed: {check.what}: {check.measured}, required: {check.required}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
