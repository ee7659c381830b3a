"""The field's own files: IDX, CIFAR-10's binary version and the downsampled ImageNet's npz."""

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from invconv.data._types import DataError, Images, ImageSet, Labels

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


def _read_idx(path: Path, axes: int) -> Images:
    """Unsigned bytes with so many axes: a magic number, the sizes (big-endian), the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    behind = 4 + 4 * axes
    magic = int.from_bytes(content[:4], "big")
    if magic != 0x800 + axes:
        raise DataError(
            f"{path}: expected the magic number {0x800 + axes:#010x} of an IDX file with {axes} "
            f"axes of bytes, but got {f'{magic:#010x}' if content else 'an empty file'}"
        )
    if len(content) < behind:
        raise DataError(f"{path}: truncated: it ends before the sizes do")
    shape = tuple(np.frombuffer(content[4:behind], ">u4").tolist())
    values = np.frombuffer(content, np.uint8, offset=behind)
    if len(values) != math.prod(shape):
        raise DataError(
            f"{path}: truncated, or not IDX: expected {' x '.join(map(str, shape))} bytes behind "
            f"the sizes, but got {len(values)}"
        )
    try:
        return values.reshape(shape)
    # Nothing at all may still have axes too long for an array.
    except ValueError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _idx_set(folder: Path, part: str) -> ImageSet:
    path = _find(folder, _IDX[part])
    if path is None:
        raise DataError(f"{folder}: no {_IDX[part][0]} beside the other IDX files")
    images = _read_idx(path, 3)[:, None]
    names = tuple(name.replace("images", "labels").replace("idx3", "idx1") for name in _IDX[part])
    of_labels = _find(folder, names)
    if of_labels is None:
        return ImageSet(images)
    labels = _read_idx(of_labels, 1).astype(np.int64)
    if len(labels) != len(images):
        raise DataError(
            f"{of_labels}: expected a label for each of the {len(images)} images, "
            f"but got {len(labels)}"
        )
    return ImageSet(images, labels)


def read_idx(folder: Path) -> tuple[ImageSet, ImageSet] | None:
    """The training and the test set of a folder with IDX files; None if there are none."""
    if all(_find(folder, names) is None for names in _IDX.values()):
        return None
    return _idx_set(folder, "train"), _idx_set(folder, "test")


# ---- CIFAR-10, binary version --------------------------------------------------------------------

_CIFAR_RECORD = 1 + 3 * 32 * 32


def _read_cifar(path: Path) -> tuple[Images, Labels]:
    """Records of a label and 3 x 32 x 32 values."""
    try:
        values = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(values) == 0 or len(values) % _CIFAR_RECORD:
        raise DataError(
            f"{path}: truncated, or not CIFAR-10's binary version: expected records of "
            f"{_CIFAR_RECORD} bytes, but got {len(values)} bytes"
        )
    records = values.reshape(-1, _CIFAR_RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() > 9:
        raise DataError(f"{path}: expected labels from 0 to 9, but got {labels.max()}")
    return records[:, 1:].reshape(-1, 3, 32, 32), labels


def read_cifar10(folder: Path) -> tuple[ImageSet, ImageSet] | None:
    """The training and the test set of CIFAR-10's binary version; None if it is not there."""
    paths = [folder / f"data_batch_{number}.bin" for number in range(1, 6)]
    test = folder / "test_batch.bin"
    if not any(path.is_file() for path in (*paths, test)):
        return None
    parts = [_read_cifar(path) for path in paths]
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    return ImageSet(images, labels), ImageSet(*_read_cifar(test))


# ---- downsampled ImageNet, npz -------------------------------------------------------------------


class _Shards:
    """Arrays (n, 3 S S) one after the other, each in memory or mapped from its file."""

    def __init__(self, shards: list[npt.NDArray[np.uint8]], size: int, fingerprint: str) -> None:
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards])
        self.shape = (int(self._ends[-1]), 3, size, size)
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, numbers: npt.NDArray[np.int64]) -> Images:
        # As in an array, negative numbers count from the end.
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        if np.any((numbers < 0) | (numbers >= len(self))):
            raise IndexError(f"expected numbers of {len(self)} images, but got others")
        which = np.searchsorted(self._ends, numbers, side="right")
        rows = numbers - (self._ends - [len(shard) for shard in self._shards])[which]
        result = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for shard in np.unique(which):
            chosen = which == shard
            result[chosen] = self._shards[shard][rows[chosen]].reshape(-1, *self.shape[1:])
        return result


def _member(path: Path, name: str) -> npt.NDArray[Any]:
    """An array of an npz file: mapped where it is stored as it is, read where it is packed."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            info = archive.getinfo(f"{name}.npy")
            if info.compress_type != zipfile.ZIP_STORED:
                result: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
                return result
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(file)
            header = file.tell()
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are not read")
        with path.open("rb") as raw:
            # Before the member: 30 bytes, of which the last four are the lengths of what follows.
            raw.seek(info.header_offset + 26)
            lengths = np.frombuffer(raw.read(4), "<u2")
        offset = info.header_offset + 30 + int(lengths.sum()) + header
        order: Literal["F", "C"] = "F" if fortran else "C"
        if 0 in shape:
            return np.empty(shape, dtype)
        mapped: npt.NDArray[Any] = np.memmap(
            path, dtype=dtype, mode="r", offset=offset, shape=shape, order=order
        )
        return mapped
    # zlib, zipfile and NumPy raise errors of many kinds on damaged files.
    except Exception as error:
        raise DataError(f"{path}: no array {name!r} can be read: {error}") from error


def _read_npz(paths: list[Path]) -> ImageSet:
    shards, labels = [], []
    sizes = set()
    for path in paths:
        data = _member(path, "data")
        size = math.isqrt(data.shape[1] // 3) if data.ndim == 2 else 0
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * size**2 or size == 0:
            raise DataError(
                f"{path}: expected 'data' of shape (n, 3 S S) and uint8, "
                f"but got {data.shape} and {data.dtype}"
            )
        of_images = np.asarray(_member(path, "labels")).reshape(-1)
        if (
            of_images.dtype.kind not in "iuf"
            or len(of_images) != len(data)
            or not np.all((of_images >= 1) & (of_images < 2**31))
        ):
            raise DataError(f"{path}: expected {len(data)} 'labels' from 1, for as many images")
        of_images = of_images.astype(np.int64)
        sizes.add(size)
        shards.append(data)
        labels.append(of_images - 1)
    if len(sizes) > 1:
        raise DataError(f"{paths[0].parent}: images of {sorted(sizes)} pixels to a side together")
    # The file's length, and its first and last image.
    ends = [f"{p.name} {p.stat().st_size}" for p in paths]
    fingerprint = f"{ends} {[s[:: max(1, len(s) - 1)].tobytes().hex()[:64] for s in shards]}"
    return ImageSet(_Shards(shards, sizes.pop(), fingerprint), np.concatenate(labels))


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
