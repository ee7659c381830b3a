"""What a run shows on a terminal."""

import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from invconv.train import Listener


class _Speed(ProgressColumn):
    """Images per second, over the last half minute."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} images/s")


class Display(Listener):
    """A bar over the whole run on a terminal, and a line for each epoch everywhere.

    It remembers a Ctrl-C until the next step: Python forgets one that comes in a destructor, such
    as those of the processes that read images.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bits = 0.0
        self._epochs = 0
        self._interrupted = False
        self._handler: Any = None
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f}%"),
            TextColumn("{task.fields[bits]} bits/dim"),
            _Speed(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "Display":
        # Where interrupts are ignored, as in the background of a script, they stay so.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handler = signal.signal(signal.SIGINT, self._interrupt)
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def started(
        self, parameters: int, epochs_done: int, epochs: int, images_per_epoch: int
    ) -> None:
        """Print the size of the model and set up the bar, part of it done when a run goes on."""
        self._epochs = epochs
        self._console.print(f"a model of {parameters:,} parameters")
        if epochs_done:
            self._console.print(f"going on after epoch {epochs_done} of {epochs}")
        self._task = self._progress.add_task(
            "",
            total=epochs * images_per_epoch,
            completed=epochs_done * images_per_epoch,
            epoch=epochs_done + 1,
            epochs=epochs,
            bits="-",
        )

    def batch_done(self, epoch: int, images: int, bits_per_dim: float) -> None:
        """Advance the bar; its bits/dim are smoothed over about ten steps."""
        if self._interrupted:
            raise KeyboardInterrupt
        self._bits = 0.9 * self._bits + 0.1 * bits_per_dim if self._bits else bits_per_dim
        self._progress.update(self._task, advance=images, epoch=epoch, bits=f"{self._bits:.3f}")

    def epoch_done(self, row: Mapping[str, float]) -> None:
        """Print the epoch's figures."""
        self._console.print(
            f"epoch {row['epoch']:3.0f}/{self._epochs}   "
            f"train {row['train_bits_per_dim']:.4f}   "
            f"validation {row['validation_bits_per_dim']:.4f} bits/dim   {row['seconds']:5.1f} s"
        )
