"""Runs inside the peer's environment: losses of a base with different adapters, all through mlx-lm's model.

    peer_score.py MODEL JOB.json

JOB: {"windows": {name: file with a list of lists of ids}, "adapters": {name: null for the base, the adapter directory
of mlx-lm, or the pack.safetensors of plastic-host}}. Prints {adapter: {windows: [mean loss of each window]}}.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import load
from mlx_lm.tuner.lora import LoRALinear

BATCH = 4


def attach(model, pack):
    """Puts the adapters of a pack (A [out, r], B [r, in], alpha) on the model's linear layers, in float32."""
    tensors = mx.load(str(pack))
    for name in tensors:
        if not name.endswith(".lora.A"):
            if name.endswith(".lora.magnitude"):
                sys.exit(f"{pack}: a pack with magnitudes (DoRA) cannot be scored here")
            continue
        key = name.removesuffix(".lora.A")
        a, b = (tensors[f"{key}.lora.{part}"].astype(mx.float32) for part in "AB")
        rank = b.shape[0]
        _, block, module, linear = key.split(".")
        block = model.layers[int(block)]
        module = block.self_attn if module == "attn" else block.mlp
        scale = tensors[f"{key}.lora.alpha"].item() / rank
        lora = LoRALinear.from_base(getattr(module, linear), r=rank, scale=scale)
        lora.lora_a, lora.lora_b = b.T, a.T
        setattr(module, linear, lora)
    model.eval()


def losses(model, windows):
    """Mean loss of each window, nats a token."""
    found = []
    for i in range(0, len(windows), BATCH):
        ids = mx.array(windows[i : i + BATCH])
        nll = nn.losses.cross_entropy(model(ids[:, :-1]).astype(mx.float32), ids[:, 1:])
        found += nll.mean(axis=1).tolist()
        mx.clear_cache()
    return found


def score(model_dir, job):
    """Losses of every adapter on every set of windows."""
    windows = {name: json.loads(Path(file).read_text()) for name, file in job["windows"].items()}
    found = {}
    for name, adapter in job["adapters"].items():
        is_pack = adapter is not None and adapter.endswith(".safetensors")
        model, _ = load(model_dir, adapter_path=None if is_pack else adapter)
        if is_pack:
            attach(model, adapter)
        found[name] = {of: losses(model, these) for of, these in windows.items()}
    return found


if __name__ == "__main__":
    match sys.argv[1:]:
        case [model, job]:
            print(json.dumps(score(model, json.loads(Path(job).read_text()))))
        case _:
            sys.exit(__doc__)
