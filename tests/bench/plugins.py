"""What a plugin costs: load and call times of one small policy, carried in every way, and of the
example in every language. Renews the section between the markers of docs/benchmarks.md.

    python3 -B tests/bench/plugins.py [--seconds S] [--dry]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "target/release/plastic-host"
REPORT = ROOT / "docs/benchmarks.md"
BEGIN, END = "<!-- plugins -->", "<!-- /plugins -->"
STUDY = {"decide 1 × 576": 0.78e-6, "decide 210 × 576": 0.13e-3, "decide 10000 × 64": 1.68e-3}
"""Seconds of the bare call in the feasibility study: the same job, flat lists, optimised, with a time limit."""
SIZES = list(STUDY)


def run(*args):
    """Runs plastic-host; answers its standard output."""
    done = subprocess.run([HOST, *map(str, args)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"plastic-host {' '.join(map(str, args))}\n{done.stderr}")
    return done.stdout


def bench(file, seconds, *flags):
    """Stages of one plugin by name, and its memory."""
    report = json.loads(run("plugin", "bench", file, "--json", "--seconds", seconds, *flags))
    found = report["plugins"][0]
    return {s["name"]: s["time"] for s in found["stages"]}, found["peak_memory"]


def duration(seconds):
    """A time with three digits."""
    for unit, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            return f"{seconds / size:.3g} {unit}"


def row(name, stages, memory):
    """One line of the table: medians, the least of the calls beside them."""
    cells = [name]
    for load in ("cold load", "warm load"):
        cells.append(next((duration(t["median"]) for s, t in stages.items() if s.startswith(load)), ""))
    for size in SIZES:
        call, whole = stages[f"{size}, the call"], stages[f"{size}, all of it"]
        cells.append(f"{duration(call['median'])} ({duration(call['min'])}) / {duration(whole['median'])}")
    cells.append(f"{memory / 2**20:.1f} MiB" if memory else "")
    return "| " + " | ".join(cells) + " |"


def share_of_a_run(scratch):
    """Seconds in policies and in all of the default run, from its journal."""
    out = scratch / "run"
    run("--policy", "plugins/energy.wasm", "--out", out, "--quiet")
    steps = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    times = [s["times"] for s in steps if s["event"] == "step"]
    plugin = sum(t["decide"] + t["evaluate"] - t["scoring"] for t in times)
    return plugin, sum(t["total"] for t in times), sum(t["decide"] for t in times)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each plugin")
    parser.add_argument("--dry", action="store_true", help="print, and leave docs/benchmarks.md as it is")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        wasm, native = scratch / "sum.wasm", scratch / "sum.so"
        run("plugin", "build", "tests/guests/sum", "-o", wasm, "--quiet")
        run("plugin", "build", "tests/guests/sum", "--native", "-o", native, "--quiet")
        lines = []
        for title, file, flags in (
            ("component, time limit on (the default)", wasm, ()),
            ("the same with `--fuel`", wasm, ("--fuel", 10**12)),
            ("the same with `--deterministic`", wasm, ("--deterministic",)),
            ("native library, `--allow-native`", native, ("--allow-native",)),
            ("the same with `--isolate`", native, ("--allow-native", "--isolate")),
        ):
            lines.append(row(title, *bench(file, args.seconds, *flags)))
        for language in ("", "-c", "-javascript", "-python"):
            file = scratch / f"top-heavy{language}.wasm"
            run("plugin", "build", f"examples/top-heavy{language}", "-o", file, "--quiet")
            title = f"[examples/top-heavy{language}](../examples/top-heavy{language})"
            lines.append(row(title, *bench(file, args.seconds)))
        plugin, total, decide = share_of_a_run(scratch)
    load = os.getloadavg()[0]
    text = "\n".join(
        [
            "",
            f"Load average at the end: {load:.1f} on {os.cpu_count()} CPUs. Calls: median (least) of the call itself / "
            "median of all that the host does about it (checking the answer, the snapshot).",
            "",
            "| | cold load | warm load | " + " | ".join(SIZES) + " | memory |",
            "| --- " * 7 + "|",
            *lines,
            "| the feasibility study's bare call | 12.6 ms | 0.04 ms | "
            + " | ".join(duration(STUDY[s]) for s in SIZES)
            + " | |",
            "",
            f"The default run (`--policy energy`): {1000 * decide:.1f} ms in the policy and {1000 * (plugin - decide):.1f} ms in the "
            f"evaluator's own code, of {total:.1f} s in steps: {100 * plugin / total:.3f} %.",
            "",
        ]
    )
    print(text)
    if not args.dry:
        report = REPORT.read_text()
        head, rest = report.split(BEGIN, 1)
        REPORT.write_text(head + BEGIN + "\n" + text + END + rest.split(END, 1)[1])


if __name__ == "__main__":
    main()
