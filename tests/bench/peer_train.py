"""Runs inside the peer's environment: `mlx_lm.lora` on a YAML file, with a line of JSON for every update.

    peer_train.py CONFIG.yaml METRICS.jsonl

The same functions as the command `mlx_lm.lora -c CONFIG.yaml`, called one by one: that command has no
place for a callback, and its printed losses have three digits. The last line has the peak memory of MLX.
"""

import json
import sys
import types

import mlx.core as mx
import numpy as np
import yaml
from mlx_lm import load, lora
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.datasets import load_dataset


class Lines(TrainingCallback):
    """Writes what the training reports."""

    def __init__(self, file):
        self.file = file

    def add(self, line):
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def on_train_loss_report(self, train_info):
        """One update: loss, learning rate, tokens a second, peak memory."""
        self.add(train_info)

    def on_val_loss_report(self, val_info):
        """One validation."""
        self.add(val_info)


def train(config, metrics):
    """As `mlx_lm.lora.run`, with a callback of ours."""
    with open(config) as file:
        args = types.SimpleNamespace(**{**lora.CONFIG_DEFAULTS, **yaml.load(file, lora.yaml_loader)})
    np.random.seed(args.seed)
    model, tokenizer = load(args.model)
    train_set, valid_set, _ = load_dataset(args, tokenizer)
    with open(metrics, "w") as file:
        lines = Lines(file)
        lora.train_model(args, model, train_set, valid_set, lines)
        lines.add({"mlx_peak_bytes": mx.get_peak_memory()})


if __name__ == "__main__":
    match sys.argv[1:]:
        case [config, metrics]:
            train(config, metrics)
        case _:
            sys.exit(__doc__)
