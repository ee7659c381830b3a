"""Our operations and cuDNN's convolution of the same shape, in one interleaved run."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import invconv

from ..floors import DEMANDS
from ..operations import error, padded, problem
from ..shapes import Shape
from ..timing import Times
from . import timing
from .limits import Limits, floors
from .timing import COLD_BYTES, Call, Candidate, Graphs, calls_together, eager, interleaved

# Microseconds of a solve replayed from a graph that an H200 should reach, least and most, by
# (batch, channels, height, width, kernel). Derived from published latencies, not from measurements.
TARGETS = {
    Shape(100, 12, 16, 16, 3): (4.0, 5.0),
    Shape(100, 24, 8, 8, 3): (3.5, 4.5),
    Shape(100, 48, 4, 4, 3): (3.0, 4.0),
    Shape(100, 12, 32, 32, 3): (8.0, 10.0),
    Shape(100, 4, 14, 14, 3): (3.0, 3.5),
    Shape(100, 1, 28, 28, 3): (3.0, 3.5),
    Shape(1, 3, 256, 256, 3): (12.0, 20.0),
    Shape(100, 3, 256, 256, 3): (45.0, 55.0),
    Shape(100, 96, 16, 16, 3): (85.0, 95.0),
    Shape(1, 1, 4096, 4096, 3): (125.0, 160.0),
}

# Both gradients take as many times as long.
BACKWARD_TARGET = (2.0, 2.3)


class Problem(NamedTuple):
    """An operation on a device: calls of ours and cuDNN's, and what ours should return."""

    ours: Call
    conv2d: Call
    exact: tuple[Tensor, ...]


def target(operation: str, shape: Shape) -> tuple[float, float] | None:
    """Return the microseconds that an operation should reach, where there is such a target."""
    bounds = TARGETS.get(shape)
    if bounds is None or operation not in ("solve", "backward"):
        return None
    if operation == "solve":
        return bounds
    return bounds[0] * BACKWARD_TARGET[0], bounds[1] * BACKWARD_TARGET[1]


def problem_of(operation: str, shape: Shape) -> Problem:
    """Return solve, conv or backward on random images, with a weight that does not grow.

    What is exact comes from float64 on the CPU.
    """
    images, weight = problem(shape)
    y, w = images.to(timing.DEVICE), weight.to(timing.DEVICE)
    inputs = padded(y, shape.kernel)
    if operation != "backward":
        function = invconv.solve if operation == "solve" else invconv.conv
        exact = function(images.double(), weight.double())
        return Problem(lambda: (function(y, w),), lambda: (F.conv2d(inputs, w),), (exact,))
    g, _ = problem(shape, seed=1)
    exact_dy = invconv.solve(g.double(), weight.double(), transpose=True)
    exact_x = invconv.solve(images.double(), weight.double())
    exact_dw = -invconv.weight_grad(exact_x, exact_dy, shape.kernel)
    for leaf in (y, w, inputs):
        leaf.requires_grad_()
    g = g.to(timing.DEVICE)
    x, convolved = invconv.solve(y, w), F.conv2d(inputs, w)

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(x, (y, w), g, retain_graph=True)

    def conv2d() -> tuple[Tensor, ...]:
        return torch.autograd.grad(convolved, (inputs, w), g, retain_graph=True)

    return Problem(ours, conv2d, (exact_dy, exact_dw))


def largest_error(results: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """The largest error of any result, relative to the largest exact value of that result."""
    return max(error(result.cpu(), right) for result, right in zip(results, exact, strict=True))


def kernels(call: Call) -> list[str]:
    """Return the kernels that a call launches, in order, as the profiler sees them."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    found = [event for event in profile.events() or [] if event.device_type.name == "CUDA"]
    return [
        short_name(event.name)
        for event in sorted(found, key=lambda event: event.time_range.start)
        if not event.name.startswith(("Memcpy", "Memset"))
    ]


def short_name(name: str) -> str:
    """Of ``void a::b::solve<float, 3>(a::c<float>, int)``: ``solve<float, 3>``."""
    # An anonymous namespace has parentheses of its own.
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.sub(r"(?:\w+::)+", "", name.partition("(")[0])


def exact_fp32() -> Any:
    """A context in which cuDNN multiplies in float32, and takes the quickest algorithm."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)


def tensor_cores() -> Any:
    """A context in which cuDNN may round to TF32, which is torch's default."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True)


def measure(operation: str, shape: Shape, seconds: float, limits: Limits) -> dict[str, Any]:
    """Return the figures of one operation and shape, in microseconds where a name ends in _us."""
    ours, conv2d, exact = problem_of(operation, shape)
    overwritten = torch.empty(COLD_BYTES, dtype=torch.uint8, device=timing.DEVICE)
    with exact_fp32():
        candidates: dict[str, Candidate] = {}
        errors = []
        for name, call in (("ours", ours), ("conv2d", conv2d)):
            calls = calls_together(call)
            graphs = Graphs(call, calls)
            candidates |= {
                f"{name}_eager": eager(call, calls),
                f"{name}_graph": graphs.warm,
                f"{name}_cold": graphs.cold(overwritten),
            }
            if call is ours:
                errors = [largest_error(result(), exact) for result in (ours, graphs.replay)]
    with tensor_cores():
        candidates["tf32_graph"] = Graphs(conv2d, calls_together(conv2d)).warm
    with exact_fp32():
        times = interleaved(candidates, seconds)
    needs = floors(shape, operation, limits)
    rules = max(needs, key=lambda limit: needs[limit])
    return {
        "shape": list(shape),
        **microseconds(times),
        "ratio": times["ours_graph"].median / times["conv2d_graph"].median,
        "ratio_eager": times["ours_eager"].median / times["conv2d_eager"].median,
        "ratio_tf32": times["ours_graph"].median / times["tf32_graph"].median,
        "target_us": target(operation, shape),
        "floor_us": needs[rules] * 1e6,
        "floor_of": rules,
        "efficiency": needs[rules] / times["ours_graph"].median,
        "gflops": DEMANDS[operation].work * shape.operations / times["ours_graph"].median / 1e9,
        "error": max(errors),
        "kernels": kernels(ours),
    }


def microseconds(times: dict[str, Times]) -> dict[str, float]:
    """Medians and quartiles, by name."""
    figures = {}
    for name, time in times.items():
        figures[f"{name}_us"] = time.median * 1e6
        figures[f"{name}_low_us"] = time.low * 1e6
        figures[f"{name}_high_us"] = time.high * 1e6
    return figures
