"""Logs for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invconv._extras import pip_install
from invconv.train._files import RunError


class Log:
    """Writes scalars into a folder; without one it does nothing.

    Args:
        folder: for TensorBoard's files.
        done: steps of the run that are done; what an earlier process logged of later ones, and a
            kill took back, is struck out.

    Raises:
        RunError: the tensorboard package is missing.
    """

    def __init__(self, folder: Path | None, done: int) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise RunError(f"--tensorboard needs tensorboard: {pip_install('flows')}") from error
        self._writer = SummaryWriter(str(folder), purge_step=done + 1)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def step(self, number: int, **scalars: float) -> None:
        """Log figures of a step."""
        self._write(number, {f"step/{name}": value for name, value in scalars.items()})

    def epoch(self, number: int, row: Mapping[str, float]) -> None:
        """Log an epoch's row, at the number of its last step."""
        self._write(number, {f"epoch/{k}": v for k, v in row.items() if k != "epoch"})

    def _write(self, number: int, scalars: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, number)
