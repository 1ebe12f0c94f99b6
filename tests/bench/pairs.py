"""Pairs: two things measured in turn (A B A B ...), compared pair by pair.

Whatever drifts on a machine (clock speed, neighbours) hits both halves of a pair alike, so the ratio
within a pair is worth more than the ratio of two medians.
"""

import statistics


def alternate(first, second, count):
    """Calls `first()` and `second()` in turn, `count` times, and answers the list of (a, b)."""
    return [(first(), second()) for _ in range(count)]


def summary(values):
    """Median, extremes and number of `values`."""
    values = list(values)
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def compare(measured, value):
    """Summaries of both halves of `measured` pairs and of the ratio first : second within each pair.

    `value` reads the number to compare from one half.
    """
    first = [value(a) for a, _ in measured]
    second = [value(b) for _, b in measured]
    return {
        "first": summary(first),
        "second": summary(second),
        "ratio": summary(a / b for a, b in zip(first, second)),
    }
