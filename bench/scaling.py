"""One large image: time per pixel, what threads gain, memory; and what a call alone costs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
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

    def gradients(function: Callable[[Tensor, Tensor], Tensor], images: Tensor) -> None:
        leaves = (images.detach().requires_grad_(), weight.detach().requires_grad_())
        with torch.enable_grad():
            torch.autograd.grad(function(*leaves), leaves, x)

    calls["torch, both gradients"] = lambda: gradients(invconv.solve, y)
    calls["F.conv2d, both gradients"] = lambda: gradients(F.conv2d, inputs)
    with torch.no_grad():
        return _microseconds(calls, seconds)


def _microseconds(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The median time of each call, in loops of its own."""

    def repeated(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            for _ in range(CALLS):
                call()

        return run

    times = interleaved({name: repeated(call) for name, call in calls.items()}, seconds)
    return {name: value.median / CALLS * 1e6 for name, value in times.items()}


def graph_overhead(shapes: Mapping[str, Shape], seconds: float, backend: str) -> dict[str, Any]:
    """Return microseconds of a solve, and of one with both gradients, in eager mode and in graphs.

    Beside them torch's conv2d of the same shape. A graph is what ``torch.compile`` makes with
    ``backend``, and what ``torch.export`` makes of the solve alone. (``python -m bench gpu`` times
    CUDA graphs.)
    """
    rows: dict[str, Any] = {}
    for name, shape in shapes.items():
        y, weight = problem(shape)
        functions: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
            "solve": (invconv.solve, y),
            "F.conv2d": (_conv2d, padded(y, shape.kernel)),
        }
        calls: dict[str, Callable[[], object]] = {}
        torch.compiler.reset()  # else the second shape makes the graphs dynamic
        for title, (function, images) in functions.items():
            compiled: Callable[..., Tensor]
            compiled = torch.compile(function, backend=backend, fullgraph=True)
            for kind, call in (("eager", function), ("compiled", compiled)):
                calls[f"{title}, {kind}"] = functools.partial(_forward, call, images, weight)
                calls[f"{title} + gradients, {kind}"] = functools.partial(
                    _with_gradients, call, images, weight
                )
        exported = torch.export.export(_Solve(), (y, weight)).module()
        calls["solve, exported"] = functools.partial(_forward, exported, y, weight)
        for title, time in _microseconds(calls, seconds).items():
            rows[f"{name}: {title}"] = time
    return rows


def _conv2d(images: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(images, weight)


class _Solve(torch.nn.Module):
    def forward(self, y: Tensor, weight: Tensor) -> Tensor:
        return invconv.solve(y, weight)


def _forward(function: Callable[..., Tensor], images: Tensor, weight: Tensor) -> Tensor:
    with torch.no_grad():
        return function(images, weight)


def _with_gradients(
    function: Callable[..., Tensor], images: Tensor, weight: Tensor
) -> tuple[Tensor, ...]:
    leaves = (images.detach().requires_grad_(), weight.detach().requires_grad_())
    return torch.autograd.grad(function(*leaves).sum(), leaves)
