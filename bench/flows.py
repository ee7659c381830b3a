"""Inverse-Flow and its neighbours, under one budget: bits/dim, times, memory, and their growth.

The four families are one class and differ in the layer that mixes the channels. ``python -m
bench.flows PRESET C H W`` prints bytes: how far the memory of a process of its own rises in a
training step.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from invconv import data as datasets
from invconv import train as training
from invconv.flows import PRESETS, InverseFlow

from .memory import peak as peak_of_process
from .results import FOLDER, ROOT, Rows
from .tables import COLOURS, MARKERS, digits, save_figure, table
from .timing import Times, interleaved

PAGE = ROOT / "docs" / "flows.md"
PLOT = "flows-growth.png"

# The name of each family, and what stands behind a preset's name for it.
FAMILIES = {"Inverse-Flow": "", "FInC Flow": "-finc", "Glow": "-glow", "RealNVP-style": "-realnvp"}

# What the paper's tables 2 and 3 say (Nagar and Varma, arXiv 2410.14634; RTX 2080 Ti, 100 images,
# K = 16, L = 2, full data sets): bits/dim, sampling and forward time in ms, millions of parameters.
# Forward times stand in that of CIFAR-10 alone, Glow and RealNVP in neither.
PAPER: Mapping[str, Mapping[str, Sequence[float | None]]] = {
    "mnist": {"Inverse-Flow": (1.31, 52, None, 1.6), "FInC Flow": (1.15, 90, None, 10.2)},
    "cifar10": {"Inverse-Flow": (3.57, 91.6, 722, 1.76), "FInC Flow": (3.59, 195, 548, 2.72)},
}
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}

SIZES = (16, 32, 64, 128, 256)
KERNELS = (2, 3, 5, 7, 9, 11)
# Small enough that 256 x 256 pixels take seconds on a core.
GROWTH_BATCH = 4
GROWTH = {"levels": 2, "steps": 2, "hidden": 16}

CPU = torch.device("cpu")


# ---- bits/dim ------------------------------------------------------------------------------------


def train(source: str, preset: str, epochs: int) -> dict[str, Any]:
    """Train a preset and return its figures: the same seed, order and steps for every family."""
    data = datasets.load(source)
    config = training.new_config(source, data, preset, 0, epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        training.create_run(out, config)
        summary = training.train(config, data, out, device=CPU, listener=training.Listener())
    steps = epochs * math.ceil(len(data.train) / config.batch_size)
    return {
        "bits_per_dim": summary["test_bits_per_dim"],
        "reconstruction_max_error": summary["reconstruction_max_error"],
        "parameters": summary["parameters"],
        "epochs": epochs,
        "steps": steps,
        "seconds": summary["train_seconds"],
    }


# ---- times ---------------------------------------------------------------------------------------


def initialised(preset: str, shape: Sequence[int], **options: Any) -> InverseFlow:
    """A model of a preset, or of options, whose ActNorms have seen a batch of noise."""
    torch.manual_seed(0)
    chosen = {**PRESETS[preset], **options}
    model = InverseFlow(image_shape=tuple(shape), **chosen)
    with torch.no_grad():
        model(_images(32, shape))
    return model.eval()


def _images(count: int, shape: Sequence[int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


def _step(model: InverseFlow, images: torch.Tensor) -> None:
    """Forward and backward of a training step, without the optimiser, which is the same for all."""
    model.zero_grad()
    (-model.bits_per_dim(images).mean()).backward()


def times(models: Mapping[str, InverseFlow], batch: int, seconds: float) -> dict[str, Any]:
    """Seconds to sample and to encode a batch, and of a training step, all models interleaved."""
    shape = next(iter(models.values())).config.image_shape
    images = _images(batch, shape)

    def calls(model: InverseFlow) -> dict[str, Callable[[], object]]:
        generator = torch.Generator().manual_seed(0)
        return {
            "sample": lambda: model.sample(batch, generator=generator),
            "forward": lambda: _encode(model, images),
            "step": lambda: _step(model, images),
        }

    measured: dict[str, dict[str, Times]] = {name: {} for name in models}
    for kind in ("sample", "forward", "step"):
        candidates = {name: calls(model)[kind] for name, model in models.items()}
        for name, value in interleaved(candidates, seconds).items():
            measured[name][kind] = value
    return measured


@torch.no_grad()
def _encode(model: InverseFlow, images: torch.Tensor) -> None:
    model.encode(images)


def memory(preset: str, shape: Sequence[int]) -> int:
    """Bytes that a training step on 100 images takes at its worst moment, in a fresh process."""
    command = [sys.executable, "-m", "bench.flows", preset, *map(str, shape)]
    # glibc then gives every block of an image's size back when it is freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def speed(size: str, seconds: float) -> Rows:
    """Times and memory of the four families of a preset, 100 images, weights as they begin."""
    shape = SHAPES[size]
    models = {name: initialised(size + suffix, shape) for name, suffix in FAMILIES.items()}
    measured = times(models, 100, seconds)
    return {
        f"{size}: {name}": {
            **{f"{kind}_ms": value.median * 1e3 for kind, value in measured[name].items()},
            **{
                f"{kind}_ms_quartiles": [value.low * 1e3, value.high * 1e3]
                for kind, value in measured[name].items()
            },
            "parameters": model.num_parameters,
            "step_bytes": memory(size + FAMILIES[name], shape),
        }
        for name, model in models.items()
    }


def growth(kind: str, value: int, seconds: float) -> dict[str, Any]:
    """Times of a small model of a size of images or of a kernel: Inverse-Flow and FInC Flow."""
    size = value if kind == "size" else 32
    kernel = value if kind == "kernel" else 3
    models = {
        name: initialised(f"tiny{FAMILIES[name]}", (3, size, size), **GROWTH, kernel_size=kernel)
        for name in ("Inverse-Flow", "FInC Flow")
    }
    measured = times(models, GROWTH_BATCH, seconds)
    return {
        f"{name}, {call}": measured[name][call].median * 1e3
        for name in models
        for call in ("sample", "forward")
    }


# ---- tables --------------------------------------------------------------------------------------

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
    "preset", "family", "ST ms", "FT ms", "training step ms", "step / FInC's", "step MB",
    "parameters", "paper: ST ms", "paper: FT ms", "paper: bits/dim", "paper: parameters",
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
            size, family, spread(row, "sample"), spread(row, "forward"), spread(row, "step"),
            f"{of_finc:.2f}", f"{row['step_bytes'] / 1e6:.0f}", f"{row['parameters']:,}",
            *("-" if value is None else str(value) for value in (sampling, forward, bits)),
            "-" if millions is None else f"{millions} M",
        ]  # fmt: skip


def growth_titles(kind: str) -> list[str]:
    """The titles of a table of growth."""
    first = {"size": "image", "kernel": "kernel"}[kind]
    return [first, *(f"{f}, {c} ms" for f in ("Inverse-Flow", "FInC Flow") for c in ("ST", "FT"))]


def growth_rows(rows: Rows) -> Iterable[list[str]]:
    """The cells of a table of growth."""
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
        axes.set_yscale("log")
        if kind == "size":
            axes.set_xscale("log", base=2)
        axes.set_xticks(values, map(str, values), fontsize=8)
        axes.grid(alpha=0.3)
    if figures["size"]["rows"]:
        figure.axes[0].set_xscale("log", base=2)
        figure.axes[0].set_xticks(
            values := [int(n) for n in figures["size"]["rows"]], map(str, values)
        )
    figure.axes[0].legend(fontsize=8)
    save_figure(figure, path)


def path_of(run: Mapping[str, Any]) -> Path:
    """The file that keeps the figures of this kind of machine."""
    return FOLDER / "flows" / f"cpu-{run['instruction_set']}.json"


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
            parts.append(table(growth_titles(section), growth_rows(rows)))
    if "size" in figures and "kernel" in figures:
        plot(figures, PAGE.parent / PLOT)
        parts.append(f"![Times against the size of images and kernels]({PLOT})")
    PAGE.write_text("\n\n".join(parts) + "\n")


HEAD = (
    "# Inverse-Flow and its neighbours\n\n"
    "Four flows of one class, `invconv.flows.InverseFlow`, which differ in the layer that mixes "
    "the channels: a solve from image to latent and a convolution in sampling (Inverse-Flow), the "
    "two exchanged (FInC Flow), an invertible 1x1 convolution (Glow), a fixed reversal (in the "
    "manner of RealNVP). ST is the time to sample 100 images, FT from image to latent. The page is "
    "written by `python -m bench flows --save`; the paper's figures (arXiv 2410.14634, tables 2 "
    "and 3: full data sets, an RTX 2080 Ti) stand in columns of their own."
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
        "K = 16, L = 2, batches of 100, on the CPU, interleaved: medians and quartiles. The "
        "weights are as a run begins, on which times do not depend.",
    ),
    "size": (
        "Growth with the size of images",
        f"L = {GROWTH['levels']}, K = {GROWTH['steps']}, {GROWTH_BATCH} images.",
    ),
    "kernel": (
        "Growth with the size of kernels",
        f"L = {GROWTH['levels']}, K = {GROWTH['steps']}, {GROWTH_BATCH} images of 32x32.",
    ),
}


def _main(preset: str, *shape: str) -> None:
    torch.set_num_threads(1)
    model = initialised(preset, [int(size) for size in shape])
    _step(model, _images(2, model.config.image_shape))  # libraries, and the gradients
    before = peak_of_process()
    _step(model, _images(100, model.config.image_shape))
    print(peak_of_process() - before)


if __name__ == "__main__":
    _main(*sys.argv[1:])
