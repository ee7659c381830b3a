"""float16 and bfloat16 are storage: errors do not grow along an image, however long it is."""

from __future__ import annotations

import pytest
import torch

import invconv

# The unit roundoff of a stored result, and half of the spacing of its subnormal numbers.
STORAGE = {torch.float16: (2.0**-11, 2.0**-25), torch.bfloat16: (2.0**-8, 0.0)}
ARITHMETIC = 2.0**-24  # of float32
ROW_SUM = 0.9  # of the other taps, in magnitude

dtypes = pytest.mark.parametrize("dtype", STORAGE, ids=str)
shapes = pytest.mark.parametrize("shape", [(1, 1, 4, 2000), (1, 3, 512, 512), (1, 1, 512, 512)])


def problem(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    weight = torch.rand((channels, channels, 3, 3), generator=generator, dtype=torch.float64)
    # One sign, so that responses are long, and no row or column adds up to more than ROW_SUM.
    sums = torch.maximum(weight.sum((1, 2, 3)).max(), weight.sum((0, 2, 3)).max())
    weight *= -ROW_SUM / sums * (1 - STORAGE[dtype][0])
    images = torch.randn(shape, generator=generator, dtype=torch.float64)
    return images.to(dtype), weight.to(dtype)


@shapes
@dtypes
@pytest.mark.parametrize("transpose", [False, True], ids=["plain", "transposed"])
def test_solve_is_one_rounding_from_float64(
    shape: tuple[int, ...], dtype: torch.dtype, transpose: bool
) -> None:
    y, weight = problem(shape, dtype)
    result = invconv.solve(y, weight, transpose=transpose).double()
    exact = invconv.solve(y.double(), weight.double(), transpose=transpose)
    unit, smallest = STORAGE[dtype]
    # In float32 |M x - y| <= 2 (n + 2) u (|M| |x| + |y|), with n = 9 C terms, rows of |M| (and its
    # columns, the rows when transposed) of sums of at most 1 + 0.9, and an inverse of norm at most
    # 1 / (1 - 0.9). Then one rounding to the storage type, of each value by itself: the recurrence
    # goes on with the one that was not rounded.
    rows, norm = 1 + ROW_SUM, 1 / (1 - ROW_SUM)
    terms = 9 * shape[1]
    residual = 2 * (terms + 2) * ARITHMETIC * (rows * exact.abs().max() + y.double().abs().max())
    arithmetic = float(norm * residual)
    assert arithmetic < unit / 4 * float(exact.abs().max())  # else it would hide a rounded pixel
    bound = unit * (exact.abs() + arithmetic) + smallest + arithmetic
    assert bool(((result - exact).abs() <= bound).all())


@shapes
@dtypes
def test_weight_grad_is_one_rounding_from_float64(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, _ = problem(shape, dtype)
    g = x.flip(-1) * 0.5  # exact
    result = invconv.weight_grad(x, g, 3, unit_diagonal=False).double()
    exact = invconv.weight_grad(x.double(), g.double(), 3, unit_diagonal=False)
    terms = invconv.weight_grad(x.double().abs(), g.double().abs(), 3, unit_diagonal=False)
    unit, smallest = STORAGE[dtype]
    # At most 256 products and the folding of 16 lanes, in float32, are added up to a sum in double.
    arithmetic = (256 + 16) * ARITHMETIC * terms
    bound = unit * (exact.abs() + arithmetic) + smallest + arithmetic
    assert bool(((result - exact).abs() <= bound).all())


def test_float32_matmul_precision_changes_no_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn((2, 12, 16, 16), generator=generator)
    weight = 0.05 * torch.randn((12, 12, 3, 3), generator=generator)
    before = torch.get_float32_matmul_precision()
    results = []
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            x = invconv.solve(y, weight)
            results.append((x, invconv.conv(x, weight), invconv.weight_grad(x, y, 3)))
    finally:
        torch.set_float32_matmul_precision(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
