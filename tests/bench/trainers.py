"""One training on either side: the same rows, rank, scale, optimiser and schedule, each as one fresh process.

Both answer dictionaries with the same keys, as the two sides of `sides.py` do.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import process
import sides

PEER = Path(__file__).with_name("peer_train.py")
SLICES = ("q", "k", "v")
LIMIT = 6 * 3600.0
"""Seconds after which a training is given up."""


@dataclass
class Recipe:
    """What is the same on both sides: LoRA on q, k and v of every block, AdamW, warm-up, half a cosine."""

    steps: int
    batch: int = 4
    length: int = 256
    rank: int = 8
    scale: float = 2.0
    """alpha / rank."""
    rate: float = 1e-3
    final: float = 0.1
    """Share of the rate at the end."""
    warmup: int = 10
    decay: float = 0.01
    seed: int = 42

    def host(self):
        """As options of `plastic-host packs create`."""
        options = {
            "--rank-map": ",".join(f"{s}:{self.rank}" for s in SLICES),
            "--alpha-map": ",".join(f"{s}:{self.rank * self.scale:g}" for s in SLICES),
            "--steps": self.steps,
            "--batch-size": self.batch,
            "--sequence-length": self.length,
            "--learning-rate": self.rate,
            "--final-rate": self.final,
            "--warmup": min(self.warmup, self.steps),
            "--weight-decay": self.decay,
            "--seed": self.seed,
        }
        return [word for pair in options.items() for word in pair]

    def peer(self):
        """As a configuration of `mlx_lm.lora`, without the paths.

        mlx-lm counts updates from 0, so its warm-up is one shorter and begins above 0 to give the first update
        the same rate; and it corrects Adam's young moments only when told to.
        """
        warmup = min(self.warmup, self.steps)
        return {
            "train": True,
            "fine_tune_type": "lora",
            "num_layers": -1,
            "lora_parameters": {
                "rank": self.rank,
                "scale": self.scale,
                "dropout": 0.0,
                "keys": [f"self_attn.{s}_proj" for s in SLICES],
            },
            "optimizer": "adamw",
            "optimizer_config": {"adamw": {"weight_decay": self.decay, "bias_correction": True}},
            "learning_rate": self.rate,
            "lr_schedule": {
                "name": "cosine_decay",
                "warmup": warmup - 1,
                "warmup_init": self.rate / warmup,
                "arguments": [self.rate, max(self.steps - warmup, 1), self.rate * self.final],
            },
            "batch_size": self.batch,
            "iters": self.steps,
            "max_seq_length": self.length,
            "seed": self.seed,
            "steps_per_report": 1,
            # mlx-lm validates nothing where there is no validation file.
            "steps_per_eval": self.steps,
            "save_every": 50,
        }


@dataclass
class Host:
    """plastic-host."""

    program: Path
    base: str
    store: Path
    """Directory of packs."""
    cores: list
    env: dict
    flags: tuple = ()

    def train(self, name, recipe, data, *flags, warm=2):
        """Trains the pack `name` on `data` anew; the first `warm` updates are off the clock."""
        command = [self.program, "packs", "create", "--packs", self.store, "--name", name, "--base", self.base]
        command += ["--data", data, *recipe.host(), *self.flags, *flags, "--force", "--json", "--quiet"]
        ran = process.run(command, self.cores, self.env, LIMIT)
        said = json.loads(ran.stdout)
        steps = [line for line in lines(self.store / name / "metrics.jsonl") if "loss" in line]
        seconds = [s["tokens"] / s["tokens_per_second"] for s in steps]
        losses = [s["loss"] for s in steps]
        return answer(ran, said["peak_mlx_bytes"], losses, seconds, [s["tokens"] for s in steps], warm)


@dataclass
class Peer:
    """mlx-lm on one of its model directories."""

    side: sides.Peer
    scratch: Path
    flags: tuple = ()
    """Further settings of its configuration, as (name, value)."""

    def train(self, name, recipe, data, warm=2):
        """As `Host.train`; leaves the adapter in `scratch/NAME`. `data` is a JSON Lines file, one row a line."""
        adapter, rows = self.scratch / name, self.scratch / f"{name}-data"
        for directory in (adapter, rows):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
        shutil.copy(data, rows / "train.jsonl")
        config, metrics = adapter / "config.yaml", adapter / "metrics.jsonl"
        paths = {"model": str(self.side.model), "data": str(rows), "adapter_path": str(adapter)}
        # JSON is YAML.
        config.write_text(json.dumps({**recipe.peer(), **paths, **dict(self.flags)}, indent=1))
        ran = process.run([self.side.python, PEER, config, metrics], self.side.cores, self.side.env, LIMIT)
        *steps, last = lines(metrics)
        seen = [0, *(s["trained_tokens"] for s in steps)]
        tokens = [after - before for before, after in zip(seen, seen[1:])]
        seconds = [n / s["tokens_per_second"] for n, s in zip(tokens, steps)]
        return answer(ran, last["mlx_peak_bytes"], [s["train_loss"] for s in steps], seconds, tokens, warm)


def lines(file):
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip()]


def answer(ran, mlx_peak, losses, seconds, tokens, warm):
    """What either side says of a training."""
    return {
        "tokens_per_second": sum(tokens[warm:]) / sum(seconds[warm:]),
        "first_loss": losses[0],
        "losses": losses,
        "step_seconds": seconds,
        "peak_bytes": ran.peak_rss,
        "mlx_peak_bytes": mlx_peak,
        "wall": ran.wall,
        "cpu": ran.cpu,
        "company": ran.company,
    }
