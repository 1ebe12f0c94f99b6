"""Runs inside the peer's environment: makes the peer's model directories, and the windows and rows of both sides.

    peer_prepare.py models BASE OUT              BASE in MLX layout -> OUT/quantised-f32, OUT/dense-f32
    peer_prepare.py windows BASE DATA OUT LENGTH COUNT
    peer_prepare.py rows BASE DATA OUT LENGTH
    peer_prepare.py cut BASE DATA OUT LENGTH SOURCE

mlx-lm computes in the type of the scales, so a base with float16 scales runs in float16, which the x86
wheel emulates bit by bit. Both directories are therefore float32: the packed weights stay as they are,
scales and norms are widened (exactly). The dense directory is mlx-lm's own `convert --dequantize`.
"""

import json
import shutil
import sys
from pathlib import Path


def models(base, out):
    """Writes `quantised-f32` (only for a quantised base) and `dense-f32` under `out`, unless they are current."""
    import mlx.core as mx
    from mlx_lm import convert

    config = json.loads((base / "config.json").read_text())
    source = out / "source.json"
    shards = sorted(base.glob("*.safetensors"))
    made_from = json.dumps([str(base.resolve()), [[s.name, s.stat().st_size, s.stat().st_mtime_ns] for s in shards]])
    if source.exists() and source.read_text() == made_from:
        return
    shutil.rmtree(out, ignore_errors=True)
    wide = out / "quantised-f32"
    wide.mkdir(parents=True)
    for file in base.iterdir():
        if file.suffix in (".json", ".jinja", ".txt", ".model") and "index" not in file.name:
            shutil.copy(file, wide)
    # mlx-lm reads the type from here and the quantisation from the tensors' names and this entry.
    config["torch_dtype"] = config["dtype"] = "float32"
    (wide / "config.json").write_text(json.dumps(config, indent=2))
    tensors = {}
    for shard in shards:
        for name, tensor in mx.load(str(shard)).items():
            tensors[name] = tensor.astype(mx.float32) if mx.issubdtype(tensor.dtype, mx.floating) else tensor
    mx.save_safetensors(str(wide / "model.safetensors"), tensors, metadata={"format": "mlx"})
    if "quantization" in config:
        convert(str(wide), str(out / "dense-f32"), dequantize=True, dtype="float32")
    else:
        wide.rename(out / "dense-f32")
    source.write_text(made_from)


def windows(base, data, out, length, count):
    """Writes `count` windows of `length` tokens of `data`: OUT.json as ids, OUT.jsonl as text, OUT-twice.jsonl.

    Only windows whose text encodes to the very same ids are taken, so that a program that reads the text
    scores the same tokens as one that reads the ids.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    streams = [encode(text) for text in texts(data)]
    taken, at = [], 0
    # One window of each document, then the next of each: texts of every kind, whatever the count.
    while len(taken) < count and any(len(ids) >= at + length for ids in streams):
        for ids in streams:
            window = ids[at : at + length]
            if len(window) == length and len(taken) < count:
                text = tokenizer.decode(window, skip_special_tokens=False)
                if encode(text) == window:
                    taken.append((window, text))
        at += length
    if len(taken) < count:
        sys.exit(f"{data}: only {len(taken)} windows of {length} tokens where {count} are needed; give more text")
    out.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{out}.json").write_text(json.dumps([ids for ids, _ in taken]))
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for _, text in taken)
    Path(f"{out}.jsonl").write_text(lines)
    Path(f"{out}-twice.jsonl").write_text(lines * 2)


def rows(base, data, out, length):
    """Writes `data` as plastic-host trains on it, as text for mlx-lm: documents joined by the token that ends
    them, cut into rows of `length` tokens. Prints how many rows there are and how many encode to the same ids.

    mlx-lm adds the ending token to each row and cuts it off again where the row has `length` tokens already.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    encode = lambda text: tokenizer.encode(text).ids
    config = json.loads((base / "config.json").read_text())
    end = config["eos_token_id"]
    end = end[0] if isinstance(end, list) else end
    stream = []
    for text in texts(data):
        stream += [end] * bool(stream) + encode(text)
    pieces = [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]
    decoded = [tokenizer.decode(row, skip_special_tokens=False) for row in pieces]
    again = [encode(text) for text in decoded]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in decoded)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(lines)
    same = sum(a == b for a, b in zip(pieces, again))
    # Longer ones mlx-lm would cut: they lose tokens, they do not gain any.
    print(json.dumps({"rows": len(pieces), "same": same, "lengths": sorted({len(ids) for ids in again})}))


def cut(base, data, out, length, source):
    """Writes, as a list of lists of ids, all full windows of `length` tokens of the documents whose source begins
    with `source`, documents apart: the windows that plastic-host scores."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    streams = [tokenizer.encode(text).ids for text in texts(data, source)]
    found = [ids[i : i + length] for ids in streams for i in range(0, len(ids) - length + 1, length)]
    if not found:
        sys.exit(f"{data}: no window of {length} tokens in documents whose source begins with {source!r}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found))


def texts(data, source=""):
    """Texts of a JSON Lines file whose source begins with `source`."""
    documents = [json.loads(line) for line in data.read_text().splitlines() if line.strip()]
    return [d["text"] for d in documents if d.get("source", "").startswith(source)]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["models", base, out]:
            models(Path(base), Path(out))
        case ["windows", base, data, out, length, count]:
            windows(Path(base), Path(data), Path(out), int(length), int(count))
        case ["rows", base, data, out, length]:
            rows(Path(base), Path(data), Path(out), int(length))
        case ["cut", base, data, out, length, source]:
            cut(Path(base), Path(data), Path(out), int(length), source)
        case _:
            sys.exit(__doc__)
