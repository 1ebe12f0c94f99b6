"""The two sides of every comparison: plastic-host and mlx-lm, each as one fresh process a measurement.

Both answer dictionaries with the same keys (`tokens_per_second`, `loss`, `peak_bytes`, `wall`,
`company` ...), so that `pairs.compare` can read either.
"""

import json
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
            "peak_bytes": ran.peak_rss,
            "mlx_peak_bytes": said["peak_mlx_bytes"],
            "wall": ran.wall,
            "cpu": ran.cpu,
            "company": ran.company,
        }

    def start(self, windows):
        """From nothing to the first scored batch: the whole process."""
        ran, said = self._eval(windows.text, windows.count, windows)
        return {
            "loss": said["mean_nll"],
            "peak_bytes": ran.peak_rss,
            "first_batch_seconds": said["first_batch_ms"] / 1e3,
            "wall": ran.wall,
            "cpu": ran.cpu,
            "company": ran.company,
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
            "peak_bytes": ran.peak_rss,
            "mlx_peak_bytes": said["mlx_peak_bytes"],
            "wall": ran.wall,
            "cpu": ran.cpu,
            "company": ran.company,
        }

    def start(self, windows):
        """As `Host.start`; `wall_without_python` leaves out the interpreter's start and the imports."""
        ran, said = self._call("start", self.model, windows.text)
        return {
            "loss": said["loss"],
            "peak_bytes": ran.peak_rss,
            "import_seconds": said["import_seconds"],
            "load_seconds": said["load_seconds"],
            "first_batch_seconds": said["first_batch_seconds"],
            "wall_without_python": said["load_seconds"] + said["first_batch_seconds"],
            "wall": ran.wall,
            "cpu": ran.cpu,
            "company": ran.company,
        }

    def gflops(self):
        """Speed of a float32 matrix product in this environment."""
        return self._call("gemm")[1]["gflops"]
