"""Comparison 2: from starting the process to the first scored batch, 1 x 512 tokens, wall time.

Both processes load the model, read and tokenise a text and score it; the peer's time includes starting
Python and its imports, which its users wait for too, and is also given without them. Files are in the
page cache and the peer's compiled kernels in theirs: one start of each goes before, off the clock.
"""

import pairs
from section import Check, Section, mib, same_loss, spread, times

LENGTH = 512


def measure(setting):
    """Answers the section."""
    section = Section(
        "Process start to first scored batch (1 x 512 tokens)",
        [
            "peer",
            "plastic-host, s",
            "mlx-lm, s",
            "of it Python and imports, s",
            "ratio within a pair",
            "without Python and imports",
            "peak memory, ours / theirs",
        ],
    )
    peers = []
    if setting.blas:
        peers.append(("OpenBLAS preloaded, dense-f32", setting.peer("dense-f32", blas=True), 3 if setting.quick else 7))
    if not setting.quick or not peers:
        peers.append(("stock wheel, dense-f32", setting.peer("dense-f32"), 1))
    windows = setting.windows(LENGTH, 1)
    host = setting.host()
    for name, peer, count in peers:
        setting.say(f"starting: {count} pairs, {name}")
        if count > 1:
            host.start(windows)
            peer.start(windows)
        measured = pairs.alternate(lambda: host.start(windows), lambda: peer.start(windows), count)
        row(section, name, measured)
    return section


def row(section, name, measured):
    """Adds one row with its bar: ahead of the whole process of the peer."""
    wall = pairs.compare(measured, lambda half: half["wall"])
    memory = pairs.compare(measured, lambda half: half["peak_bytes"])
    python = pairs.summary(theirs["wall"] - theirs["wall_without_python"] for _, theirs in measured)
    seconds = "{:.2f}".format
    # Less time is better here: theirs over ours.
    faster = pairs.summary(theirs["wall"] / ours["wall"] for ours, theirs in measured)
    barely = pairs.summary(theirs["wall_without_python"] / ours["wall"] for ours, theirs in measured)
    section.rows.append(
        [
            name,
            spread(wall["first"], seconds),
            spread(wall["second"], seconds),
            seconds(python["median"]),
            spread(faster, times),
            times(barely["median"]),
            f"{mib(memory['first']['median'])} / {mib(memory['second']['median'])}",
        ]
    )
    section.raw[name] = {
        "pairs": measured,
        "wall": wall,
        "speed_up": faster,
        "speed_up_without_python": barely,
        "peak_bytes": memory,
    }
    ratio = faster["median"]
    section.checks.append(Check(f"start to first batch, {name}", "ahead", times(ratio), ratio > 1.0))
    section.checks.append(same_loss(f"start, {name}", measured[0][0]["loss"], measured[0][1]["loss"]))
