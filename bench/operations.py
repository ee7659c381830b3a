"""Our operations and torch's convolution of the same shape, in one interleaved run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import invconv

from . import core, floors
from .shapes import Shape
from .timing import Times, interleaved

# What the C++ benchmark calls each, and all that it can time of the core.
CORE = {"solve": "solve", "conv": "conv", "backward": "solve_backward"}
CORE_OPERATIONS = ("solve", "solve_transpose", "conv", "weight_grad", "solve_backward")

# Below this, in seconds, Python's share of a call is not small: the core's own time is compared
# with the floor.
SHORT = 100e-6


class Measured(NamedTuple):
    """Seconds of ours and of torch's, and our largest error relative to the largest exact value."""

    ours: Times
    conv2d: Times
    error: float


def problem(shape: Shape, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images and a contractive weight: its inverse does not grow."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, height, width, kernel = shape
    images = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(channels, channels, kernel, kernel, generator=generator)
    return images, weight * (0.3 / (kernel * channels**0.5))


def padded(images: Tensor, kernel: int) -> Tensor:
    """Images with the zeros that make torch's conv2d causal; made before the clock starts."""
    return F.pad(images, (kernel - 1, 0, kernel - 1, 0))


def error(result: Tensor, exact: Tensor) -> float:
    """The largest error, relative to the largest exact value."""
    return float((result - exact).abs().max() / exact.abs().max())


def measure(operation: str, shape: Shape, seconds: float) -> Measured:
    """Time one of solve, conv and backward; both sides allocate what they return."""
    if operation == "backward":
        return _backward(shape, seconds)
    images, weight = problem(shape)
    function = invconv.solve if operation == "solve" else invconv.conv
    inputs = padded(images, shape.kernel)
    with torch.no_grad():
        times = interleaved(
            {"ours": lambda: function(images, weight), "conv2d": lambda: F.conv2d(inputs, weight)},
            seconds,
        )
        exact = function(images.double(), weight.double())
        return Measured(times["ours"], times["conv2d"], error(function(images, weight), exact))


def _backward(shape: Shape, seconds: float) -> Measured:
    """Both gradients, through autograd, which is how a user gets them."""
    images, weight = problem(shape)
    g, _ = problem(shape, seed=1)
    y, w = images.clone().requires_grad_(), weight.clone().requires_grad_()
    x = invconv.solve(y, w)
    inputs = padded(images, shape.kernel).requires_grad_()
    convolved = F.conv2d(inputs, w)

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(x, (y, w), g, retain_graph=True)

    def conv2d() -> tuple[Tensor, ...]:
        return torch.autograd.grad(convolved, (inputs, w), g, retain_graph=True)

    times = interleaved({"ours": ours, "conv2d": conv2d}, seconds)
    dy, dw = ours()
    with torch.no_grad():
        exact_x = invconv.solve(images.double(), weight.double())
        exact_dy = invconv.solve(g.double(), weight.double(), transpose=True)
        exact_dw = -invconv.weight_grad(exact_x, exact_dy, shape.kernel)
    return Measured(times["ours"], times["conv2d"], max(error(dy, exact_dy), error(dw, exact_dw)))


def row(
    operation: str,
    name: str,
    shape: Shape,
    measured: Measured,
    figures: core.Figures | None,
    threads: int,
) -> dict[str, Any]:
    """Return the figures of one shape, in milliseconds where a name ends in _ms.

    ``figures``, of the C++ benchmark, give the core's own time and the floor, if there are any.
    """
    ours = measured.ours.median
    result: dict[str, Any] = {
        "shape": list(shape),
        "ours_ms": ours * 1e3,
        "ours_low_ms": measured.ours.low * 1e3,
        "ours_high_ms": measured.ours.high * 1e3,
        "conv2d_ms": measured.conv2d.median * 1e3,
        "conv2d_low_ms": measured.conv2d.low * 1e3,
        "conv2d_high_ms": measured.conv2d.high * 1e3,
        "ratio": ours / measured.conv2d.median,
        "gflops": floors.DEMANDS[operation].work * shape.operations / ours / 1e9,
        "bytes": floors.bytes_moved(shape, operation),
        "error": measured.error,
    }
    if figures is not None:
        own = figures.times[f"{CORE[operation]}:{name}:{threads}"].median
        result |= {"core_ms": own * 1e3} | _efficiency(
            operation, shape, ours, own, figures, threads
        )
    return result


def _efficiency(
    operation: str, shape: Shape, ours: float, own: float, figures: core.Figures, threads: int
) -> dict[str, Any]:
    limits = figures.limits(threads)
    needs = floors.floors(shape, operation, limits)
    inside = max(needs["inside"], needs["bandwidth"], needs["steps"])
    del needs["inside"]
    rules = max(needs, key=lambda limit: needs[limit])
    by_core = ours < SHORT
    time = own if by_core else ours
    return {
        "floor_ms": needs[rules] * 1e3,
        "floor_of": rules,
        "efficiency": needs[rules] / time,
        "efficiency_inside": inside / time,
        "efficiency_of_core": by_core,
        "peak_gflops": limits.peak / 1e9,
        "copy_gb_per_s": limits.copy[core.copied(shape)] / 1e9,
        "multiply_add_ns": limits.multiply_add * 1e9,
        **({} if limits.hand_over is None else {"hand_over_ns": limits.hand_over * 1e9}),
    }


def core_figures(
    operation: str, shapes: Mapping[str, Shape], threads: int, seconds: float
) -> core.Figures:
    """Run the C++ benchmark of an operation's parts, with the probes of the machine's limits."""
    return core.measure(
        [CORE[operation]], shapes, [threads], probes=True, seconds=min(seconds / 10, 0.1)
    )
