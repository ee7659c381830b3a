"""The promise of exactness: a componentwise backward error bound for every problem.

``u = eps / 2`` is the unit roundoff of the arithmetic (float32 for float16, bfloat16 and float32;
float64 for float64) and ``gamma(k) = k u / (1 - k u)``: a product of ``k`` factors ``1 + delta``,
``|delta| <= u``, or of their reciprocals, is ``1 + theta`` with ``|theta| <= gamma(k)`` (Higham,
Accuracy and Stability of Numerical Algorithms, section 3.1). ``n = kh * kw * C / groups`` is the
number of weights that belong to one output.

*solve.* An entry is ``x = (y - sum w_k x_k) / d`` with at most ``n - 1`` terms; products with a
padding zero are exact. In any order of summation a value passes at most ``n - 1`` additions; a
product is rounded once more (not at all if it is fused), ``y`` is not. So ``d x (1 + theta_2) + sum
w_k x_k (1 + theta_n) = y (1 + theta_{n-1})``, where the two factors of ``d x`` are a reciprocal and
its product, or a single division. If the weights are divided by ``d`` when they are packed, that
adds two roundings to each term and moves those of ``d x`` there: ``theta_{n+2}``. Hence, with ``M``
the matrix of the convolution and ``|.|`` taken entry by entry,

    |M x - y| <= gamma(n + 2) (|M| |x| + |y|).                                            (solve)

It does not contain the condition of anything: it must hold however fast the inverse grows and
however strongly the channels of a pixel are coupled, as long as nothing overflows. The transpose is
another triangular system with as many terms.

*conv.* ``n`` products and ``n - 1`` additions: ``|fl(M x) - M x| <= gamma(n) |M| |x|``.

*weight_grad.* An entry is a sum of at most ``N = B H W`` products: ``|fl(w) - w| <= gamma(N) sum
|g| |x|``.

*Storage types.* float16 and bfloat16 results are the float32 ones rounded once: ``x16 = x32 (1 +
delta) + eta``, with ``|delta| <= u16`` and ``|eta|`` at most half the smallest subnormal number.
Inserted above, ``|M x16 - y| <= (gamma + u16) / (1 - u16) (|M| |x16| + |y|) + 2 |M| |eta|``, and
likewise for the others.

*Underflow.* A product that underflows adds at most the smallest normal number, ``tiny``; so does
one flushed to zero.

*The check's own error.* Residuals of the 16 and 32 bit types are computed in float64, those of
float64 in long double; the check's ``gamma(n + 2)`` in that precision is added to the bound. Where
long double is no longer than float64 this doubles the bound for float64, and nothing is lost in the
others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from reference import CORNERS, Array, Corner

import invconv

DTYPES = ("float16", "bfloat16", "float32", "float64")
PROBLEMS_PER_DTYPE = 600  # 2400 in all


@dataclass(frozen=True)
class Precision:
    """What the bounds need to know of a dtype."""

    arithmetic: type[np.floating[Any]]
    check: type[np.floating[Any]]
    storage_roundoff: float  # 0 where the result is stored as it was computed
    storage_eta: float  # the largest error of rounding to storage that is not relative

    def gamma(self, k: int) -> float:
        """``gamma(k)`` of the arithmetic."""
        return _gamma(k, self.arithmetic)


def _gamma(k: int, dtype: type[np.floating[Any]]) -> float:
    ku = k * float(np.finfo(dtype).eps) / 2
    return ku / (1 - ku)


_HALF_SUBNORMAL_F16 = 2.0**-25
_HALF_SUBNORMAL_BF16 = 2.0**-134
PRECISION = {
    "float16": Precision(np.float32, np.float64, 2.0**-11, _HALF_SUBNORMAL_F16),
    "bfloat16": Precision(np.float32, np.float64, 2.0**-8, _HALF_SUBNORMAL_BF16),
    "float32": Precision(np.float32, np.float64, 0.0, 0.0),
    "float64": Precision(np.float64, np.longdouble, 0.0, 0.0),
}


def product_array(
    values: Array, dtype: str, layout: str, rng: np.random.Generator, expand_axis: int = 0
) -> Any:
    """Values in a dtype and a layout: a torch tensor for bfloat16, a numpy array for others."""
    if dtype != "bfloat16":
        return reference.lay_out(values.astype(dtype), layout, rng, expand_axis=expand_axis)
    bits = (
        torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16).view(torch.uint16).numpy()
    )
    laid_out = reference.lay_out(bits, layout, rng, expand_axis=expand_axis)
    return torch.from_numpy(laid_out).view(torch.bfloat16)


def values_of(array: Any, dtype: type[np.floating[Any]]) -> Array:
    """The exact values of a numpy array or tensor in a wider numpy dtype."""
    if isinstance(array, torch.Tensor):
        array = array.double().numpy()
    return np.asarray(array).astype(dtype)


def random_weight(
    rng: np.random.Generator,
    groups: int,
    per_group: int,
    kernel: tuple[int, int],
    corner: Corner,
    unit_diagonal: bool,
    rho: float,
) -> Array:
    """A float64 weight whose inverse grows mildly.

    Off-diagonal entries sum to at most ``rho`` times the smallest pivot, in rows and in columns. So
    ``|M^-1|`` stays below ``1 / (1 - rho)`` over the smallest pivot, and so does its transpose.
    """
    shape = (groups * per_group, per_group, *kernel)
    weight = rng.uniform(-1, 1, shape)
    smallest_pivot = 1.0 if unit_diagonal else 0.5
    blocks = np.abs(weight).sum((2, 3)).reshape(groups, per_group, per_group)
    weight *= rho * smallest_pivot / max(blocks.sum(1).max(), blocks.sum(2).max())
    if not unit_diagonal:
        pivots = rng.choice([-1.0, 1.0], shape[0]) * rng.uniform(0.5, 2, shape[0])
        for o, (u, v) in enumerate(anchors(corner, groups, per_group, kernel)):
            weight[o, o % per_group, u, v] = pivots[o]
    return weight


def anchors(
    corner: Corner, groups: int, per_group: int, kernel: tuple[int, int]
) -> list[tuple[int, int]]:
    """The anchor tap of each output channel."""
    names = reference.corner_of_each_group(corner, groups)
    return [reference.padding(name, *kernel).anchor for name in names for _ in range(per_group)]


@dataclass
class Problem:
    """One random problem: options, and arrays as the product gets them."""

    index: int
    dtype: str
    options: dict[str, Any]  # corner, unit_diagonal, groups
    transpose: bool
    layouts: tuple[str, str]
    y: Any
    weight: Any

    def __str__(self) -> str:
        return (
            f"problem {self.index}: {self.dtype}, y {tuple(self.y.shape)} {self.layouts[0]}, "
            f"weight {tuple(self.weight.shape)} {self.layouts[1]}, {self.options}, "
            f"transpose={self.transpose}"
        )


LARGEST_WORK = 2_000_000  # multiply-adds of one convolution; keeps the module under a minute


def random_problem(dtype: str, index: int) -> Problem:
    """Problem number ``index``: options are cycled through, sizes and layouts are drawn."""
    rng = np.random.default_rng([DTYPES.index(dtype), index])
    unit_diagonal, transpose = bool(index & 1), bool(index & 2)
    groups = (1, 1, 2, 3, 4)[index // 4 % 5]
    corner: Corner = CORNERS[index // 20 % 4]
    if groups > 1 and rng.random() < 0.6:
        corner = tuple(str(name) for name in rng.choice(CORNERS, groups))
    kernel = (int(rng.integers(1, 8)), int(rng.integers(1, 6)))
    per_group = int(rng.integers(1, 20 // groups + 1))
    if rng.random() < 0.5:
        per_group -= 1 - per_group % 2  # odd numbers twice as often
    channels = groups * per_group
    while True:
        batches = (0, 1, 15, 16, 17, int(rng.integers(0, 21)))
        batch = int(rng.choice(batches, p=(0.03, 0.2, 0.1, 0.15, 0.15, 0.37)))
        sizes = (0, 1, 15, 16, 17, 33, *(int(n) for n in rng.integers(2, [10, 34])))
        chance = (0.02, 0.1, 0.1, 0.1, 0.1, 0.1, 0.3, 0.18)
        height, width = (int(rng.choice(sizes, p=chance)) for _ in range(2))
        work = batch * height * width * channels * per_group * kernel[0] * kernel[1]
        if work <= LARGEST_WORK:
            break
    # float16 must not overflow in the recurrence; above 1 the inverse of the others grows with the
    # image.
    rho = rng.uniform(0.2, 0.95 if dtype == "float16" else 1.05)
    shape = (channels, per_group, *kernel)
    weight = random_weight(rng, groups, per_group, kernel, corner, unit_diagonal, rho)

    of_torch = tuple(name for name in reference.LAYOUTS if dtype != "bfloat16" or name != "flipped")
    y_layout, weight_layout = (str(rng.choice(of_torch)) for _ in range(2))
    if weight_layout == "expanded" and not unit_diagonal:
        weight_layout = "sliced"  # equal rows would make the pivots as small as any weight
    if weight_layout != "expanded":
        # Entries that are not read are NaN; an expanded weight shares its entries with rows that
        # read them.
        weight[~reference.is_read(corner, unit_diagonal, groups, shape)] = np.nan
    y = rng.standard_normal((batch, channels, height, width))
    return Problem(
        index=index,
        dtype=dtype,
        options={"corner": corner, "unit_diagonal": unit_diagonal, "groups": groups},
        transpose=transpose,
        layouts=(y_layout, weight_layout),
        y=product_array(y, dtype, y_layout, rng, expand_axis=int(rng.integers(0, 4))),
        weight=product_array(weight, dtype, weight_layout, rng),
    )


def worst_excess(error: Array, bound: Array) -> float:
    """The largest ``error / bound``: at most 1 if the bound holds; infinite for NaN."""
    if error.size == 0:
        return 0.0
    assert np.all(np.isfinite(bound))
    error = np.where(np.isnan(error), np.inf, error)
    # A bound of 0, of a sum without terms, allows no error.
    excess = np.where(error > 0, np.inf, 0.0)
    np.divide(error, bound, out=excess, where=bound > 0, casting="same_kind")
    return float(excess.max())


class Checker:
    """The bounds of this module's docstring for one weight."""

    def __init__(
        self, weight: Any, dtype: str, corner: Corner, unit_diagonal: bool, groups: int
    ) -> None:
        self.precision = PRECISION[dtype]
        self.corner, self.groups, self.unit_diagonal = corner, groups, unit_diagonal
        values = values_of(weight, self.precision.check)
        self.kernel = (int(values.shape[2]), int(values.shape[3]))
        self.full = reference.full_weight(
            values, corner, unit_diagonal, groups, self.precision.check
        )
        self.terms = int(np.prod(values.shape[1:]))
        self.tiny = self.terms * float(np.finfo(self.precision.arithmetic).tiny)

    def matrix_times(self, x: Array, transpose: bool, absolute: bool = False) -> Array:
        """``M x`` or ``|M| x`` in the precision of the check."""
        full = np.abs(self.full) if absolute else self.full
        return reference.conv_by_taps(
            x, full, corner=self.corner, groups=self.groups, transpose=transpose
        )

    def residual_bound(self, x: Array, y: Array, transpose: bool) -> Array:
        """The right-hand side of (solve)."""
        p = self.precision
        coefficient = p.gamma(self.terms + 2) + _gamma(self.terms + 2, p.check)
        coefficient = (coefficient + p.storage_roundoff) / (1 - p.storage_roundoff)
        bound = (
            coefficient * (self.matrix_times(np.abs(x), transpose, absolute=True) + np.abs(y))
            + self.tiny
        )
        if p.storage_eta:
            bound += 2 * self.matrix_times(np.full_like(x, p.storage_eta), transpose, absolute=True)
        return bound

    def solve_excess(self, x: Any, y: Any, transpose: bool) -> float:
        """How much of the bound the residual of ``x`` uses."""
        x, y = values_of(x, self.precision.check), values_of(y, self.precision.check)
        return worst_excess(
            np.abs(self.matrix_times(x, transpose) - y), self.residual_bound(x, y, transpose)
        )

    def sum_excess(self, result: Any, exact: Array, absolute: Array, terms: int) -> float:
        """How much of its bound a sum uses; ``absolute`` is the sum of the absolute values."""
        p = self.precision
        coefficient = p.gamma(terms) + _gamma(terms, p.check)
        coefficient = coefficient * (1 + p.storage_roundoff) + p.storage_roundoff
        tiny = terms * float(np.finfo(p.arithmetic).tiny)
        error = np.abs(values_of(result, p.check) - exact)
        return worst_excess(error, coefficient * absolute + p.storage_eta + tiny)

    def conv_excess(self, y: Any, x: Any, transpose: bool) -> float:
        """How much of the bound the error of ``y = M x`` uses."""
        x = values_of(x, self.precision.check)
        exact, absolute = (
            self.matrix_times(x, transpose),
            self.matrix_times(np.abs(x), transpose, absolute=True),
        )
        return self.sum_excess(y, exact, absolute, self.terms)

    def weight_grad_excess(self, grad: Any, x: Any, g: Any) -> float:
        """How much of the bound the error of ``weight_grad(x, g)`` uses."""
        x, g = values_of(x, self.precision.check), values_of(g, self.precision.check)

        def correlate(x: Array, g: Array) -> Array:
            return reference.weight_grad_by_taps(
                x,
                g,
                self.kernel,
                corner=self.corner,
                unit_diagonal=self.unit_diagonal,
                groups=self.groups,
            )

        terms = x.shape[0] * x.shape[2] * x.shape[3]
        return self.sum_excess(grad, correlate(x, g), correlate(np.abs(x), np.abs(g)), terms)


# --- The reference agrees with itself and with torch ----------------------------------------------


def small_problems() -> list[Any]:
    """Every corner, group count and diagonal; one kernel is larger than the image."""
    cases: list[tuple[Corner, int]] = []
    for groups, corner in [(1, name) for name in CORNERS] + [(2, name) for name in CORNERS]:
        cases.append((corner, groups))
    cases += [(("br", "tl"), 2), (("tl", "tr", "bl", "br"), 4), (("bl", "br", "tr"), 3)]
    kernels = [(1, 1), (2, 3), (3, 1), (1, 4), (5, 2)]
    return [
        pytest.param(
            corner,
            groups,
            kernels[i % 5],
            unit_diagonal,
            id=f"{corner}-{groups}-{kernels[i % 5]}-{unit_diagonal}",
        )
        for i, (corner, groups) in enumerate(cases)
        for unit_diagonal in (True, False)
    ]


def small_arrays(
    corner: Corner,
    groups: int,
    kernel: tuple[int, int],
    unit_diagonal: bool,
    dtype: str = "float64",
) -> tuple[Array, Array]:
    """An image batch and a weight with NaN where nothing is read; the inverse grows mildly."""
    rng = np.random.default_rng(7)
    weight = random_weight(rng, groups, 3 if groups < 3 else 2, kernel, corner, unit_diagonal, 0.9)
    weight[~reference.is_read(corner, unit_diagonal, groups, weight.shape)] = np.nan
    return rng.standard_normal((2, weight.shape[0], 4, 5)).astype(dtype), weight.astype(dtype)


@pytest.mark.parametrize(("corner", "groups", "kernel", "unit_diagonal"), small_problems())
def test_the_three_references_agree(
    corner: Corner, groups: int, kernel: tuple[int, int], unit_diagonal: bool
) -> None:
    x, weight = small_arrays(corner, groups, kernel, unit_diagonal)
    options: dict[str, Any] = {"corner": corner, "groups": groups, "unit_diagonal": unit_diagonal}
    full = reference.full_weight(weight, corner, unit_diagonal, groups)
    matrix = reference.dense_matrix(weight, (4, 5), **options)
    # Sums of at most 30 terms of order 1; the inverse has norm at most 1 / (0.5 * (1 - 0.9)) = 20.
    close: dict[str, Any] = {"rtol": 0, "atol": 100 * 30 * 20 * np.finfo(np.float64).eps}
    for transpose in (False, True):
        m = matrix.T if transpose else matrix
        dense = (m @ x.reshape(2, -1).T).T.reshape(x.shape)
        looped = reference.conv(x, weight, transpose=transpose, **options)
        by_taps = reference.conv_by_taps(x, full, corner=corner, groups=groups, transpose=transpose)
        np.testing.assert_allclose(looped, dense, **close)
        np.testing.assert_allclose(by_taps, dense, **close)
        dense_solution = np.linalg.solve(m, x.reshape(2, -1).T).T.reshape(x.shape)
        np.testing.assert_allclose(
            reference.solve(x, weight, transpose=transpose, **options), dense_solution, **close
        )

    sign, log = np.linalg.slogdet(matrix)
    assert abs(sign) == 1
    np.testing.assert_allclose(reference.logabsdet(weight, (4, 5), **options), log, **close)

    # d<g, conv(x, W)> / dW, entry by entry: the convolution is linear in W.
    g = np.random.default_rng(8).standard_normal(x.shape)
    grad = reference.weight_grad(x, g, kernel, **options)
    by_taps = reference.weight_grad_by_taps(x, g, kernel, **options)
    np.testing.assert_allclose(by_taps, grad, **close)
    slope = np.zeros_like(grad)
    for entry in np.argwhere(reference.is_read(corner, unit_diagonal, groups, weight.shape)):
        one = np.zeros_like(full)
        one[tuple(entry)] = 1
        slope[tuple(entry)] = np.sum(
            g * reference.conv_by_taps(x, one, corner=corner, groups=groups)
        )
    np.testing.assert_allclose(grad, slope, **close)


def conv2d_of_the_table(
    x: torch.Tensor, weight: torch.Tensor, corner: str, groups: int
) -> torch.Tensor:
    """The four lines of the table of corners in torch (pad: left, right, top, bottom)."""
    kh, kw = weight.shape[2:]
    pads = {
        "tl": (kw - 1, 0, kh - 1, 0),
        "tr": (0, kw - 1, kh - 1, 0),
        "bl": (kw - 1, 0, 0, kh - 1),
        "br": (0, kw - 1, 0, kh - 1),
    }
    return F.conv2d(F.pad(x, pads[corner]), weight, groups=groups)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5), (6, 1)])
@pytest.mark.parametrize("corner", CORNERS)
def test_reference_and_product_are_conv2d_of_the_table(
    corner: str, kernel: tuple[int, int], groups: int
) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 6, 5, 4))
    weight = rng.standard_normal((6, 6 // groups, *kernel))
    for unit_diagonal in (True, False):
        full = reference.full_weight(weight, corner, unit_diagonal, groups)
        expected = conv2d_of_the_table(
            torch.from_numpy(x), torch.from_numpy(full), corner, groups
        ).numpy()
        # Two summations of the same n products, each within gamma(n) of the exact sum; 2 for the
        # check's own bound.
        absolute = reference.conv_by_taps(np.abs(x), np.abs(full), corner=corner, groups=groups)
        bound = 4 * _gamma(full[0].size, np.float64) * absolute
        looped = reference.conv(
            x, weight, corner=corner, unit_diagonal=unit_diagonal, groups=groups
        )
        assert worst_excess(np.abs(looped - expected), bound) <= 1
        product = invconv.conv(x, weight, corner=corner, unit_diagonal=unit_diagonal, groups=groups)
        assert worst_excess(np.abs(product - expected), bound) <= 1


# --- The product ----------------------------------------------------------------------------------


def check_problem(problem: Problem) -> None:
    """Every operation of the product on one problem, against its bound."""
    y, weight, options, transpose = problem.y, problem.weight, problem.options, problem.transpose
    x = invconv.solve(y, weight, transpose=transpose, **options)
    z = invconv.conv(y, weight, transpose=transpose, **options)
    grad = invconv.weight_grad(x, y, tuple(weight.shape[2:]), **options)
    for result, like in ((x, y), (z, y), (grad, weight)):
        assert type(result) is type(like), problem
        assert (result.shape, result.dtype) == (like.shape, like.dtype), problem

    checker = Checker(weight, problem.dtype, **options)
    assert checker.solve_excess(x, y, transpose) <= 1, problem
    assert checker.conv_excess(z, y, transpose) <= 1, problem
    assert checker.weight_grad_excess(grad, x, y) <= 1, problem
    read = reference.is_read(
        options["corner"], options["unit_diagonal"], options["groups"], weight.shape
    )
    assert not np.any(values_of(grad, np.float64)[~read]), problem


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_problems_keep_the_bounds(dtype: str) -> None:
    problems = 0
    seen: dict[str, set[Any]] = {}

    def note(what: str, value: Any) -> None:
        seen.setdefault(what, set()).add(value)

    for index in range(PROBLEMS_PER_DTYPE):
        problem = random_problem(dtype, index)
        check_problem(problem)
        y, weight, options, transpose = (
            problem.y,
            problem.weight,
            problem.options,
            problem.transpose,
        )

        problems += 1
        batch, channels, height, width = y.shape
        corner = options["corner"]
        note("corner", corner if isinstance(corner, str) else "one per group")
        note("options", (options["groups"], options["unit_diagonal"], transpose))
        note("layout of y", problem.layouts[0])
        note("layout of the weight", problem.layouts[1])
        note("batch", batch)
        note("height", height)
        note("width", width)
        note("channels", channels)
        note("kernel", tuple(weight.shape[2:]))
        note(
            "kernel higher, wider than the image",
            (weight.shape[2] > height > 0, weight.shape[3] > width > 0),
        )

    assert problems == PROBLEMS_PER_DTYPE
    # The generator reaches what it is meant to reach.
    assert seen["corner"] == {*CORNERS, "one per group"}
    assert len(seen["options"]) == 4 * 2 * 2
    layouts = set(reference.LAYOUTS) - ({"flipped"} if dtype == "bfloat16" else set())
    assert seen["layout of y"] == seen["layout of the weight"] == layouts
    assert seen["batch"] == set(range(21))
    assert seen["height"] >= {0, 1, 15, 16, 17, 33} and seen["width"] >= {0, 1, 15, 16, 17, 33}
    assert seen["channels"] >= {1, 3, 5, 7, 9, 11, 13, 15, 17, 19}
    assert len(seen["kernel"]) == 7 * 5
    assert len(seen["kernel higher, wider than the image"]) == 4


@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_lesser_instruction_sets_keep_the_bounds(level: str) -> None:
    """Kernels are chosen at run time: the other tests see those of this machine's best level."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import invconv
import test_exactness as exactness
try:
    level = invconv.build_info()["instruction_set"]
except ValueError as error:
    print(error)
    sys.exit(77)
assert level == {level!r}, level
for dtype in exactness.DTYPES:
    for index in range(60):
        exactness.check_problem(exactness.random_problem(dtype, index))
print("checked")
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "INVCONV_ISA": level},
        capture_output=True,
        text=True,
    )
    if result.returncode == 77:
        assert result.stdout.startswith(
            "[instruction_set] expected INVCONV_ISA to be one of those this machine has"
        )
        pytest.skip(f"this machine has no {level}")
    assert (result.returncode, result.stdout.strip()) == (0, "checked"), result.stderr


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_largest_sizes_keep_the_bounds(dtype: str, transpose: bool) -> None:
    rng = np.random.default_rng(11)
    options: dict[str, Any] = {"corner": "tr", "unit_diagonal": False, "groups": 1}
    weight = product_array(
        random_weight(rng, 1, 19, (7, 5), "tr", False, 0.9), dtype, "contiguous", rng
    )
    y = product_array(rng.standard_normal((3, 19, 33, 31)), dtype, "sliced", rng)
    x = invconv.solve(y, weight, transpose=transpose, **options)
    checker = Checker(weight, dtype, **options)
    assert checker.solve_excess(x, y, transpose) <= 1
    assert (
        checker.conv_excess(invconv.conv(y, weight, transpose=transpose, **options), y, transpose)
        <= 1
    )
    assert checker.weight_grad_excess(invconv.weight_grad(x, y, (7, 5), **options), x, y) <= 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("corner", CORNERS)
def test_strongly_coupled_channels_keep_the_bound(corner: str, transpose: bool, dtype: str) -> None:
    """The bound has no condition number, so an anchor with an inverse of norm 1e4 must keep it.

    The right-hand side is that of a solution of order 1, so everything that the inverse of the
    anchor amplifies has to cancel again. Solving channel by channel keeps the bound; multiplying by
    a rounded inverse does not.
    """
    amplification = 0.0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        channels = int(rng.integers(8, 21))
        kernel = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
        weight = random_weight(rng, 1, channels, kernel, corner, True, 0.5)
        u, v = reference.padding(corner, *kernel).anchor
        weight[:, :, u, v] = rng.uniform(-2, 2, (channels, channels))
        weight = weight.astype(dtype)
        checker = Checker(weight, dtype, corner, True, 1)
        solution = rng.standard_normal((3, channels, 4, 5)).astype(checker.full.dtype)
        y = checker.matrix_times(solution, transpose).astype(dtype)
        x = invconv.solve(y, weight, corner=corner, transpose=transpose)
        assert checker.solve_excess(x, y, transpose) <= 1, f"seed {seed}"
        inverse = np.linalg.inv(checker.full[:, :, u, v].astype(np.float64))
        amplification = max(amplification, float(np.abs(inverse).sum(1).max()))
    assert amplification > 1e4  # the test means something only if some anchor is hard


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("corner", CORNERS)
def test_growing_inverses_keep_the_bound(corner: str, transpose: bool, dtype: str) -> None:
    """The inverse grows by many orders of magnitude over the image; the backward error does not."""
    rng = np.random.default_rng(5)
    weight = random_weight(rng, 1, 3, (3, 2), corner, False, 0.9).astype(dtype)
    u, v = reference.padding(corner, 3, 2).anchor
    off_anchor = np.ones((3, 2), dtype=bool)
    off_anchor[u, v] = False
    weight[:, :, off_anchor] *= 80
    y = rng.standard_normal((2, 3, 12, 13)).astype(dtype)
    x = invconv.solve(y, weight, corner=corner, unit_diagonal=False, transpose=transpose)
    assert 1e6 < np.abs(x).max() < 1e30
    assert Checker(weight, dtype, corner, False, 1).solve_excess(x, y, transpose) <= 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("corner", "groups", "kernel", "unit_diagonal"), small_problems())
def test_dense_matrix_and_loop(
    corner: Corner, groups: int, kernel: tuple[int, int], unit_diagonal: bool, dtype: str
) -> None:
    """Forward error: ``|x - M^-1 y| <= |M^-1| |M x - y|``, where the residual has its bound."""
    y, weight = small_arrays(corner, groups, kernel, unit_diagonal, dtype)
    options: dict[str, Any] = {"corner": corner, "groups": groups, "unit_diagonal": unit_diagonal}
    matrix = reference.dense_matrix(weight, (4, 5), **options)
    checker = Checker(weight, dtype, corner, unit_diagonal, groups)

    def flat(array: Array) -> Array:
        return array.reshape(2, -1).T.astype(np.float64)

    for transpose in (False, True):
        m = matrix.T if transpose else matrix
        inverse = np.linalg.inv(m)
        # The check's own error: a dense solve with up to 120 unknowns in float64 and a condition
        # below 100.
        own = 120 * 100 * np.finfo(np.float64).eps
        x = invconv.solve(y, weight, transpose=transpose, **options)
        residual = checker.residual_bound(values_of(x, checker.precision.check), y, transpose)
        bound = np.abs(inverse) @ flat(residual) + own
        assert worst_excess(np.abs(flat(x) - np.linalg.solve(m, flat(y))), bound) <= 1
        looped = reference.solve(y, weight, transpose=transpose, **options)
        assert worst_excess(np.abs(flat(x) - flat(looped)), bound) <= 1

        # solve(conv(x)): the error of conv, gamma(n) |M| |x|, comes on top of the residual's bound.
        z = invconv.conv(y, weight, transpose=transpose, **options)
        back = invconv.solve(z, weight, transpose=transpose, **options)
        error_of_conv = checker.precision.gamma(checker.terms) * (np.abs(m) @ np.abs(flat(y)))
        residual = checker.residual_bound(values_of(back, checker.precision.check), z, transpose)
        bound = np.abs(inverse) @ (flat(residual) + error_of_conv) + own
        assert worst_excess(np.abs(flat(back) - flat(y)), bound) <= 1
        assert bound.max() < (1e-3 if dtype == "float32" else 1e-11)  # it says something


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("unit_diagonal", [False, True])
def test_adjoint_identity(unit_diagonal: bool, groups: int, dtype: str) -> None:
    """``<g, solve(y)> = <solve^T(g), y>``.

    With ``x = solve(y)``, ``M x = y + r``, and ``h = solve^T(g)``, ``M^T h = g + s``: ``<g, x> =
    <M^T h - s, x> = <h, y> + <h, r> - <s, x>``, and ``r``, ``s`` have the bound of the solve.
    """
    rng = np.random.default_rng(2)
    for corner in [*CORNERS, *([("tl", "tr", "bl", "br")[:groups]] if groups > 1 else [])]:
        arguments = (corner, unit_diagonal, groups)
        options = dict(zip(("corner", "unit_diagonal", "groups"), arguments, strict=True))
        weight = random_weight(rng, groups, 12 // groups, (3, 2), corner, unit_diagonal, 0.95)
        weight = weight.astype(dtype)
        y, g = rng.standard_normal((2, 3, 12, 9, 8)).astype(dtype)
        x = invconv.solve(y, weight, **options)
        h = invconv.solve(g, weight, transpose=True, **options)
        checker = Checker(weight, dtype, *arguments)
        x, h, y, g = (values_of(a, checker.precision.check) for a in (x, h, y, g))
        bound = np.sum(np.abs(h) * checker.residual_bound(x, y, False))
        bound += np.sum(np.abs(x) * checker.residual_bound(h, g, True))
        # The two inner products are summed in the precision of the check.
        own = _gamma(x.size, checker.precision.check) * np.sum(np.abs(g * x) + np.abs(h * y))
        assert abs(np.sum(g * x) - np.sum(h * y)) <= bound + own, corner


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("transpose", [False, True])
def test_storage_types_are_float32_rounded_once(transpose: bool, dtype: str) -> None:
    """Arithmetic and recurrence are those of float32, so the result is that of float32, rounded."""
    for index in range(60):
        problem = random_problem(dtype, index)
        y, weight = (
            torch.as_tensor(a) if dtype == "bfloat16" else torch.from_numpy(a.copy())
            for a in (problem.y, problem.weight)
        )
        for function in (invconv.solve, invconv.conv):
            stored = function(y, weight, transpose=transpose, **problem.options)
            wide = function(y.float(), weight.float(), transpose=transpose, **problem.options)
            assert torch.equal(stored, wide.to(stored.dtype)), problem
        kernel = tuple(weight.shape[2:])
        stored = invconv.weight_grad(y, y, kernel, **problem.options)
        wide = invconv.weight_grad(y.float(), y.float(), kernel, **problem.options)
        assert torch.equal(stored, wide.to(stored.dtype)), problem


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("corner", "groups", "kernel", "unit_diagonal"), small_problems())
def test_logabsdet(
    corner: Corner, groups: int, kernel: tuple[int, int], unit_diagonal: bool, dtype: str
) -> None:
    _, values = small_arrays(corner, groups, kernel, unit_diagonal)
    weight = product_array(values, dtype, "contiguous", np.random.default_rng(0))
    exact = reference.logabsdet(
        values_of(weight, np.float64),
        (4, 5),
        corner=corner,
        groups=groups,
        unit_diagonal=unit_diagonal,
    )
    # Pivots between 0.5 and 2, either sign: logarithms of at most log 2, each within 2 units in the
    # last place of the arithmetic, C additions and one product.
    places = anchors(corner, groups, weight.shape[1], kernel)
    pivots = [float(weight[o, o % weight.shape[1], u, v]) for o, (u, v) in enumerate(places)]
    size = 0.0 if unit_diagonal else 20 * sum(abs(np.log(abs(pivot))) for pivot in pivots)

    # A tensor gives a tensor of its dtype, rounded to it once; an array gives a Python float,
    # computed in float64.
    tensor = weight if isinstance(weight, torch.Tensor) else torch.from_numpy(weight)
    log = invconv.logabsdet(
        tensor, (4, 5), corner=corner, groups=groups, unit_diagonal=unit_diagonal
    )
    assert type(log) is torch.Tensor and log.shape == () and log.dtype == tensor.dtype
    precision = PRECISION[dtype]
    assert abs(float(log) - exact) <= size * (
        precision.gamma(len(pivots) + 6) + 1.01 * precision.storage_roundoff
    )
    if not isinstance(weight, torch.Tensor):
        log = invconv.logabsdet(
            weight, (4, 5), corner=corner, groups=groups, unit_diagonal=unit_diagonal
        )
        assert type(log) is float
        assert abs(log - exact) <= 2 * size * _gamma(len(pivots) + 6, np.float64)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_logabsdet_is_rounded_to_storage_once(dtype: str) -> None:
    """Neither logarithms nor the number of pixels need fit the storage type, only the result."""
    for pivot in np.linspace(1.02, 1.08, 40):
        pivots = torch.tensor([pivot, 1.01 * pivot, 1.3 * pivot], dtype=getattr(torch, dtype))
        weight = pivots.reshape(3, 1, 1, 1)
        log = invconv.logabsdet(weight, (256, 257), unit_diagonal=False, groups=3)
        assert log.dtype == weight.dtype
        # The arithmetic in float32 is exact to far less than the hundredth added here.
        exact = 256 * 257 * float(np.log(pivots.double().numpy()).sum())
        assert float(log) == pytest.approx(exact, rel=1.01 * PRECISION[dtype].storage_roundoff)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("corner", "groups", "kernel", "unit_diagonal"), small_problems())
def test_not_finite_values_stay_where_they_belong(
    corner: Corner,
    groups: int,
    kernel: tuple[int, int],
    unit_diagonal: bool,
    dtype: str,
    bad: float,
    transpose: bool,
) -> None:
    """A NaN or inf in one entry reaches what it reaches in the plain loop, and nothing else."""
    y, weight = small_arrays(corner, groups, kernel, unit_diagonal, dtype)
    y[1, 1, 2, 3] = bad
    options: dict[str, Any] = {"corner": corner, "groups": groups, "unit_diagonal": unit_diagonal}
    for function, looped in ((invconv.solve, reference.solve), (invconv.conv, reference.conv)):
        with np.errstate(invalid="ignore"):
            expected = looped(y, weight, transpose=transpose, **options)
        result = function(y, weight, transpose=transpose, **options)
        # Whether inf meets -inf further on depends on rounding only through overflow, which does
        # not occur here.
        np.testing.assert_array_equal(np.isfinite(result), np.isfinite(expected))
        assert not np.isfinite(result[1, 1, 2, 3])
        assert np.isnan(bad) == np.isnan(result[1, 1, 2, 3])
        assert np.all(np.isfinite(result[0]))
        if groups > 1:
            per_group = weight.shape[1]
            others = [c for c in range(weight.shape[0]) if c // per_group != 1 // per_group]
            assert np.all(np.isfinite(result[:, others]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("corner", "groups", "kernel", "unit_diagonal"), small_problems())
def test_not_finite_values_in_weight_grad(
    corner: Corner,
    groups: int,
    kernel: tuple[int, int],
    unit_diagonal: bool,
    dtype: str,
    bad: float,
) -> None:
    """A bad ``g[o]`` reaches row ``o``, a bad ``x[c]`` column ``c`` of its group; nothing else.

    Whether a product of inf and the zeros of the padding is a term of the sum (in ``F.conv2d`` it
    is) is left open, so for the taps that read the bad pixel only through the padding either answer
    is right.
    """
    x, weight = small_arrays(corner, groups, kernel, unit_diagonal, dtype)
    g = np.random.default_rng(1).standard_normal(x.shape).astype(dtype)
    options: dict[str, Any] = {"corner": corner, "groups": groups, "unit_diagonal": unit_diagonal}
    read = reference.is_read(corner, unit_diagonal, groups, weight.shape)
    per_group, channel = weight.shape[1], 1
    poisoned = x.copy()
    poisoned[1, channel, 2, 3] = bad
    for first, second in ((g, poisoned), (poisoned, g)):
        may = np.zeros(weight.shape, dtype=bool)
        if second is poisoned:
            may[channel] = True
        else:
            block = channel // per_group * per_group
            may[block : block + per_group, channel % per_group] = True
        with np.errstate(invalid="ignore"):
            must = ~np.isfinite(reference.weight_grad(first, second, kernel, **options))
        assert must.any() or kernel == (1, 1)
        result = invconv.weight_grad(first, second, kernel, **options)
        assert not np.any(np.isfinite(result)[must])
        assert np.all(np.isfinite(result)[~(may & read)])


@pytest.mark.parametrize("function", [invconv.solve, invconv.conv])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 40, 40), (33, 2, 9, 9), (1, 16, 8, 8), (4, 20, 5, 5), (1, 3, 70, 4), (2, 5, 17, 19)],
)
def test_a_bad_tap_outside_the_image_is_no_tap(
    function: Callable[[Array, Array], Array], bad: float, shape: tuple[int, int, int, int]
) -> None:
    """Pixels too near the corner for a tap do not see it, in batches and images of any kind."""
    random = np.random.default_rng(3)
    channels = shape[1]
    images = random.standard_normal(shape).astype(np.float32)
    for i, j in ((0, 1), (1, 0), (1, 2), (2, 2)):
        weight = np.zeros((channels, channels, 3, 3), dtype=np.float32)
        weight[random.integers(channels), random.integers(channels), 2 - i, 2 - j] = bad
        result = function(images, weight)
        reaches = (np.arange(shape[2]) >= i)[:, None] & (np.arange(shape[3]) >= j)
        assert np.all(np.isfinite(result[:, :, ~reaches]))
        assert not np.all(np.isfinite(result[:, :, reaches]), axis=1).any()


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_bad_weight_stays_in_its_group(dtype: str, transpose: bool) -> None:
    corner = ("tl", "tr", "bl", "br")
    y, weight = small_arrays(corner, 4, (2, 3), False, dtype)
    good = invconv.solve(
        y, weight, corner=corner, groups=4, unit_diagonal=False, transpose=transpose
    )
    assert np.all(np.isfinite(good))
    weight[2, 0, 1, 1] = (
        np.nan
    )  # read: no corner of a 2x3 kernel has its anchor in the middle column
    bad = invconv.solve(
        y, weight, corner=corner, groups=4, unit_diagonal=False, transpose=transpose
    )
    np.testing.assert_array_equal(bad[:, [0, 1, 4, 5, 6, 7]], good[:, [0, 1, 4, 5, 6, 7]])
    assert np.isnan(bad[:, 2:4]).any()
