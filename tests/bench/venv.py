"""A peer's own Python environment, with pinned packages, and the BLAS that is preloaded into it.

Lives in `target/bench`; made once, and again when its requirements change. Needs Python's
`venv` module (Debian: package python3-venv) and a package index that pip can reach.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


class Unavailable(Exception):
    """The environment cannot be made; the text says what to do."""


def prepare(directory, requirements=REQUIREMENTS, before=None, made_for=""):
    """Makes the environment in `directory` where it is missing or outdated; answers its Python.

    `before` is called with the bare environment's Python and answers further options of pip; `made_for` names what else
    the environment depends on.
    """
    python = directory / "bin" / "python"
    stamp = directory / "requirements.sha256"
    wanted = hashlib.sha256(requirements.read_bytes() + made_for.encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"Installing the peer into {directory} (once)", file=sys.stderr)
    shutil.rmtree(directory, ignore_errors=True)
    made = subprocess.run([sys.executable, "-m", "venv", directory], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise Unavailable(
            f"python3 -m venv failed; on Debian and Ubuntu install python3-venv.\n{made.stdout}{made.stderr}"
        )
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements]
    if subprocess.run(pip + (before(python) if before else []), check=False).returncode != 0:
        raise Unavailable("pip could not install the peer (see above); check the network and pip's index settings")
    stamp.write_text(wanted)
    return python


def installed(python):
    """Name and version of every package in the environment, as {name: version}."""
    freeze = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    return dict(line.split("==", 1) for line in freeze.splitlines() if "==" in line)


def preloadable_blas(root):
    """The OpenBLAS that this project's own MLX uses, or None (macOS, where MLX uses Accelerate).

    It exports the plain names (`cblas_sgemm`, `ssyevd_` ...), so that `LD_PRELOAD` puts it in front of the
    reference BLAS of the stock wheel: both sides then multiply with the same code.
    """
    config = root / ".mlx" / "cargo.toml"
    if not config.exists():
        return None
    # The file names the MLX in use by absolute paths; other directories in .mlx are older ones.
    text = config.read_text()
    found = [p for p in sorted((root / ".mlx").glob("*/wheel/*.libs/libmlx_blas.so")) if p.parts[-4] in text]
    return found[0].resolve() if found else None
