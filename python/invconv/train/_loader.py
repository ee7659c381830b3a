"""Batches of images as a flow takes them: moved, mirrored and dequantized, in worker processes.

All that is random about an image comes from a key and the image's number, so that a batch has the
same bits whichever process makes it, and however many there are.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from invconv.data import DataError, Images, ImageSet, Indices

Batch = tuple[Tensor, Tensor | None]


def _random(key: Sequence[int], number: int) -> np.random.Generator:
    """The random numbers that belong to one image under a key."""
    words = np.random.SeedSequence(key).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=words, counter=[0, 0, 0, number]))


def shifted(image: Images, random: np.random.Generator) -> Images:
    """Move an image (C, H, W) by up to one pixel on each axis, if its frame of one pixel is zero.

    For such an image the shift loses nothing and invents nothing; another stays as it is.
    """
    down, right = random.integers(-1, 2, 2)
    inner = image[:, 1:-1, 1:-1]
    if image.any() and np.count_nonzero(image) == np.count_nonzero(inner):
        return np.roll(image, (down, right), (1, 2))
    return image


class _Dequantized(Dataset[Any]):
    """Images in [0, 1), with uniform noise below their least step."""

    def __init__(
        self,
        images: ImageSet,
        quantization: int,
        key: Sequence[int],
        shift: bool,
        flip: bool,
    ) -> None:
        self.images = images
        self.quantization, self.key = quantization, key
        self.shift, self.flip = shift, flip

    def __getitems__(self, numbers: Sequence[int]) -> Batch | DataError:
        """The batch of these images; DataLoader asks for all of them at once.

        An error is returned: from a worker, DataLoader would raise it with a stack in its text.
        """
        chosen = np.asarray(numbers)
        try:
            images = self.images.images[chosen]
        except DataError as error:
            return error
        result = np.empty(images.shape, np.float32)
        # A little below 1: the sum must not round up to the next level, which is another image.
        largest = 1 - np.spacing(np.float32(self.quantization))
        for at, (number, image) in enumerate(zip(numbers, images, strict=True)):
            random = _random(self.key, number)
            if self.shift:
                image = shifted(image, random)
            if self.flip and random.integers(2):
                image = image[:, :, ::-1]
            noise = np.minimum(random.random(image.shape, np.float32), largest)
            result[at] = (image + noise) / np.float32(self.quantization)
        labels = self.images.labels
        return (
            torch.from_numpy(result),
            None if labels is None else torch.from_numpy(labels[chosen]),
        )


def load_batches(
    images: ImageSet,
    quantization: int,
    batches: Iterable[Indices],
    *,
    key: Sequence[int],
    shift: bool = False,
    flip: bool = False,
    workers: int = 0,
) -> Iterator[Batch]:
    """Dequantized batches, float32 ``(n, C, H, W)`` in [0, 1), each with its labels, in order.

    Args:
        images: integer levels 0 ... Q - 1, and labels or none.
        quantization: Q.
        batches: the numbers of the images of each batch.
        key: integers from 0; with an image's number they are the seed of its random numbers.
        shift: see :func:`shifted`.
        flip: mirror half of the images left to right.
        workers: processes that make batches ahead; 0: none beside this one.

    Raises:
        DataError: images that stay on the disk cannot be read.
    """
    dataset = _Dequantized(images, quantization, key, shift, flip)
    loader = DataLoader(
        dataset,
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else it would draw from the global one
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _as_it_is(batch: Any) -> Any:
    return batch
