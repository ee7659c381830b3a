"""What is checked before the compiled core is called: kinds, dtypes, numbers of axes, names.

The core checks shapes. All messages read ``[function] expected ..., but got ...``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from invconv import _core

CORNERS = {
    "tl": _core.Corner.tl,
    "tr": _core.Corner.tr,
    "bl": _core.Corner.bl,
    "br": _core.Corner.br,
}
DTYPES = ("float16", "bfloat16", "float32", "float64")
AXES = {3: "(C, H, W)", 4: "(B, C, H, W)"}

Corner = str | Iterable[str]


def integer(function: str, name: str, value: Any) -> int:
    """Return ``value`` as an integer, or raise TypeError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"[{function}] expected {name} to be an integer, but got {value!r}"
        ) from None


def pair(function: str, name: str, value: Any) -> tuple[int, int]:
    """Return a tuple of two integers, or raise."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(
            f"[{function}] expected {name} to be a pair of integers, but got {value!r}"
        ) from None
    return integer(function, name, first), integer(function, name, second)


def kernel_size(function: str, value: Any) -> tuple[int, int]:
    """Return (kh, kw) of one number or a pair."""
    kh, kw = (
        pair(function, "kernel_size", value)
        if isinstance(value, (tuple, list))
        else (integer(function, "kernel_size", value),) * 2
    )
    if kh < 1 or kw < 1:
        raise ValueError(
            f"[{function}] expected kernel_size of at least 1 x 1, but got {kh} x {kw}"
        )
    return kh, kw


def image_size(function: str, value: Any) -> tuple[int, int]:
    """Return (H, W)."""
    return pair(function, "size = (H, W)", value)


def corners(function: str, value: Corner) -> tuple[str, ...]:
    """Return the names of the corners: one, or one for each group."""
    names: tuple[Any, ...] | None = None
    if isinstance(value, str):
        names = (value,)
    elif isinstance(value, Iterable):
        names = tuple(value)
    if not names or not all(isinstance(name, str) and name in CORNERS for name in names):
        raise ValueError(
            f"[{function}] expected corner to be 'tl', 'tr', 'bl' or 'br', or one of them for each "
            f"group, but got {value!r}"
        )
    return names


def groups(function: str, value: Any, channels: int) -> int:
    """Return the number of groups, where the caller allocates by it before the core checks it."""
    number = integer(function, "groups", value)
    if number < 1:
        raise ValueError(f"[{function}] expected groups to be at least 1, but got {number}")
    if channels % number:
        raise ValueError(f"[{function}] expected groups to divide C = {channels}, but got {number}")
    return number


def dtype(function: str, name: str, got: str, expected: str | None = None) -> None:
    """Check the name of a dtype: one of the storage types, or the one ``expected``."""
    if expected is None and got not in DTYPES:
        raise TypeError(
            f"[{function}] expected {name} of dtype float16, bfloat16, float32 or float64, "
            f"but got {got}"
        )
    if expected is not None and got != expected:
        raise TypeError(f"[{function}] expected {name} of dtype {expected}, but got {got}")


def image_axes(function: str, name: str, shape: tuple[int, ...]) -> None:
    """Check that there are 3 or 4 axes."""
    if len(shape) not in AXES:
        raise ValueError(
            f"[{function}] expected {name} of shape (B, C, H, W) or (C, H, W), "
            f"but got {tuple(shape)}"
        )


def weight_axes(function: str, shape: tuple[int, ...]) -> None:
    """Check that there are 4 axes."""
    if len(shape) != 4:
        raise ValueError(
            f"[{function}] expected weight of shape (C, C/groups, kh, kw), but got {tuple(shape)}"
        )


def same_shape(
    function: str, name: str, shape: tuple[int, ...], other: str, expected: tuple[int, ...]
) -> None:
    """Check a shape that must equal another's, before a batch axis is added to either."""
    if tuple(shape) != tuple(expected):
        raise ValueError(
            f"[{function}] expected {name} of the shape of {other}, {tuple(expected)}, "
            f"but got {tuple(shape)}"
        )
