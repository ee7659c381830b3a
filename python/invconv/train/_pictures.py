"""The pictures of a run."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from invconv.data import ImageData, Indices
from invconv.flows import InverseFlow, Squeeze
from invconv.train._evaluate import TEST_NOISE, as_modelled, check_images, every_class
from invconv.train._files import RunError, write_atomic
from invconv.train._loader import load_batches

# A little below 1: fewer odd shapes, at some cost in variety. The title says it.
_TEMPERATURE = 0.8


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, bbox_inches="tight")
    write_atomic(path, content.getvalue())


def _tiles(images: Tensor, columns: int) -> npt.NDArray[np.float32]:
    """Images ``(n, C, H, W)`` as one ``(height, width, C)``, a gray pixel between them."""
    n, c, h, w = images.shape
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1, c), 0.5, np.float32)
    for i, image in enumerate(images.movedim(1, 3).cpu().numpy()):
        top, left = i // columns * (h + 1), i % columns * (w + 1)
        sheet[top : top + h, left : left + w] = image
    return sheet


def save_grid(path: Path, images: Tensor, quantization: int, title: str) -> None:
    """Write integer images ``(n, C, H, W)`` as one picture, about as wide as high."""
    columns = max(1, math.ceil(math.sqrt(len(images))))
    figure = Figure(figsize=(6, 6))
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    _show(axes, _tiles(images.float() / (quantization - 1), columns))
    _save(figure, path)


def _show(axes: Any, sheet: npt.NDArray[np.float32]) -> None:
    axes.imshow(np.repeat(sheet, 3, 2) if sheet.shape[2] == 1 else sheet[:, :, :3], vmin=0, vmax=1)
    axes.axis("off")


def save_samples(path: Path, model: InverseFlow, generator: torch.Generator) -> None:
    """Write 100 samples."""
    images = model.sample(100, _TEMPERATURE, context=every_class(model, 100), generator=generator)
    title = f"100 samples at temperature {_TEMPERATURE}"
    save_grid(path, images, model.config.quantization, title)


def _latent_image(model: InverseFlow, latents: Sequence[Tensor]) -> Tensor:
    """All latents at the places of the pixels they come from, in the shape of the images."""
    squeeze = Squeeze()
    *finals, z = latents
    for index in reversed(range(model.config.levels)):
        if index < len(finals):
            z = torch.cat([z, finals[index]], 1)
        z, _ = squeeze.inverse(z)
    return z


@torch.no_grad()
def save_reconstruction(path: Path, model: InverseFlow, data: ImageData) -> None:
    """Write ten test images, their latents, and the images decoded from these."""
    first = [np.arange(min(10, len(data.test)))]
    test = as_modelled(model, data.test)
    (x, labels), *_ = load_batches(test, data.quantization, first, key=TEST_NOISE)
    x = x.to(next(model.parameters()).device)
    latents = model.encode(x, labels)
    again = model.decode(latents, labels)
    # Three standard deviations to either side of gray.
    noise = (_latent_image(model, latents) / 6 + 0.5).clamp(0, 1)
    figure = Figure(figsize=(8, 2.9))
    error = (again - x).abs().max().item()
    rows = {
        "image": x,
        "latent": noise,
        f"decoded\n(error {error:.0e})": again,
    }
    for index, (label, row) in enumerate(rows.items()):
        axes = figure.add_subplot(3, 1, index + 1)
        axes.text(-0.01, 0.5, label, transform=axes.transAxes, ha="right", va="center", fontsize=9)
        _show(axes, _tiles(row, 10))
    _save(figure, path)


def _arc(start: Sequence[Tensor], end: Sequence[Tensor], steps: int) -> list[Tensor]:
    """Latents on the way from one image's to another's, both ends included, ``(steps, ...)`` each.

    The interpolation is spherical: with theta the angle between the two, each of them all latents
    of its image as one vector,

        ``z(t) = (sin((1 - t) theta) start + sin(t theta) end) / sin(theta)``.

    D standard normal values are about sqrt(D) long, and two such vectors nearly orthogonal. Half
    way on the straight line between them the length would be sqrt(D / 2), where the model knows
    no images: it would draw them as at temperature 0.7.
    """
    one, other = (torch.cat([z.double().flatten() for z in ends]) for ends in (start, end))
    angle = torch.cosine_similarity(one, other, dim=0).clamp(-1, 1).acos()
    t = torch.linspace(0, 1, steps, dtype=torch.float64, device=angle.device)

    def weigh(t: Tensor, z: Tensor) -> Tensor:
        # sin(t theta) / sin(theta), which for equal images is t.
        factor = t * torch.sinc(t * angle / math.pi) / torch.sinc(angle / math.pi)
        return factor[:, None, None, None] * z

    return [weigh(1 - t, a) + weigh(t, b) for a, b in zip(start, end, strict=True)]


@torch.no_grad()
def interpolate(
    model: InverseFlow, data: ImageData, rows: int, steps: int, seed: int, label: int | None = None
) -> tuple[list[str], Tensor]:
    """Images on the way between pairs of test images, through latent space; see :func:`_arc`.

    The images of a pair differ. For a model of classes both are of one class, which all images
    between them are decoded as: half of one class and half of another is none.

    Args:
        model: the flow, in evaluation mode.
        data: the images.
        rows: how many pairs.
        steps: images of a row, at least 2: the first and the last are the pair, decoded.
        seed: it chooses the pairs.
        label: of a model of classes, the one; None takes all in turn.

    Returns:
        A title of each row, and the images, ``(rows, steps, C, H, W)`` in [0, 1].

    Raises:
        RunError: the images do not fit the model, or there are no two of them, or of that class.
    """
    check_images(model, data)
    test = as_modelled(model, data.test)
    sets: dict[str, Indices] = {"": np.arange(len(test))}
    if test.labels is not None:
        classes = range(model.config.num_classes) if label is None else [label]
        sets = {f"class {c}\n": np.flatnonzero(test.labels == c) for c in classes}
    pairs = {name: numbers for name, numbers in sets.items() if len(numbers) > 1}
    if not pairs:
        which = "" if test.labels is None else " of one class"
        which = which if label is None else f" of class {label}"
        raise RunError(f"{data.name} has no two test images{which} to interpolate between")
    random = np.random.default_rng(seed)
    device = next(model.parameters()).device
    titles, images = [], []
    for row in range(rows):
        name = list(pairs)[row % len(pairs)]
        pair = random.choice(pairs[name], 2, replace=False)
        titles.append(f"{name}{pair[0]} to {pair[1]}")
        (x, labels), *_ = load_batches(test, data.quantization, [pair], key=TEST_NOISE)
        start, end = zip(*(z.split(1) for z in model.encode(x.to(device), labels)), strict=True)
        context = None if labels is None else labels[:1].expand(steps)
        images.append(model.decode(_arc(start, end, steps), context))
    return titles, torch.stack(images)


def save_interpolations(path: Path, titles: Sequence[str], images: Tensor, name: str) -> None:
    """Write what :func:`interpolate` returned, a row below the other."""
    rows, steps, _, height, width = images.shape
    figure = Figure(figsize=(0.8 * steps, 0.8 * rows * height / width))
    for index, (title, row) in enumerate(zip(titles, images, strict=True)):
        axes = figure.add_subplot(rows, 1, index + 1)
        axes.text(-0.01, 0.5, title, transform=axes.transAxes, ha="right", va="center", fontsize=8)
        _show(axes, _tiles(row, steps))
        if index == 0:
            axes.set_title(f"between test images of {name}, by their numbers", fontsize=10)
    _save(figure, path)


def save_curve(path: Path, rows: Sequence[dict[str, float]], test_bits_per_dim: float) -> None:
    """Write bits/dim against the epoch."""
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(6.5, 4))
    axes = figure.add_subplot()
    training, validation = (
        [row[f"{part}_bits_per_dim"] for row in rows] for part in ("train", "validation")
    )
    axes.plot(epochs, training, marker=".", label="training")
    axes.plot(epochs, validation, marker=".", label="validation, averaged weights")
    label = f"test at the end: {test_bits_per_dim:.3f}"
    axes.axhline(test_bits_per_dim, color="gray", ls="--", lw=1, label=label)
    # The first epochs lie far above; the eye should rest on where it settles.
    axes.set_ylim(min(*training, *validation) - 0.1, max(validation[len(rows) // 10 :]) + 0.2)
    axes.set(xlabel="epoch", ylabel="bits per dimension")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)
