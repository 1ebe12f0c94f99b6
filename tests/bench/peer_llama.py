"""Runs inside llama.cpp's environment: llama-cpp-python's C API does the measured work and prints one JSON object.

    peer_llama.py BUFFERS score GGUF IDS.json THREADS                  every window alone, all its logits; the losses
    peer_llama.py BUFFERS decode GGUF IDS.json BATCH TOKENS THREADS    the first BATCH prompts, TOKENS greedy tokens each

BUFFERS is `default`, or `plain` for `use_extra_bufts = false` where the default crashes. What is timed is `llama_decode`
and, while decoding, choosing the likeliest token; losses are summed up off the clock, in float64. Every setting that is
not named here is llama.cpp's default. The same work goes ahead once, off the clock (of decoding a few tokens).
"""

import ctypes
import json
import sys
import time
from pathlib import Path

import llama_cpp as llama
import numpy as np

MICRO_BATCH = 512
"""Tokens that llama.cpp computes at once: its default."""
WARM_UP = 4
"""Tokens that go ahead of a timed answer."""
CHUNK = 64
"""Rows of logits that are summed up at once."""


@llama.llama_log_callback
def silent(level, text, data):
    """llama.cpp tells much about loading."""


class Engine:
    """A model with room for `sequences` of `length` tokens each."""

    def __init__(self, file, extra_buffers, threads, sequences, length):
        llama.llama_log_set(silent, ctypes.c_void_p(0))
        llama.llama_backend_init()
        settings = llama.llama_model_default_params()
        if not extra_buffers:
            settings.use_extra_bufts = False
        self.model = llama.llama_model_load_from_file(str(file).encode(), settings)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {file}")
        settings = llama.llama_context_default_params()
        # A multiple of what llama.cpp pads to, for each sequence.
        settings.n_ctx = sequences * (-(-length // 256) * 256)
        settings.n_seq_max = sequences
        settings.n_batch = max(MICRO_BATCH, sequences * length)
        settings.n_ubatch = MICRO_BATCH
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, settings)
        if not self.context:
            sys.exit("llama.cpp cannot make a context")
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(settings.n_batch, 0, 1)

    def clear(self):
        """Forgets all positions."""
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def run(self, tokens):
        """Computes `tokens`: a list of (id, position, sequence, whether its logits are wanted)."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        if llama.llama_decode(self.context, batch) != 0:
            sys.exit("llama_decode failed")
        llama.llama_synchronize(self.context)

    def logits(self, i):
        """Logits after token `i` of the last call."""
        return np.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, i), (self.vocabulary,))

    def losses(self, window):
        """Losses of the tokens 1.. of the window that was just run, nats."""
        found = []
        for start in range(0, len(window) - 1, CHUNK):
            rows = range(start, min(start + CHUNK, len(window) - 1))
            logits = np.stack([self.logits(i) for i in rows]).astype(np.float64)
            top = logits.max(axis=1)
            total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
            found += [float(total[k] - logits[k, window[i + 1]]) for k, i in enumerate(rows)]
        return found

    def answers(self, prompts, tokens):
        """(greedy tokens of each prompt, seconds to the first token of all and from each to the next)."""
        self.clear()
        begun = time.perf_counter()
        prompted, last = [], []
        for sequence, prompt in enumerate(prompts):
            prompted += [(t, p, sequence, p == len(prompt) - 1) for p, t in enumerate(prompt)]
            last.append(len(prompted) - 1)
        self.run(prompted)
        made, seconds = [[] for _ in prompts], []
        while True:
            for answer, i in zip(made, last):
                answer.append(int(self.logits(i).argmax()))
            now = time.perf_counter()
            seconds.append(now - begun)
            begun = now
            if len(seconds) == tokens:
                return made, seconds
            place = len(prompts[0]) + len(seconds) - 1
            self.run([(answer[-1], place, s, True) for s, answer in enumerate(made)])
            last = range(len(made))


def score(file, extra_buffers, ids, threads):
    """Mean loss of the windows, and seconds of running them."""
    windows = json.loads(ids.read_text())
    engine = Engine(file, extra_buffers, threads, 1, max(map(len, windows)))
    tokens = [[(t, p, 0, True) for p, t in enumerate(window[:-1])] for window in windows]
    engine.run(tokens[0])
    seconds, losses = 0.0, []
    for window, these in zip(windows, tokens):
        engine.clear()
        begun = time.perf_counter()
        engine.run(these)
        seconds += time.perf_counter() - begun
        losses += engine.losses(window)
    return {"tokens": len(losses), "loss": sum(losses) / len(losses), "seconds": seconds}


def decode(file, extra_buffers, ids, batch, tokens, threads):
    """Greedy tokens after the first `batch` prompts, with their times."""
    prompts = json.loads(ids.read_text())[:batch]
    engine = Engine(file, extra_buffers, threads, batch, len(prompts[0]) + tokens)
    engine.answers(prompts, min(tokens, WARM_UP))
    made, seconds = engine.answers(prompts, tokens)
    return {"answer": made, "seconds": seconds}


if __name__ == "__main__":
    match sys.argv[1:]:
        case [buffers, "score", file, ids, threads]:
            answer = score(file, buffers == "default", Path(ids), int(threads))
        case [buffers, "decode", file, ids, batch, tokens, threads]:
            answer = decode(file, buffers == "default", Path(ids), int(batch), int(tokens), int(threads))
        case _:
            sys.exit(__doc__)
    print(json.dumps(answer))
