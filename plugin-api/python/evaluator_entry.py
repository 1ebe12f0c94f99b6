"""Between the contract's functions and an Evaluator. Runs in the component only."""

import plastic_plugin
from componentize_py_types import Err
from plastic_identity import NAME, SUMMARY, VERSION, plugin
from wit_world.exports import judge as wit
from wit_world.imports import host, measure, types

plastic_plugin.sink = host.log

DECISIONS = {
    "accept": wit.Decision.ACCEPT,
    "reject": wit.Decision.REJECT,
    "abstain": wit.Decision.ABSTAIN,
}


def answered(function, *arguments):
    """Calls the plugin; what it raises becomes the contract's error."""
    try:
        return function(*arguments)
    except plastic_plugin.Refused as e:
        raise Err(str(e))
    except Err:
        raise  # the host's own, of a measurement
    except Exception as e:
        host.log(4, plastic_plugin.whereabouts(e))
        raise Err(f"{type(e).__name__}: {e}")


# Stays from call to call; componentize-py makes a new Judge for each.
judge = plugin.PLUGIN()


class Judge:
    """What componentize-py exports."""

    def describe(self):
        return types.Info(NAME, VERSION, SUMMARY, [], [], plugin.PLUGIN.schema(), [])

    def configure(self, options):
        answered(lambda: judge.configure(plugin.PLUGIN.read_options(options)))

    def evaluate(self, task):
        return answered(evaluate, task)


def evaluate(task):
    verdict = judge.evaluate(task, measure)
    metrics = [types.Metric(name, value, unit, up, None, None) for name, value, unit, up in verdict.metrics]
    return wit.Verdict(DECISIONS[verdict.decision], str(verdict.reason), metrics, [])
