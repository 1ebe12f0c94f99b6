"""Runs inside the peer's environment: mlx-lm does the measured work and prints one JSON object.

    peer_mlx_lm.py score MODEL IDS.json WARM ROUNDS     mlx-lm's own perplexity loop, all windows one batch, rounds timed
    peer_mlx_lm.py start MODEL TEXT.jsonl               what a user waits for: imports, loading, one batch
    peer_mlx_lm.py decode MODEL IDS.json BATCH TOKENS   the first BATCH prompts, TOKENS greedy tokens after each
    peer_mlx_lm.py gemm                                 GFLOPS of a float32 product, to see which BLAS is at work

Scoring is `mlx_lm.perplexity.eval_ppl`, unchanged, on `mlx_lm.load`ed models. Before the timed rounds it
scores the first WARM tokens of every window once, off the clock. Decoding is `generate_step` for one prompt and
`BatchGenerator` for several, as `mlx_lm.benchmark` uses them: nothing stops an answer early. A few tokens go ahead, off the
clock.
"""

import time

BEGUN = time.perf_counter()

import contextlib  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

WARM_UP = 4
"""Tokens that go ahead of a timed answer."""


def timed_perplexity(model, windows):
    """(seconds, mean loss in nats) of mlx-lm's evaluation of `windows` as one batch."""
    from mlx_lm.perplexity import eval_ppl

    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        perplexity, _ = eval_ppl(model, windows, batch_size=windows.shape[0])
    return time.perf_counter() - begun, math.log(perplexity)


def score(model_dir, ids_file, warm, rounds):
    """Loss of the windows and the seconds of each of `rounds` evaluations."""
    import mlx.core as mx
    from mlx_lm import load

    windows = mx.array(json.loads(Path(ids_file).read_text()))
    begun = time.perf_counter()
    model, _ = load(model_dir)
    loaded = time.perf_counter() - begun
    warm_up, _ = timed_perplexity(model, windows[:, :warm])
    timed = [timed_perplexity(model, windows) for _ in range(rounds)]
    return {
        "tokens": windows.shape[0] * (windows.shape[1] - 1),
        "loss": timed[0][1],
        "load_seconds": loaded,
        "warm_up_seconds": warm_up,
        "seconds": [seconds for seconds, _ in timed],
        "mlx_peak_bytes": mx.get_peak_memory(),
    }


def start(model_dir, text_file):
    """Seconds of imports, loading and the first batch, of texts that are tokenised here."""
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.perplexity import eval_ppl  # noqa: F401 (its import belongs to the imports)

    imported = time.perf_counter()
    model, tokenizer = load(model_dir)
    loaded = time.perf_counter()
    texts = [json.loads(line)["text"] for line in Path(text_file).read_text().splitlines()]
    windows = mx.array([tokenizer.encode(text, add_special_tokens=False) for text in texts])
    _, loss = timed_perplexity(model, windows)
    return {
        "tokens": windows.shape[0] * (windows.shape[1] - 1),
        "loss": loss,
        "import_seconds": imported - BEGUN,
        "load_seconds": loaded - imported,
        "first_batch_seconds": time.perf_counter() - loaded,
    }


def answers(model, prompts, tokens):
    """(greedy tokens of each prompt, seconds from the call to the first token of all and from each to the next)."""
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator, generate_step

    begun = time.perf_counter()
    made, at = [[] for _ in prompts], []
    if len(prompts) == 1:
        for token, _ in generate_step(mx.array(prompts[0]), model, max_tokens=tokens):
            made[0].append(int(token))
            at.append(time.perf_counter())
    else:
        generator = BatchGenerator(model)
        uids = generator.insert(prompts, [tokens] * len(prompts))
        while responses := generator.next_generated():
            for response in responses:
                made[uids.index(response.uid)].append(response.token)
            at.append(time.perf_counter())
        generator.close()
    return made, [after - before for before, after in zip([begun, *at], at)]


def decode(model_dir, ids_file, batch, tokens):
    """Greedy tokens after the first `batch` prompts, with their times."""
    import mlx.core as mx
    from mlx_lm import load

    prompts = json.loads(Path(ids_file).read_text())[:batch]
    model, _ = load(model_dir)
    answers(model, prompts, min(tokens, WARM_UP))
    mx.reset_peak_memory()
    made, seconds = answers(model, prompts, tokens)
    return {"answer": made, "seconds": seconds, "mlx_peak_bytes": mx.get_peak_memory()}


def gemm():
    """Best of three 1024 x 1024 x 1024 products."""
    import mlx.core as mx

    n = 1024
    a, b = mx.random.normal((n, n)), mx.random.normal((n, n))
    mx.eval(a, b, a @ b)
    best = math.inf
    for _ in range(3):
        begun = time.perf_counter()
        mx.eval(a @ b)
        best = min(best, time.perf_counter() - begun)
    return {"gflops": 2 * n**3 / best / 1e9}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["score", model, ids, warm, rounds]:
            answer = score(model, ids, int(warm), int(rounds))
        case ["start", model, text]:
            answer = start(model, text)
        case ["decode", model, ids, batch, tokens]:
            answer = decode(model, ids, int(batch), int(tokens))
        case ["gemm"]:
            answer = gemm()
        case _:
            sys.exit(__doc__)
    print(json.dumps(answer))
