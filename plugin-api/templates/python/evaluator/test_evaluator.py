"""Runs the evaluator natively on made-up scores: `python3 -m unittest`."""

import unittest

from evaluator import PLUGIN
from plastic_plugin.testing import FakeMeasure, evaluate


def decision(score, options=None):
    scores = {"base": [[-1.0] * 4] * 3, "candidate": [[score] * 4] * 3}
    return evaluate(PLUGIN, FakeMeasure(scores), options).decision


class EvaluatorTest(unittest.TestCase):
    def test_a_rise_beyond_the_limit_is_rejected(self):
        self.assertEqual(decision(-1.05), "accept")
        self.assertEqual(decision(-1.2), "reject")
        self.assertEqual(decision(-1.2, {"max_loss_increase": 0.5}), "accept")
