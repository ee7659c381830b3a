"""One large image: time per pixel, what threads gain, memory; and what a call alone costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import invconv

from . import memory
from .operations import padded, problem
from .results import Rows
from .shapes import TINY, Shape
from .timing import SETTLE, interleaved

SIZES = (512, 1024, 2048, 4096, 8192)
CHANNELS = (1, 3)

# Calls that are timed as one where a call takes microseconds, so that the clock does not count.
CALLS = 100


def one_image(channels: int, sizes: Sequence[int], threads: int, seconds: float) -> Rows:
    """Time solves of one image of each size, with one thread and with ``threads``, interleaved."""
    problems = {size: problem(Shape(1, channels, size, size, 3)) for size in sizes}
    results = {size: torch.full_like(y, 0) for size, (y, _) in problems.items()}
    counts = sorted({1, threads})

    def candidate(size: int, count: int) -> Callable[[], object]:
        y, weight = problems[size]

        def run() -> None:
            invconv.set_num_threads(count)
            invconv.solve(y, weight, out=results[size])

        return run

    times = interleaved(
        {f"{size}:{count}": candidate(size, count) for size in sizes for count in counts},
        seconds,
        settle=SETTLE,
    )
    invconv.set_num_threads(threads)
    rows: Rows = {}
    for size in sizes:
        alone, together = times[f"{size}:1"].median, times[f"{size}:{threads}"].median
        extra = memory.extra(channels, size, threads)
        rows[f"{channels}x{size}x{size}"] = {
            "channels": channels,
            "size": size,
            "one_thread_ms": alone * 1e3,
            "ms": together * 1e3,
            "ns_per_pixel": together * 1e9 / size**2,
            "speedup": alone / together,
            "extra_bytes": extra,
            "extra": extra / Shape(1, channels, size, size, 3).image_bytes,
        }
    return rows


def overhead(seconds: float) -> dict[str, Any]:
    """Return microseconds of one call on a tiny problem, from numpy and torch."""
    y, weight = problem(TINY)
    inputs = padded(y, TINY.kernel)
    x = torch.empty_like(y)
    y_array, weight_array, x_array = (tensor.numpy().copy() for tensor in (y, weight, x))
    calls: dict[str, Callable[[], object]] = {
        "numpy": lambda: invconv.solve(y_array, weight_array),
        "numpy, out=": lambda: invconv.solve(y_array, weight_array, out=x_array),
        "torch": lambda: invconv.solve(y, weight),
        "torch, out=": lambda: invconv.solve(y, weight, out=x),
        "F.conv2d": lambda: F.conv2d(inputs, weight),
    }

    def repeated(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            for _ in range(CALLS):
                call()

        return run

    def gradients(function: Callable[[Tensor, Tensor], Tensor], images: Tensor) -> None:
        leaves = (images.detach().requires_grad_(), weight.detach().requires_grad_())
        with torch.enable_grad():
            torch.autograd.grad(function(*leaves), leaves, x)

    calls["torch, both gradients"] = lambda: gradients(invconv.solve, y)
    calls["F.conv2d, both gradients"] = lambda: gradients(F.conv2d, inputs)
    with torch.no_grad():
        times = interleaved({name: repeated(call) for name, call in calls.items()}, seconds)
    return {name: value.median / CALLS * 1e6 for name, value in times.items()}
