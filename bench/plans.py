"""The plans of the CUDA kernels for the standard shapes; no device is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from invconv import _core
from invconv.cli._info import HOPPER_SHARED

from .report import replace_section
from .shapes import Shape
from .tables import table

BEGIN, END = "<!-- plans -->", "<!-- /plans -->"
OPERATIONS = ("solve", "conv", "weight_grad", "solve_backward")
TITLES = (
    "name", "B, C, HxW, kernel", "operation", "kernel", "launches", "threads", "shared KiB",
    "workspace KiB",
)  # fmt: skip


def rows(shapes: Mapping[str, Shape]) -> Iterable[list[str]]:
    """The cells of the table: float32, on a device with the shared memory of an H100."""
    for name, shape in shapes.items():
        batch, channels, height, width, kernel = shape
        for operation in OPERATIONS:
            plan = _core.describe_plan(
                operation, "float32", (batch, channels, height, width),
                (channels, channels, kernel, kernel), 1, 0, HOPPER_SHARED,
            )  # fmt: skip
            yield [
                name, str(shape), operation, plan.kernel, str(plan.launches), str(plan.threads),
                f"{plan.shared_bytes / 1024:.1f}", f"{plan.workspace_bytes / 1024:.1f}",
            ]  # fmt: skip


def section(shapes: Mapping[str, Shape]) -> str:
    """The table in markdown."""
    return table(TITLES, rows(shapes), left=4)


def write(shapes: Mapping[str, Shape], page: Path) -> None:
    """Put the table into the page."""
    replace_section(page, BEGIN, END, section(shapes))
