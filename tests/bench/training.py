"""Training speed: tokens a second and memory of both sides, on one batch that is the same on both.

The text has exactly as many rows as a batch, so every update sees them all, in whatever order: the loss of
the first update is the base's own on both sides and must agree. Within a round each side runs once, as a
fresh process; ratios are taken within rounds. The stock wheel would take minutes an update and runs once.
"""

from dataclasses import replace

import pairs
from section import Check, Section, mib, same_loss, spread, times
from trainers import Host, Peer, Recipe

WARM, TIMED = 2, 8
"""Updates off and on the clock."""
ROUNDS = 3
OVER_STOCK, OVER_OPENBLAS = 20.0, 2.0
OURS, OFF, THEIRS, LEAN = (
    "plastic-host",
    "plastic-host, `--grad-checkpoint off`",
    "mlx-lm, OpenBLAS preloaded",
    "mlx-lm, OpenBLAS preloaded, gradient checkpointing",
)


def measure(setting, timed=TIMED, rounds=ROUNDS, stock=True, variants=True):
    """Answers the section; `setting.data` is the text to take rows from.

    What takes minutes may be left out: the stock wheel, and the `variants` of both sides with and without checkpointing.
    """
    recipe = Recipe(steps=WARM + timed)
    rows = setting.windows(recipe.length, recipe.batch).text
    measured = rounds_of(setting, recipe, rows, rounds, variants)
    section = Section(
        f"Training, {recipe.batch} x {recipe.length} tokens an update, rank {recipe.rank} on q, k and v",
        ["", "tokens/s", "plastic-host is so much faster", "peak memory in MLX", "peak memory of the process"],
        raw={"recipe": vars(recipe), "rounds": measured},
    )
    for name, runs in measured.items():
        ratio = pairs.compare(list(zip(measured[OURS], runs)), rate)["ratio"]
        row(section, name, runs, "" if name == OURS else spread(ratio, times))
    if stock:
        beside_stock(setting, section, recipe, rows, measured[OURS])
    bars(section, measured)
    section.notes.append(f"{rounds} rounds; in each process {WARM} updates warm up and {timed} are timed.")
    return section


def beside_stock(setting, section, recipe, rows, ours):
    """Adds the stock wheel's row and what was promised beside it."""
    stock, its, form = against_stock(setting, recipe, rows)
    section.raw["stock"] = stock
    ratio = median(ours, rate) / stock["tokens_per_second"]
    row(section, f"mlx-lm, stock wheel, {form}, {its.batch} x {its.length}", [stock], times(ratio))
    section.checks.append(Check("stock wheel", f"at least {OVER_STOCK:g}x", times(ratio), ratio >= OVER_STOCK))
    if its.batch == recipe.batch and its.length == recipe.length:
        section.checks.append(same_loss("first update, stock wheel", ours[0]["first_loss"], stock["first_loss"]))
    section.notes.append(f"The stock wheel: {its.steps} updates, the last timed.")


def rounds_of(setting, recipe, rows, count, variants):
    """Answers of each side, a list with one a round."""
    scratch = setting.out / "packs"
    host = Host(setting.program, setting.base, scratch / "store", setting.cores, setting.env, ("--no-packing",))
    off = replace(host, flags=(*host.flags, "--grad-checkpoint", "off"))
    runs = {OURS: lambda: host.train("speed", recipe, rows, warm=WARM)}
    if setting.blas:
        peer = Peer(setting.peer("dense-f32", blas=True), scratch / "peer")
        lean = replace(peer, flags=(("grad_checkpoint", True),))
        runs[THEIRS] = lambda: peer.train("speed", recipe, rows, warm=WARM)
    if variants:
        runs[OFF] = lambda: off.train("speed-off", recipe, rows, warm=WARM)
    if setting.blas and variants:
        runs[LEAN] = lambda: lean.train("speed-lean", recipe, rows, warm=WARM)
    measured = {name: [] for name in runs}
    for n in range(count):
        for name, run in runs.items():
            setting.say(f"training: round {n + 1} of {count}, {name}")
            measured[name].append(run())
    return measured


def against_stock(setting, recipe, rows):
    """(its answer, its recipe, form of its base): the form that is faster on a few tokens, then two updates."""
    probe = replace(recipe, steps=2, batch=1, length=32)
    few = setting.windows(probe.length, probe.batch).text
    peers = {m: Peer(setting.peer(m), setting.out / "packs" / "peer") for m in setting.peer_models()}
    probed = {}
    for model, peer in peers.items():
        setting.say(f"training: stock wheel, {model}, {probe.length} tokens")
        probed[model] = rate(peer.train("stock-probe", probe, few, warm=1))
    form = max(probed, key=probed.get)
    if setting.quick:
        return peers[form].train("stock", probe, few, warm=1), probe, form
    recipe = replace(recipe, steps=2)
    setting.say(f"training: stock wheel, {form}, two updates of {recipe.batch} x {recipe.length} tokens: minutes")
    return peers[form].train("stock", recipe, rows, warm=1), recipe, form


def bars(section, measured):
    """What was promised of speed and memory, and that both sides computed the same."""
    ours = measured[OURS]
    check = section.checks.append
    if THEIRS not in measured:
        section.notes.append("No OpenBLAS to preload on this system: MLX uses the system's own BLAS on both sides.")
        return
    ratio = pairs.compare(list(zip(ours, measured[THEIRS])), rate)["ratio"]["median"]
    check(Check(f"training, {THEIRS}", f"at least {OVER_OPENBLAS:g}x", times(ratio), ratio >= OVER_OPENBLAS))
    for name in (OFF, THEIRS, LEAN):
        if name in measured:
            check(same_loss(f"first update, {name}", ours[0]["first_loss"], measured[name][0]["first_loss"]))
    if LEAN not in measured:
        return
    for what, of in (("in MLX", mlx_peak), ("of the process", peak)):
        a, b = median(ours, of), median(measured[LEAN], of)
        check(Check(f"training, peak memory {what}", f"at most {mib(b)}, mlx-lm's with gradient checkpointing", mib(a), a <= b))


def row(section, name, runs, ratio):
    """Adds one row."""
    rates = pairs.summary(rate(r) for r in runs)
    form = ("{:.0f}" if rates["median"] >= 100 else "{:.1f}").format
    section.rows.append([name, spread(rates, form), ratio, mib(median(runs, mlx_peak)), mib(median(runs, peak))])


def median(runs, of):
    """Median of one number over runs."""
    return pairs.summary(of(r) for r in runs)["median"]


def rate(run):
    """Tokens a second."""
    return run["tokens_per_second"]


def peak(run):
    """Peak memory of the process."""
    return run["peak_bytes"]


def mlx_peak(run):
    """Peak memory in MLX."""
    return run["mlx_peak_bytes"]
