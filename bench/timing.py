"""Timing on shared machines: the candidates of one run interleaved, in random order, medians."""

from __future__ import annotations

import ctypes
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

# For ``interleaved``, in seconds, where candidates use different numbers of threads. After 0.03 s
# beside a peer on one thread, our threads were still on one processor.
SETTLE = 0.2


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
    candidates: Mapping[str, Callable[[], object]],
    seconds: float = 1.0,
    seed: int = 0,
    settle: float = 0.0,
) -> dict[str, Times]:
    """Time each candidate in rounds of one call each for ``seconds``, and for at least 5 rounds.

    The order changes from round to round, so that no candidate always finds the caches as the same
    other one left them. Before that a tenth of the time, and at least 2 rounds, are not counted: a
    first call may load modules and start threads, which takes longer than all that are timed.

    Before each call that is timed, calls of the same candidate fill ``settle`` seconds. A candidate
    that computes for milliseconds on one thread leaves the other ones' threads asleep, or all of
    them on one processor, and the time until the system has spread them is no part of a call.
    """
    order = list(candidates)
    shuffle = random.Random(seed).shuffle

    def rounds(seconds: float, least: int) -> dict[str, list[float]]:
        samples: dict[str, list[float]] = {name: [] for name in candidates}
        begin = time.perf_counter()
        done = 0
        while done < least or time.perf_counter() - begin < seconds:
            shuffle(order)
            for name in order:
                start = time.perf_counter()
                while time.perf_counter() - start < settle:
                    candidates[name]()
                start = time.perf_counter()
                candidates[name]()
                samples[name].append(time.perf_counter() - start)
            done += 1
        return samples

    rounds(seconds / 10, 2)
    return {name: Times.of(values) for name, values in rounds(seconds, 5).items()}


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
