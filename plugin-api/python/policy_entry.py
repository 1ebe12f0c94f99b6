"""Between the contract's functions and a Policy. Runs in the component only."""

import struct

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
        host.log(4, plastic_plugin.whereabouts(e))
        raise Err(f"{type(e).__name__}: {e}")


def action(slice, change, value, reason):
    make = CHANGES[change]
    return wit.Action(slice, make() if value is None else make(value), str(reason))


class State:
    """What stays from call to call; componentize-py makes a new Policy for each."""

    plugin = plugin.PLUGIN()
    run, slices, requests = None, [], []


class Policy:
    """What componentize-py exports."""

    def describe(self):
        needs, phases = list(State.plugin.needs), list(State.plugin.phases)
        return types.Info(NAME, VERSION, SUMMARY, phases, needs, plugin.PLUGIN.schema(), [])

    def configure(self, options):
        answered(lambda: State.plugin.configure(plugin.PLUGIN.read_options(options)))

    def start(self, run, slices):
        answered(State.plugin.start, run, slices)
        State.run, State.slices, State.requests = run, slices, []

    def decide(self, observation):
        return answered(decide, observation)

    def snapshot(self):
        # What the last plan requested, then the policy's own.
        requested = "\n".join(State.requests).encode()
        return struct.pack("<I", len(requested)) + requested + bytes(State.plugin.snapshot())

    def restore(self, state):
        answered(restore, bytes(state))


def decide(observation):
    if len(observation.slices) != len(State.slices):
        raise plastic_plugin.Refused(
            f"the observation has {len(observation.slices)} slices, start announced {len(State.slices)}")
    needs = list(State.plugin.needs) + State.requests
    plan = State.plugin.decide(plastic_plugin.Observation(State.run, State.slices, needs, observation))
    actions = [action(*a) for a in plan.actions]
    State.requests = list(plan.requests)
    return wit.Plan(actions, None, plan.predicted, State.requests, plan.stop, [])


def restore(state):
    if len(state) < 4 or len(state) < 4 + struct.unpack_from("<I", state)[0]:
        raise plastic_plugin.Refused("the snapshot is not one of this plugin")
    end = 4 + struct.unpack_from("<I", state)[0]
    State.plugin.restore(state[end:])
    State.requests = [r for r in state[4:end].decode().split("\n") if r]
