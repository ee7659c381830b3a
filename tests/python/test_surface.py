"""The array functions as a caller meets them: shapes, ``out=``, errors, threads, processes.

Values are checked in ``test_exactness.py``; here a result is compared with what the same function
says about plain arrays, bit for bit.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from reference import CORNERS

import invconv

RNG = np.random.default_rng(9)
Y = RNG.standard_normal((2, 12, 5, 6))
G = RNG.standard_normal((2, 12, 5, 6))
W = RNG.standard_normal((12, 12, 3, 3)) * 0.05
W2 = RNG.standard_normal((12, 6, 3, 3)) * 0.05
BINARY = [invconv.solve, invconv.conv]
FLOATS = [np.float16, np.float32, np.float64]

binary = pytest.mark.parametrize("function", BINARY, ids=["solve", "conv"])


def run_python(code: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter. The time limit only keeps a hang from blocking the suite."""
    env = {**os.environ, **{k: v for k, v in environment.items() if v is not None}}
    for name in (k for k, v in environment.items() if v is None):
        env.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
    )


# --- Results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_numpy_in_numpy_out(dtype: Any) -> None:
    y, g, w = (a.astype(dtype) for a in (Y, G, W))
    for result, shape in (
        (invconv.solve(y, w), Y.shape),
        (invconv.conv(y, w), Y.shape),
        (invconv.weight_grad(y, g, 3), W.shape),
    ):
        assert type(result) is np.ndarray
        assert (result.dtype, result.shape) == (dtype, shape)
        assert result.flags.c_contiguous and result.flags.writeable and result.flags.owndata
    assert type(invconv.logabsdet(w, (5, 6), unit_diagonal=False)) is float
    assert type(invconv.growth(w, (5, 6))) is float


def test_results_do_not_share_memory_with_arguments() -> None:
    identity = np.zeros((12, 12, 1, 1))
    for function in BINARY:
        assert not np.shares_memory(function(Y, identity), Y)
    assert not np.shares_memory(invconv.weight_grad(Y, Y, 1), Y)


@binary
def test_one_image(function: Callable[..., Any]) -> None:
    batch = function(Y[:1], W)
    single = function(Y[0], W)
    assert single.shape == Y.shape[1:]
    np.testing.assert_array_equal(single, batch[0])
    out = np.empty_like(Y[0])
    assert function(Y[0], W, out=out) is out
    np.testing.assert_array_equal(out, single)


def test_one_image_in_weight_grad() -> None:
    np.testing.assert_array_equal(
        invconv.weight_grad(Y[0], G[0], 3), invconv.weight_grad(Y[:1], G[:1], 3)
    )


def test_defaults_are_the_papers_case() -> None:
    """Top left, unit diagonal, one group: the defaults, given or not, are the same call."""
    explicit: dict[str, Any] = {"corner": "tl", "unit_diagonal": True, "groups": 1}
    for function in BINARY:
        np.testing.assert_array_equal(
            function(Y, W), function(Y, W, transpose=False, out=None, **explicit)
        )
    np.testing.assert_array_equal(
        invconv.weight_grad(Y, G, 3), invconv.weight_grad(Y, G, 3, **explicit)
    )
    assert invconv.logabsdet(W, (5, 6)) == invconv.logabsdet(W, (5, 6), **explicit) == 0
    assert invconv.growth(W, (5, 6)) == invconv.growth(W, (5, 6), **explicit)


def test_signatures() -> None:
    """Names, order, kinds and defaults of the parameters are the contract."""
    shared = "*, corner='tl', unit_diagonal=True, groups=1"
    expected = {
        "solve": f"(y, weight, {shared}, transpose=False, out=None)",
        "conv": f"(x, weight, {shared}, transpose=False, out=None)",
        "weight_grad": f"(x, g, kernel_size, {shared}, per_sample=False)",
        "logabsdet": f"(weight, size, {shared})",
        "growth": f"(weight, size, {shared})",
        "get_num_threads": "()",
    }
    for name, text in expected.items():
        signature = inspect.signature(getattr(invconv, name))
        bare = [
            p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()
        ]
        assert (
            str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
            == text
        ), name


def test_docstrings() -> None:
    for name in ("solve", "conv", "weight_grad", "logabsdet", "growth"):
        text = inspect.getdoc(getattr(invconv, name)) or ""
        for part in ("(C, C/groups, kh, kw)", ".. math::", "Args:", "Returns:", "Raises:"):
            assert part in text, (name, part)
    assert inspect.getdoc(invconv.set_num_threads) and inspect.getdoc(invconv.get_num_threads)
    assert invconv.__doc__
    assert set(invconv.__all__) >= {
        "solve",
        "conv",
        "weight_grad",
        "logabsdet",
        "growth",
        "__version__",
    }
    assert all(hasattr(invconv, name) for name in invconv.__all__)


@pytest.mark.parametrize(
    "corner", [("tl", "br"), ["tl", "br"], iter(("tl", "br")), np.array(["tl", "br"])], ids=type
)
def test_corner_sequences(corner: Any) -> None:
    expected = np.concatenate(
        [
            invconv.solve(Y[:, :6], W2[:6], corner="tl"),
            invconv.solve(Y[:, 6:], W2[6:], corner="br"),
        ],
        axis=1,
    )
    np.testing.assert_array_equal(invconv.solve(Y, W2, corner=corner, groups=2), expected)


def test_one_name_for_all_groups() -> None:
    for corner in CORNERS:
        expected = invconv.solve(Y, W2, corner=(corner, corner), groups=2)
        np.testing.assert_array_equal(invconv.solve(Y, W2, corner=corner, groups=2), expected)
        np.testing.assert_array_equal(invconv.solve(Y, W2, corner=(corner,), groups=2), expected)


@pytest.mark.parametrize(
    "kernel_size", [3, (3, 3), [3, 3], np.int64(3), (np.int32(3), 3)], ids=repr
)
def test_kernel_size_forms(kernel_size: Any) -> None:
    np.testing.assert_array_equal(
        invconv.weight_grad(Y, G, kernel_size), invconv.weight_grad(Y, G, (3, 3))
    )


def test_kernel_size_is_height_then_width() -> None:
    assert invconv.weight_grad(Y, G, (2, 5)).shape == (12, 12, 2, 5)
    assert invconv.weight_grad(Y, G, (2, 5), groups=4).shape == (12, 3, 2, 5)


@pytest.mark.parametrize(
    "size", [(5, 6), [5, 6], (np.int64(5), np.int64(6)), np.array([5, 6])], ids=str
)
def test_size_forms(size: Any) -> None:
    weight = np.full((1, 1, 1, 1), 2.0)
    assert float(invconv.logabsdet(weight, size, unit_diagonal=False)) == pytest.approx(
        30 * np.log(2), rel=1e-15
    )
    assert invconv.growth(weight, size, unit_diagonal=False) == 0.5


@pytest.mark.parametrize("size", [5, np.int64(5), np.array(5)], ids=repr)
def test_one_number_is_a_square(size: Any) -> None:
    for function in (invconv.logabsdet, invconv.growth):
        assert function(2 * W, size, unit_diagonal=False) == function(
            2 * W, (5, 5), unit_diagonal=False
        )


def test_truth_values_of_numpy() -> None:
    for yes, no in ((True, False), (np.True_, np.False_)):
        for function in BINARY:
            np.testing.assert_array_equal(
                function(Y, W, transpose=yes, unit_diagonal=no),
                function(Y, W, transpose=True, unit_diagonal=False),
            )
        assert invconv.logabsdet(W, 3, unit_diagonal=yes) == 0


@pytest.mark.parametrize(
    "shape", [(0, 12, 5, 6), (2, 12, 0, 6), (2, 12, 5, 0), (0, 12, 0, 0), (12, 0, 6), (12, 5, 0)]
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_empty(shape: tuple[int, ...], dtype: Any) -> None:
    y, weight = np.empty(shape, dtype), W.astype(dtype)
    for function in BINARY:
        for corner in CORNERS:
            for transpose in (False, True):
                result = function(y, weight, corner=corner, transpose=transpose)
                assert (result.shape, result.dtype) == (shape, dtype)
        out = np.empty(shape, dtype)
        assert function(y, weight, out=out) is out
    grad = invconv.weight_grad(y, y, (3, 2))
    assert grad.dtype == dtype
    np.testing.assert_array_equal(grad, np.zeros((12, 12, 3, 2), dtype))


def test_empty_size() -> None:
    assert invconv.logabsdet(W, (0, 6), unit_diagonal=False) == 0
    assert invconv.growth(W, (0, 6)) == 0


def test_no_channels() -> None:
    """No channels, no work: as empty as an image without pixels."""
    y, weight = np.empty((2, 0, 5, 6)), np.empty((0, 0, 3, 3))
    assert invconv.solve(y, weight).shape == y.shape
    assert invconv.conv(y, weight).shape == y.shape
    assert invconv.weight_grad(y, y, 3).shape == weight.shape
    assert invconv.logabsdet(weight, (5, 6)) == 0
    assert invconv.growth(weight, (5, 6)) == 0


@pytest.mark.parametrize("height,width", [(1, 1), (1, 7), (7, 1)])
@pytest.mark.parametrize("corner", CORNERS)
def test_a_single_row_or_column(height: int, width: int, corner: str) -> None:
    y = RNG.standard_normal((3, 2, height, width))
    weight = RNG.standard_normal((2, 2, 3, 3)) * 0.2
    for transpose in (False, True):
        expected = reference.solve(y, weight, corner=corner, transpose=transpose)
        # Sums of at most 18 terms of order 1, 7 steps, an inverse that hardly grows.
        result = invconv.solve(y, weight, corner=corner, transpose=transpose)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1000 * np.finfo(np.float64).eps)


def test_inputs_are_never_written() -> None:
    y, g, w = (reference.lay_out(a, "sliced", RNG) for a in (Y, G, W))
    before = [a.copy() for a in (y, g, w)]
    for unit_diagonal in (True, False):
        for transpose in (False, True):
            for function in BINARY:
                function(y, w, unit_diagonal=unit_diagonal, transpose=transpose)
                function(
                    y, w, unit_diagonal=unit_diagonal, transpose=transpose, out=np.empty_like(Y)
                )
        invconv.weight_grad(y, g, 3, unit_diagonal=unit_diagonal)
        invconv.logabsdet(w, (5, 6), unit_diagonal=unit_diagonal)
        invconv.growth(w, (5, 6), unit_diagonal=unit_diagonal)
    for array, copy in zip((y, g, w), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_strides_that_are_no_multiple_of_the_element() -> None:
    """A field of packed records and an array at an odd address: numpy reads them, so must this."""
    records = np.zeros(Y.shape, dtype=[("flag", "u1"), ("value", "f8")])
    records["value"] = Y
    odd = np.frombuffer(b"\0" + W.tobytes(), dtype=np.float64, offset=1).reshape(W.shape)
    assert not records["value"].flags.aligned and not odd.flags.aligned
    np.testing.assert_array_equal(invconv.solve(records["value"], W), invconv.solve(Y, W))
    np.testing.assert_array_equal(invconv.solve(Y, odd), invconv.solve(Y, W))
    np.testing.assert_array_equal(
        invconv.weight_grad(records["value"], G, 3), invconv.weight_grad(Y, G, 3)
    )


def test_subclasses_of_ndarray() -> None:
    """A subclass is the array that it is."""

    class Image(np.ndarray):
        pass

    result = invconv.solve(Y.view(Image), W)
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(np.asarray(result), invconv.solve(Y, W))


def test_a_zero_on_the_diagonal_divides_by_zero() -> None:
    """As the docstring says: no check, and nothing but what IEEE arithmetic gives."""
    weight = np.zeros((1, 1, 1, 2))
    weight[..., 0] = 1
    x = invconv.solve(np.array([[[1.0, 1.0]]]), weight, unit_diagonal=False)
    np.testing.assert_array_equal(x, [[[np.inf, -np.inf]]])
    x = invconv.solve(np.zeros((1, 1, 2)), weight, unit_diagonal=False)
    assert np.isnan(x).all()


# --- out= -----------------------------------------------------------------------------------------


@binary
@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (
            np.empty((2, 12, 5, 7)),
            ValueError,
            "out of the shape of {in_}, (2, 12, 5, 6), but got (2, 12, 5, 7)",
        ),
        (
            np.empty((12, 5, 6)),
            ValueError,
            "out of the shape of {in_}, (2, 12, 5, 6), but got (12, 5, 6)",
        ),
        (
            np.empty((1, 2, 12, 5, 6)),
            ValueError,
            "out of the shape of {in_}, (2, 12, 5, 6), but got (1, 2, 12, 5, 6)",
        ),
        (
            np.empty((2, 12, 5, 6), np.float32),
            TypeError,
            "{in_} and out of one dtype, but got float64 and float32",
        ),
        (np.empty((2, 12, 5, 6), ">f8"), TypeError, "out in native byte order, but got dtype >f8"),
        (
            np.empty((2, 12, 5, 6), np.int64),
            TypeError,
            "{in_} and out of one dtype, but got float64 and int64",
        ),
        ([[0.0]], TypeError, "out to be a numpy array, but got list"),
        (
            np.ma.array(np.empty((2, 12, 5, 6))),
            TypeError,
            "out without a mask, but got a masked array; out.filled(0) makes one",
        ),
    ],
    ids=[
        "shape",
        "one axis less",
        "one axis more",
        "dtype",
        "byte order",
        "integers",
        "list",
        "masked",
    ],
)
def test_out_of_the_wrong_kind(
    function: Callable[..., Any], out: Any, error: type[Exception], message: str
) -> None:
    in_ = "y" if function is invconv.solve else "x"
    if isinstance(out, np.ndarray):
        out = out.copy()
        out.fill(7)
    with pytest.raises(error) as caught:
        function(Y, W, out=out)
    assert str(caught.value) == f"[{function.__name__}] expected " + message.format(in_=in_)
    assert not isinstance(out, np.ndarray) or np.all(out == 7)


@binary
def test_read_only_out(function: Callable[..., Any]) -> None:
    out = np.full_like(Y, 7)
    out.flags.writeable = False
    with pytest.raises(ValueError) as caught:
        function(Y, W, out=out)
    assert (
        str(caught.value)
        == f"[{function.__name__}] expected out to be writeable, but got a read-only array"
    )
    assert np.all(out == 7)


@binary
@pytest.mark.parametrize("axis", range(4))
def test_out_whose_elements_share_places(function: Callable[..., Any], axis: int) -> None:
    shape = list(Y.shape)
    shape[axis] = 1
    small = np.full(shape, 7.0)
    strides = list(small.strides)
    strides[axis] = 0
    out = np.lib.stride_tricks.as_strided(small, Y.shape, strides)
    with pytest.raises(
        ValueError, match=rf"^\[{function.__name__}\] expected out .*but got .*stride"
    ):
        function(Y, W, out=out)
    assert np.all(small == 7)


@binary
@pytest.mark.parametrize("transpose", [False, True])
def test_out_that_overlaps_an_input(function: Callable[..., Any], transpose: bool) -> None:
    """Whatever ``out`` shares with the inputs, the result is that of separate arrays."""
    expected = function(Y, W, transpose=transpose)

    # Shifted by an element, a row, an image, and the same memory read backwards.
    for shift in (1, 6, 30, 360, 361):
        for order in (1, -1):
            memory = np.zeros(Y.size + shift)
            first, second = memory[: Y.size].reshape(Y.shape), memory[shift:].reshape(Y.shape)
            y, out = (first, second) if order == 1 else (second, first)
            y[...] = Y
            assert function(y, W, transpose=transpose, out=out) is out
            np.testing.assert_array_equal(out, expected)
    for axis in range(4):
        y = Y.copy()
        out = np.flip(y, axis)
        assert function(y, W, transpose=transpose, out=out) is out
        np.testing.assert_array_equal(out, expected)
    square = Y[..., :5].copy()
    out = square.swapaxes(2, 3)
    assert function(square, W, transpose=transpose, out=out) is out
    np.testing.assert_array_equal(out, function(Y[..., :5].copy(), W, transpose=transpose))

    # The memory of the weight.
    memory = np.zeros(max(Y.size, W.size))
    weight, out = memory[: W.size].reshape(W.shape), memory[: Y.size].reshape(Y.shape)
    weight[...] = W
    assert function(Y, weight, transpose=transpose, out=out) is out
    np.testing.assert_array_equal(out, expected)


# --- Errors ---------------------------------------------------------------------------------------

F32 = Y.astype(np.float32)
CORNER = "corner to be 'tl', 'tr', 'bl' or 'br', or one of them for each group"
CORNER_KIND = (
    "corner to be a string, 'tl', 'tr', 'bl' or 'br', or a sequence of them, one for each group"
)
DTYPE = "of dtype float16, bfloat16, float32 or float64"
WEIGHT = "weight of shape (C, C/groups, kh, kw)"
KIND = "to be a numpy array, a torch tensor or another array that speaks DLPack"
MASKED = np.ma.masked_less(Y, 0)
TWO = "to be two integers, or one for both"

# (call, error, message after "[function] expected ")
BAD_CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # shapes
    "the contract's example": (
        lambda: invconv.solve(Y, W2),
        ValueError,
        f"[solve] expected {WEIGHT} with C = 12, groups = 1, but got (12, 6, 3, 3)",
    ),
    "weight of another C": (
        lambda: invconv.conv(Y, W[:8, :8]),
        ValueError,
        f"[conv] expected {WEIGHT} with C = 12, groups = 1, but got (8, 8, 3, 3)",
    ),
    "weight without groups": (
        lambda: invconv.solve(Y, W, groups=3),
        ValueError,
        f"[solve] expected {WEIGHT} with C = 12, groups = 3, but got (12, 12, 3, 3)",
    ),
    "empty kernel": (
        lambda: invconv.solve(Y, W[:, :, :0]),
        ValueError,
        f"[solve] expected {WEIGHT} with C = 12, groups = 1, but got (12, 12, 0, 3)",
    ),
    "weight of three axes": (
        lambda: invconv.solve(Y, W[0]),
        ValueError,
        f"[solve] expected {WEIGHT} or (B, C, C/groups, kh, kw), but got (12, 3, 3)",
    ),
    "weight without axes": (
        lambda: invconv.growth(np.array(1.0), (3, 3)),
        ValueError,
        f"[growth] expected {WEIGHT}, but got ()",
    ),
    "y of two axes": (
        lambda: invconv.solve(Y[0, 0], W),
        ValueError,
        "[solve] expected y of shape (B, C, H, W) or (C, H, W), but got (5, 6)",
    ),
    "x of five axes": (
        lambda: invconv.conv(Y[None], W),
        ValueError,
        "[conv] expected x of shape (B, C, H, W) or (C, H, W), but got (1, 2, 12, 5, 6)",
    ),
    "weight of logabsdet": (
        lambda: invconv.logabsdet(W2, (3, 3)),
        ValueError,
        f"[logabsdet] expected {WEIGHT} with C = 12, groups = 1, but got (12, 6, 3, 3)",
    ),
    "weight of growth": (
        lambda: invconv.growth(W2, (3, 3)),
        ValueError,
        f"[growth] expected {WEIGHT} with C = 12, groups = 1, but got (12, 6, 3, 3)",
    ),
    "g of another shape": (
        lambda: invconv.weight_grad(Y, G[:1], 3),
        ValueError,
        "[weight_grad] expected g of the shape of x, (2, 12, 5, 6), but got (1, 12, 5, 6)",
    ),
    "g without the batch of x": (
        lambda: invconv.weight_grad(Y[:1], G[0], 3),
        ValueError,
        "[weight_grad] expected g of the shape of x, (1, 12, 5, 6), but got (12, 5, 6)",
    ),
    # groups
    "groups do not divide C": (
        lambda: invconv.solve(Y, W, groups=5),
        ValueError,
        "[solve] expected groups to divide C = 12, but got 5",
    ),
    "no groups": (
        lambda: invconv.solve(Y, W, groups=0),
        ValueError,
        "[solve] expected groups to be at least 1, but got 0",
    ),
    "negative groups": (
        lambda: invconv.weight_grad(Y, G, 3, groups=-3),
        ValueError,
        "[weight_grad] expected groups to be at least 1, but got -3",
    ),
    "groups of weight_grad": (
        lambda: invconv.weight_grad(Y, G, 3, groups=7),
        ValueError,
        "[weight_grad] expected groups to divide C = 12, but got 7",
    ),
    "groups is a float": (
        lambda: invconv.solve(Y, W, groups=1.0),
        TypeError,
        "[solve] expected groups to be an integer, but got 1.0",
    ),
    "groups is a bool": (
        lambda: invconv.solve(Y, W, groups=True),
        TypeError,
        "[solve] expected groups to be an integer, but got True",
    ),
    "groups is a string": (
        lambda: invconv.growth(W, (3, 3), groups="2"),
        TypeError,
        "[growth] expected groups to be an integer, but got '2'",
    ),
    # corners
    "unknown corner": (
        lambda: invconv.solve(Y, W, corner="lt"),
        ValueError,
        f"[solve] expected {CORNER}, but got 'lt'",
    ),
    "upper case": (
        lambda: invconv.weight_grad(Y, G, 3, corner="TL"),
        ValueError,
        f"[weight_grad] expected {CORNER}, but got 'TL'",
    ),
    "one unknown corner": (
        lambda: invconv.solve(Y, W2, corner=("tl", "xx"), groups=2),
        ValueError,
        f"[solve] expected {CORNER}, but got ('tl', 'xx')",
    ),
    "no corners": (
        lambda: invconv.conv(Y, W, corner=()),
        ValueError,
        f"[conv] expected {CORNER}, but got ()",
    ),
    "too few corners": (
        lambda: invconv.solve(Y, W[:, :3], corner=("tl", "br"), groups=4),
        ValueError,
        "[solve] expected one corner, or one for each of the groups = 4, but got 2",
    ),
    "too many corners": (
        lambda: invconv.logabsdet(W, (3, 3), corner=("tl", "br")),
        ValueError,
        "[logabsdet] expected one corner, or one for each of the groups = 1, but got 2",
    ),
    "corner is a number": (
        lambda: invconv.solve(Y, W, corner=0),
        TypeError,
        f"[solve] expected {CORNER_KIND}, but got 0",
    ),
    "corner is None": (
        lambda: invconv.growth(W, (3, 3), corner=None),
        TypeError,
        f"[growth] expected {CORNER_KIND}, but got None",
    ),
    "a corner is a number": (
        lambda: invconv.conv(Y, W2, corner=["tl", 1], groups=2),
        TypeError,
        f"[conv] expected {CORNER_KIND}, but got ['tl', 1]",
    ),
    # truth values
    "transpose as in BLAS": (
        lambda: invconv.solve(Y, W, transpose="T"),
        TypeError,
        "[solve] expected transpose to be a bool, but got str",
    ),
    "transpose is a number": (
        lambda: invconv.conv(Y, W, transpose=1),
        TypeError,
        "[conv] expected transpose to be a bool, but got int",
    ),
    "unit_diagonal in words": (
        lambda: invconv.conv(Y, W, unit_diagonal="no"),
        TypeError,
        "[conv] expected unit_diagonal to be a bool, but got str",
    ),
    "unit_diagonal of solve": (
        lambda: invconv.solve(Y, W, unit_diagonal=np.ones(1, np.bool_)),
        TypeError,
        "[solve] expected unit_diagonal to be a bool, but got ndarray",
    ),
    "unit_diagonal of weight_grad": (
        lambda: invconv.weight_grad(Y, G, 3, unit_diagonal="no"),
        TypeError,
        "[weight_grad] expected unit_diagonal to be a bool, but got str",
    ),
    "unit_diagonal of logabsdet": (
        lambda: invconv.logabsdet(W, (3, 3), unit_diagonal=None),
        TypeError,
        "[logabsdet] expected unit_diagonal to be a bool, but got NoneType",
    ),
    "unit_diagonal of growth": (
        lambda: invconv.growth(W, (3, 3), unit_diagonal=0.0),
        TypeError,
        "[growth] expected unit_diagonal to be a bool, but got float",
    ),
    # masks
    "masked y": (
        lambda: invconv.solve(MASKED, W),
        TypeError,
        "[solve] expected y without a mask, but got a masked array; y.filled(0) makes one",
    ),
    "masked weight": (
        lambda: invconv.growth(np.ma.array(W), (3, 3)),
        TypeError,
        "[growth] expected weight without a mask, but got a masked array; "
        "weight.filled(0) makes one",
    ),
    "masked g": (
        lambda: invconv.weight_grad(Y, MASKED, 3),
        TypeError,
        "[weight_grad] expected g without a mask, but got a masked array; g.filled(0) makes one",
    ),
    # kinds and dtypes
    "list": (
        lambda: invconv.solve(Y.tolist(), W),
        TypeError,
        f"[solve] expected y {KIND}, but got list; np.asarray(y, dtype=np.float32) makes one",
    ),
    "list as weight": (
        lambda: invconv.solve(Y, W.tolist()),
        TypeError,
        f"[solve] expected weight {KIND}, but got list; "
        "np.asarray(weight, dtype=np.float32) makes one",
    ),
    "None": (
        lambda: invconv.conv(None, W),
        TypeError,
        f"[conv] expected x {KIND}, but got NoneType",
    ),
    "float": (
        lambda: invconv.logabsdet(1.0, (3, 3)),
        TypeError,
        f"[logabsdet] expected weight {KIND}, but got float",
    ),
    "integers": (
        lambda: invconv.solve(Y.astype(np.int64), W.astype(np.int64)),
        TypeError,
        f"[solve] expected y {DTYPE}, but got int64; y.astype(np.float32) makes one",
    ),
    "integer weight": (
        lambda: invconv.growth(W.astype(np.int32), (3, 3)),
        TypeError,
        f"[growth] expected weight {DTYPE}, but got int32; weight.astype(np.float32) makes one",
    ),
    "complex": (
        lambda: invconv.conv(Y + 0j, W + 0j),
        TypeError,
        f"[conv] expected x {DTYPE}, but got complex128",
    ),
    "bool": (
        lambda: invconv.weight_grad(Y > 0, G > 0, 3),
        TypeError,
        f"[weight_grad] expected x {DTYPE}, but got bool; x.astype(np.float32) makes one",
    ),
    "object": (
        lambda: invconv.solve(Y.astype(object), W),
        TypeError,
        f"[solve] expected y {DTYPE}, but got object",
    ),
    "big-endian": (
        lambda: invconv.solve(Y.astype(">f8"), W.astype(">f8")),
        TypeError,
        "[solve] expected y in native byte order, but got dtype >f8",
    ),
    "big-endian weight": (
        lambda: invconv.solve(Y, W.astype(">f8")),
        TypeError,
        "[solve] expected weight in native byte order, but got dtype >f8",
    ),
    "mixed dtypes": (
        lambda: invconv.solve(F32, W),
        TypeError,
        "[solve] expected y and weight of one dtype, but got float32 and float64",
    ),
    "mixed dtypes in conv": (
        lambda: invconv.conv(Y, W.astype(np.float16)),
        TypeError,
        "[conv] expected x and weight of one dtype, but got float64 and float16",
    ),
    "mixed dtypes in weight_grad": (
        lambda: invconv.weight_grad(Y, F32, 3),
        TypeError,
        "[weight_grad] expected x and g of one dtype, but got float64 and float32",
    ),
    # sizes
    "kernel of nothing": (
        lambda: invconv.weight_grad(Y, G, 0),
        ValueError,
        "[weight_grad] expected kernel_size of at least 1 x 1, but got 0 x 0",
    ),
    "negative kernel": (
        lambda: invconv.weight_grad(Y, G, (3, -1)),
        ValueError,
        "[weight_grad] expected kernel_size of at least 1 x 1, but got 3 x -1",
    ),
    "kernel_size is a float": (
        lambda: invconv.weight_grad(Y, G, 3.0),
        TypeError,
        f"[weight_grad] expected kernel_size {TWO}, but got 3.0",
    ),
    "kernel_size of three": (
        lambda: invconv.weight_grad(Y, G, (3, 3, 3)),
        TypeError,
        f"[weight_grad] expected kernel_size {TWO}, but got (3, 3, 3); use shape[-2:]",
    ),
    "kernel_size is the shape of the weight": (
        lambda: invconv.weight_grad(Y, G, W.shape),
        TypeError,
        f"[weight_grad] expected kernel_size {TWO}, but got (12, 12, 3, 3); use shape[-2:]",
    ),
    "size is the shape of y": (
        lambda: invconv.growth(W, Y.shape),
        TypeError,
        f"[growth] expected size = (H, W) {TWO}, but got (2, 12, 5, 6); use shape[-2:]",
    ),
    "size is y": (
        lambda: invconv.growth(W, Y),
        TypeError,
        f"[growth] expected size = (H, W) {TWO}, but got an array of shape (2, 12, 5, 6); "
        "use shape[-2:]",
    ),
    "size in digits": (
        lambda: invconv.logabsdet(W, "32"),
        TypeError,
        f"[logabsdet] expected size = (H, W) {TWO}, but got '32'",
    ),
    "size in bytes": (
        lambda: invconv.growth(W, b"32"),
        TypeError,
        f"[growth] expected size = (H, W) {TWO}, but got b'32'",
    ),
    "size of one and a half": (
        lambda: invconv.growth(W, (3.5, 3)),
        TypeError,
        f"[growth] expected size = (H, W) {TWO}, but got (3.5, 3)",
    ),
    "size is a truth value": (
        lambda: invconv.logabsdet(W, True),
        TypeError,
        f"[logabsdet] expected size = (H, W) {TWO}, but got True",
    ),
    "size without end": (
        lambda: invconv.logabsdet(W, itertools.count()),
        TypeError,
        f"[logabsdet] expected size = (H, W) {TWO}, but got count(0)",
    ),
    "negative size": (
        lambda: invconv.growth(W, (-1, 5)),
        ValueError,
        "[growth] expected size = (H, W) without negative sizes, but got (-1, 5)",
    ),
    "negative size in logabsdet": (
        lambda: invconv.logabsdet(W, (5, -1)),
        ValueError,
        "[logabsdet] expected size = (H, W) without negative sizes, but got (5, -1)",
    ),
    # threads
    "no threads": (
        lambda: invconv.set_num_threads(0),
        ValueError,
        "[set_num_threads] expected threads from 1 to 1024, but got 0",
    ),
    "negative threads": (
        lambda: invconv.set_num_threads(-2),
        ValueError,
        "[set_num_threads] expected threads from 1 to 1024, but got -2",
    ),
    "too many threads": (
        lambda: invconv.set_num_threads(1025),
        ValueError,
        "[set_num_threads] expected threads from 1 to 1024, but got 1025",
    ),
    "threads beyond any integer type": (
        lambda: invconv.set_num_threads(2**70),
        ValueError,
        f"[set_num_threads] expected threads of at most 64 bits, but got {2**70}",
    ),
    "half a thread": (
        lambda: invconv.set_num_threads(1.5),
        TypeError,
        "[set_num_threads] expected threads to be an integer, but got 1.5",
    ),
    "threads in words": (
        lambda: invconv.set_num_threads("2"),
        TypeError,
        "[set_num_threads] expected threads to be an integer, but got '2'",
    ),
}


@pytest.mark.parametrize("what", BAD_CALLS)
def test_bad_calls(what: str) -> None:
    call, error, message = BAD_CALLS[what]
    threads = invconv.get_num_threads()
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert str(caught.value) == message
    assert invconv.get_num_threads() == threads


@pytest.mark.parametrize("huge", [2**31, 2**40, 2**63, 2**80])
def test_numbers_beyond_any_memory(huge: int) -> None:
    """One clear line or the right answer, whatever the width of the integer types below."""
    for name, call in {
        "weight_grad": lambda: invconv.weight_grad(Y, G, huge),
        "solve": lambda: invconv.solve(Y, W, groups=huge),
        "growth": lambda: invconv.growth(W, (huge, huge)),
    }.items():
        with pytest.raises((ValueError, TypeError, MemoryError)) as caught:
            call()
        assert isinstance(caught.value, MemoryError) or str(caught.value).startswith(
            f"[{name}] expected "
        ), caught.value
    half = np.full((1, 1, 1, 1), 0.5)
    try:
        log = float(invconv.logabsdet(half, (huge, huge), unit_diagonal=False))
    except ValueError as error:
        assert str(error).startswith("[logabsdet] expected ")
    else:
        assert log == pytest.approx(float(huge) ** 2 * np.log(0.5), rel=1e-15)


def test_arguments_by_position_end_with_the_arrays() -> None:
    # (mypy refuses them too.)
    for call in (
        lambda: invconv.solve(Y, W, "tl"),  # type: ignore[call-arg]
        lambda: invconv.weight_grad(Y, G, 3, "tl"),  # type: ignore[call-arg]
        lambda: invconv.growth(W, (3, 3), "tl"),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError, match="positional"):
            call()


def test_a_bad_call_with_out_writes_nothing() -> None:
    out = np.full_like(Y, 7)
    for arguments, options in (
        ((Y, W2), {}),
        ((Y, W), {"groups": 5}),
        ((Y, W), {"corner": "xx"}),
        ((Y, W.astype(np.float32)), {}),
        ((F32, W), {}),
    ):
        for function in BINARY:
            with pytest.raises((ValueError, TypeError)):
                function(*arguments, out=out, **options)
    assert np.all(out == 7)


# --- Imports, threads, processes ------------------------------------------------------------------


def test_import_loads_numpy_only() -> None:
    code = """
import sys
import invconv
import numpy as np
x = invconv.solve(np.ones((1, 2, 3, 3)), np.zeros((2, 2, 3, 3)))
invconv.weight_grad(invconv.conv(x, np.zeros((2, 2, 3, 3))), x, 3)
invconv.logabsdet(np.ones((1, 1, 1, 1)), (3, 3)), invconv.growth(np.ones((1, 1, 1, 1)), (3, 3))
heavy = ["torch", "matplotlib", "typer", "rich", "safetensors", "sklearn", "mlxtend", "PIL"]
print([name for name in heavy if name in sys.modules])
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_parts_that_need_torch_are_imported_when_they_are_asked_for() -> None:
    code = """
import sys
import invconv
assert "torch" not in sys.modules
try:
    invconv.fly
except AttributeError as error:
    print(error)
assert not hasattr(invconv, "__wrapped__") and "torch" not in sys.modules
print(invconv.nn.InverseConv2d.__name__, invconv.flows.InverseFlow.__name__)
print(invconv.train.TrainConfig.__name__, invconv.interop.__name__)
assert sys.modules["invconv.nn"] is invconv.nn
from invconv.flows import *
from invconv.nn import *
names = set(globals()) | set(dir(invconv.nn)) | set(dir(invconv.flows))
print(sorted(names & {"torch", "error"}), "invconv" in dir(invconv.flows))
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "module 'invconv' has no attribute 'fly'",
        "InverseConv2d InverseFlow",
        "TrainConfig invconv.interop",
        "[] False",
    ]


def test_without_torch_its_parts_say_how_to_get_it() -> None:
    code = """
import sys
sys.modules["torch"] = None
import invconv
for get in (lambda: invconv.nn, lambda: invconv.flows):
    try:
        get()
    except ModuleNotFoundError as error:
        print(error)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    hint = 'pip install "invconv[torch]" or, from a checkout, pip install ".[torch]"'
    assert result.stdout == 2 * f"invconv.nn and invconv.flows need PyTorch: {hint}\n"


def test_threads_from_the_environment() -> None:
    code = "import invconv; print(invconv.get_num_threads())"

    def threads(**environment: str | None) -> str:
        result = run_python(code, **environment)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    none = {"INVCONV_NUM_THREADS": None, "OMP_NUM_THREADS": None}
    assert threads(**{**none, "INVCONV_NUM_THREADS": "3"}) == "3"
    assert threads(**{**none, "OMP_NUM_THREADS": "5"}) == "5"
    assert threads(**{**none, "OMP_NUM_THREADS": "6,2"}) == "6"
    assert threads(INVCONV_NUM_THREADS="2", OMP_NUM_THREADS="7") == "2"
    assert threads(INVCONV_NUM_THREADS="", OMP_NUM_THREADS="7") == "7"
    has_affinity = hasattr(os, "sched_getaffinity")
    available = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    assert threads(**none) == str(available)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "99999999999999999999"])
def test_bad_threads_in_the_environment(value: str) -> None:
    code = """
import numpy as np
import invconv
y, w = np.ones((1, 1, 1, 1)), np.zeros((1, 1, 1, 1))
for call in (invconv.get_num_threads, lambda: invconv.solve(y, w)):
    try:
        call()
    except ValueError as error:
        print(error)
invconv.set_num_threads(2)
print(invconv.get_num_threads(), invconv.solve(y, w).item())
"""
    result = run_python(code, INVCONV_NUM_THREADS=value)
    assert result.returncode == 0, result.stderr
    line = f'[num_threads] expected INVCONV_NUM_THREADS from 1 to 1024, but got "{value}"'
    assert result.stdout.splitlines() == [line, line, "2 1.0"]


@pytest.mark.usefixtures("keep_threads")
def test_set_num_threads_takes_any_integer_type() -> None:
    for threads in (1, np.int64(2), 1024):
        invconv.set_num_threads(threads)
        assert invconv.get_num_threads() == threads
        assert type(invconv.get_num_threads()) is int


def runs_meanwhile(call: Callable[[], Any]) -> bool:
    """Whether another Python thread began and finished a solve in the middle half of the call."""
    small, tap = np.ones((1, 1, 2, 2)), np.zeros((1, 1, 1, 1))
    started, finished = threading.Event(), threading.Event()
    solves: list[tuple[float, float]] = []

    def solve_meanwhile() -> None:
        started.set()
        while not finished.is_set():
            begin = time.perf_counter()
            invconv.solve(small, tap)
            solves.append((begin, time.perf_counter()))

    thread = threading.Thread(target=solve_meanwhile)
    thread.start()
    started.wait()
    begin = time.perf_counter()
    call()
    end = time.perf_counter()
    finished.set()
    thread.join()
    quarter = (end - begin) / 4
    return any(begin + quarter < first and last < end - quarter for first, last in solves)


@pytest.mark.usefixtures("keep_threads")
@pytest.mark.parametrize("operation", ["solve", "conv", "weight_grad", "growth"])
def test_other_threads_run_while_it_computes(operation: str) -> None:
    """The GIL is free.

    The limits are fractions of the long call's own duration, so no speed of a machine decides the
    test: with the GIL held all through the computation no such solve can exist. The call is made
    longer until one is seen, for a machine too busy to run both threads at once.
    """
    invconv.set_num_threads(1)
    weight = W.astype(np.float32)

    def long_call(images: int) -> Callable[[], Any]:
        y = np.ones((images, 12, 32, 32), np.float32)
        calls: dict[str, Callable[[], Any]] = {
            "solve": lambda: invconv.solve(y, weight),
            "conv": lambda: invconv.conv(y, weight),
            "weight_grad": lambda: invconv.weight_grad(y, y, 3),
            "growth": lambda: invconv.growth(weight, (images, 200)),
        }
        return calls[operation]

    assert any(runs_meanwhile(long_call(images)) for images in (200, 800, 3200))


def solve_from_many_threads() -> None:
    """Calls of different sizes, dtypes and operations, all at once, give what each gives alone."""
    tasks: list[Callable[[], Any]] = []
    for k in range(24):
        rng = np.random.default_rng(k)
        dtype = FLOATS[k % 3]
        y = rng.standard_normal((1 + 7 * (k % 6), 12, 5 + k, 30 - k)).astype(dtype)
        weight = W.astype(dtype)
        corner = CORNERS[k % 4]
        tasks += [
            functools.partial(invconv.solve, y, weight, corner=corner),
            functools.partial(invconv.conv, y, weight, corner=corner, transpose=True),
            functools.partial(invconv.weight_grad, y, y[::-1], (2, 3), corner=corner),
        ]
    expected = [task() for task in tasks]
    barrier = threading.Barrier(8)

    def work(first: int) -> None:
        barrier.wait()
        for k in range(len(tasks)):
            at = (first * 9 + k) % len(tasks)
            np.testing.assert_array_equal(tasks[at](), expected[at])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize("beside_torch", [False, True], ids=["alone", "beside torch"])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_many_threads_at_once(threads: int, beside_torch: bool) -> None:
    """In a process of its own: beside torch the work runs on torch's threads."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import invconv
if {beside_torch}:
    import torch
    invconv.solve(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
import test_surface
invconv.set_num_threads({threads})
test_surface.solve_from_many_threads()
assert ("torch" in sys.modules) == {beside_torch}
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


FORK = """
import os, signal, threading, warnings
warnings.simplefilter("ignore")
import numpy as np
import invconv

y = np.random.default_rng(0).standard_normal((64, 8, 20, 20))
w = np.random.default_rng(1).standard_normal((8, 8, 3, 3)) * 0.05
invconv.set_num_threads(4)
expected = invconv.solve(y, w).tobytes()
{meanwhile}
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # only ends a child that hangs
        good = invconv.solve(y, w).tobytes() == expected and invconv.get_num_threads() == 4
        grandchild = os.fork()
        if grandchild == 0:
            signal.alarm(60)
            os._exit(0 if invconv.solve(y, w).tobytes() == expected else 1)
        good = good and os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 0
        os._exit(0 if good else 1)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
{end}
assert invconv.solve(y, w).tobytes() == expected
print(codes)
"""
BUSY = """
stop = threading.Event()
def keep_busy():
    while not stop.is_set():
        invconv.solve(y, w)
thread = threading.Thread(target=keep_busy)
thread.start()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("meanwhile", ["", BUSY], ids=["idle", "while another thread solves"])
def test_fork(meanwhile: str) -> None:
    """A forked child, and its child, have none of the parent's threads and solve all the same."""
    end = "stop.set(); thread.join()" if meanwhile else ""
    result = run_python(FORK.format(meanwhile=meanwhile, end=end))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[0, 0, 0, 0]"


FORK_BESIDE_TORCH = """
import os, signal, warnings
warnings.simplefilter("ignore")
import torch
import invconv

y = torch.randn(64, 8, 20, 20, dtype=torch.float64)
w = torch.randn(8, 8, 3, 3, dtype=torch.float64) * 0.05
torch.nn.functional.conv2d(y, w)  # torch's threads run
invconv.solve(y[:{images}, :, :2], w)
child = os.fork()
if child == 0:
    signal.alarm(60)  # only ends a child that hangs
    x = invconv.solve(y, w)
    os._exit(0 if x.shape == y.shape and bool(torch.isfinite(x[-1, -1, -1, -1])) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("images", [1, 64])
def test_fork_beside_torch(images: int) -> None:
    """The child of a process in which torch's threads run, whatever the parent has solved before.

    Torch's own parallel operations hang in such a child; a solve must not.
    """
    result = run_python(FORK_BESIDE_TORCH.format(images=images), OMP_NUM_THREADS="4")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "0"


def test_sleeping_helpers_do_not_keep_the_process() -> None:
    """Leaving while the pool's threads sleep is a clean exit."""
    code = """
import numpy as np
import invconv
invconv.set_num_threads(4)
invconv.solve(np.ones((64, 8, 20, 20)), np.zeros((8, 8, 3, 3)))
"""
    result = run_python(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
