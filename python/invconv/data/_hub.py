"""Data sets of the Hugging Face hub."""

from typing import Any

import numpy as np

from invconv._extras import pip_install
from invconv.data._types import DataError, Images, ImageSet, Indices


class _Column:
    """The image column of a table, decoded whenever it is asked for."""

    def __init__(self, table: Any, column: str, shape: tuple[int, int, int]) -> None:
        self._table, self._column = table, column
        self.shape = (len(table), *shape)
        self.fingerprint = str(table._fingerprint)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, numbers: Indices) -> Images:
        return np.stack(
            [
                _pixels(image, self.shape[1:])
                for image in self._table[numbers.tolist()][self._column]
            ]
        )


def _pixels(image: Any, shape: tuple[int, ...]) -> Images:
    if image is None:
        raise DataError("expected an image in each row, but one has none")
    pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB"), np.uint8)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if pixels.shape != shape:
        raise DataError(
            f"expected images of shape {shape}, as the first has, but got {pixels.shape}"
        )
    return pixels


def _set(table: Any, shape: tuple[int, int, int] | None) -> ImageSet:
    import datasets

    columns = [n for n, kind in table.features.items() if isinstance(kind, datasets.Image)]
    classes = [n for n, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    if not columns:
        raise DataError(f"no column of images among {', '.join(table.features)}")
    if shape is None:
        first = table[0][columns[0]] if len(table) else None
        if first is None:
            raise DataError("expected an image in the first row, but there is none")
        channels = 1 if first.mode in ("1", "L", "LA") else 3
        shape = (channels, first.size[1], first.size[0])
    known = list(table[classes[0]]) if classes else [None]
    # A split whose classes are kept back has -1 in their place, or nothing.
    labels = None
    if all(label is not None and label >= 0 for label in known):
        labels = np.asarray(known, np.int64)
    return ImageSet(_Column(table, columns[0], shape), labels)


def read_hub(name: str) -> tuple[ImageSet, ImageSet | None]:
    """The training and the test set of a data set of the hub, or of a folder that is like one.

    The first column of images and the first of class labels are taken. The test set is the split
    ``test``, else ``validation``; None if there is neither.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(f"hf:{name} needs the datasets package: {pip_install('hub')}") from error
    try:
        tables = datasets.load_dataset(name)
    # The package raises errors of many kinds where there is no network, or no such set.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"hf:{name}: cannot be loaded: {reason}") from error
    if "train" not in tables:
        raise DataError(f"hf:{name}: expected a split 'train', but got {', '.join(tables)}")
    try:
        train = _set(tables["train"], None)
        shape = train.images.shape[1:]
        test = next((tables[n] for n in ("test", "validation") if n in tables), None)
        return train, None if test is None else _set(test, shape)
    except DataError as error:
        raise DataError(f"hf:{name}: {error}") from error
