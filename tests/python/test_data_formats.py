"""invconv.data: the files of known data sets, which the tests write themselves."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from invconv.data import DataError, ImageSet, _types, load
from invconv.data._files import read_imagenet
from invconv.train import checksum
from invconv.train._loader import load_batches

Bytes = npt.NDArray[np.uint8]


def pattern(n: int, *shape: int, seed: int = 0) -> Bytes:
    return np.random.RandomState(seed).randint(0, 256, (n, *shape)).astype(np.uint8)


def content(part: ImageSet) -> Bytes:
    return part.read()


def assert_holds(part: ImageSet, images: Bytes, labels: npt.NDArray[Any] | None) -> None:
    """The part is some of the images, each with its own label."""
    index = {image.tobytes(): at for at, image in enumerate(images)}
    places = [index[image.tobytes()] for image in content(part)]
    assert len(set(places)) == len(part)
    if labels is None:
        assert part.labels is None
    else:
        assert part.labels is not None and part.labels.tolist() == labels[places].tolist()


def assert_split(data: Any, train: Any, test: Any, labels: Any, test_labels: Any) -> None:
    """A tenth of the training images are for validation; the test images stay together."""
    assert len(data.train) + len(data.validation) == len(train)
    assert len(data.validation) == len(train) // 10
    assert_holds(data.train, train, labels)
    assert_holds(data.validation, train, labels)
    both = np.concatenate([content(data.train), content(data.validation)])
    assert len(np.unique(both, axis=0)) == len(train)
    np.testing.assert_array_equal(content(data.test), test)
    assert (data.test.labels is None) == (test_labels is None)
    if test_labels is not None:
        np.testing.assert_array_equal(data.test.labels, test_labels)
        assert data.num_classes == 1 + max(labels.max(), test_labels.max())


# --- IDX --------------------------------------------------------------------------------------


def idx(values: Bytes) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(
        size.to_bytes(4, "big") for size in values.shape
    )
    return head + values.tobytes()


def write_idx(folder: Path, packed: bool = False, dot: bool = False) -> tuple[Bytes, ...]:
    sets = (pattern(40, 6, 5), pattern(8, 6, 5, seed=1))
    labels = (np.arange(40, dtype=np.uint8) % 7, np.arange(8, dtype=np.uint8) % 7)
    folder.mkdir(exist_ok=True)
    for name, images, of_images in zip(("train", "t10k"), sets, labels, strict=True):
        for kind, axes, values in (("images", 3, images), ("labels", 1, of_images)):
            file = f"{name}-{kind}{'.' if dot else '-'}idx{axes}-ubyte{'.gz' if packed else ''}"
            written = idx(values)
            (folder / file).write_bytes(gzip.compress(written) if packed else written)
    return *sets, *labels


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dot", [False, True])
def test_idx(tmp_path: Path, packed: bool, dot: bool) -> None:
    train, test, labels, test_labels = write_idx(tmp_path / "mnist", packed, dot)
    data = load(tmp_path / "mnist")
    assert (data.name, data.quantization, data.image_shape) == ("mnist", 256, (1, 6, 5))
    assert_split(data, train[:, None], test[:, None], labels, test_labels)


def test_idx_without_labels_has_no_classes(tmp_path: Path) -> None:
    train, test, *_ = write_idx(tmp_path)
    for path in tmp_path.glob("*labels*"):
        path.unlink()
    data = load(tmp_path)
    assert data.num_classes == 0
    assert_split(data, train[:, None], test[:, None], None, None)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3-ubyte", lambda b: b[:-1], "truncated, or not IDX: expected 40 x 6 x 5"),
        ("train-images-idx3-ubyte", lambda b: b[:9], "truncated: it ends before"),
        ("train-images-idx3-ubyte", lambda b: b"", "magic number 0x00000803.* an empty file"),
        ("t10k-images-idx3-ubyte", lambda b: b"\1" + b[1:], "magic number .* got 0x01000803"),
        ("t10k-labels-idx1-ubyte", lambda b: idx(np.zeros(9, np.uint8)), "label for each of the 8"),
        ("t10k-images-idx3-ubyte", lambda b: idx(np.zeros((8, 0, 5), np.uint8)), "sizes 8 x 0 x 5"),
        (
            "train-images-idx3-ubyte",
            lambda b: b[:4] + 12 * b"\xff",
            "expected 4294967295 x 4294967295",
        ),
        # No bytes are expected, but no array can have such axes.
        ("train-images-idx3-ubyte", lambda b: b[:4] + bytes(4) + 8 * b"\xff", "sizes 0 x 4294967"),
    ],
)
def test_damaged_idx_is_named(tmp_path: Path, name: str, change: Any, message: str) -> None:
    write_idx(tmp_path)
    path = tmp_path / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{name}: .*{message}"):
        load(tmp_path)


def test_damaged_gzip_and_missing_half_are_named(tmp_path: Path) -> None:
    write_idx(tmp_path, packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    # Too short, and a block of a kind that there is not.
    for damaged in (whole[:-20], whole[:10] + b"\xff" + whole[11:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
            load(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="no train-images-idx3-ubyte beside the other IDX files"):
        load(tmp_path)


def test_test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(pattern(8, 7, 5)))
    with pytest.raises(DataError, match=r"shape \(1, 6, 5\) of the training .* got \(1, 7, 5\)"):
        load(tmp_path)


# --- CIFAR-10 ---------------------------------------------------------------------------------


def write_cifar(folder: Path) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    images, test = pattern(25, 3, 32, 32), pattern(4, 3, 32, 32, seed=1)
    labels = np.arange(25, dtype=np.uint8) % 10
    for number in range(5):
        part = slice(5 * number, 5 * number + 5)
        records = np.column_stack([labels[part], images[part].reshape(5, -1)])
        records.astype(np.uint8).tofile(folder / f"data_batch_{number + 1}.bin")
    np.column_stack([labels[:4], test.reshape(4, -1)]).astype(np.uint8).tofile(
        folder / "test_batch.bin"
    )
    return images, test, labels, labels[:4]


def test_cifar10(tmp_path: Path) -> None:
    written = write_cifar(tmp_path)
    data = load(tmp_path)
    assert (data.image_shape, data.num_classes) == ((3, 32, 32), 10)
    assert_split(data, *written)


def test_damaged_cifar10_is_named(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin: truncated, .* records of 3073 bytes"):
        load(tmp_path)
    path.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(DataError, match=r"data_batch_3\.bin: expected labels from 0 to 9.* got 10"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin: cannot be read"):
        load(tmp_path)


# --- downsampled ImageNet ---------------------------------------------------------------------


def write_npz(folder: Path, packed: bool) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    images, test = pattern(33, 3, 8, 8), pattern(5, 3, 8, 8, seed=1)
    labels = np.arange(33) % 6
    save = np.savez_compressed if packed else np.savez
    # Ten and more files, whose order is not that of their names.
    for number, part in enumerate(np.array_split(np.arange(33), 11), 1):
        save(
            folder / f"train_data_batch_{number}.npz",
            data=images[part].reshape(len(part), -1),
            labels=labels[part] + 1,
            mean=np.zeros(192),
        )
    save(folder / "val_data.npz", data=test.reshape(5, -1), labels=(labels[:5] + 1).tolist())
    return images, test, labels, labels[:5]


@pytest.mark.parametrize("packed", [False, True])
def test_imagenet(tmp_path: Path, packed: bool) -> None:
    written = write_npz(tmp_path, packed)
    data = load(tmp_path)
    assert (data.image_shape, data.num_classes) == ((3, 8, 8), 6)
    assert_split(data, *written)
    # Any numbers in any order, across files.
    chosen = np.array([20, 3, 3, 0, 29])
    np.testing.assert_array_equal(data.train.images[chosen], content(data.train)[chosen])


def test_numbers_of_images_on_the_disk_are_those_of_an_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(tmp_path, packed=False)
    monkeypatch.setattr(_types, "MOST_IN_MEMORY", 100)
    train, _ = read_imagenet(tmp_path) or pytest.fail("no ImageNet")
    chosen = np.array([-1, -33, 0, -1, 32])
    np.testing.assert_array_equal(train.images[chosen], content(train)[chosen])
    np.testing.assert_array_equal(train.take(chosen).images[np.array([-1])], content(train)[32:])
    for outside in (33, -34):
        with pytest.raises(IndexError, match="expected numbers of 33 images"):
            train.images[np.array([0, outside])]


def test_damaged_npz_is_named(tmp_path: Path) -> None:
    write_npz(tmp_path, packed=True)
    path = tmp_path / "train_data_batch_2.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train_data_batch_2\.npz: no array 'data' can be read"):
        load(tmp_path)
    np.savez(path, data=np.zeros((3, 191), np.uint8), labels=np.ones(3))
    with pytest.raises(DataError, match=r"batch_2\.npz: expected 'data' of shape \(n, 3 S S\)"):
        load(tmp_path)
    np.savez(path, data=np.zeros((3, 192), np.uint8), labels=np.zeros(3))
    with pytest.raises(DataError, match=r"batch_2\.npz: expected 3 'labels' from 1"):
        load(tmp_path)
    np.savez(path, data=np.zeros((3, 192), np.uint8), labels=["a", "b", "c"])
    with pytest.raises(DataError, match=r"batch_2\.npz: expected 3 'labels' from 1"):
        load(tmp_path)
    np.savez(path, data=np.zeros((3, 12), np.uint8), labels=np.ones(3))
    with pytest.raises(DataError, match=r"images of \[2, 8\] pixels to a side together"):
        load(tmp_path)
    write_npz(tmp_path, packed=False)
    np.savez(tmp_path / "val_data.npz", data=np.zeros((0, 192), np.uint8), labels=np.ones(0))
    with pytest.raises(DataError, match="expected images in each set"):
        load(tmp_path)
    (tmp_path / "val_data.npz").unlink()
    with pytest.raises(DataError, match=r"train_data_batch_\*\.npz together with val_data\.npz"):
        load(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_changed_byte_in_an_npz_is_at_most_a_data_error(tmp_path: Path, packed: bool) -> None:
    """Each of the libraries that read it has errors of its own kinds."""
    write_npz(tmp_path, packed)
    path = tmp_path / "train_data_batch_2.npz"
    whole = path.read_bytes()
    refused = 0
    # The first local header and what is behind it, and the directory at the end.
    for at in [*range(120), *range(len(whole) - 200, len(whole))]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            load(tmp_path)
        except DataError as error:
            assert "train_data_batch_2.npz" in str(error)
            refused += 1
    assert refused > 50


def test_an_npz_longer_than_memory_is_named(tmp_path: Path) -> None:
    write_npz(tmp_path, packed=True)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"shape": (2**50, 192), "fortran_order": False, "descr": "|u1"}
    )
    with zipfile.ZipFile(tmp_path / "val_data.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", header.getvalue())
    with pytest.raises(DataError, match=r"val_data\.npz: no array 'data' can be read: Unable to"):
        load(tmp_path)


def test_an_array_that_ends_too_early_is_not_read_on(tmp_path: Path) -> None:
    """Behind a stored array is the next one, whose bytes are no images."""
    write_npz(tmp_path, packed=False)
    header, labels = io.BytesIO(), io.BytesIO()
    said = {"descr": "|u1", "fortran_order": False, "shape": (6, 192)}
    np.lib.format.write_array_header_1_0(header, said)
    np.save(labels, np.ones(6, np.int64))
    with zipfile.ZipFile(tmp_path / "val_data.npz", "w") as archive:
        archive.writestr("data.npy", header.getvalue() + bytes(5 * 192))
        archive.writestr("labels.npy", labels.getvalue())
    with pytest.raises(DataError, match=r"val_data\.npz: .* expected 1152 values, got 960"):
        load(tmp_path)


class Poison:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("poisoned",)


@pytest.mark.parametrize("packed", [False, True])
def test_nothing_is_unpickled(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path, packed)
    save = np.savez_compressed if packed else np.savez
    poison = np.array([Poison()], object)
    save(tmp_path / "val_data.npz", data=poison, labels=np.ones(1))
    with pytest.raises(DataError, match=r"val_data\.npz: no array 'data' can be read"):
        load(tmp_path)
    assert not (tmp_path / "poisoned").exists()
    pickle.loads(pickle.dumps(Poison()))  # it would have shown
    assert (tmp_path / "poisoned").exists()


# --- folders that are split -------------------------------------------------------------------


def write_folders(folder: Path, test: str, classes: bool) -> tuple[Bytes, Bytes, Any, Any]:
    images, others = pattern(30, 6, 4, 3), pattern(6, 6, 4, 3, seed=1)
    for part, pictures in (("train", images), (test, others)):
        for number, image in enumerate(pictures):
            where = folder / part / (f"class {number % 3}" if classes else "") / f"{number:02}.png"
            where.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(where)
    labels = [np.arange(n) % 3 if classes else None for n in (30, 6)]
    return images.transpose(0, 3, 1, 2), others.transpose(0, 3, 1, 2), *labels


@pytest.mark.parametrize("test", ["test", "val"])
@pytest.mark.parametrize("classes", [True, False])
def test_folders_train_and_test(tmp_path: Path, test: str, classes: bool) -> None:
    train, others, labels, test_labels = write_folders(tmp_path, test, classes)
    data = load(tmp_path)
    order = np.argsort(np.arange(6) % 3, kind="stable") if classes else np.arange(6)
    expected = None if test_labels is None else test_labels[order]
    assert_split(data, train, others[order], labels, expected)


def test_other_classes_in_the_test_folder_are_none(tmp_path: Path) -> None:
    write_folders(tmp_path, "test", True)
    (tmp_path / "test" / "class 0").rename(tmp_path / "test" / "class 7")
    assert load(tmp_path).num_classes == 0


def test_an_empty_test_folder_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path, "test", False)
    for path in (tmp_path / "test").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"test: no image files"):
        load(tmp_path)


def test_own_validation_images_stay_so(tmp_path: Path) -> None:
    train, *_ = write_folders(tmp_path, "test", True)
    write_folders(tmp_path, "val", True)
    for path in sorted((tmp_path / "val").rglob("*.png"))[1:]:
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    data = load(tmp_path)
    assert tuple(map(len, (data.train, data.validation, data.test))) == (30, 6, 6)
    assert_holds(data.train, train, np.arange(30) % 3)
    np.testing.assert_array_equal(content(data.validation)[0], content(data.test)[0])
    np.testing.assert_array_equal(content(data.validation)[1:], 255 - content(data.test)[1:])
    np.testing.assert_array_equal(data.validation.labels, data.test.labels)
    assert data.num_classes == 3


# --- the hub ----------------------------------------------------------------------------------


def write_hub(folder: Path, **splits: tuple[list[Any], list[int | None]]) -> None:
    """A folder as the hub has them, of pictures and labels."""
    import datasets

    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, (pictures, labels) in splits.items():
        table = datasets.Dataset.from_dict({"img": pictures, "label": labels}, features=features)
        table.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")


def pictures(n: int, *shape: int, seed: int = 0) -> list[Any]:
    return [Image.fromarray(image) for image in pattern(n, *shape, seed=seed)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like one of the hub's stands for it: the tests have no network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return tmp_path / "flowers"


def test_sets_of_the_hub(hub: Path) -> None:
    labels, test_labels = [n % 3 for n in range(20)], [n % 3 for n in range(5)]
    write_hub(
        hub, train=(pictures(20, 4, 5, 3), labels), test=(pictures(5, 4, 5, 3, seed=1), test_labels)
    )
    data = load(f"hf:{hub}")
    assert (data.name, data.image_shape, data.num_classes) == ("flowers", (3, 4, 5), 3)
    train, test = pattern(20, 4, 5, 3), pattern(5, 4, 5, 3, seed=1)
    assert_split(
        data,
        train.transpose(0, 3, 1, 2),
        test.transpose(0, 3, 1, 2),
        np.array(labels),
        np.array(test_labels),
    )


@pytest.mark.parametrize(
    ("others", "counts"),
    [((), (16, 2, 2)), (("validation",), (18, 2, 4)), (("test", "validation"), (20, 4, 4))],
)
def test_splits_of_the_hub(
    hub: Path, others: tuple[str, ...], counts: tuple[int, int, int]
) -> None:
    splits = {name: (pictures(4, 4, 5, seed=len(name)), [0] * 4) for name in others}
    write_hub(hub, train=(pictures(20, 4, 5), [0] * 20), **splits)
    data = load(f"hf:{hub}")
    assert data.image_shape == (1, 4, 5)
    assert tuple(map(len, (data.train, data.validation, data.test))) == counts
    if "test" in others:
        np.testing.assert_array_equal(content(data.test)[:, 0], pattern(4, 4, 5, seed=4))


@pytest.mark.parametrize("unknown", [-1, None])
def test_classes_that_the_hub_keeps_back_are_none(hub: Path, unknown: int | None) -> None:
    write_hub(hub, train=(pictures(20, 4, 5), [1] * 20), test=(pictures(3, 4, 5), [0, unknown, 0]))
    data = load(f"hf:{hub}")
    assert data.test.labels is None and data.num_classes == 0
    assert data.train.labels is not None and data.train.labels.tolist() == [1] * 18


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (np.full((4, 5), 40000, np.uint16), "expected 8 bits per channel, but got mode I;16"),
        (pattern(1, 4, 5, 3)[0], "expected a gray image as the others are, but got mode RGB"),
        (
            pattern(1, 5, 5)[0],
            "expected 4 x 5 pixels .height x width. as the first has, but got 5 x 5",
        ),
    ],
)
def test_odd_images_of_the_hub_are_named(hub: Path, odd: Any, message: str) -> None:
    test = [*pictures(2, 4, 5), Image.fromarray(odd)]
    write_hub(hub, train=(pictures(20, 4, 5), [0] * 20), test=(test, [0] * 3))
    with pytest.raises(DataError, match=f"flowers, test, image 2: {message}"):
        load(f"hf:{hub}")


def test_gray_images_among_color_of_the_hub_become_color(hub: Path) -> None:
    write_hub(hub, train=([*pictures(1, 4, 5), *pictures(19, 4, 5, 3)], [0] * 20))
    assert load(f"hf:{hub}").image_shape == (3, 4, 5)


def test_damaged_images_of_the_hub_are_named(hub: Path) -> None:
    write_hub(hub, train=([*pictures(19, 4, 5), {"bytes": b"damaged", "path": None}], [0] * 20))
    with pytest.raises(DataError, match="flowers, train: an image cannot be read: cannot identify"):
        load(f"hf:{hub}")


def test_rows_of_the_hub_without_an_image_are_named(hub: Path) -> None:
    write_hub(hub, train=([*pictures(19, 4, 5), None], [0] * 20))
    with pytest.raises(DataError, match="flowers, train: expected an image in each row"):
        load(f"hf:{hub}")


def test_the_hub_without_its_package_is_one_line() -> None:
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from invconv.data import load, DataError\n"
        "try:\n    load('hf:mnist')\nexcept DataError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("hf:mnist needs the datasets package: pip install")
    assert done.stdout.count("\n") == 1


def test_the_hub_out_of_reach_is_one_line() -> None:
    code = (
        "from invconv.data import load, DataError\n"
        "try:\n    load('hf:nobody/nothing')\nexcept DataError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.stdout.startswith("hf:nobody/nothing: cannot be loaded: ")
    assert done.stdout.count("\n") == 1


def test_a_run_knows_its_images_and_labels_again(tmp_path: Path) -> None:
    write_idx(tmp_path)
    before = checksum(load(tmp_path))
    assert checksum(load(tmp_path)) == before
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x06")
    assert checksum(load(tmp_path)) != before


# --- images that stay on the disk -------------------------------------------------------------


def write_hub_set(folder: Path) -> None:
    labels: list[int | None] = [n % 3 for n in range(30)]
    write_hub(
        folder, train=(pictures(30, 4, 5, 3), labels), test=(pictures(5, 4, 5, 3), labels[:5])
    )


WRITERS: dict[str, Callable[[Path], Any]] = {
    "idx": write_idx,
    "cifar10": write_cifar,
    "npz": lambda folder: write_npz(folder, packed=False),
    "packed npz": lambda folder: write_npz(folder, packed=True),
    "folders": lambda folder: write_folders(folder, "test", True),
    "hub": write_hub_set,
}
MAPPED = {"idx", "cifar10", "npz"}


# torch warns where there are more workers than processors.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("kind", WRITERS)
def test_large_sets_stay_on_the_disk(hub: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.mkdir()
    WRITERS[kind](hub)
    source = f"hf:{hub}" if kind == "hub" else str(hub)
    in_memory = load(source)
    monkeypatch.setattr(_types, "MOST_IN_MEMORY", 100)
    data = load(source)
    packed = pickle.dumps(data)
    # Worker processes that are not forked get a pickle.
    other = pickle.loads(packed)
    if kind in MAPPED:
        assert all(image.tobytes() not in packed for image in content(in_memory.train))
    assert checksum(other) == checksum(load(source)) == checksum(data)
    for name in ("train", "validation", "test"):
        expected = getattr(in_memory, name)
        assert isinstance(expected.images, np.ndarray)
        for found in (getattr(data, name), getattr(other, name)):
            assert not isinstance(found.images, np.ndarray)
            assert found.images.shape == expected.images.shape
            np.testing.assert_array_equal(content(found), expected.images)
            np.testing.assert_array_equal(found.labels, expected.labels)
    # Any numbers in any order, with the same bits whoever reads them.
    order = np.random.RandomState(0).permutation(np.arange(len(data.train)).repeat(2))
    batches = np.array_split(order, 5)
    expected_batches = list(load_batches(in_memory.train, 256, batches, key=(0,)))
    for workers in (0, 2):
        found_batches = list(load_batches(data.train, 256, batches, key=(0,), workers=workers))
        for (x, y), (x0, y0) in zip(found_batches, expected_batches, strict=True):
            assert y is not None and y0 is not None
            assert torch.equal(x, x0) and torch.equal(y, y0)


@pytest.mark.parametrize("kind", ["idx", "npz"])
def test_mapped_files_are_read_when_they_are_asked_for(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[kind](tmp_path)
    monkeypatch.setattr(_types, "MOST_IN_MEMORY", 100)
    data = load(tmp_path)
    before = content(data.test)
    known = checksum(data)
    path = tmp_path / ("val_data.npz" if kind == "npz" else "t10k-images-idx3-ubyte")
    raw = path.read_bytes()
    assert raw.count(before[-1].tobytes()) == 1
    path.write_bytes(raw.replace(before[-1].tobytes(), (255 - before[-1]).tobytes()))
    np.testing.assert_array_equal(content(data.test)[-1], 255 - before[-1])
    assert checksum(data) != known
    path.write_bytes(raw[:100])
    with pytest.raises(DataError, match=rf"{path.name}: cannot be read"):
        content(data.test)


def test_touched_or_copied_files_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_types, "MOST_IN_MEMORY", 100)
    for folder in ("one", "two"):
        write_folders(tmp_path / folder, "test", True)
    for path in (tmp_path / "two").rglob("*.png"):
        os.utime(path, (1, 1))
    known = checksum(load(tmp_path / "one"))
    assert checksum(load(tmp_path / "two")) == known
    # Another image in a file of the same size, and another name.
    path = min((tmp_path / "two" / "train").rglob("*.png"))
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert checksum(load(tmp_path / "two")) != known
    path = max((tmp_path / "one" / "train").rglob("*.png"))
    path.rename(path.with_name(os.fsdecode(b"\xff.png")))  # which is not Unicode
    assert checksum(load(tmp_path / "one")) != known


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_damaged_while_training_is_one_line(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path, "test", False)
    monkeypatch.setattr(_types, "MOST_IN_MEMORY", 100)
    data = load(tmp_path)
    for path in (tmp_path / "train").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"^.*\.png: cannot be read as an image.*$") as caught:
        list(load_batches(data.train, 256, [np.arange(3)], key=(0,), workers=workers))
    assert "\n" not in str(caught.value)
