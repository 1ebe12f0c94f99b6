"""Runs the policy natively on a made-up model: `python3 -m unittest`."""

import unittest

from plastic_plugin import Refused
from plastic_plugin.testing import Model, Session
from policy import PLUGIN


def model():
    return Model(share=0.5).slice("q_proj", 64, 48, "fisher", [1 / i for i in range(1, 49)])


class PolicyTest(unittest.TestCase):
    def test_slices_keep_their_share(self):
        plan = Session(PLUGIN, model(), {"keep": 0.25}).decide()
        self.assertEqual(plan.actions, [(0, "set-rank", 12, "12 of 48")])

    def test_a_wrong_option_is_refused(self):
        with self.assertRaisesRegex(Refused, "option keep is 2, expected 0 to 1"):
            Session(PLUGIN, model(), {"keep": 2})
