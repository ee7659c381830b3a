"""Pixels of pictures that Pillow reads: gray or color, 8 bits for each channel."""

from typing import Any

import numpy as np

from invconv.data._types import DataError, Images


def is_gray(mode: str) -> bool:
    """Whether pictures of a mode of Pillow have no color; opacity is left out."""
    return mode in ("1", "L", "LA")


def check_depth(place: str, mode: str) -> None:
    """Check that a picture of a mode of Pillow has levels of 8 bits.

    Raises:
        DataError: it has more, of which a conversion would keep a part; ``place`` names it.
    """
    if mode.startswith(("I", "F")):
        raise DataError(f"{place}: expected 8 bits per channel, but got mode {mode}")


def pixels(picture: Any, channels: int) -> Images:
    """The levels of a picture of Pillow, (C, H, W): 3 channels, or 1 of a gray picture."""
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)[:channels]
