"""``growth``: the infinity norm of the inverse, on the size that is asked for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import reference
import torch
from reference import CORNERS, Array, Corner

import invconv


def inverse_norm(weight: Array, size: tuple[int, int], **options: Any) -> tuple[float, float]:
    """The infinity norm of the dense inverse, and a bound on the product's error.

    The columns of ``M^-1`` are solutions for impulses ``e``, each with ``|M x - e| <= gamma(n + 2)
    (|M| |x| + |e|)`` (see ``test_exactness.py``), so ``|X - M^-1| <= gamma(n + 2) |M^-1| (|M| |X| +
    I)``. Sums of absolute values add one rounding for each of ``C H W`` terms; so does the check,
    which is a dense inverse in float64.
    """
    matrix = reference.dense_matrix(weight, size, **options)
    inverse = np.linalg.inv(matrix)
    absolute = np.abs(inverse)
    spread = absolute @ (np.abs(matrix) @ absolute + np.eye(len(matrix)))
    norm = float(absolute.sum(1).max())
    eps = float(np.finfo(weight.dtype).eps)
    terms = int(np.prod(weight.shape[1:]))
    own = len(matrix) * float(np.finfo(np.float64).eps) * float(spread.sum(1).max())
    # 2: |X| in place of |M^-1| on the right, to first order.
    return norm, 2 * (terms + 2) * eps * float(spread.sum(1).max()) + len(matrix) * eps * norm + own


def random_weight(
    shape: tuple[int, ...], corner: Corner, groups: int, dtype: str, seed: int
) -> Array:
    """Pivots of either sign from 0.5 to 1.5, and enough beside them that the inverse grows."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(-1, 1, shape) * 2 / np.prod(shape[1:])
    pivots = rng.uniform(0.5, 1.5, shape[0]) * rng.choice([-1, 1], shape[0])
    diagonal = reference.full_weight(np.zeros(shape), corner, True, groups).astype(bool)
    weight[diagonal] = pivots
    return weight.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("unit_diagonal", [False, True])
@pytest.mark.parametrize(
    ("corner", "groups"),
    [(name, groups) for name in CORNERS for groups in (1, 2, 4)]
    + [(("tl", "tr", "bl", "br"), 4), (("br", "tr"), 2)],
)
def test_is_the_norm_of_the_dense_inverse(
    corner: Corner, groups: int, unit_diagonal: bool, dtype: str
) -> None:
    options: dict[str, Any] = {"corner": corner, "groups": groups, "unit_diagonal": unit_diagonal}
    for seed, (kernel, size) in enumerate(
        [
            ((3, 3), (5, 4)),
            ((2, 1), (6, 2)),
            ((1, 3), (1, 7)),
            ((5, 4), (3, 3)),
            ((1, 1), (2, 3)),
            ((3, 2), (1, 1)),
        ]
    ):
        weight = random_weight((4, 4 // groups, *kernel), corner, groups, dtype, seed)
        norm, error = inverse_norm(weight, size, **options)
        assert error < 0.01 * norm  # the comparison means something
        for given in (weight, torch.from_numpy(weight)):
            result = invconv.growth(given, size, **options)
            assert type(result) is float
            assert abs(result - norm) <= error, (kernel, size)


@pytest.mark.parametrize("dtype", [np.float16, torch.bfloat16])
def test_storage_types(dtype: Any) -> None:
    values = torch.from_numpy(random_weight((4, 4, 3, 3), "tl", 1, "float32", 3))
    weight = values.to(dtype) if dtype is torch.bfloat16 else values.numpy().astype(dtype)
    rounded = np.asarray(torch.as_tensor(weight).float())
    norm, error = inverse_norm(rounded, (5, 5), unit_diagonal=False)
    assert abs(invconv.growth(weight, (5, 5), unit_diagonal=False) - norm) <= error


def test_what_is_not_read_does_not_matter() -> None:
    weight = random_weight((6, 3, 3, 2), "bl", 2, "float64", 1)
    expected = invconv.growth(weight, (5, 5), corner="bl", groups=2)
    weight[~reference.is_read("bl", True, 2, weight.shape)] = np.nan
    assert invconv.growth(weight, (5, 5), corner="bl", groups=2) == expected


def test_identity_does_not_grow() -> None:
    assert invconv.growth(np.zeros((3, 3, 3, 3)), (40, 30)) == 1.0
    weight = np.zeros((2, 2, 1, 1))
    weight[0, 0], weight[1, 1] = 0.25, -4
    assert invconv.growth(weight, (9, 9), unit_diagonal=False) == 4.0


def test_known_recursions() -> None:
    """For ``x_j = y_j - a x_{j-1}`` the norm on a row of n is ``1 + |a| + ... + |a|^(n-1)``."""
    for a in (-2.0, -1.0, 0.5, 1.0):
        weight = np.array([a, 1.0]).reshape(1, 1, 1, 2)
        # Powers of two and small integers: every term and sum is exact.
        assert invconv.growth(weight, (3, 10)) == sum(abs(a) ** k for k in range(10))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("corner", CORNERS)
def test_kernel_that_blew_up_in_the_field(corner: str, kernel: int, dtype: str) -> None:
    """The kernel reported against emerging: pivot 0.046, neighbours -0.61 and 0.80.

    The pivot is the anchor; -0.61 is the tap of the neighbour in the next column and 0.80 that of
    the neighbour in the next row (away from the anchor, in whatever direction the corner looks);
    every other tap is 0. Then the farthest entry of the inverse on 8 x 8 is ``binomial(14, 7)
    0.61^7 0.80^7 / 0.046^15``, about 2.6e21.
    """
    weight = np.zeros((1, 1, kernel, kernel), dtype=dtype)
    u, v = reference.padding(corner, kernel, kernel).anchor
    beside, below = (v - 1 if v else 1), (u - 1 if u else 1)
    weight[0, 0, u, v] = 0.046
    weight[0, 0, u, beside] = -0.61
    weight[0, 0, below, v] = 0.80
    grown = invconv.growth(weight, (8, 8), corner=corner, unit_diagonal=False)
    assert grown > 1e6
    # -0.61 and 0.80 have opposite signs, but every path to one pixel uses each equally often, so
    # nothing cancels and the norm is a sum of positive terms. The three weights enter with
    # exponents up to 15, rounded to float32 or not.
    exact = sum(
        math.comb(i + j, i) * 0.80**i * 0.61**j / 0.046 ** (i + j + 1)
        for i in range(8)
        for j in range(8)
    )
    assert grown == pytest.approx(exact, rel=(15 + 15 + 64) * float(np.finfo(dtype).eps))
    # What the number means: a solve that loses that much.
    x = invconv.solve(np.ones((1, 8, 8), dtype=dtype), weight, corner=corner, unit_diagonal=False)
    assert 1e6 < np.abs(x).max() <= grown * (1 + 94 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "weights", [(-1e3, 1.0, 1.0), (1e3, 1e3, 1e3), (-1e3, 1e3, 0.5), (1e3, -1e3, -1e3)]
)
def test_overflow_is_inf(weights: tuple[float, float, float], dtype: str) -> None:
    """Never NaN, though the recursion itself runs into inf - inf."""
    weight = np.zeros((2, 2, 2, 2), dtype=dtype)
    for c in range(2):
        weight[c, c, 1, 1] = 1
        weight[c, :, 0, 1], weight[c, :, 1, 0], weight[c, :, 0, 0] = weights
    assert invconv.growth(weight, (200, 200)) == math.inf


def test_not_finite_weights() -> None:
    """A weight that is not finite has no finite norm to report."""
    for bad in (math.nan, math.inf):
        weight = np.zeros((1, 1, 2, 2))
        weight[0, 0, 0, 0] = bad
        assert not math.isfinite(invconv.growth(weight, (4, 4)))


def test_singular_anchor_is_inf() -> None:
    assert invconv.growth(np.zeros((2, 2, 3, 3)), (4, 4), unit_diagonal=False) == math.inf


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_empty_image_has_norm_zero(size: tuple[int, int]) -> None:
    """The largest of no row sums, none of which can be negative."""
    assert invconv.growth(np.ones((2, 2, 3, 3)), size) == 0.0


def test_grows_with_the_image() -> None:
    weight = random_weight((3, 3, 3, 3), "tl", 1, "float64", 5)
    norms = [invconv.growth(weight, (n, n), unit_diagonal=False) for n in (1, 2, 4, 8, 16)]
    # A smaller image is a leading part of the larger one's matrix; each norm is exact to far less
    # than its growth.
    assert norms == sorted(norms) and norms[0] < norms[-1]
