"""The two sides of every comparison: plastic-host and mlx-lm, each as one fresh process a measurement.

Both answer dictionaries with the same keys (`tokens_per_second`, `loss`, `peak_bytes`, `wall`,
`company` ...), so that `pairs.compare` can read either.
"""

import hashlib
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

import process


@dataclass
class Windows:
    """The same windows as text for plastic-host and as ids for the peer."""

    text: Path
    """JSON lines with `text`, one a window."""
    twice: Path
    """The same lines twice over: the first half warms up."""
    ids: Path
    """A JSON list of lists."""
    count: int
    length: int

    @property
    def scored(self):
        """Tokens that get a loss in one round: all but the first of each window."""
        return self.count * (self.length - 1)

    def fingerprint(self, count):
        """SHA-256 of the first `count` windows, as plastic-host reckons it."""
        sha = hashlib.sha256()
        for ids in json.loads(self.ids.read_text())[:count]:
            sha.update(struct.pack(f"<Q{len(ids)}I", len(ids), *ids))
        return sha.hexdigest()


@dataclass
class Host:
    """plastic-host on a base or on the state of a run."""

    program: Path
    cores: list
    env: dict
    subject: list
    """`["--base", B]` or `["--state", RUN]`."""
    name: str = "plastic-host"

    def _eval(self, file, count, windows):
        command = [self.program, "eval", *self.subject, "--data", file, "--json", "--quiet"]
        command += ["--window", windows.length, "--windows", count, "--batch", windows.count]
        ran = process.run(command, self.cores, self.env)
        return ran, json.loads(ran.stdout)

    def score(self, windows):
        """Scores the windows once to warm up and once on the clock, in one process."""
        ran, said = self._eval(windows.twice, 2 * windows.count, windows)
        if said["scored_tokens"] != 2 * windows.scored:
            raise process.Failed(
                f"plastic-host scored {said['scored_tokens']} tokens of {windows.twice}, expected {2 * windows.scored}: "
                "its windows are not the peer's"
            )
        warm_up = said["first_batch_ms"] / 1e3
        timed = said["windows"][windows.count :]
        return {
            "tokens_per_second": windows.scored / (said["seconds"] - warm_up),
            "loss": sum(w["nll"] for w in timed) / sum(w["tokens"] for w in timed),
            "warm_up_seconds": warm_up,
            **process.cost(ran),
            "mlx_peak_bytes": said["peak_mlx_bytes"],
        }

    def speed(self, work, windows, *options):
        """`bench speed` of one kind of work on the windows' text: the process and its document."""
        command = [self.program, "bench", "speed", *self.subject, "--work", work, "--data", windows.text]
        ran = process.run([*command, *options, "--json", "--quiet"], self.cores, self.env)
        said = json.loads(ran.stdout)
        memory = {"mlx_peak_bytes": None, "baseline_bytes": said["baseline_process_bytes"]}
        return said, {**memory, "checkpoint_bytes": said["checkpoint_bytes"], **process.cost(ran)}

    def decode(self, windows, batch, tokens):
        """Greedy tokens after the first `batch` windows."""
        options = ["--repeats", 1, "--prompt", windows.length, "--batch", batch, "--tokens", tokens]
        said, cost = self.speed("decode", windows, *options)
        (found,) = said["decode"]
        self._same(found, windows, batch)
        cost["mlx_peak_bytes"] = found["peak"]["mlx_bytes"]
        speeds = {name: found[name]["median"] for name in ("first_token_ms", "tokens_per_second")}
        return {"answer": found["answer"], **speeds, **cost}

    def first_token(self, windows):
        """The first window as a prompt, up to its first token."""
        said, cost = self.speed("prefill", windows, "--repeats", 1, "--prefill", windows.length)
        found = said["prefill"]
        self._same(found, windows, 1)
        cost["mlx_peak_bytes"] = found["peak"]["mlx_bytes"]
        return {"answer": found["answer"], "first_token_ms": found["first_token_ms"]["median"], **cost}

    def _same(self, found, windows, count):
        """Checks that plastic-host took the prompts that the peers get."""
        if found["prompts_sha256"] != windows.fingerprint(count):
            raise process.Failed(f"plastic-host's prompts from {windows.text} are not the peer's")

    def start(self, windows):
        """From nothing to the first scored batch: the whole process."""
        ran, said = self._eval(windows.text, windows.count, windows)
        return {
            "loss": said["mean_nll"],
            **process.cost(ran),
            "first_batch_seconds": said["first_batch_ms"] / 1e3,
        }


@dataclass
class Peer:
    """mlx-lm in its own environment, on one of its model directories."""

    python: Path
    model: Path
    cores: list
    env: dict = field(default_factory=dict)
    name: str = "mlx-lm"
    script: Path = Path(__file__).with_name("peer_mlx_lm.py")

    def _call(self, *arguments):
        ran = process.run([self.python, self.script, *arguments], self.cores, self.env)
        return ran, json.loads(ran.stdout.splitlines()[-1])

    def score(self, windows, warm=None):
        """As `Host.score`; warms up with the first `warm` tokens of each window (all of them by default)."""
        ran, said = self._call("score", self.model, windows.ids, warm or windows.length, 1)
        return {
            "tokens_per_second": said["tokens"] * len(said["seconds"]) / sum(said["seconds"]),
            "loss": said["loss"],
            "load_seconds": said["load_seconds"],
            "warm_up_seconds": said["warm_up_seconds"],
            **process.cost(ran),
            "mlx_peak_bytes": said["mlx_peak_bytes"],
        }

    def decode(self, windows, batch, tokens):
        """As `Host.decode`."""
        ran, said = self._call("decode", self.model, windows.ids, batch, tokens)
        found = process.decoded(said["answer"], said["seconds"])
        return {**found, "mlx_peak_bytes": said["mlx_peak_bytes"], **process.cost(ran)}

    def start(self, windows):
        """As `Host.start`; `wall_without_python` leaves out the interpreter's start and the imports."""
        ran, said = self._call("start", self.model, windows.text)
        return {
            "loss": said["loss"],
            **process.cost(ran),
            "import_seconds": said["import_seconds"],
            "load_seconds": said["load_seconds"],
            "first_batch_seconds": said["first_batch_seconds"],
            "wall_without_python": said["load_seconds"] + said["first_batch_seconds"],
        }

    def gflops(self):
        """Speed of a float32 matrix product in this environment."""
        return self._call("gemm")[1]["gflops"]
