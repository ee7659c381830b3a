"""torch tensors on a CUDA device, against the CPU: ``pytest tests/gpu`` where there is one.

Solve and conv have one order of operations on both, so they agree to the bit where the CPU fuses
products. Everything runs on a stream of its own, so that work on the default one by mistake shows.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import invconv

if not torch.cuda.is_available() or invconv.build_info()["cuda_kernels"] == "no":
    pytest.skip("needs a CUDA device and a build with CUDA kernels", allow_module_level=True)

DEVICE = torch.device("cuda")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FUSED = invconv.build_info()["instruction_set"] != "baseline"


@pytest.fixture(autouse=True)
def other_stream() -> Iterator[torch.cuda.Stream]:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        yield stream
    torch.cuda.synchronize()


def random_problem(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    groups = int(rng.choice([1, 1, 2, 4]))
    channels = groups * int(rng.choice([1, 2, 3, 4, 5, 12, 17, 33, 48]))
    height, width = (int(rng.choice([1, 2, 5, 16, 31, 33, 70])) for _ in range(2))
    kernel = tuple(int(rng.choice([1, 2, 3, 3, 3, 5])) for _ in range(2))
    batch = int(rng.choice([1, 2, 5]))
    y = torch.from_numpy(rng.standard_normal((batch, channels, height, width)))
    weight = torch.from_numpy(rng.standard_normal((channels, channels // groups, *kernel)))
    weight *= 0.3 / np.sqrt(weight[0].numel())
    corner = tuple(str(name) for name in rng.choice(["tl", "tr", "bl", "br"], groups))
    unit_diagonal = bool(rng.integers(2))
    per_group = channels // groups
    for o in range(channels if not unit_diagonal else 0):
        name = corner[o // per_group]
        row, column = -1 if name[0] == "t" else 0, -1 if name[1] == "l" else 0
        weight[o, o % per_group, row, column] = float(rng.uniform(1, 2))
    options = {
        "corner": corner,
        "groups": groups,
        "transpose": bool(rng.integers(2)),
        "unit_diagonal": unit_diagonal,
    }
    return y, weight, options


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [invconv.solve, invconv.conv])
def test_the_bits_of_the_cpu(function: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    for _ in range(150):
        y, weight, options = random_problem(rng)
        y, weight = y.to(dtype), weight.to(dtype)
        expected = function(y, weight, **options)
        result = function(y.to(DEVICE), weight.to(DEVICE), **options)
        if FUSED:
            assert torch.equal(result.cpu(), expected), (y.shape, weight.shape, options)
        else:
            torch.testing.assert_close(result.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        y, weight, options = random_problem(rng)
        g = torch.from_numpy(rng.standard_normal(y.shape)).to(dtype)
        found = []
        for device in ("cpu", "cuda"):
            leaves = [t.to(device, dtype).requires_grad_() for t in (y, weight)]
            x = invconv.solve(*leaves, **options)
            found.append(torch.autograd.grad(x, leaves, g.to(device)))
        (dy, dw), (dy_, dw_) = found
        if FUSED:
            assert torch.equal(dy_.cpu(), dy)
        # Both sums have at most 256 products in a chain and the rest in double (invconv.hpp): each
        # is within 261 roundings of the exact one, relative to the sum of magnitudes.
        a, b = invconv.solve(y.to(dtype), weight.to(dtype), **options).abs(), dy.abs()
        if options["transpose"]:
            a, b = b, a
        upright = {name: value for name, value in options.items() if name != "transpose"}
        spread = invconv.weight_grad(a.double(), b.double(), weight.shape[2:], **upright)
        bound = 2 * 261 * torch.finfo(dtype).eps / 2 * spread
        assert ((dw_.cpu() - dw).abs() <= bound).all()


def test_plain_tensors_go_past_the_dispatcher() -> None:
    """Both gradients are then one call, with the bits of two."""
    from invconv import _torch

    y = torch.randn(2, 5, 9, 9, device=DEVICE, requires_grad=True)
    weight = (0.05 * torch.randn(5, 5, 3, 3, device=DEVICE)).requires_grad_()
    assert _torch._is_plain(y, weight) and not _torch._is_plain(y.to_sparse())
    with torch.inference_mode():
        assert _torch._is_plain(torch.empty(1, device=DEVICE))
    x, g = invconv.solve(y, weight), torch.randn(2, 5, 9, 9, device=DEVICE)
    dy, dw = torch.autograd.grad(x, (y, weight), g, retain_graph=True)
    expected = torch.autograd.grad(x, (y, weight), g, create_graph=True)  # as two
    assert torch.equal(dy, expected[0]) and torch.equal(dw, expected[1])


def test_no_batch_changes_a_bit() -> None:
    torch.manual_seed(0)
    for channels in (3, 12, 40):
        y = torch.randn(9, channels, 20, 40, device=DEVICE)
        weight = 0.02 * torch.randn(channels, channels, 3, 3, device=DEVICE)
        whole = invconv.solve(y, weight)
        for index in range(9):
            assert torch.equal(invconv.solve(y[index], weight), whole[index])


def test_layouts_and_out() -> None:
    torch.manual_seed(0)
    y = torch.randn(3, 8, 17, 12, device=DEVICE)
    weight = 0.05 * torch.randn(8, 8, 3, 3, device=DEVICE)
    expected = invconv.solve(y, weight)
    for laid_out in (
        y.contiguous(memory_format=torch.channels_last),
        y.repeat(1, 1, 2, 2)[:, :, 17:, :12],
        y.mT.contiguous().mT,
    ):
        assert not laid_out.is_contiguous()
        assert torch.equal(invconv.solve(laid_out, weight), expected)
    repeated = y[:1].expand(3, -1, -1, -1)
    assert torch.equal(invconv.solve(repeated, weight)[2], expected[0])
    out = torch.empty_like(y)
    assert invconv.solve(y, weight, out=out) is out and torch.equal(out, expected)
    again = y.clone()
    invconv.solve(again, weight, out=again)
    assert torch.equal(again, expected)
    convolved = invconv.conv(again, weight)
    invconv.conv(again, weight, out=again)
    assert torch.equal(again, convolved)


def test_a_graph_replays_what_was_captured() -> None:
    torch.manual_seed(0)
    for shape in ((4, 12, 16, 16), (2, 3, 100, 50)):
        y = torch.randn(shape, device=DEVICE)
        weight = 0.05 * torch.randn(shape[1], shape[1], 3, 3, device=DEVICE)
        invconv.solve(y, weight)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            x = invconv.solve(y, weight)
            dw = invconv.weight_grad(x, y, 3)
        for _ in range(3):
            y.normal_()
            graph.replay()
            assert torch.equal(x, invconv.solve(y, weight))
            assert torch.equal(dw, invconv.weight_grad(x, y, 3))


def test_tensors_of_two_devices_are_refused() -> None:
    y, weight = torch.randn(1, 2, 3, 3), torch.zeros(2, 2, 3, 3)
    for arguments in ((y.to(DEVICE), weight), (y, weight.to(DEVICE))):
        with pytest.raises(TypeError, match="on one device"):
            invconv.solve(*arguments)


def test_calls_after_a_bad_one() -> None:
    y, weight = torch.randn(1, 2, 3, 3, device=DEVICE), torch.zeros(2, 2, 3, 3, device=DEVICE)
    for bad in (torch.zeros(3, 3, 3, 3, device=DEVICE), torch.zeros(2, 2, 3, device=DEVICE)):
        with pytest.raises(ValueError, match=r"^\[solve\]"):
            invconv.solve(y, bad)
    assert torch.equal(invconv.solve(y, weight), y)


def test_two_threads_with_other_needs_of_shared_memory() -> None:
    problems = []
    for channels in (5, 48):  # 2 KB of weights, and 83
        y = torch.randn(2, channels, 9, 9, device=DEVICE)
        weight = 0.02 * torch.randn(channels, channels, 3, 3, device=DEVICE)
        problems.append((y, weight, invconv.solve(y, weight)))
    torch.cuda.synchronize()

    def work(index: int) -> None:
        y, weight, expected = problems[index % 2]
        for _ in range(300):
            assert torch.equal(invconv.solve(y, weight), expected)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_empty_images() -> None:
    weight = torch.zeros(2, 2, 3, 3, device=DEVICE)
    for shape in ((0, 2, 4, 4), (3, 2, 0, 4), (3, 2, 4, 0)):
        y = torch.empty(shape, device=DEVICE)
        assert invconv.solve(y, weight).shape == shape
        assert torch.equal(invconv.weight_grad(y, y, 3), weight)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_a_second_device() -> None:
    y, weight = torch.randn(2, 5, 9, 9), 0.05 * torch.randn(5, 5, 3, 3)
    result = invconv.solve(y.to("cuda:1"), weight.to("cuda:1"))
    assert result.device.index == 1
    torch.testing.assert_close(result.cpu(), invconv.solve(y, weight))
