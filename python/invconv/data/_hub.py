"""Data sets of the Hugging Face hub."""

from typing import Any

import numpy as np

from invconv._extras import pip_install
from invconv.data._pixels import check_depth, is_gray, pixels
from invconv.data._types import (
    DataError,
    Images,
    ImageSet,
    Indices,
    Labels,
    first_line,
    in_memory,
)


class _Column:
    """The image column of a table, decoded whenever it is asked for."""

    def __init__(
        self, name: str, table: Any, column: str, shape: tuple[int, int, int] | None
    ) -> None:
        self._name, self._table, self._column = name, table, column
        if shape is None:
            # Gray if some of them are: to look at all would be to decode all.
            some = self._pictures(np.linspace(0, len(table) - 1, 100).astype(np.int64))
            gray = all(is_gray(picture.mode) for picture in some)
            shape = (1 if gray else 3, some[0].height, some[0].width)
        self.shape = (len(table), *shape)
        self.fingerprint = f"{table.features}"

    def __len__(self) -> int:
        return self.shape[0]

    def _pictures(self, numbers: Indices) -> list[Any]:
        try:
            pictures: list[Any] = self._table[numbers.tolist()][self._column]
        # Pillow raises errors of many kinds on damaged images.
        except Exception as error:
            raise DataError(
                f"{self._name}: an image cannot be read: {first_line(error)}"
            ) from error
        if any(picture is None for picture in pictures):
            raise DataError(f"{self._name}: expected an image in each row, but one has none")
        return pictures

    def __getitem__(self, numbers: Indices) -> Images:
        channels, height, width = self.shape[1:]
        result = np.empty((len(numbers), channels, height, width), np.uint8)
        pictures = self._pictures(numbers)
        for at, (number, picture) in enumerate(zip(numbers, pictures, strict=True)):
            place = f"{self._name}, image {number}"
            check_depth(place, picture.mode)
            if channels == 1 and not is_gray(picture.mode):
                raise DataError(
                    f"{place}: expected a gray image as the others are, but got mode {picture.mode}"
                )
            if picture.size != (width, height):
                raise DataError(
                    f"{place}: expected {height} x {width} pixels (height x width) as the first "
                    f"has, but got {picture.height} x {picture.width}"
                )
            result[at] = pixels(picture, channels)
        return result


def _labels(table: Any, column: str) -> Labels | None:
    """The classes; None if an image has none, which the hub writes as -1 or as nothing."""
    labels = np.array(table[column], np.float64)
    return labels.astype(np.int64) if (labels >= 0).all() else None


def _set(name: str, table: Any, shape: tuple[int, int, int] | None) -> ImageSet:
    import datasets

    columns = [n for n, kind in table.features.items() if isinstance(kind, datasets.Image)]
    classes = [n for n, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    if not columns:
        raise DataError(f"{name}: no column of images among {', '.join(table.features)}")
    if len(table) == 0:
        raise DataError(f"{name}: expected images, but got none")
    images = in_memory(_Column(name, table, columns[0], shape))
    return ImageSet(images, _labels(table, classes[0]) if classes else None)


def read_hub(name: str) -> tuple[ImageSet, ...]:
    """The sets of a data set of the hub, or of a folder that is like one: train, test, validation.

    The first column of images and the first of class labels are taken. Where there is no split
    ``test``, ``validation`` is the test set.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(f"hf:{name} needs the datasets package: {pip_install('hub')}") from error
    try:
        tables = datasets.load_dataset(name)
    # The package raises errors of many kinds where there is no network, or no such set.
    except Exception as error:
        raise DataError(f"hf:{name}: cannot be loaded: {first_line(error)}") from error
    if "train" not in tables:
        raise DataError(f"hf:{name}: expected a split 'train', but got {', '.join(tables)}")
    train = _set(f"hf:{name}, train", tables["train"], None)
    others = [split for split in ("test", "validation") if split in tables]
    shape = train.images.shape[1:]
    return train, *(_set(f"hf:{name}, {split}", tables[split], shape) for split in others)
