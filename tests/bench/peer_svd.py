"""An independent pass of two-sided whitened singular value decompositions in NumPy, run in the peer's environment.

peer_svd.py statistics MODEL DIR     covariances of every slice, symmetric positive definite, of the right sizes
peer_svd.py factor MODEL DIR OUT     the pass: G^1/2 W C^1/2 = U S V', factors G^-1/2 U and U' G^1/2 W in float16

The statistics are drawn, not gathered: how long a decomposition takes does not depend on what the numbers are, and
both sides of the comparison have theirs at hand before the clock starts.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

KINDS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
KINDS += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def slices(model):
    """Names of all slices."""
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    return [f"model.layers.{layer}.{kind}" for layer in range(layers) for kind in KINDS]


def weight(model, file, name):
    """One slice in float32, dequantised from MLX's affine codes where it is quantised."""
    codes = file.get_tensor(f"{name}.weight")
    if codes.dtype != np.uint32:
        return codes.astype(np.float32)
    settings = json.loads((model / "config.json").read_text())["quantization"]
    settings = settings.get(name, settings)
    bits, group = settings["bits"], settings["group_size"]
    shifts = np.arange(32 // bits, dtype=np.uint32) * bits
    values = ((codes[..., None] >> shifts) & ((1 << bits) - 1)).reshape(codes.shape[0], -1, group).astype(np.float32)
    scales, biases = (file.get_tensor(f"{name}.{part}").astype(np.float32)[..., None] for part in ("scales", "biases"))
    return (values * scales + biases).reshape(codes.shape[0], -1)


def powers(matrix, ridge):
    """Square root and inverse square root, in float64."""
    values, vectors = np.linalg.eigh(matrix.astype(np.float64))
    values = np.maximum(values, 0) + ridge * values.mean()
    return (vectors * values**0.5) @ vectors.T, (vectors * values**-0.5) @ vectors.T


def statistics(model, where):
    """Draws the covariances; slices of one input share theirs."""
    rng = np.random.default_rng(0)
    draw = lambda n: (lambda x: (x.T @ x / len(x)).astype(np.float32))(rng.standard_normal((n + 64, n)))
    where.mkdir(parents=True, exist_ok=True)
    with safe_open(model / "model.safetensors", "np") as file:
        for name in slices(model):
            rows, cols = weight(model, file, name).shape
            np.save(where / f"{name}.c.npy", draw(cols))
            np.save(where / f"{name}.g.npy", draw(rows))


def factor(model, where, out):
    """The pass; prints its seconds."""
    begun, tensors = time.perf_counter(), {}
    with safe_open(model / "model.safetensors", "np") as file:
        for name in slices(model):
            w = weight(model, file, name).astype(np.float64)
            root_c, _ = powers(np.load(where / f"{name}.c.npy"), 1e-6)
            root_g, inverse_g = powers(np.load(where / f"{name}.g.npy"), 1e-3)
            whitened = root_g @ w
            u, _, _ = np.linalg.svd(whitened @ root_c, full_matrices=False)
            rank = int(0.8 * w.shape[0] * w.shape[1] / sum(w.shape))
            u = u[:, :rank]
            tensors[f"{name}.a"] = (inverse_g @ u).T.astype(np.float16).copy()
            tensors[f"{name}.b"] = (u.T @ whitened).astype(np.float16)
    save_file(tensors, out)
    print(json.dumps({"seconds": time.perf_counter() - begun}))


if __name__ == "__main__":
    verb, model, where = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    statistics(model, where) if verb == "statistics" else factor(model, where, sys.argv[4])
