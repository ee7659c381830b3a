"""The promise of reproducibility: the same bits for any number of threads, any batch and any memory
layout.

Every comparison here is of bits, and none has a tolerance: an output is one fixed chain of
operations, whatever the schedule. Results are compared as bytes, so that a 0 of the other sign
counts as a difference.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch

import invconv

DTYPES = ("float16", "bfloat16", "float32", "float64")

# (channels, groups, corner, kernel, height, width). Widths around the usual vector lengths, odd
# channel counts, a kernel larger than the image, a single pixel, one row, and an image large enough
# for several threads.
PROBLEMS = {
    "small": (3, 1, "tl", (3, 3), 5, 7),
    "odd": (7, 1, "br", (2, 5), 17, 15),
    "wide": (16, 1, "tr", (3, 3), 16, 33),
    "groups": (12, 4, ("tl", "tr", "bl", "br"), (3, 2), 9, 8),
    "depthwise": (5, 5, "bl", (3, 3), 12, 12),
    "one row": (4, 2, "tr", (3, 3), 1, 40),
    "one pixel": (6, 1, "bl", (5, 5), 1, 1),
    "large kernel": (3, 1, "tl", (7, 5), 4, 3),
    "one channel": (1, 1, "br", (3, 3), 65, 64),
}


def problem(name: str, dtype: str, batch: int = 20) -> tuple[Any, Any, Any, dict[str, Any]]:
    """``y``, ``g``, a weight (tensors if bfloat16, else numpy arrays), and options."""
    channels, groups, corner, kernel, height, width = PROBLEMS[name]
    rng = np.random.default_rng(len(name))
    shape = (channels, channels // groups, *kernel)
    # Row sums near 1 and pivots from 0.8 to 1.2: the recurrence neither dies out nor overflows
    # float16.
    weight = rng.uniform(-1, 1, shape) * 1.5 / np.prod(shape[1:])
    weight += reference.full_weight(np.zeros(shape), corner, True, groups) * rng.uniform(
        0.8, 1.2, (channels, 1, 1, 1)
    )
    arrays = [rng.standard_normal((batch, channels, height, width)) for _ in range(2)] + [weight]
    if dtype == "bfloat16":
        y, g, w = (torch.from_numpy(a).to(torch.bfloat16) for a in arrays)
    else:
        y, g, w = (a.astype(dtype) for a in arrays)
    return y, g, w, {"corner": corner, "groups": groups, "unit_diagonal": False}


def bits(array: Any) -> bytes:
    """The elements in C order, as bytes."""
    if isinstance(array, torch.Tensor):
        array = array.contiguous().view(torch.uint16).numpy()
    return np.ascontiguousarray(array).tobytes()


def calls(y: Any, g: Any, weight: Any, options: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Every operation whose result may depend on the schedule."""
    kernel = tuple(weight.shape[2:])
    return {
        "solve": lambda: invconv.solve(y, weight, **options),
        "solve transposed": lambda: invconv.solve(y, weight, transpose=True, **options),
        "conv": lambda: invconv.conv(y, weight, **options),
        "conv transposed": lambda: invconv.conv(y, weight, transpose=True, **options),
        "weight_grad": lambda: invconv.weight_grad(y, g, kernel, **options),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.usefixtures("keep_threads")
def test_number_of_threads(name: str, dtype: str) -> None:
    for batch in (1, 2, 20):
        for what, call in calls(*problem(name, dtype, batch)).items():
            results = {}
            for threads in (1, 2, 3, 8):
                invconv.set_num_threads(threads)
                assert invconv.get_num_threads() == threads
                results[threads] = bits(call())
            assert len(set(results.values())) == 1, (what, batch)


def digests() -> str:
    """A line for each numpy problem, operation and number of threads."""
    lines = []
    for name in PROBLEMS:
        for dtype in ("float16", "float32", "float64"):
            for threads in (1, 2, 3, 8):
                invconv.set_num_threads(threads)
                for what, call in calls(*problem(name, dtype)).items():
                    digest = hashlib.sha256(bits(call())).hexdigest()
                    lines.append(f"{name} {dtype} {threads} {what} {digest}")
    return "\n".join(lines)


@pytest.mark.usefixtures("keep_threads")
def test_own_threads_and_those_of_torch() -> None:
    """Beside torch the work runs on torch's threads, without it on threads of its own."""
    invconv.solve(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    beside_torch = digests()
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_reproducible
print(test_reproducible.digests())
assert "invconv._torch" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == beside_torch


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_repeated_calls(name: str, dtype: str) -> None:
    for what, call in calls(*problem(name, dtype)).items():
        assert len({bits(call()) for _ in range(3)}) == 1, what


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("function", [invconv.solve, invconv.conv])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_image_alone_and_in_any_batch(
    name: str, dtype: str, function: Callable[..., Any], transpose: bool
) -> None:
    images, others, weight, options = problem(name, dtype, batch=37)
    alone = [bits(function(images[b], weight, transpose=transpose, **options)) for b in range(37)]
    for size in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 37):
        first = 37 - size  # every batch size puts the same image in another lane
        result = function(images[first:], weight, transpose=transpose, **options)
        assert [bits(image) for image in result] == alone[first:], size
    # The neighbours in the batch change, this image does not.
    for place in (0, 1, 14, 15, 16, 17, 36):
        batch = others.clone() if isinstance(others, torch.Tensor) else others.copy()
        batch[place] = images[5]
        result = function(batch, weight, transpose=transpose, **options)
        assert bits(result[place]) == alone[5], place


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_numpy_layouts(name: str, dtype: str) -> None:
    rng = np.random.default_rng(4)
    y, g, weight, options = problem(name, dtype)
    expected = {what: bits(call()) for what, call in calls(y, g, weight, options).items()}
    for layout in reference.LAYOUTS:
        if layout == "expanded":  # other values: see test_expanded
            continue
        for arrays in (
            (reference.lay_out(y, layout, rng), g, weight),
            (y, reference.lay_out(g, layout, rng), weight),
            (y, g, reference.lay_out(weight, layout, rng)),
            tuple(reference.lay_out(a, layout, rng) for a in (y, g, weight)),
        ):
            for what, call in calls(*arrays, options).items():
                assert bits(call()) == expected[what], (what, layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_torch_layouts(name: str, dtype: str) -> None:
    tensors = [torch.as_tensor(a) for a in problem(name, dtype)[:3]]
    options = problem(name, dtype)[3]

    def sliced(t: torch.Tensor) -> torch.Tensor:
        larger = torch.full([2 * n + 1 for n in t.shape], torch.nan, dtype=t.dtype)
        view = larger[1::2, 1::2, 1::2, 1::2]
        view.copy_(t)
        return view

    def bits_of(t: torch.Tensor) -> bytes:
        return t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    expected = {what: bits_of(call()) for what, call in calls(*tensors, options).items()}
    for lay_out in (
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        sliced,
    ):
        for what, call in calls(*(lay_out(t) for t in tensors), options).items():
            assert bits_of(call()) == expected[what], what


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("name", PROBLEMS)
def test_expanded(name: str, axis: int) -> None:
    y, g, weight, options = problem(name, "float32")
    rng = np.random.default_rng(0)
    expanded = [reference.lay_out(a, "expanded", rng, expand_axis=axis) for a in (y, g)]
    expected = calls(*(np.ascontiguousarray(a) for a in expanded), weight, options)
    for what, call in calls(*expanded, weight, options).items():
        assert bits(call()) == bits(expected[what]()), what


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("function", [invconv.solve, invconv.conv])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_out_and_in_place(
    name: str, dtype: str, function: Callable[..., Any], transpose: bool
) -> None:
    y, _, weight, options = problem(name, dtype)
    options["transpose"] = transpose
    expected = bits(function(y, weight, **options))
    torch_kind = isinstance(y, torch.Tensor)

    out = torch.empty_like(y) if torch_kind else np.empty_like(y)
    assert function(y, weight, out=out, **options) is out
    assert bits(out) == expected

    # Every layout of the output; what lies between its elements is left alone.
    larger = np.full([2 * n + 2 for n in y.shape], 7, dtype=np.uint16 if torch_kind else y.dtype)
    place = larger[1:-1:2, 1:-1:2, 1:-1:2, 1:-1:2]
    out = torch.from_numpy(place).view(torch.bfloat16) if torch_kind else place
    assert function(y, weight, out=out, **options) is out
    assert bits(out) == expected
    outside = np.ones(larger.shape, dtype=bool)
    outside[1:-1:2, 1:-1:2, 1:-1:2, 1:-1:2] = False
    assert np.all(larger[outside] == 7)

    if not torch_kind:
        flipped = np.empty_like(y)[::-1, ::-1, ::-1, ::-1]
        assert function(y, weight, out=flipped, **options) is flipped
        assert bits(flipped) == expected

    same = y.clone() if torch_kind else y.copy()
    assert function(same, weight, out=same, **options) is same
    assert bits(same) == expected


@pytest.mark.parametrize("function", [invconv.solve, invconv.conv])
def test_outputs_written_past_the_caches(function) -> None:
    """A large contiguous output is streamed to memory, one with gaps is not: the same bits."""
    rng = np.random.default_rng(5)
    images = rng.standard_normal((1, 1, 1801, 1811), dtype=np.float32)
    weight = 0.1 * rng.standard_normal((1, 1, 3, 3), dtype=np.float32)
    gaps = np.zeros((1, 1, 1801, 3622), dtype=np.float32)[..., ::2]
    function(images, weight, out=gaps)
    assert np.array_equal(function(images, weight), gaps)
