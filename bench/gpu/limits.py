"""What a device can do, measured: the limits that floors are made of."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .. import core
from ..floors import floors as every_floors
from ..shapes import Shape
from . import native, timing
from .timing import Candidate, busy, captured, interleaved

COPY_BYTES = 1 << 30


class Limits(NamedTuple):
    """In seconds, bytes a second, and operations a second."""

    peak: float  # multiplications and additions
    multiply_add: float  # seconds from one to the next that needs its result
    copy: float  # bytes read and written
    launch: float  # seconds of one more empty kernel in a graph


def measure() -> Limits:
    """Measure the present device."""
    processors = torch.cuda.get_device_properties().multi_processor_count
    blocks, threads, rounds = 8 * processors, 256, 1000
    out = torch.empty(blocks * threads, device=timing.DEVICE)
    source = torch.randn(COPY_BYTES // 4, device=timing.DEVICE)
    target = torch.empty_like(source)
    nodes = 50
    empty, _ = captured(native.nothing, nodes)
    times = interleaved(
        {
            "peak": Candidate(
                lambda: native.multiply_adds(out, blocks, threads, True, rounds), 1, busy
            ),
            "long": Candidate(lambda: native.multiply_adds(out, 1, 32, False, 20), 1, busy),
            "longer": Candidate(lambda: native.multiply_adds(out, 1, 32, False, 220), 1, busy),
            "copy": Candidate(lambda: target.copy_(source), 1, busy),
            "empty": Candidate(empty.replay, nodes, busy),
        },
        0.5,  # until the clocks have risen
    )
    operations = 2 * blocks * threads * native.CHAINS[True] * native.LINKS * rounds
    return Limits(
        peak=operations / times["peak"].median,
        multiply_add=(times["longer"].median - times["long"].median) / (200 * native.LINKS),
        copy=2 * COPY_BYTES / times["copy"].median,
        launch=times["empty"].median,
    )


def floors(shape: Shape, operation: str, limits: Limits) -> dict[str, float]:
    """Return the seconds that each limit asks for; the largest is the floor."""
    copies = {core.copied(shape): limits.copy}
    needs = every_floors(shape, operation, core.Limits(limits.peak, limits.multiply_add, copies))
    del needs["inside"]
    return needs | {"launch": limits.launch}
