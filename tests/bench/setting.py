"""Where and how a benchmark runs: paths, cores, models, windows; made once and handed to every comparison."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import machine
import process
import sides
import venv
from llama import Llama

PREPARE = Path(__file__).with_name("peer_prepare.py")


class Unusable(Exception):
    """The benchmark cannot run, or what it compares is not the same; the text says what to do."""


@dataclass
class Setting:
    """Everything a comparison needs to know."""

    root: Path
    """The checkout."""
    out: Path
    """Where everything made here goes: `target/bench`."""
    program: Path
    """plastic-host."""
    base: str
    """What plastic-host is told with `--base`."""
    base_dir: Path
    """Its checkpoint directory."""
    data: Path
    """Text that is scored."""
    python: Path
    """The peer's Python."""
    blas: Path | None
    """OpenBLAS to preload into the peer."""
    threads: int
    cores: list
    quick: bool
    llama: Llama | None = None
    """llama.cpp, where it takes part."""

    def say(self, text):
        """One line of progress on standard error."""
        print(text, file=sys.stderr, flush=True)

    @property
    def env(self):
        """The same environment for both sides; MLX keeps compiled kernels in TMPDIR."""
        threads = str(self.threads)
        return {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "TMPDIR": str(self.out / "tmp")}

    def host(self, run=None):
        """plastic-host on the base, or on the state of the run directory `run`."""
        subject = ["--base", self.base] if run is None else ["--state", run]
        return sides.Host(self.program, self.cores, self.env, subject)

    def peer(self, model, blas=False):
        """mlx-lm on one of its directories (`dense-f32`, `quantised-f32`), stock or with OpenBLAS preloaded."""
        env = {**self.env, "LD_PRELOAD": str(self.blas)} if blas else self.env
        return sides.Peer(self.python, self.out / "models" / model, self.cores, env)

    def peer_models(self):
        """Names of the peer's model directories."""
        return [d for d in ("dense-f32", "quantised-f32") if (self.out / "models" / d).is_dir()]

    def windows(self, length, count):
        """`count` windows of `length` tokens, the same for both sides."""
        stem = self.out / "windows" / f"{length}x{count}"
        self.prepare("windows", self.base_dir, self.data, stem, length, count)
        named = [Path(f"{stem}{end}") for end in (".jsonl", "-twice.jsonl", ".json")]
        return sides.Windows(*named, count, length)

    def prepare(self, *arguments):
        """Runs `peer_prepare.py` in the peer's environment and answers what it prints."""
        command = [self.python, PREPARE, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unusable(f"preparing {arguments[0]} failed:\n{done.stderr.strip()[-2000:]}")
        return done.stdout


def prepare(root, program, base, data, threads, quick):
    """Makes the peer's environment and models where they are missing, and checks that the preload works."""
    if not program.exists():
        raise Unusable(f"{program} is missing; build it with `make build`")
    cores = machine.pick_cores(threads)
    if cores and len(cores) < threads:
        raise Unusable(f"{threads} threads, but only {len(cores)} CPUs may be used; give --threads {len(cores)}")
    out = root / "target" / "bench"
    (out / "tmp").mkdir(parents=True, exist_ok=True)
    python = venv.prepare(out / "venv")
    blas = venv.preloadable_blas(root)
    base_dir = directory_of(program, base)
    setting = Setting(root, out, program, base, base_dir, data, python, blas, threads, cores, quick)
    setting.say("Making the peer's float32 model directories (once)")
    setting.prepare("models", base_dir, out / "models")
    return setting


def directory_of(program, base):
    """The checkpoint directory behind a `--base`."""
    if Path(base).is_dir():
        return Path(base)
    ran = process.run([program, "model", "inspect", base, "--json"], [])
    return Path(json.loads(ran.stdout)["dir"])


def check_blas(setting):
    """GFLOPS of the peer's float32 product without and with the preload; raises when it took no effect."""
    stock = setting.peer("dense-f32").gflops()
    preloaded = setting.peer("dense-f32", blas=True).gflops() if setting.blas else None
    if preloaded is not None and preloaded < 5 * stock:
        raise Unusable(
            f"OpenBLAS was preloaded into the peer but changed little ({stock:.1f} -> {preloaded:.1f} GFLOPS); "
            "the comparison would not be with OpenBLAS"
        )
    return {"stock": stock, "preloaded": preloaded}
