"""Comparison 1: perplexity evaluation, tokens a second, against llama.cpp and mlx-lm, stock and with OpenBLAS preloaded.

Loading is off the clock on both sides and both warm up. plastic-host always scores 8 x 512 tokens. The
stock wheel would take minutes for them, so it gets one window (in a quick run a short one); its cost a
token hardly depends on the length, and what dependence there is favours the shorter. llama.cpp scores the same eight windows one after the other; its time is that of
computing all logits, the losses are summed up off the clock, ours on it.
"""

import pairs
from section import Check, Section, mib, same_loss, spread, times

WINDOWS, LENGTH = 8, 512
OVER_STOCK, OVER_OPENBLAS, OVER_LLAMA = 35.0, 2.0, 1.3
"""Times as fast, promised."""
LLAMA_TOLERANCE = 5e-3
"""Nats a token: llama.cpp rounds activations to 8 bits."""


def measure(setting):
    """Answers the section."""
    section = Section(
        "Perplexity evaluation",
        [
            "peer",
            "its work",
            "plastic-host, tokens/s",
            "peer, tokens/s",
            "ratio within a pair",
            "peak memory, ours / theirs",
        ],
    )
    against_stock(setting, section)
    if setting.blas:
        against_openblas(setting, section)
    if setting.llama:
        against_llama(setting, section)
    if not setting.blas:
        section.notes.append("No OpenBLAS to preload on this system: MLX uses the system's own BLAS on both sides.")
    return section


def against_stock(setting, section):
    """The stock wheel on whichever form of the model it runs faster."""
    probe = setting.windows(64, 1)
    probed = {}
    for model in setting.peer_models():
        setting.say(f"scoring: stock wheel, {model}, 64 tokens")
        probed[model] = setting.peer(model).score(probe, warm=16)
    section.raw["stock_forms"] = probed
    model = max(probed, key=lambda m: probed[m]["tokens_per_second"])
    rates = ", ".join(f"{m} {r['tokens_per_second']:.1f}" for m, r in probed.items())
    section.notes.append(f"Stock wheel, 64 tokens, tokens/s: {rates}. The faster form is the peer of the first row.")

    ours = setting.windows(LENGTH, WINDOWS)
    theirs = probe if setting.quick else setting.windows(LENGTH, 1)
    measured = alternate(setting, setting.host(), ours, setting.peer(model), theirs, 16, 2 if setting.quick else 3)
    row(section, f"mlx-lm, stock wheel, {model}", theirs, measured, "stock", OVER_STOCK)
    parity = setting.host().score(theirs)["loss"]
    work = f"stock wheel, {theirs.count} x {theirs.length} tokens"
    section.checks.append(same_loss(work, parity, measured[0][1]["loss"]))


def against_openblas(setting, section):
    """The same wheel with OpenBLAS in front of its BLAS, on dense float32 weights."""
    windows = setting.windows(LENGTH, WINDOWS)
    peer = setting.peer("dense-f32", blas=True)
    measured = alternate(setting, setting.host(), windows, peer, windows, LENGTH, 2 if setting.quick else 5)
    row(section, "mlx-lm, OpenBLAS preloaded, dense-f32", windows, measured, "openblas", OVER_OPENBLAS)
    a, b = measured[0]
    section.checks.append(same_loss(f"OpenBLAS preloaded, {WINDOWS} x {LENGTH} tokens", a["loss"], b["loss"]))


def against_llama(setting, section):
    """llama.cpp on the file that the base was made from."""
    windows = setting.windows(LENGTH, WINDOWS)
    measured = alternate(setting, setting.host(), windows, setting.llama, windows, None, 2 if setting.quick else 5)
    row(section, "llama.cpp", windows, measured, "llama", OVER_LLAMA)
    a, b = measured[0]
    check = same_loss(f"llama.cpp, {WINDOWS} x {LENGTH} tokens", a["loss"], b["loss"], LLAMA_TOLERANCE)
    section.checks.append(check)


def alternate(setting, host, ours, peer, theirs, warm, count):
    """Pairs of scores."""
    work = f"plastic-host {ours.count} x {ours.length}, {peer.name} {theirs.count} x {theirs.length}"
    setting.say(f"scoring: {count} pairs, {work}")
    return pairs.alternate(lambda: host.score(ours), lambda: peer.score(theirs, warm), count)


def row(section, name, theirs, measured, key, bar):
    """Adds one row, its raw numbers and its bar: the median ratio is `bar` or more."""
    speed = pairs.compare(measured, lambda half: half["tokens_per_second"])
    memory = pairs.compare(measured, lambda half: half["peak_bytes"])
    section.rows.append(
        [
            name,
            f"{theirs.count} x {theirs.length} tokens",
            spread(speed["first"], "{:.0f}".format),
            spread(speed["second"], "{:.1f}".format),
            spread(speed["ratio"], times),
            # Memory grows with the windows: nothing to compare where the peer got fewer.
            f"{mib(memory['first']['median'])} / {mib(memory['second']['median']) if theirs.count == WINDOWS else '-'}",
        ]
    )
    section.raw[key] = {"pairs": measured, "tokens_per_second": speed, "peak_bytes": memory}
    ratio = speed["ratio"]["median"]
    section.checks.append(Check(f"evaluation, {name}", f"at least {bar:g}x", times(ratio), ratio >= bar))
