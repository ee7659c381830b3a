"""docs/flows.md: the tables and the plot of what bench/flows.py measures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .flows import KINDS, SCALING_BATCH, SCALING_MODEL
from .results import ROOT, Rows
from .tables import COLOURS, MARKERS, digits, save_figure, table

PAGE = ROOT / "docs" / "flows.md"
PLOT = "flows-scaling.png"

# What the paper's tables 2 and 3 say (Nagar and Varma, arXiv 2410.14634; RTX 2080 Ti, 100 images,
# K = 16, L = 2, full data sets): bits/dim, sampling and forward time in ms, millions of parameters.
# Forward times stand in that of CIFAR-10 alone, Glow and RealNVP in neither.
PAPER: Mapping[str, Mapping[str, Sequence[float | None]]] = {
    "mnist": {"Inverse-Flow": (1.31, 52, None, 1.6), "FInC Flow": (1.15, 90, None, 10.2)},
    "cifar10": {"Inverse-Flow": (3.57, 91.6, 722, 1.76), "FInC Flow": (3.59, 195, 548, 2.72)},
}

TRAIN_TITLES = (
    "data, preset", "family", "bits/dim", "parameters", "steps", "training s",
    "reconstruction error",
)  # fmt: skip


def train_rows(rows: Rows) -> Iterable[list[str]]:
    """The cells of the table of bits/dim."""
    for name, row in rows.items():
        where, _, family = name.rpartition(": ")
        yield [
            where, family, f"{row['bits_per_dim']:.3f}", f"{row['parameters']:,}",
            f"{row['steps']:,}", digits(row["seconds"]), f"{row['reconstruction_max_error']:.1e}",
        ]  # fmt: skip


SPEED_TITLES = (
    "preset", "family", "ST ms", "of it mixing ms", "FT ms", "training step ms", "step / FInC's",
    "step MB", "parameters", "paper: ST ms", "paper: FT ms", "paper: bits/dim", "paper: parameters",
)  # fmt: skip


def speed_rows(rows: Rows) -> Iterable[list[str]]:
    """The cells of the table of times."""

    def spread(row: Mapping[str, Any], kind: str) -> str:
        low, high = row[f"{kind}_ms_quartiles"]
        return f"{digits(row[f'{kind}_ms'])} ({digits(low)} to {digits(high)})"

    for name, row in rows.items():
        size, _, family = name.rpartition(": ")
        bits, sampling, forward, millions = PAPER[size].get(family, (None,) * 4)
        of_finc = row["step_ms"] / rows[f"{size}: FInC Flow"]["step_ms"]
        yield [
            size, family, *(spread(row, kind) for kind in KINDS),
            f"{of_finc:.2f}", f"{row['step_bytes'] / 1e6:.0f}", f"{row['parameters']:,}",
            *("-" if value is None else str(value) for value in (sampling, forward, bits)),
            "-" if millions is None else f"{millions} M",
        ]  # fmt: skip


def scaling_titles(kind: str) -> list[str]:
    """The titles of a table of scaling."""
    first = {"size": "image", "kernel": "kernel"}[kind]
    return [first, *(f"{f}, {c} ms" for f in ("Inverse-Flow", "FInC Flow") for c in ("ST", "FT"))]


def scaling_rows(rows: Rows) -> Iterable[list[str]]:
    """The cells of a table of scaling."""
    for name, row in rows.items():
        yield [f"{name}x{name}", *map(digits, row.values())]


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Draw times against the size of images and of kernels."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("size", "kernel"), strict=True):
        rows: Rows = figures[kind]["rows"]
        values = [int(name) for name in rows]
        for index, name in enumerate(next(iter(rows.values()))):
            axes.plot(
                values,
                [row[name] for row in rows.values()],
                marker=MARKERS[index],
                color=COLOURS[index],
                label=name,
            )
        axes.set(xlabel=f"{ {'size': 'pixels', 'kernel': 'taps'}[kind] } to a side", ylabel="ms")
        if kind == "size":
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xticks(values, map(str, values), fontsize=8)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    save_figure(figure, path)


def write_page(path: Path, provenance: Callable[[dict[str, Any]], str]) -> None:
    """Make docs/flows.md and its plot from a file of figures."""
    figures = json.loads(path.read_text())
    parts = [HEAD]
    for section, (title, text) in TEXTS.items():
        if section not in figures:
            continue
        rows = figures[section]["rows"]
        parts += [f"## {title}", text, provenance(figures[section]["run"])]
        if section == "train":
            parts.append(table(TRAIN_TITLES, train_rows(rows), left=2))
        elif section == "speed":
            parts.append(table(SPEED_TITLES, speed_rows(rows), left=2))
        else:
            parts.append(table(scaling_titles(section), scaling_rows(rows)))
    if "size" in figures and "kernel" in figures:
        plot(figures, PAGE.parent / PLOT)
        parts.append(f"![Times against the size of images and kernels]({PLOT})")
    PAGE.write_text("\n\n".join(parts) + "\n")


HEAD = (
    "# Inverse-Flow and its neighbours\n\n"
    "Four flows of one class, `invconv.flows.InverseFlow`, which differ in the layer that mixes "
    "the channels: a solve from image to latent and a convolution in sampling (Inverse-Flow), the "
    "two exchanged (FInC Flow), an invertible 1x1 convolution (Glow), a fixed reversal (in the "
    "manner of RealNVP). ST is the time to sample images, FT from image to latent. The page is "
    "written by `python -m bench flows --save`; the paper's figures (arXiv 2410.14634, tables 2 "
    "and 3: full data sets, an RTX 2080 Ti) stand in columns of their own."
)

SPEED_NOTES = (
    "K = 16, L = 2. ST is the time to sample 100 images, FT from image to latent: medians and "
    "quartiles of calls of all families, interleaved. The weights are as a run "
    "begins, on which times do not depend. Mixing is what the families differ in, the layers that "
    "mix the channels, timed by themselves on their own inputs; the rest of ST, couplings and "
    "splines above all, is the same for all. A training step is forward and backward, without the "
    "optimiser; MB are how far its memory rises."
)

TEXTS = {
    "train": (
        "Bits per dimension under one budget",
        "The same images, seed, order and number of steps for all four. The sets are small (4000 "
        "digits, 1167 tiles of photographs) and the budget is minutes of a core, so that the "
        "figures compare the four with each other, and not with the paper's.",
    ),
    "speed": (
        "Times at the paper's size",
        f"{SPEED_NOTES} On a CPU a solve costs about what a convolution costs, for which AVX-512 "
        "need not pack the images. A 1x1 convolution has a ninth of their arithmetic, beside which "
        "its matrix is inverted.",
    ),
    "size": (
        "Scaling with the size of images",
        f"L = {SCALING_MODEL['levels']}, K = {SCALING_MODEL['steps']}, {SCALING_BATCH} images.",
    ),
    "kernel": (
        "Scaling with the size of kernels",
        f"L = {SCALING_MODEL['levels']}, K = {SCALING_MODEL['steps']}, {SCALING_BATCH} images of "
        "32x32.",
    ),
}
