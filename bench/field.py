"""Our torch operators and the field's, each with its reference in plain torch operations.

An all-pole filter, ``x[t] = y[t] - sum_k a[k] x[t - k]``, is what the others compute of a solve:
one channel and one row.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import invconv

from .capabilities import Operator

# Small: Jacobians and finite differences of them are taken. Batch, channels, height, width.
SHAPE = (2, 2, 3, 2)
KERNEL = (2, 2)


# ---- ours ----------------------------------------------------------------------------------------


def _read(weight: Tensor) -> Tensor:
    """The weight as ``unit_diagonal=False`` reads it: 0 above the anchor's diagonal."""
    mask = torch.ones_like(weight)
    mask[:, :, -1, -1] = torch.tril(mask[:, :, -1, -1])
    return weight * mask


def dense_conv(x: Tensor, weight: Tensor) -> Tensor:
    """``invconv.conv`` by torch's conv2d."""
    kh, kw = weight.shape[2:]
    return F.conv2d(F.pad(x, (kw - 1, 0, kh - 1, 0)), _read(weight))


def dense_solve(y: Tensor, weight: Tensor) -> Tensor:
    """``invconv.solve`` by the dense matrix."""
    image = y.shape[1:]
    columns = torch.eye(image.numel(), dtype=y.dtype, device=y.device)
    matrix = dense_conv(columns.view(-1, *image), weight).flatten(1).mT
    solution: Tensor = torch.linalg.solve(matrix, y.flatten(1).mT)
    return solution.mT.reshape(y.shape)


def dense_weight_grad(x: Tensor, g: Tensor) -> Tensor:
    """``invconv.weight_grad`` by torch's unfold."""
    kh, kw = KERNEL
    patches = F.unfold(F.pad(x, (kw - 1, 0, kh - 1, 0)), KERNEL)
    sums: Tensor = torch.einsum("bop,bkp->ok", g.flatten(2), patches)
    return _read(sums.view(x.shape[1], x.shape[1], kh, kw))


def dense_logabsdet(weight: Tensor) -> Tensor:
    """``invconv.logabsdet`` from the diagonal."""
    pixels = SHAPE[2] * SHAPE[3]
    return pixels * weight[:, :, -1, -1].diagonal().abs().log().sum()


def _images(seed: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64).to(device)


def _weight(device: str) -> Tensor:
    """Taps that add up to less than 0.8 in a row, and a diagonal of 1.2 and -1.2."""
    channels = SHAPE[1]
    generator = torch.Generator().manual_seed(2)
    weight = 0.2 * torch.rand((channels, channels, *KERNEL), generator=generator).double() - 0.1
    weight[:, :, -1, -1] += 1.2 * torch.diag((-1.0) ** torch.arange(channels)).double()
    return weight.to(device)


def _filter_inputs(device: str) -> tuple[Tensor, ...]:
    return _images(0, device), _weight(device)


def _image_inputs(device: str) -> tuple[Tensor, ...]:
    return _images(0, device), _images(1, device)


def _weight_inputs(device: str) -> tuple[Tensor, ...]:
    return (_weight(device),)


def _solve(y: Tensor, weight: Tensor) -> Tensor:
    return invconv.solve(y, weight, unit_diagonal=False)


def _conv(x: Tensor, weight: Tensor) -> Tensor:
    return invconv.conv(x, weight, unit_diagonal=False)


def _weight_grad(x: Tensor, g: Tensor) -> Tensor:
    return invconv.weight_grad(x, g, KERNEL, unit_diagonal=False)


def _logabsdet(weight: Tensor) -> Tensor:
    result: Tensor = invconv.logabsdet(weight, SHAPE[2:], unit_diagonal=False)
    return result


def _composed(y: Tensor, weight: Tensor) -> Tensor:
    x = _solve(y, weight)
    return _conv(x * x, weight) + _weight_grad(x, y).sum() + _logabsdet(weight)


def _dense_composed(y: Tensor, weight: Tensor) -> Tensor:
    x = dense_solve(y, weight)
    product = dense_conv(x * x, weight)
    return product + dense_weight_grad(x, y).sum() + dense_logabsdet(weight)


def ours(device: str = "cpu") -> dict[str, Operator]:
    """The four operators, and all of them in one function."""
    of_weight = functools.partial(_filter_inputs, device)
    of_images = functools.partial(_image_inputs, device)
    return {
        "solve": Operator(_solve, dense_solve, of_weight),
        "conv": Operator(_conv, dense_conv, of_weight),
        "weight_grad": Operator(_weight_grad, dense_weight_grad, of_images, (0, 1)),
        "logabsdet": Operator(
            _logabsdet, dense_logabsdet, functools.partial(_weight_inputs, device), (), False
        ),
        "composed": Operator(_composed, _dense_composed, of_weight),
    }


# ---- the field's ---------------------------------------------------------------------------------


def _all_pole(y: Tensor, a: Tensor) -> Tensor:
    """The recurrence, with coefficients (B, T, order), (B, order) or (order,)."""
    coefficients = a if a.dim() == 3 else a.unsqueeze(-2)
    coefficients = coefficients.expand(len(y), y.shape[1], -1)
    x: list[Tensor] = []
    for t in range(y.shape[1]):
        value = y[:, t]
        for k in range(min(t, a.shape[-1])):
            value = value - coefficients[:, t, k] * x[t - 1 - k]
        x.append(value)
    return torch.stack(x, 1)


def _signals(*coefficients: int) -> tuple[Tensor, ...]:
    """Signals (2, 6) and stable coefficients of this shape."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn((2, 6), generator=generator, dtype=torch.float64)
    return y, 0.4 * torch.rand(coefficients, generator=generator, dtype=torch.float64)


def _torchlpc() -> Operator:
    function = importlib.import_module("torchlpc").sample_wise_lpc
    return Operator(function, _all_pole, functools.partial(_signals, 2, 6, 2), (0, 1))


class _LFilter(torch.autograd.Function):
    """An all-pole filter with the gradients of torchaudio's (Yu and Fazekas, DAFx 2024).

    A small reference of that style, since torchaudio has no build for this torch: a loop, and a
    backward that is the filter in reversed time. It is an old-style Function, as torchaudio's is
    an operator with a backward alone: neither forward mode nor vmap is written.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, a: Tensor) -> Tensor:
        x = _all_pole(y, a)
        ctx.save_for_backward(x, a)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, a = ctx.saved_tensors
        dy = _lfilter_apply(g.flip(1), a).flip(1)
        shifted = [F.pad(x, (k + 1, 0))[:, : x.shape[1]] for k in range(len(a))]
        return dy, torch.stack([-(dy * s).sum() for s in shifted])


def _lfilter_apply(y: Tensor, a: Tensor) -> Tensor:
    result: Tensor = _LFilter.apply(y, a)  # type: ignore[no-untyped-call]
    return result


def _lfilter() -> Operator:
    return Operator(_lfilter_apply, _all_pole, functools.partial(_signals, 2))


def _without_zeros(lfilter: Callable[..., Tensor], y: Tensor, a: Tensor) -> Tensor:
    return lfilter(torch.ones_like(a[:1]), a, y)


def _philtorch() -> Operator:
    # Bound, not looked up in the call: torch.compile does not trace an import.
    lfilter = importlib.import_module("philtorch.lti").lfilter
    function = functools.partial(_without_zeros, lfilter)
    return Operator(function, _all_pole, functools.partial(_signals, 2))


def _dense_causal_conv1d(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv1d(F.pad(x, (1, 0)), weight[:, None], groups=len(weight))


def _causal_conv1d_inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 3, 6), generator=generator, dtype=torch.float64)
    return x, torch.randn((3, 2), generator=generator, dtype=torch.float64)


def _causal_conv1d() -> Operator:
    function = importlib.import_module("causal_conv1d").causal_conv1d_fn
    return Operator(function, _dense_causal_conv1d, _causal_conv1d_inputs)


_WINDOW, _SCALE = 3, 0.5


def _dense_na1d(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (batch, pixels, heads, features) in windows, at the ends moved inside."""
    pixels = torch.arange(q.shape[1])
    start = (pixels - _WINDOW // 2).clamp(0, q.shape[1] - _WINDOW)
    distance = pixels - start[:, None]
    outside = (distance < 0) | (distance >= _WINDOW)
    scores = torch.einsum("bphf,bqhf->bhpq", q, k) * _SCALE
    shares = scores.masked_fill(outside, -torch.inf).softmax(-1)
    return torch.einsum("bhpq,bqhf->bphf", shares, v)


def _na1d_inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 5, 1, 8)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))


def _natten() -> Operator:
    na1d = importlib.import_module("natten").na1d
    function = functools.partial(na1d, kernel_size=_WINDOW, scale=_SCALE)
    return Operator(function, _dense_na1d, _na1d_inputs, (0, 1, 2))


def _ours(name: str) -> Operator:
    return ours()[name]


# By package, from PyPI, or none: what makes the operator raises ImportError where it is missing.
FIELD: dict[str, Callable[[], Operator]] = {
    "invconv.solve": functools.partial(_ours, "solve"),
    "invconv.conv": functools.partial(_ours, "conv"),
    "invconv.weight_grad": functools.partial(_ours, "weight_grad"),
    "invconv.logabsdet": functools.partial(_ours, "logabsdet"),
    "torchlpc": _torchlpc,
    "lfilter as in torchaudio": _lfilter,
    "philtorch": _philtorch,
    "causal-conv1d": _causal_conv1d,
    "natten.na1d": _natten,
}
