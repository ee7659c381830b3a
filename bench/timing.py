"""Timing on shared machines: the candidates of one run interleaved, in random order, medians."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Times(NamedTuple):
    """Seconds: the median and the quartiles."""

    median: float
    low: float
    high: float


def interleaved(
    candidates: Mapping[str, Callable[[], object]], seconds: float = 1.0, seed: int = 0
) -> dict[str, Times]:
    """Time each candidate in rounds of one call each until ``seconds`` have passed.

    The order changes from round to round, so that no candidate always finds the caches as the same
    other one left them. At least 5 rounds are run, after 2 that are not counted.
    """
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    shuffle = random.Random(seed).shuffle
    begin = time.perf_counter()
    rounds = 0
    while rounds < 7 or time.perf_counter() - begin < seconds:
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            candidates[name]()
            samples[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: _summary(values[2:]) for name, values in samples.items()}


def _summary(values: list[float]) -> Times:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Times(median, low, high)
