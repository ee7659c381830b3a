"""The figures of a trained model."""

import math
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import invconv
from invconv.data import ImageData, ImageSet, Indices
from invconv.data._types import first_line
from invconv.flows import InverseFlow
from invconv.train._files import RunError
from invconv.train._loader import load_batches

# Keys of the dequantization noise of every evaluation, so that a figure can be printed again.
VALIDATION_NOISE = (1,)
TEST_NOISE = (2,)
_BATCH = 100


def select_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        RunError: torch does not know it or this machine has none.
    """
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()  # "meta" has no values
    # torch has names of devices without the modules for them.
    except (RuntimeError, AssertionError, ModuleNotFoundError) as error:
        raise RunError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return device


def as_modelled(model: InverseFlow, images: ImageSet) -> ImageSet:
    """The images as the model takes them: without labels if it has no classes.

    Raises:
        RunError: the model has classes, and the images have no labels.
    """
    if model.config.num_classes == 0:
        return ImageSet(images.images)
    if images.labels is None:
        raise RunError(
            f"the model is of {model.config.num_classes} classes; these images have none"
        )
    return images


def check_images(model: InverseFlow, data: ImageData) -> None:
    """Check that images are of the shape and of the levels that the model takes.

    Raises:
        RunError: they are not.
    """
    config = model.config
    if (data.image_shape, data.quantization) != (config.image_shape, config.quantization):
        raise RunError(
            f"the model is for images of shape {config.image_shape} with {config.quantization} "
            f"values, but {data.name} has {data.image_shape} with {data.quantization}"
        )


def every_class(model: InverseFlow, n: int) -> torch.Tensor | None:
    """Labels of n images to draw, all classes in turn; None if the model has no classes."""
    classes = model.config.num_classes
    return torch.arange(n) % classes if classes else None


@torch.no_grad()
def bits_per_dim(
    model: InverseFlow,
    images: ImageSet,
    key: tuple[int, ...],
    numbers: Indices | None = None,
) -> torch.Tensor:
    """Bits/dim of each image, with one draw of the dequantization noise: float64, on the CPU.

    Args:
        model: the flow.
        images: integer levels, and labels if the model has classes.
        key: of the noise.
        numbers: of the images to take; None: all.

    Raises:
        RunError: the model has classes, and the images have no labels.
    """
    config = model.config
    device = next(model.parameters()).device
    images = as_modelled(model, images)
    numbers = np.arange(len(images)) if numbers is None else numbers
    bits = [torch.empty(0, dtype=torch.float64)]
    for x, context in load_batches(images, config.quantization, _batches(numbers), key=key):
        log_prob = model.log_prob(x.to(device), context).cpu().double()
        # x lies in [0, 1]: its density is Q^D times that of the levels.
        nats_per_dim = -log_prob / math.prod(config.image_shape)
        bits.append(nats_per_dim / math.log(2) + math.log2(config.quantization))
    return torch.cat(bits)


def _batches(numbers: Indices) -> list[Indices]:
    """The numbers in batches of one size; the last one may be smaller."""
    return [numbers[at : at + _BATCH] for at in range(0, len(numbers), _BATCH)]


def importance_weighted(draws: torch.Tensor, dims: int) -> torch.Tensor:
    """Bits/dim from several draws of the noise for each image, ``(draws, images)``.

    With ``p(x | u)`` of draw u, ``P(x) >= exp E_u log p`` is what one draw estimates; the bound
    ``E log (1/K sum_k p(x | u_k))`` lies between it and ``log P(x)``, and rises with K (Burda,
    Grosse and Salakhutdinov, *Importance Weighted Autoencoders*, ICLR 2016).
    """
    nats = -draws * (dims * math.log(2))
    log_mean = torch.logsumexp(nats, 0) - math.log(len(draws))
    return -log_mean / (dims * math.log(2))


@torch.no_grad()
def evaluate(model: InverseFlow, data: ImageData, *, importance_samples: int = 1) -> dict[str, Any]:
    """Measure a model on the test images.

    Args:
        model: the flow, in evaluation mode.
        data: the images.
        importance_samples: K, draws of the noise for the importance-weighted bound.

    Returns:
        ``test_bits_per_dim``, with one draw of the noise; ``test_nats``, the same as the negative
        log-likelihood of an image in nats; with K above 1 ``importance_weighted_bits_per_dim``, see
        :func:`importance_weighted`, and ``importance_samples``; ``reconstruction_max_error``, the
        largest ``|x - decode(encode(x))|`` over all dequantized test images, whose values lie in
        [0, 1]; ``sample_seconds_per_100`` and ``forward_seconds_per_100``, medians of the wall time
        to sample or to encode 100 images, warm, and their ``..._spread``, the least and the most;
        ``parameters``, their number; ``device``, ``threads`` and ``versions``.

    Raises:
        RunError: the images do not fit the model.
    """
    check_images(model, data)
    config = model.config
    device = next(model.parameters()).device
    dims = math.prod(config.image_shape)
    draws = torch.stack(
        [bits_per_dim(model, data.test, (*TEST_NOISE, draw)) for draw in range(importance_samples)]
    )
    bits = draws[0].mean().item()
    figures: dict[str, Any] = {"test_bits_per_dim": bits, "test_nats": bits * dims * math.log(2)}
    if importance_samples > 1:
        bound = importance_weighted(draws, dims).mean().item()
        figures["importance_weighted_bits_per_dim"] = bound
        figures["importance_samples"] = importance_samples
    test = as_modelled(model, data.test)
    parts = _batches(np.arange(len(test)))
    error = 0.0
    for x, context in load_batches(test, config.quantization, parts, key=TEST_NOISE):
        x = x.to(device)
        again = model.decode(model.encode(x, context), context)
        error = max(error, (again - x).abs().max().item())
    figures["reconstruction_max_error"] = error
    hundred = [np.arange(100) % len(data.test)]
    (x, context), *_ = load_batches(test, config.quantization, hundred, key=TEST_NOISE)
    x = x.to(device)
    generator = torch.Generator().manual_seed(0)
    timed: dict[str, Callable[[], Any]] = {
        "sample": lambda: model.sample(100, context=every_class(model, 100), generator=generator),
        "forward": lambda: model.encode(x, context),
    }
    for name, work in timed.items():
        seconds = _seconds(work, device)
        figures[f"{name}_seconds_per_100"] = statistics.median(seconds)
        figures[f"{name}_seconds_per_100_spread"] = [min(seconds), max(seconds)]
    return {
        **figures,
        "parameters": model.num_parameters,
        "device": str(device),
        "threads": {"torch": torch.get_num_threads(), "invconv": invconv.get_num_threads()},
        "versions": {
            "invconv": invconv.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
    }


def _seconds(work: Callable[[], Any], device: torch.device) -> list[float]:
    """Five wall times."""
    times = []
    # The first call warms up and is not counted.
    for _ in range(6):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return times[1:]
