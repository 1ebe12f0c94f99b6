"""Runs one measured process: pinned to cores, with its wall time, CPU time, peak memory and company.

A measurement is only as good as the quiet around it, so every run also says how much of the pinned
cores other processes used meanwhile (from /proc/stat; None where there is none).
"""

import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path


class Failed(Exception):
    """A process ended with an error; the text holds its last lines."""


@dataclass
class Ran:
    """What one process printed and cost."""

    stdout: str
    wall: float
    """Seconds from before the fork to after the exit."""
    cpu: float
    """Seconds of user and system time, all threads."""
    peak_rss: int
    """Bytes."""
    company: float | None
    """Share (0 to 1) of the pinned cores that others used meanwhile."""


TUNING = ("OPENBLAS_", "GOTO_", "OMP_", "MKL_", "MLX_", "GGML_", "PLASTIC_THREADS", "PLASTIC_ISA", "LD_PRELOAD")
"""Beginnings of variables that change how fast the same program computes."""


def inherited():
    """The tuning variables that this process was started with; measured processes do not see them."""
    return {name: value for name, value in os.environ.items() if name.startswith(TUNING)}


def run(command, cores, env=None, limit=3600.0):
    """Runs `command` (a list) on `cores` (a list of CPU numbers, empty: not pinned) and answers a `Ran`.

    It sees the environment without the tuning variables, and `env` on top. Raises `Failed` on a non-zero exit code or after `limit` seconds.
    """
    pin = hasattr(os, "sched_setaffinity") and cores
    busy_before = busy_seconds(cores)
    begun = time.perf_counter()
    child = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**{n: v for n, v in os.environ.items() if not n.startswith(TUNING)}, **(env or {})},
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if pin else None,
    )
    alarm = threading.Timer(limit, child.kill)
    alarm.start()
    errors = []
    reader = threading.Thread(target=lambda: errors.append(child.stderr.read()))
    reader.start()
    stdout = child.stdout.read()
    # wait4 and not wait: it alone tells what this very child used.
    _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    alarm.cancel()
    reader.join()
    child.stdout.close()
    child.stderr.close()
    if child.returncode != 0:
        tail = "\n".join(("".join(errors) or stdout).strip().splitlines()[-15:])
        raise Failed(f"exit code {child.returncode} from: {' '.join(map(str, command))}\n{tail}")
    cpu = used.ru_utime + used.ru_stime
    # Linux counts kilobytes, macOS bytes.
    peak = used.ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
    company = None
    if busy_before is not None:
        others = busy_seconds(cores) - busy_before - cpu
        company = max(0.0, others / (wall * len(cores)))
    return Ran(stdout, wall, cpu, peak, company)


def cost(ran):
    """What a process cost, under the names that every side answers with."""
    return {"peak_bytes": ran.peak_rss, "wall": ran.wall, "cpu": ran.cpu, "company": ran.company}


def decoded(answer, seconds):
    """Speeds of decoding: `answer` has the tokens of each prompt, `seconds` the time to the first of all and of each next."""
    rate = len(answer) * (len(seconds) - 1) / sum(seconds[1:]) if len(seconds) > 1 else None
    return {"answer": answer, "first_token_ms": 1e3 * seconds[0], "tokens_per_second": rate}


def busy_seconds(cores):
    """Seconds that `cores` have been busy or stolen since boot, all together; None where the kernel does not say."""
    stat = Path("/proc/stat")
    if not cores or not stat.exists():
        return None
    tick = os.sysconf("SC_CLK_TCK")
    total = 0
    for line in stat.read_text().splitlines():
        name, *fields = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            total += user + nice + system + irq + softirq + steal
    return total / tick
