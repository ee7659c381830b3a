"""The C++ benchmark: built when it is first used, run, and read. See cpp/main.cpp."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from . import cmake
from .shapes import Shape
from .timing import Times

# An array of CACHED bytes and its copy fill a cache of 32 MiB, a common last one: from there on
# all arrays are taken to be copied as fast as one of LARGE bytes.
CACHED, LARGE = 16 << 20, 256 << 20

PROGRAM = cmake.folder("bench") / "bench" / "cpp" / "invconv_bench"


class Limits(NamedTuple):
    """What the machine can do, with the threads of the run."""

    peak: float  # multiplications and additions a second
    multiply_add: float  # seconds from one to the next that needs its result
    copy: Mapping[int, float]  # bytes read and written a second, by the size of the array copied
    hand_over: float | None = None  # seconds from one thread to another and back


class Figures(NamedTuple):
    """What one run of the C++ benchmark found."""

    times: dict[str, Times]  # seconds, by operation:shape:threads
    best: dict[str, float]  # operations or bytes a second, by probe; seconds of the others
    errors: dict[str, float]

    def limits(self, threads: int) -> Limits:
        """Return the machine's limits; the run must have had the probes."""
        copies = {}
        for name, rate in self.best.items():
            probe, *size, count = name.split(":")
            if probe == "copy" and int(count) == threads:
                copies[int(size[0])] = rate
        hand_over = self.best.get("hand_over:2")
        return Limits(self.best[f"peak:{threads}"], self.best["chain:1"], copies, hand_over)


@functools.cache
def build() -> Path:
    """Build the C++ benchmark, or bring it up to date, and return the program.

    Raises:
        Missing: If CMake, a compiler or Google Benchmark is missing.
    """
    cmake.build("bench")
    return PROGRAM


def measure(
    operations: Iterable[str],
    shapes: Mapping[str, Shape],
    threads: Sequence[int],
    *,
    probes: bool = False,
    seconds: float = 0.05,
    repetitions: int = 5,
) -> Figures:
    """Time the core's operations on each shape with each number of threads.

    Args:
        operations: Of solve, solve_transpose, conv, weight_grad, solve_backward and plain_solve.
        shapes: By name.
        threads: Numbers of threads.
        probes: Whether to measure the machine's limits too.
        seconds: Spent on each repetition of each.
        repetitions: Times are medians of these, limits the best.

    Raises:
        Missing: As :func:`build`.
    """
    counts = [text for count in threads for text in ("--threads", str(count))]
    arguments = ["--seconds", str(seconds), "--repetitions", str(repetitions), *counts]
    for name, shape in shapes.items():
        arguments += ["--shape", f"{name}={','.join(map(str, shape))}"]
    for operation in operations:
        arguments += ["--run", operation]
    entries = _run(arguments)
    if probes:
        # In a process of their own: the idle threads of an operation spin for a while.
        arguments = ["--seconds", "0.02", "--repetitions", "8", *counts]
        arguments += ["--run", "peak", "--run", "chain", "--run", "copy"]
        if max(threads) > 1 and (os.cpu_count() or 1) > 1:
            arguments += ["--run", "hand_over"]
        for size in sorted({copied(shape) for shape in shapes.values()}):
            arguments += ["--copy", str(size)]
        entries += _run(arguments)
    return read(entries)


def _run(arguments: list[str]) -> list[dict[str, Any]]:
    """Run the C++ benchmark and return what it lists."""
    interleave = "--benchmark_enable_random_interleaving=true"
    command = [str(build()), "--benchmark_format=json", interleave, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the C++ benchmark failed: {done.stderr.strip()}")
    entries: list[dict[str, Any]] = json.loads(done.stdout)["benchmarks"]
    return entries


def read(entries: Iterable[Mapping[str, Any]]) -> Figures:
    """Read what Google Benchmark lists: every repetition of every benchmark."""
    units = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
    times, rates, errors = defaultdict(list), defaultdict(list), {}
    for entry in entries:
        if entry["run_type"] != "iteration":
            continue
        name = entry["name"].partition("/")[0]
        times[name].append(entry["real_time"] * units[entry["time_unit"]])
        if "rate" in entry:
            rates[name].append(entry["rate"])
        if "error" in entry:
            errors[name] = entry["error"]
    best = {name: max(values) for name, values in rates.items()}
    if "chain:1" in times:
        best["chain:1"] = min(times.pop("chain:1")) / 1000  # that many in each
    if "hand_over:2" in times:  # where the cores lie may change meanwhile
        best["hand_over:2"] = median(times.pop("hand_over:2")) / 1000
    summaries = {name: Times.of(values) for name, values in times.items() if name not in rates}
    return Figures(summaries, best, errors)


def copied(shape: Shape) -> int:
    """Return the size of the array whose copy tells a shape's bandwidth: that of its images.

    A small batch never leaves the caches, so that the bandwidth of memory would be no bound.
    """
    return shape.image_bytes if shape.image_bytes < CACHED else LARGE
