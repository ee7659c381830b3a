"""The benchmarks' command line."""

from __future__ import annotations

import json
import math
import platform
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import invconv

from . import solve as solve_benchmark
from .shapes import SHAPES

app = typer.Typer(add_completion=False, no_args_is_help=True)
# A file or a pipe gets whole tables.
console = Console(width=None if sys.stdout.isatty() else 120)


@app.callback()
def main() -> None:
    """Benchmarks of invconv. Every figure of the README is one that a command here prints."""


@app.command()
def solve(
    shapes: Annotated[
        list[str] | None, typer.Argument(help="Names of standard shapes; all of them if none.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="For invconv and for torch.")] = 2,
    seconds: Annotated[float, typer.Option(min=0, help="Time spent on each shape.")] = 2.0,
    output: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file.")
    ] = None,
) -> None:
    """Time solve against torch's conv2d of the same shape, in one interleaved run: medians."""
    unknown = [name for name in shapes or [] if name not in SHAPES]
    if unknown:
        raise typer.BadParameter(f"expected shapes of {', '.join(SHAPES)}, but got {unknown[0]}")
    invconv.set_num_threads(threads)
    torch.set_num_threads(threads)
    names = shapes or list(SHAPES)
    rows = {
        name: solve_benchmark.measure(SHAPES[name], seconds)
        for name in track(names, "timing", console=console, transient=True)
    }
    table = Table(
        "shape",
        "B, C, HxW, k",
        title=f"float32, {threads} threads, {invconv.build_info()['instruction_set']}, "
        f"torch {torch.__version__}",
    )
    for title in ("solve ms", "quartiles", "conv2d ms", "ratio", "GFLOP/s", "error"):
        table.add_column(title, justify="right")
    for name, row in rows.items():
        batch, channels, height, width, kernel = SHAPES[name]
        table.add_row(
            name,
            f"{batch}, {channels}, {height}x{width}, {kernel}",
            f"{row['solve_ms']:.3f}",
            f"{row['solve_low_ms']:.3f}-{row['solve_high_ms']:.3f}",
            f"{row['conv2d_ms']:.3f}",
            f"{row['ratio']:.2f}",
            f"{row['gflops']:.1f}",
            f"{row['error']:.1e}",
        )
    console.print(table)
    mean = math.exp(sum(math.log(row["ratio"]) for row in rows.values()) / len(rows))
    console.print(f"solve / conv2d: geometric mean {mean:.2f}")
    if output is not None:
        figures = {
            "machine": platform.processor() or platform.machine(),
            "threads": threads,
            "instruction_set": invconv.build_info()["instruction_set"],
            "versions": {
                "invconv": invconv.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "solve": rows,
        }
        output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    app()
