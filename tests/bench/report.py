"""Writes what was measured: a JSON file of raw numbers, and tables for people.

The tables replace what stands between two marker lines of `docs/benchmarks.md`; the text around them is
written by hand and stays.
"""

import json
import os
from pathlib import Path

BEGIN = "<!-- measured: written by `make bench`, do not edit -->"
END = "<!-- /measured -->"


def markdown(machine, blas, packages, sections, command):
    """The measured part of the page."""
    lines = [summary(machine, blas, packages, command), ""]
    checks = [check for section in sections for check in section.checks]
    bars = [[c.what, c.required, c.measured, "yes" if c.met else "**no**"] for c in checks]
    lines += table(["", "required", "measured", "met"], bars)
    for section in sections:
        lines += ["", f"### {section.title}", ""]
        lines += table(section.header, section.rows)
        lines += [line for note in section.notes for line in ("", note)]
    return "\n".join(lines) + "\n"


def summary(machine, blas, packages, command):
    """The line that says on what and how the numbers were taken."""
    pinned = "not pinned"
    if machine["pinned_to"]:
        pinned = "pinned to CPUs " + ", ".join(map(str, machine["pinned_to"]))
    lines = [
        f"* {machine['date']}, commit {machine['commit']}, `{command}`",
        f"* {machine['cpu']}; {machine['threads']} threads of {machine['cpus']} CPUs, {pinned}; "
        f"{machine['memory_gib']} GiB; {machine['system']}",
        f"* load average before: {machine['load_per_core_before']} a CPU; share of the pinned CPUs that others "
        f"used during a measurement: {company(machine)}",
        "* plastic-host {}; mlx-lm {}, mlx {}{}, Python {}".format(
            machine["plastic_host"],
            packages.get("mlx-lm"),
            packages.get("mlx"),
            f", llama-cpp-python {packages['llama-cpp-python']}" if "llama-cpp-python" in packages else "",
            machine["python"],
        ),
    ]
    if blas.get("stock"):
        lines.append(f"* peer's float32 product of 1024 x 1024: {gflops(blas)}")
    if machine["provisional"]:
        lines.insert(0, f"**Provisional: {machine['provisional']}.**\n")
    return "\n".join(lines)


def gflops(blas):
    """The two BLAS speeds as text."""
    preloaded = f", {blas['preloaded']:.0f} GFLOPS with OpenBLAS preloaded" if blas["preloaded"] else ""
    return f"{blas['stock']:.1f} GFLOPS with the stock wheel{preloaded}"


def company(machine):
    """The worst and the median company as text."""
    seen = machine["company"]
    return f"median {seen['median']:.1%}, worst {seen['max']:.1%}" if seen else "unknown"


def table(header, rows):
    """Lines of a Markdown table."""
    line = lambda cells: "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"
    return [line(header), line(["---"] * len(header)), *map(line, rows)]


def insert(page: Path, text, begin=BEGIN, end=END):
    """Puts `text` between the markers of `page`, at once or not at all."""
    whole = page.read_text()
    before, found, rest = whole.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page}: the lines {begin!r} and {end!r} are missing; put them where the tables belong")
    write(page, f"{before}{begin}\n{text}{end}{after}")


def raw(file: Path, machine, blas, packages, sections):
    """Writes every number that was taken."""
    document = {
        "schema": 1,
        "machine": machine,
        "gemm_gflops": blas,
        "packages": packages,
        "sections": {s.title: {**s.raw, "checks": [vars(c) for c in s.checks]} for s in sections},
    }
    write(file, json.dumps(document, indent=1) + "\n")


def write(file: Path, text):
    """Writes a file by way of a temporary one beside it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with open(temporary, "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)
