"""Runs every kernel once for each storage type, on small problems: for compute-sanitizer.

``python -m bench.gpu.every_kernel`` does so and says nothing; with ``--list`` it prints the
kernels that were launched, a line ``kernel NAME`` for each; a profiler may print lines of its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch

import invconv

from ..cmake import ROOT
from . import timing

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Problem(NamedTuple):
    """Images of (batch, channels, height, width), and kernel_height x kernel_width taps."""

    batch: int
    channels: int
    height: int
    width: int
    kernel_height: int = 3
    kernel_width: int = 3
    groups: int = 1


# On both sides of everything that a plan decides by.
PROBLEMS = (
    *(Problem(2, channels, 5, 6) for channels in (1, 2, 3, 4)),
    *(Problem(2, channels, 70, 20) for channels in (1, 2, 3, 4)),  # several strips
    Problem(2, 5, 6, 7),
    Problem(2, 12, 16, 16),
    Problem(1, 12, 36, 36),  # too many products to sum them in the blocks of the solve
    Problem(1, 24, 8, 8),
    Problem(2, 48, 4, 4),
    Problem(1, 96, 6, 5),  # a weight that no shared memory holds
    Problem(1, 140, 4, 4, 1, 2),  # more channels than the lanes of a pixel have at once
    Problem(1, 66, 18, 18, 2, 1),  # several strips of many channels
    Problem(1, 390, 3, 3, 1, 2),  # too many channels for that
    Problem(1, 5, 70, 70, 2, 3),  # several strips of blocks
    Problem(1, 40, 70, 66, 1, 2),
    Problem(1, 12, 9, 9, 5, 5),
    Problem(1, 3, 9, 9, 2, 4),
    Problem(1, 4, 7, 7, 1, 1),
    Problem(1, 5, 200, 60, 200, 1),  # diagonals that no shared memory holds
    Problem(2, 8, 9, 9, groups=4),
)


def run(problem: Problem, dtype: torch.dtype) -> None:
    """Run every operation, in both directions; nothing but copies makes the arrays."""
    batch, channels, height, width, kernel_height, kernel_width, groups = problem
    images = torch.randn(batch, channels, height, width)
    weight = torch.randn(channels, channels // groups, kernel_height, kernel_width)
    weight *= 0.3 / weight[0].numel() ** 0.5
    y, w = (array.to(dtype).to(timing.DEVICE) for array in (images, weight))
    g = images.flip(0).to(dtype).to(timing.DEVICE)
    corner = ("tl", "tr", "bl", "br")[:groups] if groups > 1 else "br"
    x = invconv.solve(y, w, groups=groups, corner=corner)
    invconv.conv(x, w, groups=groups, corner=corner)
    invconv.conv(x, w, groups=groups, corner=corner, out=x)
    y.requires_grad_()
    w.requires_grad_()
    x = invconv.solve(y, w, groups=groups, corner=corner)
    torch.autograd.grad(x, (y, w), g)


def run_all() -> None:
    """Run every problem of every storage type."""
    torch.manual_seed(0)
    for dtype in DTYPES:
        for problem in PROBLEMS:
            run(problem, dtype)


def in_source() -> Iterator[str]:
    """The names of the kernels in cuda/."""
    kernel = re.compile(r"__global__[^{;]*?(\w+)\s*\(Groups<")  # the first parameter of each
    for path in sorted((ROOT / "cuda").glob("*.cu*")):
        yield from kernel.findall(path.read_text())


def main() -> None:
    """Run; see the module."""
    with torch.cuda.stream(torch.cuda.Stream()):
        if "--list" not in sys.argv:
            run_all()
            torch.cuda.synchronize()
            return
        from .operations import kernels

        for name in sorted(set(kernels(run_all))):
            print(f"kernel {name}")


if __name__ == "__main__":
    main()
