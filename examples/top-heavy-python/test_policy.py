"""Runs the policy natively on a made-up model: `python3 -m unittest`."""

import unittest

from plastic_plugin.testing import Model, Session
from policy import PLUGIN


class TopHeavyTest(unittest.TestCase):
    def test_late_layers_keep_more(self):
        model = Model(share=0.4).slice("first", 64, 64).slice("last", 64, 64)
        plan = Session(PLUGIN, model).decide()
        # A third and two thirds of 0.4 of 2 x 64 x 64, at 128 a component: 8.5 and 17.
        self.assertEqual([value for _, _, value, _ in plan.actions], [8, 17])
