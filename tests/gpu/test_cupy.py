"""CuPy arrays, against numpy: ``pytest tests/gpu`` where there is a device and CuPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import invconv

cupy = pytest.importorskip("cupy", reason="needs CuPy")
if not cupy.cuda.is_available() or invconv.build_info()["cuda_kernels"] == "no":
    pytest.skip("needs a CUDA device and a build with CUDA kernels", allow_module_level=True)

FUSED = invconv.build_info()["instruction_set"] != "baseline"


@pytest.fixture(autouse=True)
def other_stream() -> Iterator[None]:
    """Work on the default stream by mistake shows."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        yield
    stream.synchronize()


def problem(dtype: str, channels: int = 4) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    y = rng.standard_normal((3, channels, 17, 20)).astype(dtype)
    weight = 0.02 * rng.standard_normal((channels, channels, 3, 3))
    return y, weight.astype(dtype)


def assert_same(result: Any, expected: np.ndarray[Any, Any]) -> None:
    assert type(result) is cupy.ndarray and result.dtype == expected.dtype
    if FUSED:
        np.testing.assert_array_equal(result.get(), expected)
    else:  # a CPU that rounds twice: within some roundings of float16, the coarsest type here
        np.testing.assert_allclose(result.get(), expected, rtol=2**-10, atol=2**-10)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [3, 4, 70])  # not solve_image, whose bits are its own
def test_the_bits_of_numpy(dtype: str, channels: int) -> None:
    y, weight = problem(dtype, channels)
    for function in (invconv.solve, invconv.conv):
        for options in ({}, {"corner": "br", "transpose": True}):
            result = function(cupy.asarray(y), cupy.asarray(weight), **options)
            assert_same(result, function(y, weight, **options))


def test_weight_grad_and_numbers() -> None:
    y, weight = problem("float64")
    x = invconv.solve(y, weight)
    dw = invconv.weight_grad(cupy.asarray(x), cupy.asarray(y), 3)
    assert type(dw) is cupy.ndarray
    # Each is within 261 roundings of the exact one (invconv.hpp), relative to the sum of
    # magnitudes.
    spread = invconv.weight_grad(np.abs(x), np.abs(y), 3)
    bound = 261 * np.finfo(np.float64).eps * spread
    assert (np.abs(dw.get() - invconv.weight_grad(x, y, 3)) <= bound).all()
    for function in (invconv.growth, invconv.logabsdet):
        options = {"unit_diagonal": function is invconv.growth}
        there = function(cupy.asarray(weight), (5, 6), **options)
        assert there == function(weight, (5, 6), **options)


def test_strides_and_out() -> None:
    y, weight = problem("float32")
    expected = invconv.solve(y, weight)
    there, weight_ = cupy.asarray(y), cupy.asarray(weight)
    for laid_out in (
        cupy.asarray(np.ascontiguousarray(y[:, :, ::-1]))[:, :, ::-1],
        cupy.asfortranarray(there),
    ):
        assert_same(invconv.solve(laid_out, weight_), expected)
    assert_same(invconv.solve(there[1], weight_), expected[1])
    out = cupy.empty_like(there)
    assert invconv.solve(there, weight_, out=out) is out
    assert_same(out, expected)
    again = there.copy()
    invconv.solve(again, weight_, out=again)
    assert_same(again, expected)
    shared = cupy.zeros(y.size + 1, y.dtype)
    before, after = shared[:-1].reshape(y.shape), shared[1:].reshape(y.shape)
    before[...] = there
    invconv.solve(before, weight_, out=after)
    assert_same(after, expected)
    empty = cupy.empty((0, 12, 4, 4), y.dtype)
    assert invconv.solve(empty, weight_).shape == empty.shape


def test_a_call_waits_for_what_its_stream_does() -> None:
    """Behind a long computation on the present stream, and before the next one on it."""
    y, weight = problem("float32")
    expected = invconv.solve(y, weight)
    weight_, source = cupy.asarray(weight), cupy.asarray(y)
    matrix = cupy.ones((4096, 4096), cupy.float32)
    there = cupy.zeros_like(source)
    for _ in range(20):
        matrix @ matrix
    there[...] = source
    x = invconv.solve(there, weight_)
    there[...] = 0
    assert_same(x, expected)


def test_other_places_are_refused() -> None:
    y, weight = problem("float32")
    with pytest.raises(TypeError, match=r"^\[solve\] expected y and weight on one device"):
        invconv.solve(cupy.asarray(y), weight)
    with pytest.raises(ValueError, match=r"^\[solve\] expected weight of shape"):
        invconv.solve(cupy.asarray(y), cupy.asarray(weight[:5]))


@pytest.mark.skipif(cupy.cuda.runtime.getDeviceCount() < 2, reason="needs two devices")
def test_a_second_device() -> None:
    y, weight = problem("float32")
    with cupy.cuda.Device(1):
        there, weight_ = cupy.asarray(y), cupy.asarray(weight)
    result = invconv.solve(there, weight_)
    assert result.device.id == 1
    assert_same(result, invconv.solve(y, weight))
