"""The peak memory of a training step of a flow, against its depth, with and without recomputation.

``python -m bench.depth STEPS reversible|sequential`` prints bytes: how far the memory of a process
of its own rises in a forward and a backward pass.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from invconv import flows

from .memory import peak as peak_of_process
from .results import ROOT, Rows
from .tables import save_figure

PICTURE = Path("docs") / "memory-depth.png"

STEPS = (1, 2, 4, 8, 16, 32)
# The first level of 32 x 32 images: large enough that everything but activations is lost in it.
BATCH, CHANNELS, SIZE, HIDDEN = 16, 12, 16, 32


def peak(steps: int, *, reversible: bool) -> int:
    """Bytes that a forward and a backward pass took at their worst moment, in a fresh process."""
    kind = "reversible" if reversible else "sequential"
    command = [sys.executable, "-m", "bench.depth", str(steps), kind]
    # glibc then gives every block of an image's size back when it is freed, so that the pages in
    # memory are the tensors that are alive.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def measure(steps: int) -> dict[str, Any]:
    """Return bytes of both kinds at that depth."""
    return {
        "steps": steps,
        "sequential_bytes": peak(steps, reversible=False),
        "reversible_bytes": peak(steps, reversible=True),
    }


TITLES = ("flow steps", "layers", "Sequential MB", "Reversible MB", "ratio")


def table_rows(rows: Rows) -> list[list[str]]:
    """The cells of the table."""
    return [
        [
            str(row["steps"]),
            str(5 * row["steps"]),
            f"{row['sequential_bytes'] / 1e6:.1f}",
            f"{row['reversible_bytes'] / 1e6:.1f}",
            f"{row['sequential_bytes'] / row['reversible_bytes']:.1f}",
        ]
        for row in rows.values()
    ]


def plot(rows: Rows, path: Path) -> None:
    """Draw memory against depth."""
    steps: Sequence[int] = [row["steps"] for row in rows.values()]
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot()
    for kind, marker in (("sequential", "s"), ("reversible", "o")):
        values = [row[f"{kind}_bytes"] / 1e6 for row in rows.values()]
        axes.plot(steps, values, marker=marker, label=kind.capitalize())
    axes.set_ylim(bottom=0)
    axes.set(
        xlabel="flow steps (five layers each)",
        ylabel="peak of a training step, MB",
        title=f"batch {BATCH}, {CHANNELS} x {SIZE} x {SIZE}, float32",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def _layers(steps: int) -> list[flows.Bijection]:
    layers: list[flows.Bijection] = []
    for _ in range(steps):
        layers += [
            flows.ActNorm(CHANNELS),
            flows.InverseConvolution(CHANNELS, bound=0.9),
            flows.Reverse(),
            flows.RationalQuadraticSpline(CHANNELS),
            flows.AffineCoupling(CHANNELS, HIDDEN),
        ]
    return layers


def _step(flow: flows.Bijection, x: torch.Tensor) -> None:
    z, logabsdet = flow(x)
    (z.square().sum() - logabsdet.sum()).backward()


def _main(steps: int, kind: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    container = {"reversible": flows.Reversible, "sequential": flows.Sequential}[kind]
    flow = container(_layers(steps))
    small = torch.randn(1, CHANNELS, 4, 4)
    _step(flow, small)  # libraries, and the parameters' gradients
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE)
    before = peak_of_process()
    _step(flow, x)
    print(peak_of_process() - before)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
