"""Timing on shared machines: the candidates of one run interleaved, in random order, medians."""

from __future__ import annotations

import ctypes
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple


class Times(NamedTuple):
    """Seconds: the median and the quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Times:
        """Summarise one value or more."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


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
    return {name: Times.of(values[2:]) for name, values in samples.items()}


def geometric_mean(values: Iterable[float]) -> float:
    """Return the mean of ratios."""
    return math.exp(statistics.fmean(map(math.log, values)))


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next call, as a process that runs for long ends up with.

    Results are allocated anew in each call, ours and torch's. Large ones would otherwise be given
    back to the system and cost a page fault for every 4 KiB, which takes longer than the work.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    trim_threshold, mmap_max = -1, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
