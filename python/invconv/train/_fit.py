"""The training loop: an epoch depends only on its number, the seed and the last checkpoint."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from invconv.data import ImageData
from invconv.flows import InverseFlow
from invconv.train._config import TrainConfig
from invconv.train._evaluate import bits_per_dim, evaluate, labels_of
from invconv.train._files import RunError, read_tensors, save_model, write_atomic, write_tensors
from invconv.train._pictures import save_curve, save_reconstruction, save_samples

# Steps longer than this are rare and come from a few odd images; they are scaled down to it.
_LARGEST_GRADIENT_NORM = 1.0
# The averaged weights remember about 1 / (1 - decay) steps.
_AVERAGE_DECAY = 0.99


class Listener:
    """What a run tells while it goes; the base class listens to nothing."""

    def started(
        self, parameters: int, epochs_done: int, epochs: int, images_per_epoch: int
    ) -> None:
        """The run of a model begins, or goes on after ``epochs_done`` epochs."""

    def batch_done(self, epoch: int, images: int, bits_per_dim: float) -> None:
        """One step was made."""

    def epoch_done(self, row: Mapping[str, float]) -> None:
        """An epoch is saved; ``row`` is its line of ``metrics.jsonl``."""


class _State:
    """All that changes while training."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = InverseFlow(config.flow).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, fused=True)
        self.average = torch.optim.swa_utils.AveragedModel(self.model, avg_fn=_moving_average)
        self.epoch = 0

    def averaged(self) -> InverseFlow:
        return cast(InverseFlow, self.average.module).eval()

    def save(self, path: Path) -> None:
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{k}": v for k, v in moments.items()}
        write_tensors(path, tensors, {"epoch": json.dumps(self.epoch)})

    def load(self, path: Path) -> None:
        tensors, metadata = read_tensors(path)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        moments: dict[int, dict[str, Tensor]] = {}
        try:
            for name, tensor in tensors.items():
                part, rest = name.split("/", 1)
                parts[part][rest] = tensor
            self.model.load_state_dict(parts["model"])
            parameters = list(self.model.parameters())
            for name, tensor in parts["optimizer"].items():
                index, moment = name.split("/")
                parameter = parameters[int(index)]
                if tensor.shape == parameter.shape:
                    # The fused optimizer walks through the memory of both side by side.
                    tensor = torch.empty_like(parameter).copy_(tensor)
                moments.setdefault(int(index), {})[moment] = tensor
            self.average.load_state_dict(parts["average"])
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
            self.epoch = int(json.loads(metadata["epoch"]))
        except (LookupError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"{path}: not a checkpoint of this run: {reason}") from error


def _moving_average(average: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
    """Exponential average whose memory grows at first, so that it forgets the initial weights."""
    decay = min(_AVERAGE_DECAY, (1 + float(updates)) / (10 + float(updates)))
    return average.lerp(new, 1 - decay)


def _generator(*numbers: int) -> torch.Generator:
    """Random numbers that depend on these numbers alone."""
    (word,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(word) >> 1)


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move images by up to one pixel on each axis, if their frame of one pixel is zero throughout.

    For those the shift loses nothing and invents nothing; the others stay as they are.
    """
    n, _, height, width = images.shape
    inner = images.clone()
    inner[:, :, 1:-1, 1:-1] = 0
    framed = (inner == 0).flatten(1).all(1, keepdim=True)
    offset = torch.randint(-1, 2, (n, 2), generator=generator) * framed
    rows = (torch.arange(height) - offset[:, :1]) % height
    columns = (torch.arange(width) - offset[:, 1:]) % width
    index = torch.arange(n)[:, None, None]
    return images.movedim(1, 3)[index, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def _learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Linear rise over the first epoch, times a cosine from 1 to 0 over the run; step from 1."""
    rise = min(1.0, step / steps_per_epoch)
    fall = 0.5 * (1 + math.cos(math.pi * step / (config.epochs * steps_per_epoch)))
    return config.lr * rise * fall


def _run_epoch(
    state: _State,
    config: TrainConfig,
    images: Tensor,
    labels: Tensor | None,
    device: torch.device,
    listener: Listener,
) -> float:
    """One pass over the images; the mean training bits/dim.

    Raises:
        RunError: a loss or a gradient is not finite; the weights are then still finite.
    """
    epoch = state.epoch + 1
    generator = _generator(config.seed, epoch)
    # Batches of nearly equal size, because a small rest would be a noisy step.
    batches = torch.randperm(len(images), generator=generator).tensor_split(
        math.ceil(len(images) / config.batch_size)
    )
    dims = math.prod(config.flow.image_shape)
    parameters = list(state.model.parameters())
    total = 0.0
    state.model.train()
    for index, batch in enumerate(batches):
        step = state.epoch * len(batches) + index + 1
        for group in state.optimizer.param_groups:
            group["lr"] = _learning_rate(config, step, len(batches))
        shifted = _shift(images[batch], generator).to(device)
        context = None if labels is None else labels[batch]
        loss = -state.model(shifted, context, generator=generator).mean() / (dims * math.log(2))
        state.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, _LARGEST_GRADIENT_NORM)
        bits = loss.item()
        for name, value in (("loss", bits), ("gradient norm", norm.item())):
            if not math.isfinite(value):
                raise RunError(
                    f"the {name} is {value} in epoch {epoch}, batch {index + 1} of {len(batches)}; "
                    f"the last good checkpoint, of epoch {state.epoch}, is kept. "
                    f"Try a lower --lr than {config.lr}"
                )
        state.optimizer.step()
        state.average.update_parameters(state.model)
        total += bits * len(batch)
        listener.batch_done(epoch, len(batch), bits)
    return total / len(images)


def _write_metrics(path: Path, rows: list[dict[str, float]]) -> None:
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _read_metrics(path: Path, epochs: int) -> list[dict[str, float]]:
    """The rows of the first ``epochs`` epochs; a later one has no checkpoint and runs again."""
    if epochs == 0:
        return []
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise RunError(f"{path}: not lines of JSON: {error}") from error
    return rows[:epochs]


def train(
    config: TrainConfig,
    data: ImageData,
    out: Path,
    *,
    device: torch.device,
    listener: Listener,
) -> dict[str, Any]:
    """Train, or go on from the checkpoint in ``out`` if there is one; return the summary.

    An unbroken run and one that was killed and resumed end with the same weights, to the bit, on
    the same machine and number of threads: the order of the images, their shifts and their noise
    come from (seed, epoch), and everything else from the checkpoint.

    Raises:
        RunError: the loss is not finite, or the checkpoint is damaged.
        OSError: a file cannot be written. In either case the last checkpoint is intact.
    """
    state = _State(config, device)
    train_images = torch.from_numpy(data.train)
    train_labels = labels_of(state.model, data.train_labels)
    checkpoint = out / "checkpoint.safetensors"
    metrics = out / "metrics.jsonl"
    if checkpoint.exists():
        state.load(checkpoint)
    else:
        # ActNorm starts from the first images of the first epoch.
        state.model.train()
        with torch.no_grad():
            first = None if train_labels is None else train_labels[:500]
            state.model(train_images[:500].to(device), first, generator=_generator(config.seed, 0))
    rows = _read_metrics(metrics, state.epoch)
    _write_metrics(metrics, rows)
    listener.started(state.model.num_parameters, state.epoch, config.epochs, len(train_images))

    while state.epoch < config.epochs:
        began = time.perf_counter()
        train_bits = _run_epoch(state, config, train_images, train_labels, device, listener)
        validation_bits = bits_per_dim(state.averaged(), data.validation, data.validation_labels)
        if not math.isfinite(validation_bits):
            raise RunError(
                f"the validation bits/dim are {validation_bits} after epoch {state.epoch + 1}; "
                f"the last good checkpoint, of epoch {state.epoch}, is kept. "
                f"Try a lower --lr than {config.lr}"
            )
        state.epoch += 1
        row = {
            "epoch": state.epoch,
            "train_bits_per_dim": train_bits,
            "validation_bits_per_dim": validation_bits,
            "seconds": time.perf_counter() - began,
        }
        rows.append(row)
        # The checkpoint comes last: what a kill leaves without one is written again on resuming.
        _write_metrics(metrics, rows)
        save_model(out / "model.safetensors", state.averaged(), state.epoch)
        state.save(checkpoint)
        listener.epoch_done(row)

    model = state.averaged()
    summary = {
        **evaluate(model, data),
        "epochs": config.epochs,
        "train_seconds": sum(row["seconds"] for row in rows),
    }
    save_samples(out / "samples.png", model, _generator(config.seed))
    save_reconstruction(out / "reconstruction.png", model, data)
    save_curve(out / "curve.png", rows, summary["test_bits_per_dim"])
    # Last of all: its presence says that the run is finished.
    write_atomic(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    return summary
