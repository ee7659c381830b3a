"""Folders of image files."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from invconv._extras import pip_install
from invconv.data._types import DataError, Images, ImageSet, Indices, LazyImages

_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# Above this images stay on the disk, and are decoded whenever they are asked for.
MOST_IN_MEMORY = 2**30


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise DataError(f"image files need Pillow: {pip_install('flows')}") from error
    return Image


def _decode(path: Path, gray: bool) -> Images:
    try:
        with _pillow().open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    # Pillow raises errors of many kinds on damaged files.
    except Exception as error:
        raise DataError(f"{path}: cannot be read as an image: {error}") from error
    return pixels.transpose(2, 0, 1)[: 1 if gray else 3]


class _Decoded:
    """Image files of one size, decoded whenever they are asked for."""

    def __init__(self, paths: list[Path], shape: tuple[int, int, int]) -> None:
        self._paths = paths
        self.shape = (len(paths), *shape)
        self.fingerprint = " ".join(f"{p.name} {p.stat().st_size}" for p in paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, numbers: Indices) -> Images:
        gray = self.shape[1] == 1
        return np.stack([_decode(self._paths[number], gray) for number in numbers])


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
        if mode.startswith(("I", "F")):
            raise DataError(f"{path}: expected 8 bits per channel, but got mode {mode}")
        gray = gray and mode in ("1", "L", "LA")
        first = first or size
        if size != first:
            raise DataError(
                f"{path}: expected {first[0]} x {first[1]} pixels as {paths[0].name} has, "
                f"but got {size[0]} x {size[1]}"
            )
    assert first is not None
    return (1 if gray else 3), first[1], first[0]


def _source(paths: list[Path], shape: tuple[int, int, int]) -> Images | LazyImages:
    source = _Decoded(paths, shape)
    if math.prod(source.shape) > MOST_IN_MEMORY:
        return source
    return source[np.arange(len(paths))]


def _paths(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())


def read_folder(folder: Path) -> ImageSet:
    """Every image file in a folder and below, ordered by path."""
    paths = _paths(folder)
    if not paths:
        raise DataError(f"{folder}: no image files ({', '.join(sorted(_SUFFIXES))})")
    return ImageSet(_source(paths, _headers(paths)))


def read_split_folder(folder: Path) -> tuple[ImageSet, ImageSet] | None:
    """The folders train and test (or val) of a folder, as sets; None without these.

    Folders in them, if both have the same, are classes, in the order of their names.
    """
    test = folder / "test" if (folder / "test").is_dir() else folder / "val"
    parts = [folder / "train", test]
    if not all(part.is_dir() for part in parts):
        return None
    paths = [_paths(part) for part in parts]
    for part, found in zip(parts, paths, strict=True):
        if not found:
            raise DataError(f"{part}: no image files ({', '.join(sorted(_SUFFIXES))})")
    shape = _headers([*paths[0], *paths[1]])
    # Of each file the path below its part: its first folder is the class.
    below = [
        [p.relative_to(part).parts for p in found] for part, found in zip(parts, paths, strict=True)
    ]
    names = [sorted({path[0] for path in found}) for found in below]
    classes = names[0] == names[1] and all(len(path) > 1 for found in below for path in found)
    train, test_set = (
        ImageSet(
            _source(found, shape),
            np.array([names[0].index(path[0]) for path in of]) if classes else None,
        )
        for found, of in zip(paths, below, strict=True)
    )
    return train, test_set
