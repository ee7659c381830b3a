"""torch tensors on a CUDA device, against the CPU: ``pytest tests/gpu`` where there is one.

Conv and all solves but solve_image's have one order of operations on both, so they agree to the bit
where the CPU fuses products. Everything runs on a stream of its own, so that work on the default
one by mistake shows.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import invconv
from invconv import _core

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


def check_solve(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, options: dict[str, Any]
) -> None:
    """The CPU's bits or, where the kernel has another order of operations, the README's bound."""
    dtype = str(y.dtype).removeprefix("torch.")
    shapes = tuple(y.shape), tuple(weight.shape)
    plan = _core.describe_plan("solve", dtype, *shapes, options["groups"], DEVICE.index or 0)
    x = x.cpu()
    if FUSED and plan.kernel != "solve_image":
        assert torch.equal(x, invconv.solve(y, weight, **options)), (*shapes, options)
        return
    # A half type rounds each x once more, to within half of its eps or, below the normal numbers of
    # float16, half of their spacing; M spreads that.
    stored, tiny = 0.0, 0.0
    if y.dtype in (torch.float16, torch.bfloat16):
        stored, tiny = torch.finfo(y.dtype).eps / 2, 2.0**-25
    unit = torch.finfo(torch.float64 if y.dtype == torch.float64 else torch.float32).eps / 2
    y, weight, x = y.double(), weight.double(), x.double()
    residual = (invconv.conv(x, weight, **options) - y).abs()
    spread = invconv.conv(x.abs(), weight.abs(), **options)
    bound = 2 * (weight[0].numel() + 2) * unit * (spread + y.abs())
    bound += invconv.conv(stored * x.abs() + tiny, weight.abs(), **options)
    assert (residual <= bound).all(), (*shapes, options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [invconv.solve, invconv.conv])
def test_against_the_cpu(function: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    for _ in range(150):
        y, weight, options = random_problem(rng)
        y, weight = y.to(dtype), weight.to(dtype)
        result = function(y.to(DEVICE), weight.to(DEVICE), **options)
        if function is invconv.solve:
            check_solve(result, y, weight, options)
        elif FUSED:
            expected = function(y, weight, **options)
            assert torch.equal(result.cpu(), expected), (y.shape, weight.shape, options)
        else:
            torch.testing.assert_close(result.cpu(), function(y, weight, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        y, weight, options = random_problem(rng)
        g = torch.from_numpy(rng.standard_normal(y.shape)).to(dtype)
        leaves = [t.to(DEVICE, dtype).requires_grad_() for t in (y, weight)]
        x = invconv.solve(*leaves, **options)
        dy, dw = (grad.cpu() for grad in torch.autograd.grad(x, leaves, g.to(DEVICE)))
        opposite = options | {"transpose": not options["transpose"]}
        check_solve(dy, g, weight.to(dtype), opposite)
        # dw of these x and dy. Both sums have at most 256 products in a chain and the rest in
        # double (invconv.hpp): each is within 261 roundings of the exact one, relative to the sum
        # of magnitudes.
        a, b = x.detach().cpu(), dy
        if options["transpose"]:
            a, b = b, a
        upright = {name: value for name, value in options.items() if name != "transpose"}
        expected = -invconv.weight_grad(a, b, weight.shape[2:], **upright)
        spread = invconv.weight_grad(
            a.abs().double(), b.abs().double(), weight.shape[2:], **upright
        )
        bound = 2 * 261 * torch.finfo(dtype).eps / 2 * spread
        assert ((dw - expected).abs() <= bound).all()


def test_no_batch_changes_a_bit() -> None:
    torch.manual_seed(0)
    for channels in (3, 12, 40, 96):
        y = torch.randn(9, channels, 20, 40, device=DEVICE)
        weight = 0.02 * torch.randn(channels, channels, 3, 3, device=DEVICE)
        whole = invconv.solve(y, weight)
        for index in range(9):
            assert torch.equal(invconv.solve(y[index], weight), whole[index])


@pytest.mark.parametrize("function", [invconv.solve, invconv.conv])
def test_a_weight_for_each_image(function: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    for channels, groups in ((3, 1), (12, 1), (12, 2), (96, 1)):
        y = torch.randn(5, channels, 17, 20, device=DEVICE)
        weights = torch.randn(5, channels, channels // groups, 3, 3, device=DEVICE) / 300
        y.requires_grad_()
        weights.requires_grad_()
        x = function(y, weights, groups=groups)
        dy, dw = torch.autograd.grad(x, (y, weights), y.detach())
        for index in range(5):
            one = function(y[index], weights[index], groups=groups)
            assert torch.equal(one, x[index])
            grads = torch.autograd.grad(one, (y, weights), y[index].detach())
            assert torch.equal(grads[0][index], dy[index])
            assert torch.equal(grads[1][index], dw[index])


def test_strips_of_blocks() -> None:
    """Images of more rows and columns than a thread block has rows, of any kernel."""
    torch.manual_seed(0)
    for channels, kernel in ((5, (3, 3)), (12, (3, 3)), (2, (5, 4)), (40, (2, 2)), (70, (1, 2))):
        y = torch.randn(2, channels, 150, 131)
        weight = torch.randn(channels, channels, *kernel) / (20 * channels)
        options = {"corner": "br", "transpose": True, "groups": 1, "unit_diagonal": True}
        x = invconv.solve(y.to(DEVICE), weight.to(DEVICE), **options)
        check_solve(x, y, weight, options)


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
