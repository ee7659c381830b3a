"""Run directories: which configuration a run has, and whether it may begin or go on."""

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from invconv import flows
from invconv.data import ImageData, is_name
from invconv.train._config import PRESETS, TrainConfig
from invconv.train._files import RunError, write_atomic


def new_config(
    source: str,
    data: ImageData,
    preset: str,
    seed: int,
    *,
    conditional: bool = False,
    reversible: bool = False,
    **given: Any,
) -> TrainConfig:
    """The configuration of a new run: the preset's, with what was given in its place.

    The model has as many levels as the images can be halved, at most the preset's.

    Args:
        source: what ``data`` was loaded from.
        data: the images, which fix the model's image shape and quantization.
        preset: a name in :data:`PRESETS`.
        seed: any number from 0.
        conditional: model each class of the images.
        reversible: see :class:`invconv.flows.FlowConfig`.
        given: other fields of :class:`TrainConfig`; None means the preset's, or the default.

    Raises:
        RunError: a value is outside its range, the images do not fit the model, or they have no
            classes for a conditional one.
    """
    if conditional and data.num_classes == 0:
        raise RunError(f"{data.name} has no classes, so no conditional model can be trained on it")
    training = dataclasses.asdict(PRESETS[preset])
    training |= {name: value for name, value in given.items() if value is not None}
    model = dict(flows.PRESETS[preset])
    _, height, width = data.image_shape
    while model["levels"] > 1 and (height % 2 ** model["levels"] or width % 2 ** model["levels"]):
        model["levels"] -= 1
    try:
        flow = flows.FlowConfig(
            image_shape=data.image_shape,
            quantization=data.quantization,
            num_classes=data.num_classes if conditional else 0,
            reversible=reversible,
            **model,
        )
        return TrainConfig(
            data=absolute_source(source),
            data_checksum=checksum(data),
            preset=preset,
            seed=seed,
            flow=flow,
            **training,
        )
    except ValueError as error:
        raise RunError(str(error)) from error


def absolute_source(source: str) -> str:
    """A folder as its absolute path, so that a run resumes from any directory."""
    return source if is_name(source) else str(Path(source).resolve())


def checksum(data: ImageData) -> str:
    """A short word that differs when the images, their labels or their split do.

    Of images in memory all count. Of those on the disk 100 count, evenly spaced, and
    what is known of the others: how many there are, and the names and sizes of image files. So
    neither a copy of the files is another set, nor one that was touched; but a pixel that changes
    in a file of many images may go unseen.
    """
    crc = 0
    for part in (data.train, data.validation, data.test):
        images = part.images
        if not isinstance(images, np.ndarray):
            crc = zlib.crc32(f"{images.fingerprint} {images.shape}".encode(), crc)
            images = images[np.linspace(0, len(images) - 1, 100).astype(np.int64)]
        crc = zlib.crc32(np.ascontiguousarray(images).data, crc)
        if part.labels is not None:
            crc = zlib.crc32(np.ascontiguousarray(part.labels).data, crc)
    return f"{crc:08x}"


def create_run(out: Path, config: TrainConfig) -> None:
    """Make the directory of a new run and write its configuration.

    Raises:
        RunError: there is a run with results already.
        OSError: the directory cannot be made or written.
    """
    if (out / "summary.json").exists():
        raise RunError(f"{out} holds a finished run; choose another directory with --out")
    if (out / "checkpoint.safetensors").exists():
        raise RunError(
            f"{out} holds an unfinished run; go on with --resume, or choose another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "config.json", config.to_json().encode())


def read_config(out: Path, **given: Any) -> TrainConfig:
    """The configuration of an existing run.

    Args:
        out: the run directory.
        given: what the user asks for by name; None is no opinion, another value must agree.

    Raises:
        RunError: there is no run, its configuration is damaged, or a given value disagrees.
    """
    path = out / "config.json"
    try:
        config = TrainConfig.from_json(path.read_text())
    except FileNotFoundError as error:
        raise RunError(f"{out} holds no run to resume: there is no {path}") from error
    except ValueError as error:
        raise RunError(f"{path}: damaged: {error}") from error
    for name, value in given.items():
        kept = getattr(config, name)
        if value is not None and value != kept:
            option = "--" + name.replace("_", "-")
            raise RunError(
                f"{out} was begun with {option} {kept}, so it cannot go on with {option} {value}; "
                "begin another run with --out"
            )
    return config
