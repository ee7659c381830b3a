"""What is checked before the compiled core is called: kinds, dtypes, numbers of axes, names.

The core checks shapes. All messages read ``[function] expected ..., but got ...``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from invconv import _core

# Where the pixel itself sits in the kernel: the corner opposite to the open one (row, column).
ANCHORS = {"tl": (-1, -1), "tr": (-1, 0), "bl": (0, -1), "br": (0, 0)}
CORNERS = tuple(ANCHORS)
DTYPES = ("float16", "bfloat16", "float32", "float64")

Corner = str | Iterable[str]

# More than fit in any memory; a weight of this size can still be counted in 64 bits.
_MOST_TAPS = 2**31


def integer(function: str, name: str, value: Any) -> int:
    """Return ``value`` as an integer, or raise TypeError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"[{function}] expected {name} to be an integer, but got {value!r}"
        ) from None
    # The core's integers have 64 bits.
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"[{function}] expected {name} of at most 64 bits, but got {number}")
    return number


def boolean(function: str, name: str, value: Any) -> bool:
    """Return ``value`` as a bool; by truth value, ``"no"`` would be True."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(
            f"[{function}] expected {name} to be a bool, but got {type(value).__name__}"
        )
    return bool(value)


def bound(function: str, value: Any) -> None:
    """Check the rho of a bounded weight."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"[{function}] expected bound to be a number or None, but got {value!r}")
    if not 0 < value < 1:
        raise ValueError(f"[{function}] expected bound between 0 and 1, but got {value!r}")


def pair(function: str, name: str, value: Any) -> tuple[int, int]:
    """Return two integers of two, or of one for both; or raise TypeError."""
    several = hasattr(value, "__len__") and not isinstance(value, (str, bytes))
    try:
        numbers = tuple(value) if several else (value, value)
    except TypeError:  # an array without axes
        numbers = (value, value)
    if len(numbers) == 2:
        try:
            return integer(function, name, numbers[0]), integer(function, name, numbers[1])
        except TypeError:
            pass
    axes = getattr(value, "shape", ())
    hint = "; use shape[-2:]" if len(axes) > 1 or len(numbers) in (3, 4) else ""
    given = f"an array of shape {tuple(axes)}" if len(axes) > 1 else repr(value)
    raise TypeError(
        f"[{function}] expected {name} to be two integers, or one for both, but got {given}{hint}"
    )


def kernel_size(function: str, value: Any) -> tuple[int, int]:
    """Return (kh, kw)."""
    kh, kw = pair(function, "kernel_size", value)
    if kh < 1 or kw < 1:
        raise ValueError(
            f"[{function}] expected kernel_size of at least 1 x 1, but got {kh} x {kw}"
        )
    if kh * kw > _MOST_TAPS:
        raise ValueError(
            f"[{function}] expected kernel_size of at most {_MOST_TAPS} taps, but got {kh} x {kw}"
        )
    return kh, kw


def image_size(function: str, value: Any) -> tuple[int, int]:
    """Return (H, W)."""
    return pair(function, "size = (H, W)", value)


def corners(function: str, value: Corner) -> tuple[str, ...]:
    """Return the names of the corners: one, or one for each group."""
    if isinstance(value, str) and value in CORNERS:
        return (value,)
    names: tuple[Any, ...] = (
        tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    )
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"[{function}] expected corner to be a string, 'tl', 'tr', 'bl' or 'br', or a sequence "
            f"of them, one for each group, but got {value!r}"
        )
    if not names or not all(name in CORNERS for name in names):
        raise ValueError(
            f"[{function}] expected corner to be 'tl', 'tr', 'bl' or 'br', or one of them for each "
            f"group, but got {value!r}"
        )
    # Of exactly this type, which the core asks for; numpy's strings are not.
    return tuple(str(name) for name in names)


def groups_of(function: str, value: Any, channels: int) -> int:
    """Return the number of groups, where the caller allocates by it before the core checks it."""
    number = integer(function, "groups", value)
    if number < 1:
        raise ValueError(f"[{function}] expected groups to be at least 1, but got {number}")
    if channels % number:
        raise ValueError(f"[{function}] expected groups to divide C = {channels}, but got {number}")
    return number


def dtype(function: str, name: str, got: str, conversion: str | None = None) -> None:
    """Check the name of a dtype; ``conversion`` is what makes float32 of integers."""
    if got not in DTYPES:
        loses_nothing = got.startswith(("int", "uint", "bool"))
        hint = f"; {conversion} makes one" if conversion and loses_nothing else ""
        raise TypeError(
            f"[{function}] expected {name} of dtype float16, bfloat16, float32 or float64, "
            f"but got {got}{hint}"
        )


def cuda_kernels(function: str, name: str, device: str) -> None:
    """Check that this build can compute on a CUDA device, for an array there."""
    if not _core.has_cuda():
        raise ValueError(
            f"[{function}] expected {name} on the CPU, since this build has no CUDA kernels, "
            f"but got {name} on {device}; built from source where nvcc is found, invconv has them"
        )


def same_dtype(function: str, first: str, a: str, second: str, b: str) -> None:
    """Check that two arrays have the same dtype."""
    if a != b:
        raise TypeError(
            f"[{function}] expected {first} and {second} of one dtype, but got {a} and {b}"
        )


def own_places(function: str, name: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """Check that the elements of an output do not share memory by a stride of zero."""
    if 0 not in shape and any(
        n > 1 and stride == 0 for n, stride in zip(shape, strides, strict=True)
    ):
        raise ValueError(
            f"[{function}] expected {name} whose elements have places of their own, "
            "but got one with a stride of 0"
        )


def image_axes(function: str, name: str, shape: tuple[int, ...]) -> None:
    """Check that there are 3 or 4 axes."""
    if len(shape) not in (3, 4):
        raise ValueError(
            f"[{function}] expected {name} of shape (B, C, H, W) or (C, H, W), "
            f"but got {tuple(shape)}"
        )


def weight_axes(function: str, shape: tuple[int, ...], image_axes: int = 3) -> None:
    """Check that there are 4 axes; with a batch of images also 5, one weight for each of them."""
    if len(shape) != 4 and (len(shape), image_axes) != (5, 4):
        for_each = " or (B, C, C/groups, kh, kw)" if image_axes == 4 else ""
        raise ValueError(
            f"[{function}] expected weight of shape (C, C/groups, kh, kw){for_each}, "
            f"but got {tuple(shape)}"
        )


def fitting_weight(
    function: str, shape: tuple[int, ...], batch: int, channels: int, number: int
) -> None:
    """Check a weight against B, C and the groups, where the core is not called."""
    groups_of(function, number, channels)
    *images, out, inputs, kh, kw = shape
    fits = out == channels and inputs * number == channels and kh >= 1 and kw >= 1
    if not fits or images not in ([], [batch]):
        axes, sizes = ("B, ", f"B = {batch}, ") if images else ("", "")
        raise ValueError(
            f"[{function}] expected weight of shape ({axes}C, C/groups, kh, kw) with {sizes}"
            f"C = {channels}, groups = {number}, but got {shape}"
        )


def batch_of_images(function: str, name: str, shape: tuple[int, ...]) -> None:
    """Check that there are images for ``per_sample`` to tell apart."""
    if len(shape) != 4:
        raise ValueError(
            f"[{function}] expected {name} of shape (B, C, H, W) with per_sample=True, "
            f"but got {tuple(shape)}"
        )


def fitting_corners(function: str, names: tuple[str, ...], number: int) -> None:
    """Check the number of corners against the groups, where the core is not called."""
    if len(names) not in (1, number):
        raise ValueError(
            f"[{function}] expected one corner, or one for each of the groups = {number}, "
            f"but got {len(names)}"
        )


def fitting_size(function: str, height: int, width: int) -> None:
    """Check H and W, where the core is not called."""
    if height < 0 or width < 0:
        raise ValueError(
            f"[{function}] expected size = (H, W) without negative sizes, but got {(height, width)}"
        )


def filter_options(
    function: str, corner: Corner, unit_diagonal: Any, groups: Any, transpose: Any
) -> tuple[tuple[str, ...], bool, int, bool]:
    """Return the options of solve and conv."""
    return (
        corners(function, corner),
        boolean(function, "unit_diagonal", unit_diagonal),
        integer(function, "groups", groups),
        boolean(function, "transpose", transpose),
    )


def weight_options(
    function: str,
    shape: tuple[int, ...],
    size: Any,
    corner: Corner,
    unit_diagonal: Any,
    groups: Any,
) -> tuple[int, int, tuple[str, ...], bool, int]:
    """Check a weight's axes; return H, W and the options of logabsdet and growth."""
    weight_axes(function, shape)
    return (
        *image_size(function, size),
        corners(function, corner),
        boolean(function, "unit_diagonal", unit_diagonal),
        integer(function, "groups", groups),
    )


def weight_grad_options(
    function: str,
    images: tuple[int, ...],
    kernel: Any,
    corner: Corner,
    unit_diagonal: Any,
    groups: Any,
    per_sample: Any,
) -> tuple[tuple[int, int], tuple[str, ...], bool, int, bool]:
    """Return kh and kw, and the options of weight_grad, for images of this shape."""
    groups = groups_of(function, groups, images[-3])
    taps = kernel_size(function, kernel)
    per_sample = boolean(function, "per_sample", per_sample)
    if per_sample:
        batch_of_images(function, "x", images)
    names = corners(function, corner)
    return taps, names, boolean(function, "unit_diagonal", unit_diagonal), groups, per_sample


def weight_grad_shape(
    images: tuple[int, ...], taps: tuple[int, int], groups: int, per_sample: bool
) -> tuple[int, ...]:
    """Return the shape of weight_grad's result."""
    channels = images[-3]
    shape = (channels, channels // groups, *taps)
    return (images[0], *shape) if per_sample else shape


def same_shape(
    function: str, name: str, shape: tuple[int, ...], other: str, expected: tuple[int, ...]
) -> None:
    """Check a shape that must equal another's, before a batch axis is added to either."""
    if tuple(shape) != tuple(expected):
        raise ValueError(
            f"[{function}] expected {name} of the shape of {other}, {tuple(expected)}, "
            f"but got {tuple(shape)}"
        )
