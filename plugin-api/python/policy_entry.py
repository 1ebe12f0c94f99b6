"""Between the contract's functions and a Policy. Runs in the component only."""

import struct
import traceback

import plastic_plugin
from componentize_py_types import Err
from plastic_identity import NAME, SUMMARY, VERSION, plugin
from wit_world.exports import policy as wit
from wit_world.imports import host, types

plastic_plugin.sink = host.log

CHANGES = {
    "set-rank": wit.Change_SetRank,
    "sleep-n": wit.Change_SleepN,
    "wake-n": wit.Change_WakeN,
    "sleep": wit.Change_Sleep,
    "wake": wit.Change_Wake,
    "dense": wit.Change_Dense,
    "freeze": wit.Change_Freeze,
    "thaw": wit.Change_Thaw,
}


def answered(function, *arguments):
    """Calls the plugin; what it raises becomes the contract's error."""
    try:
        return function(*arguments)
    except plastic_plugin.Refused as e:
        raise Err(str(e))
    except Exception as e:
        host.log(4, traceback.format_exc())
        raise Err(f"{type(e).__name__}: {e}")


def action(slice, change, value, reason):
    make = CHANGES[change]
    return wit.Action(slice, make() if value is None else make(value), str(reason))


class Policy:
    """What componentize-py exports."""

    def __init__(self):
        self.plugin = plugin.PLUGIN()
        self.run, self.slices, self.requests = None, [], []

    def describe(self):
        needs, phases = list(self.plugin.needs), list(self.plugin.phases)
        return types.Info(NAME, VERSION, SUMMARY, phases, needs, plugin.PLUGIN.schema(), [])

    def configure(self, options):
        answered(lambda: self.plugin.configure(plugin.PLUGIN.read_options(options)))

    def start(self, run, slices):
        answered(self.plugin.start, run, slices)
        self.run, self.slices, self.requests = run, slices, []

    def decide(self, observation):
        return answered(self._decide, observation)

    def _decide(self, observation):
        if len(observation.slices) != len(self.slices):
            announced = len(self.slices)
            raise plastic_plugin.Refused(
                f"the observation has {len(observation.slices)} slices, start announced {announced}")
        needs = list(self.plugin.needs) + self.requests
        plan = self.plugin.decide(plastic_plugin.Observation(self.run, self.slices, needs, observation))
        actions = [action(*a) for a in plan.actions]
        self.requests = list(plan.requests)
        return wit.Plan(actions, None, plan.predicted, self.requests, plan.stop, [])

    def snapshot(self):
        # What the last plan requested, then the policy's own.
        requested = "\n".join(self.requests).encode()
        return struct.pack("<I", len(requested)) + requested + bytes(self.plugin.snapshot())

    def restore(self, state):
        answered(self._restore, bytes(state))

    def _restore(self, state):
        if len(state) < 4 or len(state) < 4 + struct.unpack_from("<I", state)[0]:
            raise plastic_plugin.Refused("the snapshot is not one of this plugin")
        end = 4 + struct.unpack_from("<I", state)[0]
        self.plugin.restore(state[end:])
        self.requests = [r for r in state[4:end].decode().split("\n") if r]
