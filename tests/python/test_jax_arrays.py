"""jax arrays on the CPU, which come through DLPack and go back as jax arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import invconv

rng = np.random.default_rng(0)
Y = rng.standard_normal((3, 4, 6, 5)).astype(np.float32)
WEIGHT = (0.1 * rng.standard_normal((4, 2, 3, 3))).astype(np.float32)
OPTIONS: dict[str, Any] = {"groups": 2, "corner": ("br", "tl")}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_bits_of_numpy(dtype: type, double: None) -> None:
    y, weight = jnp.asarray(Y.astype(dtype)), jnp.asarray(WEIGHT.astype(dtype))
    assert y.dtype == dtype
    results = {
        "solve": invconv.solve(y, weight, **OPTIONS),
        "conv": invconv.conv(y, weight, transpose=True, **OPTIONS),
        "weight_grad": invconv.weight_grad(y, y, 3, per_sample=True, **OPTIONS),
    }
    y_, weight_ = np.asarray(y), np.asarray(weight)
    expected = {
        "solve": invconv.solve(y_, weight_, **OPTIONS),
        "conv": invconv.conv(y_, weight_, transpose=True, **OPTIONS),
        "weight_grad": invconv.weight_grad(y_, y_, 3, per_sample=True, **OPTIONS),
    }
    for name, result in results.items():
        assert isinstance(result, jax.Array) and result.dtype == dtype, name
        np.testing.assert_array_equal(np.asarray(result), expected[name])


def test_numbers_of_a_jax_weight() -> None:
    weight = jnp.asarray(WEIGHT)
    free = {**OPTIONS, "unit_diagonal": False}
    assert invconv.logabsdet(weight, (6, 5), **free) == invconv.logabsdet(WEIGHT, (6, 5), **free)
    assert invconv.growth(weight, (6, 5), **OPTIONS) == invconv.growth(WEIGHT, (6, 5), **OPTIONS)


def test_the_input_is_not_written() -> None:
    y = jnp.asarray(Y)
    invconv.solve(y, jnp.asarray(WEIGHT), **OPTIONS)
    np.testing.assert_array_equal(np.asarray(y), Y)


def test_out_of_a_jax_array_is_refused() -> None:
    """jax arrays never change."""
    y = jnp.asarray(Y)
    with pytest.raises(ValueError, match=r"^\[solve\] expected out to be writeable"):
        invconv.solve(y, jnp.asarray(WEIGHT), out=jnp.zeros_like(y), **OPTIONS)


def test_bfloat16_and_traced_arrays_are_refused() -> None:
    """numpy, through which jax arrays come, has no bfloat16; a traced array has no memory."""
    y, weight = jnp.asarray(Y), jnp.asarray(WEIGHT)
    with pytest.raises(TypeError, match=r"^\[solve\] expected y of dtype float16, float32 or"):
        invconv.solve(y.astype(jnp.bfloat16), weight.astype(jnp.bfloat16), **OPTIONS)
    with pytest.raises(TypeError, match=r"^\[solve\] expected y to be .* but got .*Tracer"):
        jax.jit(lambda y: invconv.solve(y, weight, **OPTIONS))(y)
