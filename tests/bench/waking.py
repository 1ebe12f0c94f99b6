"""How long it takes to attach a pack of 10 MB to a loaded model, and to wake a parked one.

`packs apply` times the reading, checking and attaching of one pack in a fresh process; `packs route` serves
requests for two packs in turn, twice each, so that every second request wakes the other one. The first token
after waking is timed too: nothing may be put off until then.
"""

import json

import pairs
import process
from section import Check, Section, spread

PACKS = ("wake-a", "wake-b")
LARGE = ("--layers", "attn.*,mlp.*", "--rank-map", "attn.*:17,mlp.*:17")
"""Adapters on all slices; with the default base 10.4 MB."""
TINY = ("--steps", 1, "--warmup", 1, "--batch-size", 1, "--sequence-length", 64, "--valid-share", 0)
ATTACH, WAKE = 50.0, 5.0
"""Milliseconds promised."""
REQUESTS = 44


def measure(setting, rounds):
    """Answers the section; `setting.data` is any text."""
    store = setting.out / "packs" / "store"
    packs = [setting.program, "packs"]
    run = lambda *command: json.loads(process.run([*packs, *command], setting.cores, setting.env).stdout)
    where = ["--packs", store, "--json", "--quiet"]
    for seed, name in enumerate(PACKS):
        setting.say(f"waking: making a pack of 10 MB, {name}")
        made = ["create", "--name", name, "--base", setting.base, "--data", setting.data, "--seed", seed]
        run(*made, *LARGE, *TINY, *where, "--force")
    setting.say(f"waking: attaching, {rounds} processes")
    applied = [run("apply", PACKS[0], "--base", setting.base, *where) for _ in range(rounds)]
    requests = setting.out / "packs" / "requests.jsonl"
    prompt = "The evening was quiet."
    asked = [{"prompt": prompt, "domain": PACKS[i // 2 % 2]} for i in range(REQUESTS)]
    requests.write_text("".join(json.dumps(r) + "\n" for r in asked))
    setting.say(f"waking: {REQUESTS} requests for two packs in turn")
    map_ = ",".join(f"{name}={name}" for name in PACKS)
    served = run("route", "--base", setting.base, "--domain-map", map_, "--input", requests, "--probe-forward", *where)
    return report(applied, served["events"])


def report(applied, events):
    """The section."""
    attach = pairs.summary(a["milliseconds"]["total"] for a in applied)
    woken = [e for e in events if e.get("from") == "memory"]
    again = [e for e in events if e.get("from") is None]
    wake = pairs.summary(e["route_ms"] for e in woken)
    first = [pairs.summary(e["first_token_ms"] for e in found) for found in (woken, again)]
    ms = "{:.2f} ms".format
    section = Section(
        "Attaching and waking",
        ["", "time", "promised"],
        rows=[
            [f"attaching a pack, {applied[0]['bytes'] / 1e6:.1f} MB", spread(attach, ms), f"under {ATTACH:g} ms"],
            ["waking it when parked", spread(wake, ms), f"under {WAKE:g} ms"],
            ["first token of the request that woke it", spread(first[0], ms), ""],
            ["first token of the request after it", spread(first[1], ms), ""],
        ],
        raw={"applied": [a["milliseconds"] for a in applied], "events": events},
    )
    size = f"a pack of {applied[0]['bytes'] / 1e6:.1f} MB"
    section.checks += [
        Check(f"attaching {size}", f"under {ATTACH:g} ms", ms(attach["median"]), attach["median"] < ATTACH),
        Check(f"waking {size}", f"under {WAKE:g} ms", ms(wake["median"]), wake["median"] < WAKE),
    ]
    section.notes.append(
        "Attaching: reading the file, checking it and putting it on the loaded model, in a fresh process each, from "
        f"the page cache. Waking: {wake['n']} times between two packs that are both parked in memory."
    )
    return section
