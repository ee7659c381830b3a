"""The standard shapes that every benchmark and every claim uses, and what each of them costs."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """Images of (batch, channels, height, width) in float32; a kernel of kernel x kernel taps."""

    batch: int
    channels: int
    height: int
    width: int
    kernel: int

    def __str__(self) -> str:
        """As the tables have it."""
        batch, channels, height, width, kernel = self
        return f"{batch}, {channels}, {height}x{width}, {kernel}"

    @property
    def operations(self) -> int:
        """Multiplications and additions of one convolution, and of one solve, as usual."""
        return 2 * self.batch * self.height * self.width * (self.channels * self.kernel) ** 2

    @property
    def operations_inside(self) -> int:
        """Those that a result needs: of taps inside the image, of entries that are read.

        In each axis, the taps 0 to k - 1 pixels behind a pixel; the anchor has only what is below
        its diagonal.
        """
        rows, columns = (
            sum(min(position + 1, self.kernel) for position in range(size))
            for size in (self.height, self.width)
        )
        pixels = self.height * self.width
        unread = pixels * self.channels * (self.channels + 1) // 2
        return 2 * self.batch * (rows * columns * self.channels**2 - unread)

    @property
    def unknowns(self) -> int:
        """The order of the matrix M: unknowns of one image."""
        return self.channels * self.height * self.width

    @property
    def image_bytes(self) -> int:
        """Bytes of all images of the batch."""
        return 4 * self.batch * self.unknowns

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight."""
        return 4 * (self.channels * self.kernel) ** 2

    @property
    def steps(self) -> int:
        """Anti-diagonals, which follow each other."""
        return self.height + self.width - 1


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

# One image of growing size: how the time of each method grows with the number of unknowns.
SQUARES = {f"square-{size}": Shape(1, 3, size, size, 3) for size in (8, 16, 32, 64, 128, 256, 512)}

# What is measured on a GPU: all of these, and sizes that a GPU is bought for.
GPU_SHAPES = SHAPES | {
    "square-256": SQUARES["square-256"],
    "rgb-100": Shape(100, 3, 256, 256, 3),
    "wide-100": Shape(100, 96, 16, 16, 3),
    "gray-4k": Shape(1, 1, 4096, 4096, 3),
}

# So little work that the time is that of a call.
TINY = Shape(1, 4, 8, 8, 3)
