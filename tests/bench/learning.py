"""What a pack learns: plastic-host and `mlx_lm.lora` train on the same rows, and one program scores both.

mlx-lm's model scores base, pack and adapter on the same windows, so that nothing but what was learned
differs. Differences are taken window by window; their interval is a bootstrap over the windows.
"""

import json
import math
import random
from pathlib import Path

import process
from section import Check, Section, same_loss
from trainers import Host, Peer, Recipe, lines

SCORE = Path(__file__).with_name("peer_score.py")
BASE, OURS, THEIRS = "the base", "plastic-host", "mlx-lm"
MODERN = ("reference/", 512)
"""Beginning of the sources of modern prose in the evaluation text, and tokens of a window of it."""
GAIN, LOSS = 0.20, 0.05
"""Perplexity has to fall by this share on the plays, and may rise by that one elsewhere."""
VALIDATED = ("--valid-every", 50, "--valid-windows", 0)


def measure(setting, steps, ours=None, theirs=None):
    """Answers the section; `ours` (a pack) and `theirs` (an adapter) are directories of earlier trainings."""
    data = setting.root / "data"
    scratch = setting.out / "packs"
    recipe = Recipe(steps=steps)
    rows = scratch / "rows.jsonl"
    made = json.loads(setting.prepare("rows", setting.base_dir, data / "plays_train.jsonl", rows, recipe.length))
    raw = {"recipe": vars(recipe), "rows": made}
    if theirs is None:
        setting.say(f"learning: mlx-lm, {steps} updates")
        peer = Peer(setting.peer("dense-f32", blas=setting.blas is not None), scratch / "peer")
        raw["theirs"] = peer.train("learn", recipe, rows)
        theirs = scratch / "peer" / "learn"
    if ours is None:
        setting.say(f"learning: plastic-host, {steps} updates")
        host = Host(setting.program, setting.base, scratch / "store", setting.cores, setting.env, VALIDATED)
        valid = ("--valid-data", data / "plays_valid.jsonl")
        raw["ours"] = host.train("learn", recipe, data / "plays_train.jsonl", *valid)
        ours = scratch / "store" / "learn"
    raw["losses"] = losses = score(setting, data, recipe.length, ours, theirs)
    meta = json.loads((ours / "meta.json").read_text())
    validated = [line for line in lines(ours / "metrics.jsonl") if "valid_perplexity" in line]
    return report(losses, made, recipe, meta, validated, raw)


def score(setting, data, length, ours, theirs):
    """{adapter: {"plays": loss of each window, "modern": the same}}, all through mlx-lm's model."""
    windows = setting.out / "windows"
    for name, file, size, source in (
        ("plays", "plays_valid.jsonl", length, ""),
        ("modern", "eval.jsonl", MODERN[1], MODERN[0]),
    ):
        setting.prepare("cut", setting.base_dir, data / file, windows / f"{name}.json", size, source)
    job = setting.out / "packs" / "score.json"
    adapters = {BASE: None, OURS: str(ours / "pack.safetensors"), THEIRS: str(theirs)}
    files = {name: str(windows / f"{name}.json") for name in ("plays", "modern")}
    job.write_text(json.dumps({"windows": files, "adapters": adapters}))
    setting.say("learning: scoring base, pack and adapter")
    side = setting.peer("dense-f32", blas=setting.blas is not None)
    ran = process.run([side.python, SCORE, side.model, job], side.cores, side.env)
    return json.loads(ran.stdout.splitlines()[-1])


def report(losses, made, recipe, meta, validated, raw):
    """The section; `validated` are the validations of plastic-host's training."""
    means = {name: {of: mean(each) for of, each in sets.items()} for name, sets in losses.items()}
    section = Section(
        f"{recipe.steps} updates of {recipe.batch} x {recipe.length} tokens, rank {recipe.rank} on q, k and v",
        ["", "perplexity, held-out plays", "against the base", "perplexity, modern prose", "against the base"],
        raw=raw,
    )
    for name in losses:
        cells = [name]
        for of in ("plays", "modern"):
            cells.append(f"{math.exp(means[name][of]):.2f}")
            cells.append("" if name == BASE else change(losses[name][of], losses[BASE][of]))
        section.rows.append(cells)
    fell = {name: 1 - math.exp(means[name]["plays"] - means[BASE]["plays"]) for name in (OURS, THEIRS)}
    rose = math.exp(means[OURS]["modern"] - means[BASE]["modern"]) - 1
    apart = change(losses[OURS]["plays"], losses[THEIRS]["plays"])
    section.checks += [
        Check("held-out plays", f"perplexity at least {GAIN:.0%} lower", f"{fell[OURS]:.1%} lower", fell[OURS] >= GAIN),
        Check(
            "held-out plays, beside mlx-lm",
            "at least as much lower",
            f"{fell[OURS]:.1%} and {fell[THEIRS]:.1%}; perplexity {apart} against mlx-lm's",
            fell[OURS] >= fell[THEIRS],
        ),
        Check("modern prose", f"perplexity at most {LOSS:.0%} higher", f"{rose:+.1%}", rose <= LOSS),
    ]
    trained, text = meta["training_config"], meta["training_data"]
    if trained["best"] and text["validation_windows"] == len(losses[BASE]["plays"]):
        ours = {BASE: trained["base_loss"], OURS: trained["best"][1]}
        for name, loss in ours.items():
            check = same_loss(f"{name} on the plays, scored by both programs", loss, means[name]["plays"])
            section.checks.append(check)
        best = f"plastic-host's pack is that of update {trained['best'][0]}, the best on these very windows"
        last = f"after its last update perplexity was {validated[-1]['valid_perplexity']:.2f}" if validated else ""
        section.notes.append("; ".join(part for part in (best, last, "mlx-lm keeps the last") if part) + ".")
    section.notes.append(
        f"{made['rows']} rows to train on, of which {made['same']} are the same tokens on both sides: mlx-lm reads text, "
        "and the others encode to a token less at a cut and end with the end-of-text token in its place. "
        f"Scored: {len(losses[BASE]['plays'])} windows of {recipe.length} tokens of `data/plays_valid.jsonl` and "
        f"{len(losses[BASE]['modern'])} of {MODERN[1]} of the modern documents of `data/eval.jsonl`. "
        "In brackets 95 % intervals of the paired differences."
    )
    return section


def change(these, those):
    """Change of perplexity from `those` losses to `these`, in percent, with its interval."""
    differences = [a - b for a, b in zip(these, those)]
    percent = lambda x: f"{100 * (math.exp(x) - 1):+.1f}"
    low, high = interval(differences)
    return f"{percent(mean(differences))} % ({percent(low)} to {percent(high)})"


def interval(differences, resamples=10_000, seed=1):
    """The middle 95 % of the means of resamples of `differences` (bootstrap)."""
    draw = random.Random(seed)
    means = sorted(mean(draw.choices(differences, k=len(differences))) for _ in range(resamples))
    return means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]


def mean(values):
    """Arithmetic mean."""
    return sum(values) / len(values)
