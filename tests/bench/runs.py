"""Runs of the sleep/wake loop that the comparisons look at: made by the program, read from their journals."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import process


@dataclass
class Run:
    """A finished run."""

    path: Path
    ran: process.Ran
    """The process that made it, calibration included."""
    header: dict
    """The journal's `run` event."""
    steps: list
    """Its `step` events."""

    def committed(self):
        """The last committed step, or None."""
        return next((s for s in reversed(self.steps) if s["fate"] == "committed"), None)


def make(setting, name, options):
    """Makes the run `target/bench/runs/NAME` anew with the energy policy and answers it."""
    out = setting.out / "runs" / name
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [setting.program, "run", "--policy", setting.root / "plugins" / "energy.wasm", "--base", setting.base]
    command += ["--out", out, "--quiet", *options]
    ran = process.run(command, setting.cores, setting.env)
    events = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines() if line.strip()]
    headers = [e for e in events if e["event"] == "run"]
    steps = [e for e in events if e["event"] == "step"]
    if not headers or not steps:
        raise process.Failed(f"{out}: the journal has no step")
    return Run(out, ran, headers[0], steps)
