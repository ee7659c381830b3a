"""``python -m bench gpu``: runs the parts one after the other, each in a process of its own.

A part that is cut off, or that leaves the device in a state in which nothing runs any more, takes
nothing from the others: each keeps its figures as it goes. This module needs neither invconv, which
the first part installs, nor anything of the benchmarks but typer.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..choose import choose
from ..cmake import ROOT
from ..shapes import GPU_SHAPES
from .part import PARTS

# Seconds that a part has to end by itself when its time is up.
GRACE = 20

# Seconds for all parts: with the grace of the last and the start of the first, within ten minutes.
BUDGET = 540


def gpu(
    parts: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(PARTS)}; all if none is named.")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option("--shape", help=f"Of {', '.join(GPU_SHAPES)}; all if none is named."),
    ] = None,
    budget: Annotated[float, typer.Option(min=0, help="Seconds for all parts.")] = BUDGET,
    seconds: Annotated[
        float, typer.Option(min=0, help="Spent on each shape, and on each peer of each shape.")
    ] = 0.2,
    output: Annotated[Path, typer.Option(help="The folder that keeps the figures.")] = (
        ROOT / "bench" / "results"
    ),
    commit: Annotated[
        str | None, typer.Option(help="The commit that is measured, where git cannot tell.")
    ] = None,
) -> None:
    """Build, test, check and measure on an NVIDIA GPU; keep the figures in nvidia-<name>.json."""
    chosen = choose(parts, list(PARTS), "parts")
    shapes = choose(shapes, list(GPU_SHAPES), "shapes")
    if not torch.cuda.is_available():
        typer.echo(f"python -m bench gpu needs an NVIDIA GPU; torch {torch.__version__} finds none")
        raise typer.Exit(2)
    end = time.time() + budget
    options = ["--seconds", str(seconds), "--output", str(output.absolute())]
    options += [] if commit is None else ["--commit", commit]
    options += [text for shape in shapes for text in ("--shape", shape)]
    failed = [part for part in chosen if not run(part, end, options)]
    if failed:
        typer.echo(f"failed or cut off: {', '.join(failed)}")
        raise typer.Exit(1)


def run(part: str, end: float, options: list[str]) -> bool:
    """Whether a part did all that it had to before the clock shows ``end``."""
    left = end - time.time()
    _, description = PARTS[part]
    typer.echo(f"== {part}: {description} ({left:.0f} s left)")
    if left <= 0:
        typer.echo("no time left")
        return False
    command = [sys.executable, "-m", "bench.gpu.part", part, "--until", str(end), *options]
    start = time.time()
    try:
        succeeded = subprocess.run(command, cwd=ROOT, timeout=left + GRACE).returncode == 0
    except subprocess.TimeoutExpired:
        succeeded = False
    typer.echo(f"{part}: {'done' if succeeded else 'FAILED'} after {time.time() - start:.0f} s")
    return succeeded
