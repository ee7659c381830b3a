"""The figures of a trained model."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import invconv
from invconv.data import ImageData, Images, Labels
from invconv.flows import InverseFlow
from invconv.train._files import RunError

# The dequantization noise of every evaluation, so that a figure can be printed again.
_NOISE_SEED = 1
_BATCH = 100


def select_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        RunError: torch does not know it or this machine has none.
    """
    try:
        device = torch.device(name)
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"device {name!r} cannot be used: {reason}") from error
    return device


def labels_of(model: InverseFlow, labels: Labels | None) -> torch.Tensor | None:
    """The labels as the model takes them: None if it has no classes.

    Raises:
        RunError: the model has classes, and the images have no labels.
    """
    if model.config.num_classes == 0:
        return None
    if labels is None:
        raise RunError(
            f"the model is of {model.config.num_classes} classes; these images have none"
        )
    return torch.from_numpy(labels)


def every_class(model: InverseFlow, n: int) -> torch.Tensor | None:
    """Labels of n images to draw, all classes in turn; None if the model has no classes."""
    classes = model.config.num_classes
    return torch.arange(n) % classes if classes else None


@torch.no_grad()
def bits_per_dim(model: InverseFlow, images: Images, labels: Labels | None) -> float:
    """Mean bits/dim of the images, with one fixed draw of the dequantization noise."""
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    device = next(model.parameters()).device
    context = labels_of(model, labels)
    bits = [
        model.bits_per_dim(
            torch.from_numpy(images[start : start + _BATCH]).to(device),
            None if context is None else context[start : start + _BATCH],
            generator=generator,
        )
        for start in range(0, len(images), _BATCH)
    ]
    return torch.cat(bits).double().mean().item()


@torch.no_grad()
def evaluate(model: InverseFlow, data: ImageData) -> dict[str, Any]:
    """Measure a model on the test images.

    Returns:
        ``test_bits_per_dim``; ``reconstruction_max_error``, the largest ``|x - decode(encode(x))|``
        over all dequantized test images, whose values lie in [0, 1]; ``sample_seconds_per_100`` and
        ``forward_seconds_per_100``, medians of the wall time to sample or to encode 100 images;
        ``parameters``, their number; ``device``, ``threads``, ``versions`` and ``commit`` (of the
        checkout that runs, or None).

    Raises:
        RunError: the images do not fit the model.
    """
    config = model.config
    if (data.image_shape, data.quantization) != (config.image_shape, config.quantization):
        raise RunError(
            f"the model is for images of shape {config.image_shape} with {config.quantization} "
            f"values, but {data.name} has {data.image_shape} with {data.quantization}"
        )
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    test = torch.from_numpy(data.test).to(device)
    context = labels_of(model, data.test_labels)
    error = 0.0
    for indices in torch.arange(len(test)).split(_BATCH):
        labels = None if context is None else context[indices]
        x, _ = model.dequantize(test[indices], generator=generator)
        again = model.decode(model.encode(x, labels), labels)
        error = max(error, (again - x).abs().max().item())
    hundred = torch.arange(100) % len(test)
    labels = None if context is None else context[hundred]
    return {
        "test_bits_per_dim": bits_per_dim(model, data.test, data.test_labels),
        "reconstruction_max_error": error,
        "sample_seconds_per_100": _median_seconds(
            lambda: model.sample(100, context=every_class(model, 100), generator=generator), device
        ),
        "forward_seconds_per_100": _median_seconds(
            lambda: model.encode(test[hundred], labels, generator=generator), device
        ),
        "parameters": model.num_parameters,
        "device": str(device),
        "threads": {"torch": torch.get_num_threads(), "invconv": invconv.get_num_threads()},
        "versions": {
            "invconv": invconv.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
        "commit": _commit(),
    }


def _median_seconds(work: Callable[[], Any], device: torch.device) -> float:
    times = []
    # The first call warms up and is not counted.
    for _ in range(6):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _commit() -> str | None:
    """The commit of the invconv checkout that the package, or else the shell, is in."""
    for folder in (Path(__file__).parent, Path.cwd()):
        command = ["git", "-C", str(folder), "rev-parse", "--show-toplevel", "HEAD"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        top, commit = done.stdout.split("\n")[:2]
        # Another project's repository may surround the environment that invconv is installed in.
        if (Path(top) / "python" / "invconv").is_dir():
            return commit
    return None
