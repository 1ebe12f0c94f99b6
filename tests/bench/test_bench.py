"""Checks of the benchmark's own arithmetic: `python3 -m unittest discover tests/bench`."""

import sys
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace

import overhead
import pairs
import process
import report
import section


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
            page.write_text("no markers")
            with self.assertRaises(ValueError):
                report.insert(page, "new\n")


if __name__ == "__main__":
    unittest.main()
