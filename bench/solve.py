"""Our solve, and torch's convolution of the same shape in the same run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import invconv

from .shapes import Shape
from .timing import interleaved


def problem(shape: Shape, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images and a contractive weight: its inverse does not grow."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, height, width, kernel = shape
    images = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(channels, channels, kernel, kernel, generator=generator)
    return images, weight * (0.3 / (kernel * channels**0.5))


def measure(shape: Shape, seconds: float) -> dict[str, float]:
    """Return milliseconds of both, their ratio, our GFLOP/s, and our error against float64."""
    y, weight = problem(shape)
    k = shape.kernel
    padded = F.pad(y, (k - 1, 0, k - 1, 0))
    x = torch.empty_like(y)
    with torch.no_grad():
        times = interleaved(
            {
                "solve": lambda: invconv.solve(y, weight, out=x),
                "conv2d": lambda: F.conv2d(padded, weight),
            },
            seconds,
        )
        exact = invconv.solve(y[:2].double(), weight.double())
    ours, theirs = times["solve"], times["conv2d"]
    return {
        "solve_ms": ours.median * 1e3,
        "solve_low_ms": ours.low * 1e3,
        "solve_high_ms": ours.high * 1e3,
        "conv2d_ms": theirs.median * 1e3,
        "ratio": ours.median / theirs.median,
        "gflops": shape.operations / ours.median / 1e9,
        "error": float((x[:2] - exact).abs().max() / exact.abs().max()),
    }
