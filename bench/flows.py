"""Inverse-Flow and its neighbours, under one budget: bits/dim, times, memory, and how they scale.

The four families are one class and differ in the layer that mixes the channels. ``python -m
bench.flows PRESET C H W`` prints bytes: how far the memory of a process of its own rises in a
training step.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from invconv.flows import (
    PRESETS,
    CausalConvolution,
    Convolution1x1,
    InverseConvolution,
    InverseFlow,
    Reverse,
)

from .memory import peak as peak_of_process
from .results import FOLDER, ROOT, Rows
from .timing import Times, interleaved

# The name of each family, and what stands behind a preset's name for it.
FAMILIES = {"Inverse-Flow": "", "FInC Flow": "-finc", "Glow": "-glow", "RealNVP-style": "-realnvp"}

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}

KINDS = ("sample", "mixing", "forward", "step")

SIZES = (16, 32, 64, 128, 256)
KERNELS = (2, 3, 5, 7, 9, 11)
# Small enough that 256 x 256 pixels take seconds on a core.
SCALING_BATCH = 4
SCALING_MODEL: dict[str, Any] = {"levels": 2, "steps": 2, "hidden": 16}

CPU = torch.device("cpu")


# ---- bits/dim ------------------------------------------------------------------------------------


def train(source: str, preset: str, epochs: int) -> dict[str, Any]:
    """Train a preset and return its figures: the same seed, order and steps for every family."""
    # Here: times are measured where accelerate is not installed, too.
    from invconv import data as datasets
    from invconv import train as training

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


def initialised(
    preset: str, shape: Sequence[int], device: torch.device = CPU, **options: Any
) -> InverseFlow:
    """A model of a preset, or of options, whose ActNorms have seen a batch of noise."""
    torch.manual_seed(0)
    chosen = {**PRESETS[preset], **options}
    model = InverseFlow(image_shape=tuple(shape), **chosen).to(device)
    with torch.no_grad():
        model(_images(32, model))
    return model.eval()


def _device(model: InverseFlow) -> torch.device:
    return next(model.parameters()).device


def _images(count: int, model: InverseFlow) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, *model.config.image_shape)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images.to(_device(model))


def _step(model: InverseFlow, images: torch.Tensor) -> None:
    """Forward and backward of a training step, without the optimiser, which is the same for all."""
    model.zero_grad()
    (-model.bits_per_dim(images).mean()).backward()


def _mixing(model: InverseFlow, images: torch.Tensor) -> Callable[[], None]:
    """What the layers that mix the channels do of a sampling, by themselves."""
    results: list[tuple[Any, torch.Tensor]] = []
    kinds = (InverseConvolution, CausalConvolution, Convolution1x1, Reverse)
    hooks = [
        layer.register_forward_hook(lambda layer, _, out: results.append((layer, out[0])))
        for layer in model.modules()
        if isinstance(layer, kinds)
    ]
    _encode(model, images)
    for hook in hooks:
        hook.remove()

    @torch.no_grad()
    def decode() -> None:
        for layer, z in reversed(results):
            layer.decode(z)

    return decode


def _awaited(call: Callable[[], object]) -> Callable[[], object]:
    """The call, and all that it began on a GPU."""

    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def times(models: Mapping[str, InverseFlow], batch: int, seconds: float) -> dict[str, Any]:
    """Seconds to sample and to encode a batch, and of a training step, all models interleaved.

    And of the part of sampling that is theirs alone, see :func:`_mixing`. On a GPU a call ends when
    its work is done.
    """

    def calls(model: InverseFlow) -> dict[str, Callable[[], object]]:
        images = _images(batch, model)
        generator = torch.Generator(_device(model)).manual_seed(0)
        return {
            "sample": lambda: model.sample(batch, generator=generator),
            "forward": lambda: _encode(model, images),
            "step": lambda: _step(model, images),
            "mixing": _mixing(model, images),
        }

    measured: dict[str, dict[str, Times]] = {name: {} for name in models}
    for kind in KINDS:
        candidates = {name: calls(model)[kind] for name, model in models.items()}
        if _device(next(iter(models.values()))).type == "cuda":
            candidates = {name: _awaited(call) for name, call in candidates.items()}
        for name, value in interleaved(candidates, seconds).items():
            measured[name][kind] = value
    return measured


@torch.no_grad()
def _encode(model: InverseFlow, images: torch.Tensor) -> None:
    model.encode(images)


def device_memory(model: InverseFlow) -> int:
    """Bytes of the GPU that a training step on 100 images takes at its worst moment."""
    _step(model, _images(2, model))  # libraries, and the gradients
    images = _images(100, model)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _step(model, images)
    return torch.cuda.max_memory_allocated() - before


def memory(preset: str, shape: Sequence[int]) -> int:
    """Bytes that a training step on 100 images takes at its worst moment, in a fresh process."""
    command = [sys.executable, "-m", "bench.flows", preset, *map(str, shape)]
    # glibc then gives every block of an image's size back when it is freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def speed(size: str, seconds: float, device: torch.device = CPU) -> Rows:
    """Times and memory of the four families of a preset, 100 images, weights as they begin."""
    shape = SHAPES[size]
    models = {name: initialised(size + suffix, shape, device) for name, suffix in FAMILIES.items()}
    measured = times(models, 100, seconds)
    return {
        f"{size}: {name}": {
            **{f"{kind}_ms": value.median * 1e3 for kind, value in measured[name].items()},
            **{
                f"{kind}_ms_quartiles": [value.low * 1e3, value.high * 1e3]
                for kind, value in measured[name].items()
            },
            "parameters": model.num_parameters,
            "step_bytes": (
                device_memory(model)
                if device.type == "cuda"
                else memory(size + FAMILIES[name], shape)
            ),
        }
        for name, model in models.items()
    }


def scaling(kind: str, value: int, seconds: float) -> dict[str, Any]:
    """Times of a small model of a size of images or of a kernel: Inverse-Flow and FInC Flow."""
    size = value if kind == "size" else 32
    kernel = value if kind == "kernel" else 3
    models = {
        name: initialised(
            f"tiny{FAMILIES[name]}", (3, size, size), **SCALING_MODEL, kernel_size=kernel
        )
        for name in ("Inverse-Flow", "FInC Flow")
    }
    measured = times(models, SCALING_BATCH, seconds)
    return {
        f"{name}, {call}": measured[name][call].median * 1e3
        for name in models
        for call in ("sample", "forward")
    }


def path_of(run: Mapping[str, Any]) -> Path:
    """The file that keeps the figures of this kind of machine."""
    return FOLDER / "flows" / f"cpu-{run['instruction_set']}.json"


def _main(preset: str, *shape: str) -> None:
    torch.set_num_threads(1)
    model = initialised(preset, [int(size) for size in shape])
    _step(model, _images(2, model))  # libraries, and the gradients
    before = peak_of_process()
    _step(model, _images(100, model))
    print(peak_of_process() - before)


if __name__ == "__main__":
    _main(*sys.argv[1:])
