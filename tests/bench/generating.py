"""Comparisons 5 to 7: decoding one answer, several at once, and a long prompt up to its first token.

Every side gets the same token ids and decodes greedily; nothing ends an answer early. Within a round each side runs once,
as a fresh process that loads the model and warms up; ratios are taken within rounds.
"""

import pairs
from section import Check, Section, mib, spread, times

PROMPT, TOKENS, BATCH = 40, 128, 8
LONG = 512
OVER_LLAMA, OVER_MLX = 1.5, 8.0
"""Times as fast at decoding one answer, promised."""
TOGETHER = 3.0
"""Times as many tokens a second with eight answers as with one, promised."""
MEMORY = 1.3
"""Times the checkpoint on disk that a process which decodes may hold, promised."""
SAME = 32
"""Greedy tokens that have to be the same where both sides compute in float32: later, rounding may decide a near tie."""
OURS = "plastic-host"


def decoding(setting):
    """One answer: speed, and the memory it takes."""
    count, tokens = rounds(setting)
    windows = setting.windows(PROMPT, BATCH)
    form, rates = faster_form(setting, windows)
    mlx = f"mlx-lm, {form}"
    sides = {OURS: setting.host(), mlx: setting.peer(form, blas=setting.blas is not None)}
    if setting.llama:
        sides[setting.llama.name] = setting.llama
    measured = run(setting, "decode", sides, count, lambda side: side.decode(windows, 1, tokens))
    section = Section(
        f"Decoding {tokens} tokens after a prompt of {PROMPT}, one answer",
        ["", "tokens/s", "plastic-host is so much faster", "first token, ms", "the same greedy tokens", "peak memory"],
        raw={"rounds": measured, "forms": rates},
    )
    for name, runs in measured.items():
        row = [name, spread(pairs.summary(map(rate, runs)), "{:.1f}".format), ratio_text(measured, name, rate)]
        section.rows.append([*row, first_text(runs), same_text(measured, name), mib(median(runs, peak))])
    bar(section, f"decoding, {mlx}", measured, mlx, OVER_MLX)
    if setting.llama:
        bar(section, f"decoding, {setting.llama.name}", measured, setting.llama.name, OVER_LLAMA)
    section.checks.append(same_tokens("decoding, mlx-lm", measured, mlx))
    memory(section, measured[OURS])
    section.notes.append(
        "mlx-lm, tokens/s after " + ", ".join(f"{f}: {r:.1f}" for f, r in rates.items()) + "; the faster form is the peer."
    )
    section.notes += llama_notes(setting)
    return section


def batched(setting):
    """Several answers at once, beside one."""
    count, tokens = rounds(setting)
    windows = setting.windows(PROMPT, BATCH)
    form = "dense-f32" if setting.blas else setting.peer_models()[-1]
    sides = {OURS: setting.host(), f"mlx-lm, {form}": setting.peer(form, blas=setting.blas is not None)}
    if setting.llama:
        sides[setting.llama.name] = setting.llama
    both = lambda side: (side.decode(windows, 1, tokens), side.decode(windows, BATCH, tokens))
    measured = run(setting, "batch", sides, count, both)
    section = Section(
        f"Decoding {BATCH} answers at once ({PROMPT}-token prompts, {tokens} tokens each)",
        ["", "one, tokens/s", f"{BATCH} together, tokens/s", "more within a round", f"plastic-host at {BATCH} is so much faster"],
        raw=measured,
    )
    for name, runs in measured.items():
        compared = pairs.compare([(b, a) for a, b in runs], rate)
        eight = {n: [b for _, b in r] for n, r in measured.items()}
        row = [name, *(spread(compared[half], "{:.1f}".format) for half in ("second", "first"))]
        section.rows.append([*row, spread(compared["ratio"], times), ratio_text(eight, name, rate)])
    more = pairs.summary(rate(b) / rate(a) for a, b in measured[OURS])["median"]
    section.checks.append(Check(f"{BATCH} answers at once", f"at least {TOGETHER:g}x one", times(more), more >= TOGETHER))
    alone = all(a["answer"][0] == b["answer"][0] for a, b in measured[OURS])
    said = "the same" if alone else f"different from token {min(parting(a['answer'][0], b['answer'][0]) or 0 for a, b in measured[OURS])}"
    section.checks.append(Check("the first answer, alone and among eight", "the same tokens", said, alone))
    return section


def first_token(setting):
    """From a long prompt to its first token."""
    count, _ = rounds(setting)
    windows = setting.windows(LONG, 1)
    form = "dense-f32" if setting.blas else setting.peer_models()[-1]
    mlx = f"mlx-lm, {form}"
    sides = {OURS: setting.host(), mlx: setting.peer(form, blas=setting.blas is not None)}
    if setting.llama:
        sides[setting.llama.name] = setting.llama
    one = lambda side: side.first_token(windows) if side is sides[OURS] else side.decode(windows, 1, 1)
    measured = run(setting, "first token", sides, count, one)
    section = Section(
        f"First token of a prompt of {LONG} tokens",
        ["", "ms", "prompt tokens/s", "plastic-host is so much faster", "the same token", "peak memory"],
        raw=measured,
    )
    speed = lambda answer: 1e3 * LONG / answer["first_token_ms"]
    for name, runs in measured.items():
        row = [name, first_text(runs), spread(pairs.summary(map(speed, runs)), "{:.0f}".format)]
        section.rows.append([*row, ratio_text(measured, name, speed), same_text(measured, name), mib(median(runs, peak))])
    if setting.llama:
        ratio = ratio_of(measured, setting.llama.name, speed)["median"]
        section.checks.append(Check("first token, llama.cpp", "ahead", times(ratio), ratio > 1.0))
    section.checks.append(same_tokens("first token, mlx-lm", measured, mlx))
    return section


def rounds(setting):
    """(rounds, tokens of an answer)."""
    return (2, 24) if setting.quick else (5, TOKENS)


def faster_form(setting, windows):
    """(the form of the base that mlx-lm decodes faster, tokens a second of each)."""
    rates = {}
    for form in setting.peer_models():
        setting.say(f"decode: mlx-lm, {form}")
        rates[form] = rate(setting.peer(form, blas=setting.blas is not None).decode(windows, 1, 12))
    return max(rates, key=rates.get), rates


def run(setting, what, sides, count, work):
    """{side: its answers, one a round}: every side in turn."""
    measured = {name: [] for name in sides}
    for n in range(count):
        for name, side in sides.items():
            setting.say(f"{what}: round {n + 1} of {count}, {name}")
            measured[name].append(work(side))
    return measured


def bar(section, what, measured, name, least):
    """Adds the check that the median ratio to a peer is `least` or more."""
    ratio = ratio_of(measured, name, rate)["median"]
    section.checks.append(Check(what, f"at least {least:g}x", times(ratio), ratio >= least))


def memory(section, runs):
    """Adds what a decoding process holds beside the checkpoint on disk."""
    held, disk, before = (median(runs, lambda r: r[n]) for n in ("peak_bytes", "checkpoint_bytes", "baseline_bytes"))
    measured = f"{held / disk:.2f}x ({mib(held)} of {mib(disk)})"
    section.checks.append(Check("peak memory of decoding", f"at most {MEMORY:g}x the checkpoint", measured, held <= MEMORY * disk))
    section.notes.append(
        f"Peak memory is of the whole process. The checkpoint is {mib(disk)} on disk; plastic-host itself holds {mib(before)} before "
        f"it loads a model, and {mib(median(runs, lambda r: r['mlx_peak_bytes']))} are in MLX at most while it decodes."
    )


def llama_notes(setting):
    """How llama.cpp ran."""
    if not setting.llama:
        return ["Without llama.cpp."]
    if setting.llama.buffers == "plain":
        return [f"llama.cpp runs with `use_extra_bufts = false`: with its default it ended with {setting.llama.why} on this machine."]
    return ["llama.cpp rounds activations to 8 bits, so its tokens part from those of float32 where two are nearly as likely."]


def parting(these, those):
    """Position of the first token that differs, from 1; None where all are the same."""
    return next((i + 1 for i, (a, b) in enumerate(zip(these, those)) if a != b), None)


def same_text(measured, name):
    """How far a side's first answer agrees with ours."""
    if name == OURS:
        return ""
    ours, theirs = (measured[n][0]["answer"][0] for n in (OURS, name))
    at = parting(ours, theirs)
    return f"all {len(ours)}" if at is None else f"the first {at - 1} of {len(ours)}"


def same_tokens(what, measured, name):
    """The check that both sides decoded the same at first."""
    ours, theirs = (measured[n][0]["answer"][0] for n in (OURS, name))
    at = parting(ours, theirs)
    least = min(SAME, len(ours))
    met = at is None or at > least
    return Check(f"same tokens, {what}", f"the first {least} at least", same_text(measured, name), met)


def ratio_of(measured, name, value):
    """Summary of ours : theirs within each round."""
    return pairs.compare(list(zip(measured[OURS], measured[name])), value)["ratio"]


def ratio_text(measured, name, value):
    """The same as text; nothing for ourselves."""
    return "" if name == OURS else spread(ratio_of(measured, name, value), times)


def first_text(runs):
    """Milliseconds to the first token."""
    return spread(pairs.summary(r["first_token_ms"] for r in runs), "{:.0f}".format)


def median(runs, of):
    """Median of one number over runs."""
    return pairs.summary(of(r) for r in runs)["median"]


def rate(answer):
    """Tokens a second."""
    return answer["tokens_per_second"]


def peak(answer):
    """Peak memory of the process."""
    return answer["peak_bytes"]
