"""Images, their labels, and the errors in them."""

import dataclasses
import math
import zlib
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]

# Images of more bytes than this stay on the disk, and are read whenever they are asked for.
MOST_IN_MEMORY = 2**30


class UserError(Exception):
    """Something outside the program is wrong; the message is one line for the user."""


class DataError(UserError):
    """The images cannot be had."""


def first_line(error: Exception) -> str:
    """What an error says, for the line of a :class:`UserError`; its kind if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class LazyImages(Protocol):
    """Images of one shape that are read when they are asked for."""

    @property
    def shape(self) -> Any:
        """(n, C, H, W)."""

    def __len__(self) -> int:
        """How many there are: n."""

    def __getitem__(self, numbers: Indices, /) -> Images:
        """The images of these numbers, ``(len(numbers), C, H, W)`` uint8."""

    @property
    def fingerprint(self) -> str:
        """What is known of all of them without reading them; it differs if they do."""


def in_memory(images: LazyImages) -> Images | LazyImages:
    """The images as an array, unless they are too many for that."""
    if math.prod(images.shape) > MOST_IN_MEMORY:
        return images
    result = np.empty(images.shape, np.uint8)
    for at in range(0, len(result), 1000):  # decoders take several times the memory of the pixels
        part = np.arange(at, min(at + 1000, len(result)))
        result[part] = images[part]
    return result


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images, and the class of each from 0, or None where the source has no classes."""

    images: Images | LazyImages
    labels: Labels | None = None

    def __len__(self) -> int:
        return len(self.images)

    def read(self) -> Images:
        """All images, in memory."""
        return self.images[np.arange(len(self))]

    def take(self, numbers: Indices) -> "ImageSet":
        """The images of these numbers, in this order; in memory if all are."""
        labels = None if self.labels is None else self.labels[numbers]
        if isinstance(self.images, np.ndarray):
            return ImageSet(self.images[numbers], labels)
        return ImageSet(_Selection(self.images, numbers), labels)


class _Selection:
    """Some images of a source that is not in memory."""

    def __init__(self, source: LazyImages, numbers: Indices) -> None:
        self._source, self._numbers = source, numbers
        self.shape = (len(numbers), *source.shape[1:])
        self.fingerprint = f"{source.fingerprint} {zlib.crc32(numbers.tobytes()):08x}"

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, numbers: Indices) -> Images:
        return self._source[self._numbers[numbers]]


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Images split into three sets.

    Attributes:
        name: short, fit for a file name.
        quantization: Q, how many values a channel can take: 0 ... Q - 1. Bits per dimension refer
            to these values.
        train: for the weights.
        validation: for choices made while training.
        test: for the final figure alone.
        num_classes: how many classes there are; 0 where the source has none.

    Raises:
        DataError: one of the sets has no images.
    """

    name: str
    quantization: int
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    num_classes: int = 0

    def __post_init__(self) -> None:
        sets = {"training": self.train, "validation": self.validation, "test": self.test}
        for kind, images in sets.items():
            if len(images) == 0:
                raise DataError(f"{self.name} has no {kind} images")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, c, h, w = self.train.images.shape
        return c, h, w
