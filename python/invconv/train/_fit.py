"""The training loop: a step depends only on its number, the seed and the last checkpoint.

Accelerate starts the processes and carries gradients and sums between them; the order of the
images, what is random, and the checkpoints are ours, because resuming must be exact.
"""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from invconv.data import ImageData, Indices
from invconv.data._types import first_line
from invconv.flows import InverseFlow
from invconv.train._config import TrainConfig
from invconv.train._evaluate import VALIDATION_NOISE, as_modelled, bits_per_dim, evaluate
from invconv.train._files import (
    RunError,
    load_model,
    read_tensors,
    save_model,
    write_atomic,
    write_tensors,
)
from invconv.train._loader import load_batches
from invconv.train._log import Log
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


_PROGRESS = ("epoch", "batch", "bits", "seconds")


class _State:
    """All that changes while training, and is in a checkpoint."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = InverseFlow(config.flow).to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.average = torch.optim.swa_utils.AveragedModel(self.model, avg_fn=_moving_average)
        # Epochs that are finished; in the next one batches, the sum of their images' bits/dim, and
        # the seconds they took.
        self.epoch = 0
        self.batch = 0
        self.bits = 0.0
        self.seconds = 0.0

    def averaged(self) -> InverseFlow:
        return cast(InverseFlow, self.average.module).eval()

    def save(self, path: Path) -> None:
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{k}": v for k, v in moments.items()}
        progress = {name: json.dumps(getattr(self, name)) for name in _PROGRESS}
        write_tensors(path, tensors, progress)

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
            for name in _PROGRESS:
                setattr(self, name, json.loads(metadata[name]))
        except (LookupError, ValueError, RuntimeError) as error:
            raise RunError(f"{path}: not a checkpoint of this run: {first_line(error)}") from error


def _moving_average(average: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
    """Exponential average whose memory grows at first, so that it forgets the initial weights."""
    decay = min(_AVERAGE_DECAY, (1 + float(updates)) / (10 + float(updates)))
    return average.lerp(new, 1 - decay)


def _generator(*numbers: int) -> torch.Generator:
    """Random numbers that depend on these numbers alone."""
    (word,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(word) >> 1)


def _learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Linear rise over the first epoch, times a cosine from 1 towards 0; step from 1."""
    rise = min(1.0, step / steps_per_epoch)
    fall = 0.5 * (1 + math.cos(math.pi * (step - 1) / (config.epochs * steps_per_epoch)))
    return config.lr * rise * fall


class _Epochs:
    """The epochs of a run, on this process's share of each batch."""

    def __init__(
        self,
        config: TrainConfig,
        data: ImageData,
        state: _State,
        accelerator: Accelerator,
        workers: int,
    ) -> None:
        self.config, self.data, self.state = config, data, state
        self.accelerator, self.workers = accelerator, workers
        self.images = as_modelled(state.model, data.train)
        shares = accelerator.num_processes * config.accumulate
        # Of an epoch, one for each batch.
        self.steps = math.ceil(len(self.images) / config.batch_size)
        smallest = len(self.images) // self.steps
        if smallest < shares:
            raise RunError(
                f"batches of {smallest} images cannot be shared out in {shares} parts, "
                f"{config.accumulate} for each of {accelerator.num_processes} processes; "
                "begin a run with a larger --batch-size"
            )
        # It adds up the gradients of all processes.
        self.model = accelerator.prepare_model(state.model, device_placement=False)

    def batches_of(self, epoch: int) -> list[Indices]:
        """The numbers of the images in each batch.

        All are of nearly equal size, as a small rest is noisy: none is below images // steps.
        """
        order = torch.randperm(len(self.images), generator=_generator(self.config.seed, epoch))
        return np.array_split(order.numpy(), self.steps)

    def parts(self, batch: Indices) -> list[Indices]:
        """What this process makes of a batch, part by part."""
        share = np.array_split(batch, self.accelerator.num_processes)
        return np.array_split(share[self.accelerator.process_index], self.config.accumulate)

    def run(self) -> Iterator[tuple[int, float, float]]:
        """Go on with the epoch that the state is in; yields images, bits/dim and gradient norm.

        Raises:
            RunError: a loss or a gradient is not finite; the weights are then still finite.
        """
        state, config = self.state, self.config
        epoch = state.epoch + 1
        batches = self.batches_of(epoch)
        loader = load_batches(
            self.images,
            self.data.quantization,
            [part for batch in batches[state.batch :] for part in self.parts(batch)],
            key=(config.seed, epoch),
            shift=True,
            flip=config.flip,
            workers=self.workers,
        )
        parameters = list(state.model.parameters())
        state.model.train()
        for batch in batches[state.batch :]:
            began = time.perf_counter()
            step = state.epoch * len(batches) + state.batch + 1
            for group in state.optimizer.param_groups:
                group["lr"] = _learning_rate(config, step, len(batches))
            state.optimizer.zero_grad()
            bits = self._backward(loader, len(batch))
            norm = torch.nn.utils.clip_grad_norm_(parameters, _LARGEST_GRADIENT_NORM).item()
            for name, value in (("loss", bits), ("gradient norm", norm)):
                if not math.isfinite(value):
                    raise RunError(
                        f"the {name} is {value} in epoch {epoch}, batch {state.batch + 1} of "
                        f"{len(batches)}; the last good checkpoint is kept. "
                        f"Try a lower --lr than {config.lr}"
                    )
            state.optimizer.step()
            state.average.update_parameters(state.model)
            state.batch += 1
            state.bits += bits * len(batch)
            state.seconds += time.perf_counter() - began
            yield len(batch), bits, norm

    def _backward(self, loader: Iterator[Any], images: int) -> float:
        """Add the gradients of a batch; its bits/dim."""
        config, state = self.config, self.state
        device = next(state.model.parameters()).device
        bits_per_nat = 1 / (math.prod(config.flow.image_shape) * math.log(2))
        total = torch.zeros((), device=device)
        for part in range(config.accumulate):
            x, labels = next(loader)
            last = part == config.accumulate - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                with torch.autocast(
                    device.type, torch.bfloat16, enabled=config.precision == "bf16"
                ):
                    log_prob = self.model(x.to(device), labels)
                loss = -log_prob.sum() * (bits_per_nat / images)
                with warnings.catch_warnings():
                    # Of single rows that are parts of longer ones; it costs a copy of some numbers.
                    warnings.filterwarnings("ignore", "Grad strides do not match bucket view")
                    # Gradients are averaged over processes, which each have a share of the sum.
                    (loss * self.accelerator.num_processes).backward()
            total += loss.detach()
        # x lies in [0, 1]: its density is Q^D times that of the levels.
        return float(self.accelerator.reduce(total, "sum")) + math.log2(self.data.quantization)

    def validate(self) -> float:
        """Mean validation bits/dim of the averaged weights."""
        count = len(self.data.validation)
        share = np.arange(self.accelerator.process_index, count, self.accelerator.num_processes)
        bits = bits_per_dim(
            self.state.averaged(),
            self.data.validation,
            VALIDATION_NOISE,
            share,
        )
        device = next(self.state.model.parameters()).device
        total = self.accelerator.reduce(bits.sum().to(device, torch.float32), "sum")
        return float(total) / count


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


def _best(rows: list[dict[str, float]]) -> int:
    """The epoch with the lowest validation bits/dim; the first of several."""
    return int(min(rows, key=lambda row: row["validation_bits_per_dim"])["epoch"])


def train(
    config: TrainConfig,
    data: ImageData,
    out: Path,
    *,
    device: torch.device,
    listener: Listener,
    workers: int = 0,
    checkpoint_minutes: float = 10.0,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Train, or go on from the checkpoint in ``out`` if there is one; return the summary.

    An unbroken run and one that was killed and resumed end with the same weights, to the bit, on
    the same machine, number of threads and number of processes: the order of the images comes from
    (seed, epoch), their shifts and their noise from (seed, epoch, image), and everything else from
    the checkpoint. On another number of processes they differ by rounding.

    Started by ``torchrun`` or ``accelerate launch``, each process takes a share of every batch. All
    must see the same ``out``, which the first of them writes.

    Args:
        config: the run.
        data: its images.
        out: the run directory, which holds the configuration already.
        device: where to compute; with several processes on GPUs, each takes its own.
        listener: told by the first process.
        workers: processes that read images ahead, for each training process.
        checkpoint_minutes: a checkpoint is written so often, and after every epoch; 0: after every
            step.
        tensorboard: write logs for TensorBoard into ``out/tensorboard``.

    Returns:
        The summary, in the first process; in others nothing.

    Raises:
        RunError: the loss is not finite, the checkpoint is damaged, or a batch is too small to be
            shared out.
        OSError: a file cannot be written. In either case the last checkpoint is intact.
    """
    # The precision is the run's own, and not what a launcher's environment says.
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    if accelerator.num_processes > 1:
        device = accelerator.device
    state = _State(config, device)
    checkpoint = out / "checkpoint.safetensors"
    metrics = out / "metrics.jsonl"
    if checkpoint.exists():
        state.load(checkpoint)
    else:
        # ActNorm starts from the first images.
        first = [np.arange(min(500, len(data.train)))]
        train_images = as_modelled(state.model, data.train)
        key = (config.seed, 0)
        x, context = next(load_batches(train_images, data.quantization, first, key=key))
        state.model.train()
        with torch.no_grad():
            state.model(x.to(device), context)
    epochs = _Epochs(config, data, state, accelerator, workers)
    rows = _read_metrics(metrics, state.epoch)
    # Before any of them writes, all have read.
    accelerator.wait_for_everyone()
    main = accelerator.is_main_process
    if main:
        _write_metrics(metrics, rows)
        listener.started(state.model.num_parameters, state.epoch, config.epochs, len(data.train))
    done = state.epoch * epochs.steps + state.batch
    saved = time.monotonic()
    with Log(out / "tensorboard" if main and tensorboard else None, done) as log:
        while state.epoch < config.epochs and not _stops(config, rows):
            for images, bits, norm in epochs.run():
                if not main:
                    continue
                listener.batch_done(state.epoch + 1, images, bits)
                done = state.epoch * epochs.steps + state.batch
                rate = _learning_rate(config, done, epochs.steps)
                log.step(done, bits_per_dim=bits, gradient_norm=norm, learning_rate=rate)
                if (
                    time.monotonic() - saved >= 60 * checkpoint_minutes
                    and state.batch < epochs.steps
                ):
                    state.save(checkpoint)
                    saved = time.monotonic()
            row = _end_epoch(state, epochs, len(data.train))
            rows.append(row)
            if main:
                # The checkpoint comes last: what a kill leaves without one is made again.
                _write_metrics(metrics, rows)
                if _best(rows) == state.epoch:
                    save_model(out / "model.safetensors", state.averaged(), state.epoch)
                state.save(checkpoint)
                saved = time.monotonic()
                log.epoch(state.epoch * epochs.steps, row)
                listener.epoch_done(row)
    summary = _finish(config, data, out, rows, device) if main else {}
    # The others wait, since the end of one process is to a launcher the end of all.
    accelerator.wait_for_everyone()
    return summary


def _stops(config: TrainConfig, rows: list[dict[str, float]]) -> bool:
    """Whether the validation figure has been waited for long enough."""
    return (
        config.patience is not None and len(rows) - (_best(rows) if rows else 0) >= config.patience
    )


def _end_epoch(state: _State, epochs: _Epochs, images: int) -> dict[str, float]:
    """Validate, and put the state before the next epoch; the row of metrics.

    Raises:
        RunError: the validation figure is not finite.
    """
    began = time.perf_counter()
    validation = epochs.validate()
    if not math.isfinite(validation):
        raise RunError(
            f"the validation bits/dim are {validation} after epoch {state.epoch + 1}; the last "
            f"good checkpoint is kept. Try a lower --lr than {epochs.config.lr}"
        )
    row = {
        "epoch": state.epoch + 1,
        "train_bits_per_dim": state.bits / images,
        "validation_bits_per_dim": validation,
        "seconds": state.seconds + time.perf_counter() - began,
    }
    state.epoch, state.batch, state.bits, state.seconds = state.epoch + 1, 0, 0.0, 0.0
    return row


def _finish(
    config: TrainConfig,
    data: ImageData,
    out: Path,
    rows: list[dict[str, float]],
    device: torch.device,
) -> dict[str, Any]:
    """Evaluate the best model, draw the pictures, write the summary and return it."""
    model = load_model(out).to(device)
    summary = {
        **evaluate(model, data),
        "epochs": len(rows),
        "best_epoch": _best(rows),
        "train_seconds": sum(row["seconds"] for row in rows),
    }
    save_samples(out / "samples.png", model, _generator(config.seed))
    save_reconstruction(out / "reconstruction.png", model, data)
    save_curve(out / "curve.png", rows, summary["test_bits_per_dim"])
    # Last of all: its presence says that the run is finished.
    write_atomic(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    return summary
