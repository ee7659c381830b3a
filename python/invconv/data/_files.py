"""The field's own files: IDX, CIFAR-10's binary version and the downsampled ImageNet's npz."""

import dataclasses
import gzip
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from invconv.data._types import DataError, Images, ImageSet, Indices, in_memory

Bytes = npt.NDArray[np.uint8]

# ---- rows of bytes -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows of bytes in a file, mapped whenever some are asked for.

    A map that is kept would be copied into every worker process that is not forked, and would end
    the process with a signal if the file shrank.
    """

    path: Path
    offset: int
    shape: tuple[int, int]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Bytes:
        try:
            rows = np.memmap(self.path, np.uint8, "r", self.offset, self.shape)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: cannot be read: {error}") from error
        return np.asarray(rows[index])


class _Images:
    """Images of one shape, each at the end of a row of one of several tables."""

    def __init__(self, tables: Sequence[Bytes | _Rows], shape: tuple[int, int, int]) -> None:
        self._tables = tables
        self._ends = np.cumsum([len(table) for table in tables])
        self.shape = (int(self._ends[-1]), *shape)
        self.fingerprint = f"{self._ends.tolist()}"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, numbers: Indices) -> Images:
        # As in an array, negative numbers count from the end.
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        if np.any((numbers < 0) | (numbers >= len(self))):
            raise IndexError(f"expected numbers of {len(self)} images, but got others")
        which = np.searchsorted(self._ends, numbers, side="right")
        result = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        values = math.prod(self.shape[1:])
        for at in np.unique(which):
            chosen, table = which == at, self._tables[at]
            rows = table[numbers[chosen] - (self._ends[at] - len(table))]
            result[chosen] = rows[:, -values:].reshape(-1, *self.shape[1:])
        return result


# ---- IDX: MNIST, Fashion-MNIST and their kind ----------------------------------------------------

# A file has the one name or the other, packed or not.
_IDX = {
    "train": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
}


def _find(folder: Path, names: tuple[str, ...]) -> Path | None:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def _read_idx(path: Path, axes: int) -> tuple[tuple[int, ...], Bytes | _Rows]:
    """The sizes of unsigned bytes with so many axes, and the values, a row for each of the first.

    A file is a magic number, the sizes (big-endian) and the values.
    """
    behind = 4 + 4 * axes
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(behind)
            content = file.read() if packed else b""
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    magic = int.from_bytes(head[:4], "big")
    if magic != 0x800 + axes:
        raise DataError(
            f"{path}: expected the magic number {0x800 + axes:#010x} of an IDX file with {axes} "
            f"axes of bytes, but got {f'{magic:#010x}' if head else 'an empty file'}"
        )
    if len(head) < behind:
        raise DataError(f"{path}: truncated: it ends before the sizes do")
    shape = tuple(np.frombuffer(head[4:], ">u4").tolist())
    count = len(content) if packed else path.stat().st_size - behind
    if count != math.prod(shape):
        raise DataError(
            f"{path}: truncated, or not IDX: expected {' x '.join(map(str, shape))} bytes behind "
            f"the sizes, but got {count}"
        )
    if count == 0:
        raise DataError(f"{path}: expected values, but got the sizes {' x '.join(map(str, shape))}")
    rows = (shape[0], math.prod(shape[1:]))
    if packed:
        return shape, np.frombuffer(content, np.uint8).reshape(rows)
    return shape, _Rows(path, behind, rows)


def _idx_set(folder: Path, part: str) -> ImageSet:
    path = _find(folder, _IDX[part])
    if path is None:
        raise DataError(f"{folder}: no {_IDX[part][0]} beside the other IDX files")
    (count, height, width), rows = _read_idx(path, 3)
    images = in_memory(_Images([rows], (1, height, width)))
    names = tuple(name.replace("images", "labels").replace("idx3", "idx1") for name in _IDX[part])
    of_labels = _find(folder, names)
    if of_labels is None:
        return ImageSet(images)
    (known,), labels = _read_idx(of_labels, 1)
    if known != count:
        raise DataError(
            f"{of_labels}: expected a label for each of the {count} images, but got {known}"
        )
    return ImageSet(images, labels[:].reshape(-1).astype(np.int64))


def read_idx(folder: Path) -> tuple[ImageSet, ImageSet] | None:
    """The training and the test set of a folder with IDX files; None if there are none."""
    if all(_find(folder, names) is None for names in _IDX.values()):
        return None
    return _idx_set(folder, "train"), _idx_set(folder, "test")


# ---- CIFAR-10, binary version --------------------------------------------------------------------

_CIFAR_RECORD = 1 + 3 * 32 * 32


def _read_cifar(paths: Sequence[Path]) -> ImageSet:
    """Records of a label and 3 x 32 x 32 values."""
    tables, labels = [], []
    for path in paths:
        try:
            count = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        if count == 0 or count % _CIFAR_RECORD:
            raise DataError(
                f"{path}: truncated, or not CIFAR-10's binary version: expected records of "
                f"{_CIFAR_RECORD} bytes, but got {count} bytes"
            )
        table = _Rows(path, 0, (count // _CIFAR_RECORD, _CIFAR_RECORD))
        tables.append(table)
        labels.append(table[:, 0].astype(np.int64))
        if labels[-1].max() > 9:
            raise DataError(f"{path}: expected labels from 0 to 9, but got {labels[-1].max()}")
    return ImageSet(in_memory(_Images(tables, (3, 32, 32))), np.concatenate(labels))


def read_cifar10(folder: Path) -> tuple[ImageSet, ImageSet] | None:
    """The training and the test set of CIFAR-10's binary version; None if it is not there."""
    paths = [folder / f"data_batch_{number}.bin" for number in range(1, 6)]
    test = folder / "test_batch.bin"
    if not any(path.is_file() for path in (*paths, test)):
        return None
    return _read_cifar(paths), _read_cifar([test])


# ---- downsampled ImageNet, npz -------------------------------------------------------------------


def _array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        result: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return result


def _stored_rows(archive: zipfile.ZipFile, path: Path, name: str) -> _Rows | None:
    """Where in the file a matrix of bytes lies; None if it is packed, or something else."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.open(info) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            return None
        shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
        header = file.tell()
    if dtype != np.uint8 or len(shape) != 2 or columns_first:
        return None
    if header + math.prod(shape) != info.file_size:
        raise ValueError(f"expected {math.prod(shape)} values, got {info.file_size - header}")
    with path.open("rb") as raw:
        # Before the member: 30 bytes, of which the last four are the lengths of what follows.
        raw.seek(info.header_offset + 26)
        lengths = np.frombuffer(raw.read(4), "<u2")
    offset = info.header_offset + 30 + int(lengths.sum()) + header
    return _Rows(path, offset, (shape[0], shape[1]))


def _read_npz(paths: Sequence[Path]) -> ImageSet:
    tables: list[Bytes | _Rows] = []
    labels = []
    sizes = set()
    for path in paths:
        name = "data"
        try:
            with zipfile.ZipFile(path) as archive:
                stored = _stored_rows(archive, path, name)
                table = _array(archive, name) if stored is None else stored
                name = "labels"
                of_images = _array(archive, name).reshape(-1)
        # zlib, zipfile and NumPy raise errors of many kinds on damaged files.
        except Exception as error:
            raise DataError(f"{path}: no array {name!r} can be read: {error}") from error
        size = math.isqrt(table.shape[1] // 3) if len(table.shape) == 2 else 0
        dtype = np.uint8 if isinstance(table, _Rows) else table.dtype
        if dtype != np.uint8 or size == 0 or table.shape[1] != 3 * size**2:
            raise DataError(
                f"{path}: expected 'data' of shape (n, 3 S S) and uint8, "
                f"but got {table.shape} and {np.dtype(dtype)}"
            )
        if (
            of_images.dtype.kind not in "iuf"
            or len(of_images) != len(table)
            or not np.all((of_images >= 1) & (of_images < 2**31))
        ):
            raise DataError(f"{path}: expected {len(table)} 'labels' from 1, for as many images")
        sizes.add(size)
        tables.append(table)
        labels.append(of_images.astype(np.int64) - 1)
    if len(sizes) > 1:
        raise DataError(f"{paths[0].parent}: images of {sorted(sizes)} pixels to a side together")
    size = sizes.pop()
    return ImageSet(in_memory(_Images(tables, (3, size, size))), np.concatenate(labels))


def read_imagenet(folder: Path) -> tuple[ImageSet, ImageSet] | None:
    """The training and the test set of the downsampled ImageNet's npz files; None without them.

    Arrays that are stored as they are stay on the disk; packed ones are read into memory, 3 S S
    bytes for each image: 3.9 GB for ImageNet32, 15.7 GB for ImageNet64.
    """
    paths = sorted(
        folder.glob("train_data_batch_*.npz"), key=lambda path: (len(path.name), path.name)
    )
    test = folder / "val_data.npz"
    if not paths and not test.is_file():
        return None
    if not paths or not test.is_file():
        raise DataError(f"{folder}: expected train_data_batch_*.npz together with val_data.npz")
    return _read_npz(paths), _read_npz([test])
