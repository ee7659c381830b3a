"""The time that a machine's limits ask for, every tap counted, and which limit it is that rules."""

from __future__ import annotations

from typing import NamedTuple

from .core import Limits, copied
from .shapes import Shape


class Demand(NamedTuple):
    """What an operation needs: convolutions of work; arrays of images and of weights moved."""

    work: int
    images: int
    weights: int
    sequential: bool


DEMANDS = {
    "solve": Demand(1, 2, 1, True),  # y in, x out
    "conv": Demand(1, 2, 1, False),  # x in, y out
    "backward": Demand(2, 3, 2, True),  # g and x in, dy out; the weight in, its gradient out
}


def bytes_moved(shape: Shape, operation: str) -> int:
    """Bytes that must be read or written at least once."""
    demand = DEMANDS[operation]
    return demand.images * shape.image_bytes + demand.weights * shape.weight_bytes


def floors(shape: Shape, operation: str, limits: Limits) -> dict[str, float]:
    """Return the seconds that each limit of the machine asks for; the largest is the floor.

    "inside" is a stricter count of the arithmetic that is no part of the floor: only of the taps
    that lie inside the image and of the entries that are read.

    A step costs no less than a multiply-add for each tap on the diagonal before: the pixel above
    and the pixel to the left.
    """
    demand = DEMANDS[operation]
    neighbours = (shape.height > 1) + (shape.width > 1) if shape.kernel > 1 else 0
    steps = shape.steps if demand.sequential else 0
    return {
        "arithmetic": demand.work * shape.operations / limits.peak,
        "bandwidth": bytes_moved(shape, operation) / limits.copy[copied(shape)],
        "steps": steps * neighbours * limits.multiply_add,
        "inside": demand.work * shape.operations_inside / limits.peak,
    }
