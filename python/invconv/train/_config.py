"""What determines a run."""

import dataclasses
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from invconv import flows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How long and how fast a model of :data:`invconv.flows.PRESETS` is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in one step, of all processes together.
        lr: the largest learning rate; it rises over the first epoch, then falls almost to 0.
        flip: mirror half of the images left to right, which makes others of photographs, and none
            of digits.
    """

    epochs: int
    batch_size: int
    lr: float
    flip: bool = False


_SIZES = {
    "tiny": Preset(epochs=3, batch_size=100, lr=1e-2),
    "small": Preset(epochs=30, batch_size=50, lr=1e-2),
    "mnist": Preset(epochs=100, batch_size=100, lr=1e-3),
    "cifar10": Preset(epochs=100, batch_size=100, lr=1e-3, flip=True),
    "imagenet32": Preset(epochs=20, batch_size=128, lr=1e-3, flip=True),
    "imagenet64": Preset(epochs=20, batch_size=128, lr=1e-3, flip=True),
}

# A size is trained alike whichever neighbour of Inverse-Flow stands behind it in the name.
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {name: _SIZES[name.partition("-")[0]] for name in flows.PRESETS}
)

# float16 would need its loss scaled, by a factor that is one more thing to resume.
PRECISIONS = ("no", "bf16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that determines a run; written to ``config.json``.

    Attributes:
        data: what :func:`invconv.data.load` takes; a folder as an absolute path.
        data_checksum: of the images, so that a run never resumes on others.
        preset: the name it began from, for the record.
        epochs, batch_size, lr, flip: see :class:`Preset`.
        weight_decay: of AdamW, which without it is Adam.
        accumulate: parts that a process takes its share of a batch in, for less memory.
        precision: ``"no"``, or ``"bf16"`` for the couplings' nets in bfloat16 (autocast).
        patience: stop after so many epochs without better validation bits/dim; None: never.
        seed: of the initial weights, and with the epoch and the image of all that is random.
        flow: the model.

    Raises:
        ValueError: a number is outside its range.
    """

    data: str
    data_checksum: str
    preset: str
    epochs: int
    batch_size: int
    lr: float
    seed: int
    flow: flows.FlowConfig
    flip: bool = False
    weight_decay: float = 0.0
    accumulate: int = 1
    precision: str = "no"
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"expected {name} of at least 1, but got {value}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(
                f"expected weight_decay from 0 and finite, but got {self.weight_decay}"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"expected precision in {PRECISIONS}, but got {self.precision!r}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"expected lr above 0 and finite, but got {self.lr}")
        # torch's generators take 64 bits.
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"expected seed from 0 to 2^64 - 1, but got {self.seed}")

    @property
    def conditional(self) -> bool:
        """Whether the model is one of each class."""
        return self.flow.num_classes > 0

    @property
    def reversible(self) -> bool:
        """Whether the model's levels recompute their activations."""
        return self.flow.reversible

    def to_json(self) -> str:
        """The configuration as an indented JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: the text is not such an object.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            flow = flows.FlowConfig(**fields.pop("flow"))
            return cls(flow=flow, **fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"expected the fields of a TrainConfig: {error}") from error
