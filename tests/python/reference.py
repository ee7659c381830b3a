"""The plain reference: float64 loops over pixels, and the dense matrix of the convolution.

Everything here is written from one table, in ``padding``, which says for each corner how the image
is padded and which tap reads the pixel itself. No corner is obtained by flipping another one, and
the transpose is written as the scatter that it is, so an error in the product's geometry cannot be
repeated here by construction.

There are three independent forms of the convolution: a loop over pixels, the dense matrix, and a
loop over taps. ``test_exactness.py`` first compares them with each other and with
``torch.nn.functional.conv2d``. The last one is fast, works in any numpy dtype, and serves to
compute residuals.

Arrays are ``(batch, channels, height, width)``, weights ``(C, C/groups, kh, kw)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Corner = str | Sequence[str]

CORNERS = ("tl", "tr", "bl", "br")


@dataclass(frozen=True)
class Padding:
    """Zero rows and columns around the image, and the anchor tap's place (row, column)."""

    top: int
    bottom: int
    left: int
    right: int
    anchor: tuple[int, int]


def padding(corner: str, kh: int, kw: int) -> Padding:
    """The table of corners: tap ``(u, v)`` of output ``(i, j)`` reads ``padded[i + u, j + v]``."""
    table = {
        "tl": Padding(top=kh - 1, bottom=0, left=kw - 1, right=0, anchor=(kh - 1, kw - 1)),
        "tr": Padding(top=kh - 1, bottom=0, left=0, right=kw - 1, anchor=(kh - 1, 0)),
        "bl": Padding(top=0, bottom=kh - 1, left=kw - 1, right=0, anchor=(0, kw - 1)),
        "br": Padding(top=0, bottom=kh - 1, left=0, right=kw - 1, anchor=(0, 0)),
    }
    return table[corner]


def corner_of_each_group(corner: Corner, groups: int) -> list[str]:
    """One corner name per group, from one name or a sequence."""
    return [corner] * groups if isinstance(corner, str) else list(corner)


def is_read(corner: Corner, unit_diagonal: bool, groups: int, shape: Sequence[int]) -> Array:
    """Boolean mask over the weight: which entries the definition of the convolution uses at all."""
    channels, per_group, kh, kw = shape
    mask = np.ones(tuple(shape), dtype=bool)
    names = corner_of_each_group(corner, groups)
    for o in range(channels):
        u, v = padding(names[o // per_group], kh, kw).anchor
        for c in range(per_group):
            row = o % per_group
            mask[o, c, u, v] = c < row or (c == row and not unit_diagonal)
    return mask


def full_weight(
    weight: Array, corner: Corner, unit_diagonal: bool, groups: int, dtype: Any = np.float64
) -> Array:
    """The weight that is meant: 0 above the anchor's diagonal, 1 on it if that is its unit."""
    weight = np.asarray(weight)
    channels, per_group, kh, kw = weight.shape
    full = np.where(
        is_read(corner, unit_diagonal, groups, weight.shape), weight.astype(dtype), dtype(0)
    )
    if unit_diagonal:
        names = corner_of_each_group(corner, groups)
        for o in range(channels):
            u, v = padding(names[o // per_group], kh, kw).anchor
            full[o, o % per_group, u, v] = 1
    return full


@dataclass(frozen=True)
class _Group:
    """One group of channels: its place in the image, its padding, and its taps."""

    first: int
    count: int
    pad: Padding
    weight: Array  # (count, count, kh, kw), float64
    read: Array  # the same shape: entries that take part (the unit diagonal does)

    def terms(self, o: int) -> Iterator[tuple[int, int, int, float]]:
        """``(c, u, v, W[o, c, u, v])`` for the entries of row ``o`` beside its diagonal."""
        for c in range(self.count):
            for u in range(self.weight.shape[2]):
                for v in range(self.weight.shape[3]):
                    if self.read[o, c, u, v] and not (c == o and (u, v) == self.pad.anchor):
                        yield c, u, v, float(self.weight[o, c, u, v])

    def diagonal(self, o: int) -> float:
        return float(self.weight[o, o, self.pad.anchor[0], self.pad.anchor[1]])

    def pixels(self, height: int, width: int) -> Iterator[tuple[int, int]]:
        """Pixels in an order in which all other pixels that a pixel reads come before it."""
        kh, kw = self.weight.shape[2:]
        rows, columns = list(range(height)), list(range(width))
        if self.pad.anchor[0] != kh - 1:
            rows.reverse()
        if self.pad.anchor[1] != kw - 1:
            columns.reverse()
        yield from itertools.product(rows, columns)

    def inside(self, row: int, column: int, height: int, width: int) -> bool:
        """Whether a place of the padded image is in the image itself."""
        return (
            self.pad.top <= row < self.pad.top + height
            and self.pad.left <= column < self.pad.left + width
        )

    def padded(self, batch: int, height: int, width: int) -> Array:
        rows = self.pad.top + height + self.pad.bottom
        return np.zeros((batch, self.count, rows, self.pad.left + width + self.pad.right))


def _groups(weight: Array, corner: Corner, unit_diagonal: bool, groups: int) -> Iterator[_Group]:
    full = full_weight(weight, corner, unit_diagonal, groups)
    read = is_read(corner, False, groups, full.shape)  # the diagonal takes part in any case
    count, kh, kw = full.shape[1:]
    for g, name in enumerate(corner_of_each_group(corner, groups)):
        block = slice(g * count, (g + 1) * count)
        yield _Group(g * count, count, padding(name, kh, kw), full[block], read[block])


def conv(
    x: Array,
    weight: Array,
    *,
    corner: Corner = "tl",
    unit_diagonal: bool = True,
    groups: int = 1,
    transpose: bool = False,
) -> Array:
    """``M x``, or ``M^T x``, pixel by pixel in float64."""
    x = np.asarray(x, dtype=np.float64)
    batch, _, height, width = x.shape
    y = np.zeros_like(x)
    for group in _groups(weight, corner, unit_diagonal, groups):
        image = x[:, group.first : group.first + group.count]
        result = y[:, group.first : group.first + group.count]
        pad, padded = group.pad, group.padded(batch, height, width)
        inner = padded[:, :, pad.top : pad.top + height, pad.left : pad.left + width]
        if not transpose:
            inner[...] = image
        for i, j in group.pixels(height, width):
            for o in range(group.count):
                if transpose:
                    padded[:, o, i + pad.anchor[0], j + pad.anchor[1]] += (
                        group.diagonal(o) * image[:, o, i, j]
                    )
                    for c, u, v, w in group.terms(o):
                        padded[:, c, i + u, j + v] += w * image[:, o, i, j]
                else:
                    result[:, o, i, j] = group.diagonal(o) * image[:, o, i, j]
                    for c, u, v, w in group.terms(o):
                        # Padding is not read, so that inf times 0 is no term of the sum.
                        if group.inside(i + u, j + v, height, width):
                            result[:, o, i, j] += w * padded[:, c, i + u, j + v]
        if transpose:
            result[...] = inner
    return y


def solve(
    y: Array,
    weight: Array,
    *,
    corner: Corner = "tl",
    unit_diagonal: bool = True,
    groups: int = 1,
    transpose: bool = False,
) -> Array:
    """``M^-1 y``, or ``M^-T y``, by substitution, pixel by pixel in float64.

    ``M x = y`` is solved row by row: a pixel needs only pixels that are known. ``M^T x = y`` is
    solved column by column in the opposite order: a known pixel is subtracted from everything that
    it contributes to.
    """
    y = np.asarray(y, dtype=np.float64)
    batch, _, height, width = y.shape
    x = np.zeros_like(y)
    for group in _groups(weight, corner, unit_diagonal, groups):
        right = y[:, group.first : group.first + group.count]
        result = x[:, group.first : group.first + group.count]
        pad, padded = group.pad, group.padded(batch, height, width)
        inner = padded[:, :, pad.top : pad.top + height, pad.left : pad.left + width]
        if transpose:
            inner[...] = right  # here `padded` holds what is left of the right-hand side
            for i, j in reversed(list(group.pixels(height, width))):
                for o in reversed(range(group.count)):
                    result[:, o, i, j] = inner[:, o, i, j] / group.diagonal(o)
                    for c, u, v, w in group.terms(o):
                        padded[:, c, i + u, j + v] -= w * result[:, o, i, j]
        else:
            for i, j in group.pixels(height, width):  # here `padded` holds the solution so far
                for o in range(group.count):
                    rest = right[:, o, i, j].copy()
                    for c, u, v, w in group.terms(o):
                        if group.inside(i + u, j + v, height, width):
                            rest -= w * padded[:, c, i + u, j + v]
                    inner[:, o, i, j] = rest / group.diagonal(o)
            result[...] = inner
    return x


def weight_grad(
    x: Array,
    g: Array,
    kernel_size: tuple[int, int],
    *,
    corner: Corner = "tl",
    unit_diagonal: bool = True,
    groups: int = 1,
) -> Array:
    """``sum_{b, p} g[b, o, p] x[b, c, p - t(u, v)]`` in float64, 0 where nothing is read."""
    x, g = np.asarray(x, dtype=np.float64), np.asarray(g, dtype=np.float64)
    channels, height, width = x.shape[1:]
    kh, kw = kernel_size
    count = channels // groups
    grad = np.zeros((channels, count, kh, kw))
    read = is_read(corner, unit_diagonal, groups, grad.shape)
    for o in range(channels):
        first = o // count * count
        pad = padding(corner_of_each_group(corner, groups)[o // count], kh, kw)
        for c in range(count):
            for u in range(kh):
                for v in range(kw):
                    if not read[o, c, u, v]:
                        continue
                    for i in range(height):
                        for j in range(width):
                            row, column = i + u - pad.top, j + v - pad.left
                            if 0 <= row < height and 0 <= column < width:
                                grad[o, c, u, v] += g[:, o, i, j] @ x[:, first + c, row, column]
    return grad


def dense_matrix(
    weight: Array,
    size: tuple[int, int],
    *,
    corner: Corner = "tl",
    unit_diagonal: bool = True,
    groups: int = 1,
) -> Array:
    """``M`` in float64 for one image: rows and columns in the order of ``image.ravel()``."""
    full = full_weight(weight, corner, unit_diagonal, groups)
    channels, count, kh, kw = full.shape
    height, width = size
    matrix = np.zeros((channels, height, width, channels, height, width))
    for o in range(channels):
        anchor = padding(corner_of_each_group(corner, groups)[o // count], kh, kw).anchor
        for c in range(count):
            for u in range(kh):
                for v in range(kw):
                    down, right = u - anchor[0], v - anchor[1]
                    for i in range(max(0, -down), min(height, height - down)):
                        for j in range(max(0, -right), min(width, width - right)):
                            read = (o // count * count + c, i + down, j + right)
                            matrix[(o, i, j, *read)] = full[o, c, u, v]
    return matrix.reshape(channels * height * width, channels * height * width)


Index = tuple[slice, slice, slice, slice]


def _taps(
    corner: Corner, groups: int, count: int, kernel: tuple[int, int], size: tuple[int, int]
) -> Iterator[tuple[tuple[slice, slice, int, int], Index, Index]]:
    """``(weights, outputs, inputs)``, three indices, for each tap of each group."""
    for g, name in enumerate(corner_of_each_group(corner, groups)):
        block = slice(g * count, (g + 1) * count)
        anchor = padding(name, *kernel).anchor
        for u in range(kernel[0]):
            for v in range(kernel[1]):
                outputs, inputs = [], []
                for shift, n in ((u - anchor[0], size[0]), (v - anchor[1], size[1])):
                    outputs.append(slice(max(0, -shift), max(0, min(n, n - shift))))
                    inputs.append(slice(max(0, shift), max(0, min(n, n + shift))))
                every = slice(None)
                yield (
                    (block, every, u, v),
                    (every, block, outputs[0], outputs[1]),
                    (every, block, inputs[0], inputs[1]),
                )


def conv_by_taps(
    x: Array, full: Array, *, corner: Corner, groups: int, transpose: bool = False
) -> Array:
    """``M x`` or ``M^T x`` from the weight of ``full_weight``, tap by tap, in the dtype of both.

    ``|M| |x|`` is ``conv_by_taps(abs(x), abs(full))``.
    """
    y = np.zeros_like(x)
    count, *kernel = full.shape[1:]
    for tap, outputs, inputs in _taps(corner, groups, count, (kernel[0], kernel[1]), x.shape[2:]):
        if transpose:
            y[inputs] += np.einsum("oc,bohw->bchw", full[tap], x[outputs])
        else:
            y[outputs] += np.einsum("oc,bchw->bohw", full[tap], x[inputs])
    return y


def weight_grad_by_taps(
    x: Array,
    g: Array,
    kernel: tuple[int, int],
    *,
    corner: Corner,
    unit_diagonal: bool,
    groups: int,
) -> Array:
    """``weight_grad`` tap by tap, in the dtype of the arguments."""
    channels = x.shape[1]
    grad = np.zeros((channels, channels // groups, *kernel), dtype=x.dtype)
    for tap, outputs, inputs in _taps(corner, groups, channels // groups, kernel, x.shape[2:]):
        grad[tap] = np.einsum("bohw,bchw->oc", g[outputs], x[inputs])
    read = is_read(corner, unit_diagonal, groups, grad.shape)
    return np.where(read, grad, 0).astype(x.dtype)


def logabsdet(
    weight: Array,
    size: tuple[int, int],
    *,
    corner: Corner = "tl",
    unit_diagonal: bool = True,
    groups: int = 1,
) -> float:
    """``H W sum log|diag(anchor)|`` in float64."""
    total = 0.0
    for group in _groups(weight, corner, unit_diagonal, groups):
        total += sum(float(np.log(abs(group.diagonal(o)))) for o in range(group.count))
    return size[0] * size[1] * total


# Memory layouts. "flipped" has negative strides, which torch cannot hold.
LAYOUTS = ("contiguous", "channels_last", "fortran", "sliced", "flipped", "expanded")


def lay_out(values: Array, layout: str, rng: np.random.Generator, *, expand_axis: int = 0) -> Array:
    """The same array in another memory layout.

    Only ``"expanded"`` changes values: they are constant along ``expand_axis``. What lies between
    the elements of a sliced array is NaN, so that reading it shows.
    """
    if layout == "contiguous":
        return np.ascontiguousarray(values)
    if layout == "channels_last":
        return np.ascontiguousarray(np.moveaxis(values, -3, -1)).swapaxes(-1, -2).swapaxes(-2, -3)
    if layout == "fortran":
        return np.asfortranarray(values)
    if layout == "sliced":
        steps = rng.integers(1, 4, values.ndim)
        starts = rng.integers(0, 3, values.ndim)
        ends = starts + steps * values.shape
        nan = 0x7FC0 if values.dtype == np.uint16 else np.nan  # the bits of a bfloat16 NaN
        place = tuple(itertools.starmap(slice, zip(starts, ends, steps, strict=True)))
        whole = np.full(ends + 1, nan, dtype=values.dtype)
        whole[place] = values
        return whole[place]
    if layout == "flipped":
        axes = (*np.flatnonzero(rng.integers(0, 2, values.ndim - 1)), values.ndim - 1)
        return np.flip(np.ascontiguousarray(np.flip(values, axes)), axes)
    if layout == "expanded":
        strides = list(np.ascontiguousarray(values).strides)
        strides[expand_axis] = 0
        return np.lib.stride_tricks.as_strided(np.ascontiguousarray(values), values.shape, strides)
    raise ValueError(layout)
