"""What the numbers were measured on: processor, cores, memory, system, load and versions."""

import os
import platform
import subprocess
import time
from pathlib import Path


def pick_cores(count):
    """Numbers of `count` CPUs on distinct physical cores where there are that many; [] where nothing can be pinned."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    first_of_core, rest, seen = [], [], set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text().strip() if siblings.exists() else str(cpu)
        (rest if core in seen else first_of_core).append(cpu)
        seen.add(core)
    # The last ones: the first core of a machine serves most interrupts.
    picked = (first_of_core[::-1] + rest)[:count]
    return sorted(picked)


def load_per_core():
    """Load average of the last minute divided by the number of CPUs."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def describe(root, cores, threads):
    """A dictionary of strings and numbers for the report's machine line."""
    return {
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "pinned_to": cores,
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": system_name(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": git_commit(root),
    }


def cpu_model():
    """Name of the processor, with the widest vector instructions it offers where Linux tells."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        named = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        return named.stdout.strip() or platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    name = fields.get("model name", platform.machine())
    flags = fields.get("flags", "").split()
    widest = next((title for flag, title in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), None)
    family = f"family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else None
    return ", ".join(part for part in (name, family, widest) if part)


def system_name():
    """Distribution and kernel, or the name of the operating system."""
    release = Path("/etc/os-release")
    if release.exists():
        pairs = dict(line.split("=", 1) for line in release.read_text().splitlines() if "=" in line)
        return f"{pairs.get('PRETTY_NAME', 'Linux').strip(chr(34))}, {platform.machine()}"
    return f"{platform.system()} {platform.release()}, {platform.machine()}"


def git_commit(root):
    """Short hash of the checkout, with "+" when files differ from it; "unknown" outside git."""

    def git(*arguments):
        return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=False)

    head = git("rev-parse", "--short", "HEAD")
    if head.returncode != 0:
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no").stdout.strip()
    return head.stdout.strip() + ("+" if changed else "")
