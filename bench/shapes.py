"""The standard shapes that every benchmark and every claim uses."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """Images of (batch, channels, height, width) and a kernel of kernel x kernel taps."""

    batch: int
    channels: int
    height: int
    width: int
    kernel: int

    @property
    def operations(self) -> int:
        """Multiplications and additions of one convolution, and of one solve."""
        return 2 * self.batch * self.height * self.width * (self.channels * self.kernel) ** 2


SHAPES = {
    "mnist-l1": Shape(100, 4, 14, 14, 3),
    "mnist-l2": Shape(100, 16, 7, 7, 3),
    "cifar-l1": Shape(100, 12, 16, 16, 3),
    "cifar-l2": Shape(100, 24, 8, 8, 3),
    "cifar-l3": Shape(100, 48, 4, 4, 3),
    "imagenet64-l1": Shape(100, 12, 32, 32, 3),
    "gray": Shape(100, 1, 28, 28, 3),
    "rgb": Shape(16, 3, 256, 256, 3),
    "wide": Shape(32, 96, 16, 16, 3),
    "k5": Shape(100, 12, 16, 16, 5),
    "k7": Shape(100, 12, 16, 16, 7),
    "one-small": Shape(1, 12, 32, 32, 3),
    "one-large": Shape(1, 1, 2048, 2048, 3),
    "one-4k": Shape(1, 3, 4096, 4096, 3),
}
