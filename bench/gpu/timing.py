"""Times on a device, by its own clock: candidates of one run interleaved, in random order, medians.

A call is timed in three ways:

* eager: calls follow each other as from a program that does nothing else, so that a short one costs
  what the host takes to launch it;
* graph: a CUDA graph of several calls is replayed, and the time is a call's share. The caches hold
  what the call before left in them;
* cold: a graph of one call is replayed after all of the L2 cache was overwritten.

Before a graph the device is kept busy until the host has launched it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ..timing import Times

DEVICE = "cuda"

# Seconds that the calls which are timed together take, and how many they are at most.
TOGETHER, MOST_CALLS = 200e-6, 50

# Larger than any L2 cache.
COLD_BYTES = 512 << 20

# Of the device's clock: 50 microseconds at 2 GHz.
BUSY_CYCLES = 100_000

Call = Callable[[], Any]


class Candidate(NamedTuple):
    """What is timed; ``before`` is not."""

    run: Call
    calls: int = 1  # that are made in one run
    before: Call | None = None


def calls_together(call: Call) -> int:
    """Return how many calls are timed as one; they have been made before, and can be made often."""
    for _ in range(2):
        call()
    seconds = interleaved({"call": Candidate(call)}, 0)["call"].median
    return int(min(max(TOGETHER / max(seconds, 1e-9), 1), MOST_CALLS))


def eager(call: Call, calls: int) -> Candidate:
    """Calls from Python."""

    def run() -> None:
        for _ in range(calls):
            call()

    return Candidate(run, calls)


def busy() -> None:
    """Work that leaves the caches alone."""
    torch.cuda._sleep(BUSY_CYCLES)


def captured(call: Call, calls: int) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Return a graph of calls on the present stream, and what the last of them returns."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(calls):
            result = call()
    return graph, result


class Graphs:
    """Replays of one call. What they need lives as long as this does."""

    def __init__(self, call: Call, calls: int) -> None:
        """Capture a call that has been made before."""
        self._many, _ = captured(call, calls)
        self._one, self.result = captured(call, 1)
        self.warm = Candidate(self._many.replay, calls, busy)

    def cold(self, overwritten: torch.Tensor) -> Candidate:
        """One call after an array of ``COLD_BYTES`` was written."""
        return Candidate(self._one.replay, 1, overwritten.zero_)

    def replay(self) -> Any:
        """Return what one call of the graph returns."""
        self._one.replay()
        return self.result


def interleaved(
    candidates: Mapping[str, Candidate], seconds: float, seed: int = 0
) -> dict[str, Times]:
    """Return the seconds of one call of each candidate.

    They run in rounds for ``seconds``, at least 5, after 2 rounds that are not counted. The order
    changes from round to round, so that none always finds the caches as the same other one left
    them.
    """
    order = list(candidates)
    shuffle = random.Random(seed).shuffle
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    begin, rounds = time.perf_counter(), -2
    while rounds < 5 or time.perf_counter() - begin < seconds:
        shuffle(order)
        for name in order:
            candidate = candidates[name]
            torch.cuda.synchronize()
            if candidate.before is not None:
                candidate.before()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            candidate.run()
            end.record()
            end.synchronize()
            if rounds >= 0:
                samples[name].append(start.elapsed_time(end) * 1e-3 / candidate.calls)
        rounds += 1
    return {name: Times.of(values) for name, values in samples.items()}
