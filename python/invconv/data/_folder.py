"""Folders of image files."""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from invconv._extras import pip_install
from invconv.data._pixels import check_depth, is_gray, pixels
from invconv.data._types import DataError, Images, ImageSet, Indices, in_memory

_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise DataError(f"image files need Pillow: {pip_install('flows')}") from error
    return Image


def _decode(path: Path, channels: int) -> Images:
    try:
        with _pillow().open(path) as image:
            return pixels(image, channels)
    # Pillow raises errors of many kinds on damaged files.
    except Exception as error:
        raise DataError(f"{path}: cannot be read as an image: {error}") from error


class _Decoded:
    """Image files of one size, decoded whenever they are asked for."""

    def __init__(self, paths: list[Path], shape: tuple[int, int, int]) -> None:
        # Not a list: of a million paths each worker process would come to have its own copy.
        self._paths = np.array([os.fsencode(path) for path in paths])
        self.shape = (len(paths), *shape)
        crc = 0
        for path in paths:
            crc = zlib.crc32(os.fsencode(path.name) + f" {path.stat().st_size} ".encode(), crc)
        self.fingerprint = f"{crc:08x}"

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, numbers: Indices) -> Images:
        channels = self.shape[1]
        return np.stack(
            [_decode(Path(os.fsdecode(path)), channels) for path in self._paths[numbers].tolist()]
        )


def _headers(paths: list[Path]) -> tuple[int, int, int]:
    """The one shape (C, H, W) of all files, from their headers: gray if all are."""
    gray = True
    first: tuple[int, int] | None = None
    for path in paths:
        try:
            with _pillow().open(path) as image:
                mode, size = image.mode, image.size
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{path}: cannot be read as an image: {error}") from error
        check_depth(str(path), mode)
        gray = gray and is_gray(mode)
        first = first or size
        if size != first:
            raise DataError(
                f"{path}: expected {first[1]} x {first[0]} pixels (height x width) as "
                f"{paths[0].name} has, but got {size[1]} x {size[0]}"
            )
    assert first is not None
    return (1 if gray else 3), first[1], first[0]


def _paths(folder: Path) -> list[Path]:
    """The image files in a folder and below, at least one, ordered by path."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    if not paths:
        raise DataError(f"{folder}: no image files ({', '.join(sorted(_SUFFIXES))})")
    return paths


def read_folder(folder: Path) -> ImageSet:
    """Every image file in a folder and below, ordered by path."""
    paths = _paths(folder)
    return ImageSet(in_memory(_Decoded(paths, _headers(paths))))


def read_split_folder(folder: Path) -> tuple[ImageSet, ...] | None:
    """The folders train, test and val of a folder, as sets; None without train and another.

    Where there is no test, val is the test set. Folders in all of them, if they are the same, are
    classes, in the order of their names.
    """
    parts = [part for name in ("train", "test", "val") if (part := folder / name).is_dir()]
    if len(parts) < 2 or parts[0].name != "train":
        return None
    paths = [_paths(part) for part in parts]
    shape = _headers([path for found in paths for path in found])
    # Of each file the path below its part: its first folder is the class.
    below = [
        [p.relative_to(part).parts for p in found] for part, found in zip(parts, paths, strict=True)
    ]
    names = [sorted({path[0] for path in found}) for found in below]
    classes = all(of == names[0] for of in names) and all(
        len(path) > 1 for found in below for path in found
    )
    number = {name: at for at, name in enumerate(names[0])}
    return tuple(
        ImageSet(
            in_memory(_Decoded(found, shape)),
            np.array([number[path[0]] for path in of]) if classes else None,
        )
        for found, of in zip(paths, below, strict=True)
    )
