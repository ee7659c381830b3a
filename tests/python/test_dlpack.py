"""Arrays of other libraries: their own kind comes back, and what cannot be read is refused with a
clear line."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import invconv
from invconv import _core

RNG = np.random.default_rng(6)
Y = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
G = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
W = (RNG.standard_normal((3, 3, 2, 2)) * 0.2).astype(np.float32)
X = invconv.solve(Y, W)
BINARY = [invconv.solve, invconv.conv]


class Minimal:
    """Nothing but the two methods of the protocol."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._array.__dlpack_device__()
        return device


class Legacy(Minimal):
    """A producer from before DLPack 1.0: it knows no keyword but ``stream``."""

    def __dlpack__(self, stream: Any = None) -> Any:
        return self._array.__dlpack__()


def test_array_api_arrays_come_back_as_they_came() -> None:
    y, g, w = (array_api_strict.asarray(a) for a in (Y, G, W))
    for function in BINARY:
        result = function(y, w)
        assert type(result) is type(y)
        assert result.dtype == array_api_strict.float32
        np.testing.assert_array_equal(np.asarray(result), function(Y, W))
    grad = invconv.weight_grad(y, g, (2, 2))
    assert type(grad) is type(y)
    np.testing.assert_array_equal(np.asarray(grad), invconv.weight_grad(Y, G, (2, 2)))
    # A number is no array of any kind.
    log = invconv.logabsdet(w, (4, 5), unit_diagonal=False)
    assert type(log) is float and log == invconv.logabsdet(W, (4, 5), unit_diagonal=False)
    assert invconv.growth(w, (4, 5)) == invconv.growth(W, (4, 5))


def test_array_api_out() -> None:
    y, w = (array_api_strict.asarray(a) for a in (Y, W))
    out = array_api_strict.zeros((2, 3, 4, 5), dtype=array_api_strict.float32)
    assert invconv.solve(y, w, out=out) is out
    np.testing.assert_array_equal(np.asarray(out), X)


@pytest.mark.parametrize("kind", [Minimal, Legacy])
def test_the_protocol_alone_is_enough(kind: type[Minimal]) -> None:
    """An object that cannot be built from DLPack has no kind to return; numpy arrays come back."""
    result = invconv.solve(kind(Y), kind(W))
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, X)
    np.testing.assert_array_equal(
        invconv.weight_grad(kind(Y), kind(G), 2), invconv.weight_grad(Y, G, 2)
    )
    assert invconv.growth(kind(W), (4, 5)) == invconv.growth(W, (4, 5))


@pytest.mark.parametrize("kind", [Minimal, Legacy])
def test_strides_survive_the_protocol(kind: type[Minimal]) -> None:
    larger = np.full((4, 3, 9, 10), np.nan, dtype=np.float32)
    larger[::2, :, 1::2, ::2] = Y
    flipped = np.ascontiguousarray(W[:, :, ::-1, ::-1])
    result = invconv.solve(kind(larger[::2, :, 1::2, ::2]), kind(flipped[:, :, ::-1, ::-1]))
    np.testing.assert_array_equal(result, X)


def test_an_exporter_that_fails_says_why() -> None:
    class Broken(Minimal):
        def __dlpack__(self, **kwargs: Any) -> Any:
            raise BufferError("the producer said no")

    with pytest.raises(
        TypeError, match=r"^\[solve\] expected y .*but got Broken: the producer said no"
    ) as caught:
        invconv.solve(Broken(Y), W)
    assert isinstance(caught.value.__cause__, BufferError)


def test_arrays_are_released() -> None:
    """Capsules are consumed: nothing holds on to an input after the call."""

    class Tracked(np.ndarray):
        pass

    y = Y.copy().view(Tracked)
    reference = weakref.ref(y)
    invconv.solve(Minimal(y), W)
    del y
    gc.collect()
    assert reference() is None


def test_kinds_cannot_be_mixed() -> None:
    strict = array_api_strict.asarray(Y)
    y, w = torch.from_numpy(Y), torch.from_numpy(W)
    both = "a numpy array and a torch tensor"
    for call, message in (
        (
            lambda: invconv.solve(y, W),
            "[solve] expected y and weight of one kind, but got a torch tensor and a numpy array; "
            "torch.from_numpy(weight) makes a tensor",
        ),
        (
            lambda: invconv.conv(Y, w),
            f"[conv] expected x and weight of one kind, but got {both}; "
            "torch.from_numpy(x) makes a tensor",
        ),
        (
            lambda: invconv.weight_grad(Y, y, 2),
            f"[weight_grad] expected x and g of one kind, but got {both}; "
            "torch.from_numpy(x) makes a tensor",
        ),
        (
            lambda: invconv.solve(Y.tolist(), w),
            "[solve] expected y and weight of one kind, but got list and a torch tensor; "
            "torch.tensor(y) makes a tensor",
        ),
        (
            lambda: invconv.solve(strict, w),
            "[solve] expected y and weight of one kind, but got Array and a torch tensor",
        ),
        (
            lambda: invconv.solve(y, w, out=np.empty_like(Y)),
            "[solve] expected y and out of one kind, but got a torch tensor and a numpy array; "
            "torch.from_numpy(out) makes a tensor",
        ),
        (
            lambda: invconv.solve(Y, W, out=torch.empty_like(y)),
            "[solve] expected out to be a numpy array, but got Tensor",
        ),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == message


def test_what_is_wrong_with_tensors_is_said_as_of_arrays() -> None:
    y, w = torch.from_numpy(Y), torch.from_numpy(W)
    for call, message in (
        (
            lambda: invconv.solve(y.long(), w),
            "[solve] expected y of dtype float16, bfloat16, float32 or float64, but got int64; "
            "y.float() makes one",
        ),
        (
            lambda: invconv.solve(y, w.double()),
            "[solve] expected y and weight of one dtype, but got float32 and float64",
        ),
        (
            lambda: invconv.solve(y, w.double(), out=torch.empty_like(y)),
            "[solve] expected y and weight of one dtype, but got float32 and float64",
        ),
        (
            lambda: invconv.solve(y, w, out=y.double()),
            "[solve] expected y and out of one dtype, but got float32 and float64",
        ),
        (
            lambda: invconv.weight_grad(y, y.double(), 2),
            "[weight_grad] expected x and g of one dtype, but got float32 and float64",
        ),
        (
            lambda: invconv.solve(y, w, transpose="T"),
            "[solve] expected transpose to be a bool, but got str",
        ),
        (
            lambda: invconv.conv(y, w, unit_diagonal="no"),
            "[conv] expected unit_diagonal to be a bool, but got str",
        ),
        (
            lambda: invconv.weight_grad(y, y, 2, unit_diagonal="no"),
            "[weight_grad] expected unit_diagonal to be a bool, but got str",
        ),
        (
            lambda: invconv.logabsdet(w, 3, unit_diagonal="no"),
            "[logabsdet] expected unit_diagonal to be a bool, but got str",
        ),
        (
            lambda: invconv.growth(w, 3, unit_diagonal="no"),
            "[growth] expected unit_diagonal to be a bool, but got str",
        ),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == message
    assert torch.equal(
        invconv.solve(y, w, transpose=np.True_, unit_diagonal=np.False_),
        invconv.solve(y, w, transpose=True, unit_diagonal=False),
    )
    assert invconv.growth(w, 3) == invconv.growth(w, (3, 3))
    assert invconv.logabsdet(w, 3, unit_diagonal=False) == invconv.logabsdet(
        w, (3, 3), unit_diagonal=False
    )


# --- numpy ----------------------------------------------------------------------------------------


def test_read_only_numpy_inputs() -> None:
    y, g, w = (a.copy() for a in (Y, G, W))
    for array in (y, g, w):
        array.flags.writeable = False
    np.testing.assert_array_equal(invconv.solve(y, w), X)
    np.testing.assert_array_equal(invconv.conv(y, w), invconv.conv(Y, W))
    np.testing.assert_array_equal(invconv.weight_grad(y, g, 2), invconv.weight_grad(Y, G, 2))
    assert invconv.growth(w, (4, 5)) == invconv.growth(W, (4, 5))


# --- torch ----------------------------------------------------------------------------------------


def test_tensors_come_back_as_tensors() -> None:
    result = invconv.solve(torch.from_numpy(Y), torch.from_numpy(W))
    assert type(result) is torch.Tensor and result.dtype == torch.float32
    np.testing.assert_array_equal(result.numpy(), X)
    parameter = invconv.solve(torch.from_numpy(Y), torch.nn.Parameter(torch.from_numpy(W)))
    assert type(parameter) is torch.Tensor and parameter.requires_grad


def test_negative_bit_is_resolved() -> None:
    """The imaginary part of a conjugate says "negate me", which DLPack would drop."""

    def negative_view(array: np.ndarray[Any, Any]) -> torch.Tensor:
        view = torch.complex(torch.zeros(array.shape), torch.from_numpy(-array)).conj().imag
        assert view.is_neg()
        return view

    y, g, w = (negative_view(a) for a in (Y, G, W))
    np.testing.assert_array_equal(invconv.solve(y, w).numpy(), X)
    np.testing.assert_array_equal(invconv.conv(y, w).numpy(), invconv.conv(Y, W))
    np.testing.assert_array_equal(
        invconv.weight_grad(y, g, 2).numpy(), invconv.weight_grad(Y, G, 2)
    )
    log = invconv.logabsdet(w, (4, 5), unit_diagonal=False)
    assert torch.equal(log, invconv.logabsdet(torch.from_numpy(W), (4, 5), unit_diagonal=False))
    assert invconv.growth(w, (4, 5)) == invconv.growth(W, (4, 5))

    w.requires_grad_()
    invconv.solve(y, w).backward(g)
    plain = torch.from_numpy(W).requires_grad_()
    invconv.solve(torch.from_numpy(Y), plain).backward(torch.from_numpy(G))
    assert torch.equal(w.grad, plain.grad)


def test_negative_bit_of_out() -> None:
    """An output that says "negate me" holds the right values, or is refused untouched."""
    holder = torch.zeros((2, 3, 4, 5), dtype=torch.complex64)
    out = holder.conj().imag
    try:
        assert invconv.solve(torch.from_numpy(Y), torch.from_numpy(W), out=out) is out
    except ValueError as error:
        assert str(error).startswith("[solve] expected out ")
        assert torch.equal(holder, torch.zeros_like(holder))
    else:
        np.testing.assert_array_equal(out.resolve_neg().numpy(), X)


def test_requires_grad_is_no_obstacle() -> None:
    y, w = torch.from_numpy(Y).requires_grad_(), torch.from_numpy(W).requires_grad_()
    result = invconv.solve(y, w)
    assert result.requires_grad
    np.testing.assert_array_equal(result.detach().numpy(), X)
    assert invconv.growth(w, (4, 5)) == invconv.growth(W, (4, 5))


REFUSED = {
    "complex64": lambda t: t.to(torch.complex64),
    "complex conjugate": lambda t: t.to(torch.complex64).conj(),
    "int64": lambda t: t.to(torch.int64),
    "bool": lambda t: t.to(torch.bool),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_tensors_that_are_refused(what: str) -> None:
    """Either argument; ``[name] expected ... but got ...`` says what it was."""
    y, g, w = (torch.from_numpy(a) for a in (Y, G, W))
    convert = REFUSED[what]
    word = what.split()[0].replace("quantized", "qint8")
    message = rf"^\[\w+\] expected .* but got .*{word}"
    for name, call in {
        "solve y": lambda: invconv.solve(convert(y), w),
        "solve weight": lambda: invconv.solve(y, convert(w)),
        "solve both": lambda: invconv.solve(convert(y), convert(w)),
        "conv": lambda: invconv.conv(convert(y), convert(w)),
        "weight_grad": lambda: invconv.weight_grad(convert(y), convert(g), 2),
        "logabsdet": lambda: invconv.logabsdet(convert(w), (4, 5)),
        "growth": lambda: invconv.growth(convert(w), (4, 5)),
    }.items():
        if what == "meta" and name in ("solve both", "conv", "weight_grad", "logabsdet"):
            continue  # shapes without values: see test_meta_tensors
        with pytest.raises(TypeError, match=message):
            call()


def test_meta_tensors() -> None:
    """On the meta device the operators tell the shape of the result; a number has none to tell."""
    y, w = torch.from_numpy(Y).to("meta"), torch.from_numpy(W).to("meta")
    assert invconv.solve(y, w).shape == y.shape and invconv.solve(y, w).is_meta
    assert invconv.conv(y, w).is_meta
    assert invconv.weight_grad(y, y, 2).shape == w.shape
    assert invconv.logabsdet(w, (4, 5)).shape == ()
    with pytest.raises(TypeError, match=r"^\[growth\] expected .* but got .*meta"):
        invconv.growth(w, (4, 5))
    with pytest.raises(ValueError, match=r"^\[solve\] expected weight of shape"):
        invconv.solve(y, torch.zeros(5, 5, 3, 3, device="meta"))


class OnDevice(Minimal):
    """Says that it lives elsewhere; it must be refused before its memory is touched."""

    def __init__(self, array: Any, kind: int = 2, number: int = 0) -> None:
        super().__init__(array)
        self._device = (kind, number)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, **kwargs: Any) -> Any:
        raise AssertionError("exported although its device had to be refused")


def message_of(kind: type[Exception], call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert type(caught.value) is kind
    return str(caught.value)


def test_arrays_of_two_devices_are_refused() -> None:
    y, g, w = (OnDevice(a) for a in (Y, G, W))
    one = "on one device, but got"
    for call, message in (
        (lambda: invconv.solve(y, W), f"[solve] expected y and weight {one} cuda:0 and cpu"),
        (lambda: invconv.conv(Y, w), f"[conv] expected x and weight {one} cpu and cuda:0"),
        (
            lambda: invconv.solve(y, OnDevice(W, number=1)),
            f"[solve] expected y and weight {one} cuda:0 and cuda:1",
        ),
        (lambda: invconv.solve(y, w, out=Y), f"[solve] expected y and out {one} cuda:0 and cpu"),
        (
            lambda: invconv.weight_grad(Minimal(Y), g, 2),
            f"[weight_grad] expected x and g {one} cpu and cuda:0",
        ),
    ):
        assert message_of(TypeError, call) == message


def test_other_devices_are_refused() -> None:
    for kind, name in ((8, "metal:0"), (14, "oneapi:0"), (99, "the DLPack device (99, 0)")):
        text = f"expected arrays on the CPU or a CUDA device, but got y on {name}"
        message = message_of(ValueError, invconv.solve, OnDevice(Y, kind), W)
        assert message == f"[solve] {text}"
    text = "expected arrays on the CPU or a CUDA device, but got weight on metal:0"
    for function in (invconv.growth, invconv.logabsdet):
        call = functools.partial(function, OnDevice(W, 8), 3)
        assert message_of(ValueError, call) == f"[{function.__name__}] {text}"
    with FakeTensorMode():  # torch has these devices on no machine here, and their names on all
        for device in ("mps", "xpu"):
            y, w = (torch.empty(a.shape, device=device) for a in (Y, W))
            text = f"expected tensors on the CPU or a CUDA device, but got y on {device}:0"
            assert message_of(ValueError, invconv.solve, y, w) == f"[solve] {text}"


NO_KERNELS = invconv.build_info()["cuda_kernels"] == "no"


def expect_no_kernels() -> None:
    text = (
        "on the CPU, since this build has no CUDA kernels, but got {} on cuda:0; built from source "
        "where nvcc is found, invconv has them"
    )
    y, w = OnDevice(Y), OnDevice(W)
    message = message_of(ValueError, invconv.solve, y, w)
    assert message == "[solve] expected y " + text.format("y")
    with FakeTensorMode():
        y, w = (torch.empty(a.shape, device="cuda") for a in (Y, W))
        message = message_of(ValueError, invconv.weight_grad, y, y, 2)
        assert message == "[weight_grad] expected x " + text.format("x")


@pytest.mark.skipif(not NO_KERNELS, reason="this build has CUDA kernels")
def test_a_build_without_kernels_says_how_to_get_them() -> None:
    expect_no_kernels()


@pytest.mark.skipif(NO_KERNELS, reason="this build has no CUDA kernels")
def test_what_a_build_without_kernels_would_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "has_cuda", lambda: False)
    expect_no_kernels()


@pytest.mark.skipif(
    NO_KERNELS or _core.cuda_devices() > 0, reason="needs CUDA kernels and no CUDA device"
)
def test_kernels_without_a_device() -> None:
    """The CPU serves as ever, and CUDA fails with the right error. All tests show the former."""
    np.testing.assert_array_equal(invconv.conv(invconv.solve(Y, W), W).shape, Y.shape)
    y, w = OnDevice(Y), OnDevice(W)
    message = message_of(RuntimeError, invconv.solve, y, w)
    assert message == (
        "[solve] expected y on a CUDA device of this machine, of which the driver finds 0, "
        "but got y on cuda:0"
    )
    message = message_of(RuntimeError, _core.synchronize, 0, 1)
    assert message.startswith("[cuda] the device: ")
    arguments = ("solve", "float32", (1, 1, 2, 2), (1, 1, 1, 1), 1, 0)
    message = message_of(RuntimeError, _core.workspace_size, *arguments)
    assert message.startswith("[cuda] the device: ")


def test_capsules_are_read_and_not_used_up() -> None:
    """What the core says of an array's capsule is what the array says."""
    for array in (
        Y,
        Y[::2, :, ::-1],
        Y.transpose(3, 0, 2, 1).astype(np.float64),
        np.zeros((0, 3, 2, 2), np.float16),
    ):
        for version in ({}, {"max_version": (1, 0)}):
            capsule = array.__dlpack__(**version)
            for _ in range(2):
                kind, number, address, dtype, shape, strides, read_only = _core.read_dlpack(capsule)
                assert (kind, number, address) == (1, 0, array.ctypes.data)
                assert (dtype, shape, read_only) == (array.dtype.name, array.shape, False)
                steps = tuple(step // array.itemsize for step in array.strides)
                assert array.size == 0 or strides == steps
    assert _core.read_dlpack(torch.zeros(3, dtype=torch.bfloat16).__dlpack__())[3] == "bfloat16"
    assert _core.read_dlpack(torch.zeros(3, dtype=torch.int64).__dlpack__())[3] == "int64"
    locked = Y.copy()
    locked.flags.writeable = False
    assert _core.read_dlpack(locked.__dlpack__(max_version=(1, 0)))[6] is True
    used = Y.__dlpack__()

    class Once(Minimal):
        def __dlpack__(self, **kwargs: Any) -> Any:
            return used

    np.from_dlpack(Once(Y))
    for other in (used, Y):
        with pytest.raises(TypeError, match="no DLPack capsule, or one that is used up"):
            _core.read_dlpack(other)
