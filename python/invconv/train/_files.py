"""Files that are either old and whole or new and whole, and never unpickled."""

import contextlib
import json
import os
import shlex
import zlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from invconv.data import UserError
from invconv.data._types import first_line
from invconv.flows import FlowConfig, InverseFlow


class RunError(UserError):
    """A run cannot begin or go on, or one of its files cannot be used."""


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file in one step: a crash or a full disk at any moment leaves the old one whole.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        # The system's own error tells why, but for a full disk not which file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        _remove(temporary)
        raise
    if os.name == "posix":
        # The new name is on the disk only when the folder is.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _remove(path: Path) -> None:
    # Whatever stands in the way of this must not hide the first error.
    with contextlib.suppress(OSError):
        path.unlink()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with a checksum over its tensors."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {**metadata, "crc32": _checksum(held)}
    write_atomic(path, safetensors.torch.save(held, described))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what :func:`write_tensors` wrote, onto the CPU.

    Raises:
        RunError: the file is missing, damaged, or of another kind.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise RunError(f"{path}: not a readable safetensors file: {error}") from error
    if metadata.get("crc32") != _checksum(tensors):
        raise RunError(f"{path}: damaged, or not written by invconv (its checksum does not fit)")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def save_model(path: Path, model: InverseFlow, epoch: int) -> None:
    """Write a model with its configuration, for :func:`load_model`."""
    write_tensors(
        path, model.state_dict(), {"flow": model.config.to_json(), "epoch": json.dumps(epoch)}
    )


def load_model(path: str | os.PathLike[str]) -> InverseFlow:
    """The model of a run directory, or of a ``model.safetensors`` file, in evaluation mode.

    Nothing is unpickled: a file from anywhere can do no more than be refused.

    Raises:
        RunError: there is no such file, or it is damaged or of another kind.
    """
    path = Path(path)
    file = path if path.is_file() else path / "model.safetensors"
    if not file.exists():
        if (path / "config.json").exists():
            raise RunError(
                f"no epoch of {path} is finished yet; go on with: {resume_command(path)}"
            )
        raise RunError(f'no run in {path}; train one with "invconv train", or name a run directory')
    try:
        tensors, metadata = read_tensors(file)
    except RunError as error:
        if file is path:
            raise RunError(
                f"{error}; expected a run directory, or the model.safetensors of one"
            ) from error
        raise
    try:
        with torch.random.fork_rng(devices=[]):  # for the weights that are overwritten next
            model = InverseFlow(FlowConfig.from_json(metadata["flow"]))
        model.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise RunError(f"{file}: does not hold a model: {first_line(error)}") from error
    return model.eval()


def has_checkpoint(out: Path) -> bool:
    """Whether a run has saved an epoch, after which it can go on."""
    return (out / "checkpoint.safetensors").exists()


def resume_command(out: Path) -> str:
    """The command that goes on with a run."""
    return f"invconv train --resume --out {shlex.quote(str(out))}"
