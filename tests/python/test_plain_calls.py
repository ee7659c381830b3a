"""Plain calls go straight to the core, and nothing else does.

A call that is not plain must take the general way: each test here of something that is not plain
fails if the call went to the core all the same.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import invconv
from invconv import _array, _core, _torch

RNG = np.random.default_rng(3)
Y = RNG.standard_normal((2, 4, 5, 6)).astype(np.float32)
G = RNG.standard_normal((2, 4, 5, 6)).astype(np.float32)
W = (RNG.standard_normal((4, 4, 3, 3)) * 0.05).astype(np.float32)
X = invconv.solve(Y, W)
W2 = (RNG.standard_normal((4, 2, 3, 3)) * 0.05).astype(np.float32)


# Torch's own forward mode compiles its helpers with a function that torch itself deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.tensor(Y), torch.tensor(W), torch.tensor(G)


class Recorder(TorchDispatchMode):
    """Watches, so that no call is plain."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.seen.append(str(function))
        return function(*args, **kwargs or {})


# --- The core -------------------------------------------------------------------------------------


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def packed(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """With strides that are no multiples of the element."""
    records = np.zeros(array.shape, dtype=[("flag", "u1"), ("value", array.dtype)])
    records["value"] = array
    return records["value"]


def misaligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    memory = b"\0" + array.tobytes()
    return np.frombuffer(memory, array.dtype, offset=1).reshape(array.shape)


def described(array: np.ndarray[Any, Any], **changes: Any) -> tuple[Any, ...]:
    """As the tensors come."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    description = {
        "address": array.ctypes.data,
        "dtype": array.dtype.name,
        "shape": array.shape,
        "strides": strides,
    }
    return tuple((description | changes).values())


IN_PLACE = Y.copy()
SHIFTED = np.zeros(Y.size + 1, np.float32)
DESCRIBED = Y.copy()

NOT_PLAIN: dict[str, dict[str, Any]] = {
    "a list": {"y": Y.tolist()},
    "nothing": {"y": None},
    "bytes": {"y": b"0" * Y.nbytes},
    "integers": {"y": Y.astype(np.int32), "x": np.empty(Y.shape, np.int32)},
    "complex": {"y": Y.astype(np.complex64), "x": np.empty(Y.shape, np.complex64)},
    "long double": {"y": Y.astype(np.longdouble), "x": np.empty(Y.shape, np.longdouble)},
    "other byte order": {"y": Y.astype(">f4")},
    "weight of another dtype": {"weight": W.astype(np.float64)},
    "x of another dtype": {"x": np.empty(Y.shape)},
    "two axes": {"y": Y[0, 0], "x": np.empty(Y.shape[2:], np.float32)},
    "five axes": {"y": Y[None], "x": np.empty((1, *Y.shape), np.float32)},
    "weight of three axes": {"weight": W[0]},
    "x of another shape": {"x": np.empty((2, 4, 6, 5), np.float32)},
    "x without the batch": {"y": Y[:1], "x": np.empty(Y.shape[1:], np.float32)},
    "packed records": {"y": packed(Y)},
    "misaligned": {"weight": misaligned(W)},
    "read-only x": {"x": read_only(Y)},
    "x of repeated elements": {"x": np.broadcast_to(np.zeros((1, 4, 5, 6), np.float32), Y.shape)},
    "x shifted against y": {
        "y": SHIFTED[:-1].reshape(Y.shape),
        "x": SHIFTED[1:].reshape(Y.shape),
    },
    "y read backwards": {"y": IN_PLACE, "x": IN_PLACE[::-1]},
    "corner of another name": {"corner": "xx"},
    "corner as a list": {"corner": ["tl"]},
    "no corner": {"corner": ()},
    "corners of another kind": {"corner": ("tl", 3)},
    "corner of numpy's string": {"corner": np.str_("tl")},
    "corner that is no text": {"corner": "\ud800"},
    "unit_diagonal as a number": {"unit_diagonal": 1},
    "unit_diagonal of numpy": {"unit_diagonal": np.True_},
    "transpose as a number": {"transpose": 0},
    "groups as a truth value": {"groups": True},
    "groups of numpy": {"groups": np.int64(1)},
    "groups beyond 64 bits": {"groups": 2**63},
    "groups as a float": {"groups": 1.0},
    "description too short": {"y": described(Y)[:3]},
    "address that is no number": {"y": described(Y, address="0")},
    "address of nothing": {"y": described(Y, address=0)},
    "negative address": {"y": described(Y, address=-(2**70))},
    "odd address": {"y": described(Y, address=DESCRIBED.ctypes.data + 2)},
    "described as integers": {"y": described(Y, dtype="int32")},
    "described without a dtype": {"y": described(Y, dtype=None)},
    "described as half": {"y": described(Y, dtype="float16")},
    "shape as a list": {"y": described(Y, shape=list(Y.shape))},
    "shape of floats": {"y": described(Y, shape=(2.0, 4, 5, 6))},
    "a stride too few": {"y": described(Y, strides=(30, 6, 1))},
    "two axes described": {"y": described(Y, shape=(5, 6), strides=(6, 1))},
    "tensor of integers": {"y": torch.zeros(Y.shape, dtype=torch.int32)},
    "tensor of half": {"weight": torch.zeros(W.shape, dtype=torch.float16)},
    "tensor of two axes": {"y": torch.zeros(5, 6)},
    "tensor without memory": {"y": torch.zeros(Y.shape, device="meta")},
    "sparse tensor": {"weight": torch.zeros(W.shape).to_sparse()},
    "x described as repeated": {
        "y": described(Y),
        "x": described(DESCRIBED, strides=(0, 30, 6, 1)),
    },
    "x described as overlapping": {
        "y": described(DESCRIBED),
        "x": described(DESCRIBED, strides=(120, 30, 1, 5)),
    },
}


@pytest.mark.parametrize("run", [_core.solve, _core.conv])
@pytest.mark.parametrize("what", NOT_PLAIN)
def test_core_refuses_what_is_not_plain(what: str, run: Callable[..., bool]) -> None:
    """It does nothing but say so; the call is repeated with the same argument made plain."""
    plain: dict[str, Any] = {
        "y": Y,
        "weight": W,
        "x": np.full_like(Y, 7),
        "corner": "tl",
        "unit_diagonal": True,
        "groups": 1,
        "transpose": False,
    }
    arguments = plain | NOT_PLAIN[what]
    before = [a.tobytes() if isinstance(a, np.ndarray) else a for a in arguments.values()]
    assert run(*arguments.values()) is False
    assert [a.tobytes() if isinstance(a, np.ndarray) else a for a in arguments.values()] == before
    assert run(*plain.values()) is True
    assert not np.any(plain["x"] == 7)


def test_core_takes_what_is_plain() -> None:
    expected = invconv.solve(Y, W2, corner=["tl", "br"], groups=np.int64(2))

    def solved(y: Any, weight: Any, x: Any) -> bool:
        return _core.solve(y, weight, x, ("tl", "br"), True, 2, False)

    for layout in reference.LAYOUTS:
        if layout == "expanded":
            continue
        x = reference.lay_out(np.zeros_like(Y), layout, RNG)
        assert solved(reference.lay_out(Y, layout, RNG), reference.lay_out(W2, layout, RNG), x)
        np.testing.assert_array_equal(x, expected)
    x = np.empty_like(Y)
    assert solved(described(Y), described(W2), described(x))
    np.testing.assert_array_equal(x, expected)
    x = np.empty_like(Y)
    backwards = torch.from_numpy(np.ascontiguousarray(Y.transpose(3, 1, 0, 2))).permute(2, 1, 3, 0)
    assert solved(backwards, torch.nn.Parameter(torch.from_numpy(W2)), torch.from_numpy(x))
    np.testing.assert_array_equal(x, expected)
    assert solved(read_only(Y), read_only(W2), x)
    x = Y.copy()
    assert solved(x, W2, x)
    np.testing.assert_array_equal(x, expected)
    x = np.empty_like(Y[0])
    assert solved(Y[0], W2, x)
    np.testing.assert_array_equal(x, expected[0])
    # A stride that is never taken may be anything, as may those of an array without elements.
    assert solved(
        np.lib.stride_tricks.as_strided(Y, (1, *Y.shape[1:]), (7, *Y.strides[1:])), W2, x[None]
    )
    empty = np.empty((0, 4, 5, 6), np.float32)
    assert solved(empty, W2, empty) and solved(described(empty, address=0), W2, empty)


def test_the_other_functions_of_the_core() -> None:
    dw = np.full_like(W, 7)
    for changes in (
        {"x": Y.astype(np.float64)},
        {"x": Y[0]},
        {"x": Y[0, 0]},
        {"dw": dw[0]},
        {"dw": read_only(dw)},
        {"dw": np.empty(W.shape)},
        {"corner": "xx"},
        {"unit_diagonal": 1},
        {"groups": True},
    ):
        plain = {"x": Y, "g": G, "dw": dw, "corner": "tl", "unit_diagonal": True, "groups": 1}
        assert _core.weight_grad(*(plain | changes).values()) is False
        assert np.all(dw == 7)
    dy = np.full_like(Y, 7)
    for changes in (
        {"x": Y.astype(np.float64)},
        {"x": Y[0]},
        {"g": G[0]},
        {"g": G.astype(np.float16)},
        {"weight": W[0]},
        {"weight": W.astype(np.float64)},
        {"dy": read_only(dy)},
        {"dy": np.empty(Y.shape)},
        {"dw": read_only(dw)},
        {"dw": np.empty(W.shape)},
        {"corner": "xx"},
        {"unit_diagonal": 1},
        {"groups": True},
        {"transpose": None},
    ):
        arrays = {"x": X, "g": G, "weight": W, "dy": dy, "dw": dw}
        plain = arrays | {"corner": "tl", "unit_diagonal": True, "groups": 1, "transpose": False}
        assert _core.solve_backward(*(plain | changes).values()) is False
        assert np.all(dy == 7) and np.all(dw == 7)
    for number in (_core.logabsdet, _core.growth):
        for changes in (
            {"weight": W.astype(np.int32)},
            {"weight": W[0]},
            {"height": 5.0},
            {"width": "6"},
            {"corner": None},
            {"unit_diagonal": None},
            {"groups": 2**64},
        ):
            weight_and_size = {"weight": W, "height": 5, "width": 6}
            plain = weight_and_size | {"corner": "tl", "unit_diagonal": True, "groups": 1}
            assert number(*(plain | changes).values()) is None
            assert type(number(*plain.values())) is float


# --- What goes straight to it ---------------------------------------------------------------------


def never(*_: Any) -> Any:
    raise AssertionError("a plain call took the general way")


@pytest.mark.parametrize("function", [invconv.solve, invconv.conv])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_plain_arrays(
    function: Callable[..., Any], dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, w = Y.astype(dtype), W2.astype(dtype)
    options: dict[str, Any] = {"corner": ("tr", "bl"), "groups": 2, "transpose": True}
    expected = function(y[::-1, ::-1][::-1, ::-1], w, **options)
    monkeypatch.setattr(_array, "_numpy", never)
    np.testing.assert_array_equal(function(y, w, **options), expected)
    np.testing.assert_array_equal(function(y[0], w, **options), expected[0])
    assert function(y, w, out=y, **options) is y
    np.testing.assert_array_equal(y, expected)


@pytest.fixture(params=["itself", "described"])
def tensors_as(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors go to the core as they are, or described, as with older versions of torch."""
    monkeypatch.setattr(_torch, "_memory", getattr(_torch, f"_{request.param}"))


@pytest.mark.usefixtures("tensors_as")
@pytest.mark.parametrize("function", [invconv.solve, invconv.conv])
@pytest.mark.parametrize("dtype", list(_torch._DTYPE_NAMES))
def test_plain_tensors(
    function: Callable[..., Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, w, _ = (t.to(dtype) for t in tensors())
    with Recorder():
        expected = function(y, w)
    monkeypatch.setattr(_torch, "_filter", never)
    assert torch.equal(function(y, w), expected)
    assert torch.equal(function(y[0], w), expected[0])
    with torch.inference_mode():
        result = function(y.clone(), w)
        assert torch.equal(result, expected) and result.is_inference()
    parameter = torch.nn.Parameter(w)
    with torch.no_grad():
        result = function(y, parameter)
    assert torch.equal(result, expected) and not result.requires_grad
    out = torch.empty_like(y, memory_format=torch.channels_last)
    version = out._version
    assert function(y, w, out=out) is out
    assert torch.equal(out, expected) and out._version == version + 1
    assert function(y, w, out=y) is y
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    "lay_out",
    [
        lambda t: t,
        lambda t: t[1],
        lambda t: t[:1],
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: t.contiguous(memory_format=torch.channels_last)[1],
        lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
        lambda t: t[:, ::2].repeat(1, 2, 1, 1)[:, :, 1:, ::2],
        lambda t: t[:1].expand(3, -1, -1, -1),
        lambda t: t[:, :, :0],
    ],
)
def test_results_lie_in_memory_as_they_do_from_the_operator(lay_out: Callable[..., Any]) -> None:
    y, w, _ = tensors()
    y = lay_out(y)
    with Recorder():
        expected = invconv.solve(y, w)
    result = invconv.solve(y, w)
    assert torch.equal(result, expected) and result.stride() == expected.stride()


# --- What does not --------------------------------------------------------------------------------


def test_compiled_before_the_first_call() -> None:
    """What a call loads or looks up on its way may not end in the guards of a graph."""
    code = """
import torch, invconv
y, w = torch.ones(1, 2, 3, 3), torch.full((2, 2, 2, 2), 0.1)
compiled = torch.compile(invconv.solve, backend="aot_eager", fullgraph=True)
assert torch.equal(compiled(y, w), invconv.solve(y, w))
assert torch.equal(compiled(y + 1, w), invconv.solve(y + 1, w))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_dispatch_mode_sees_the_operators() -> None:
    y, w, g = tensors()
    w.requires_grad_()
    with Recorder() as recorder:
        x = invconv.solve(y, w)
        invconv.conv(y, w.detach())
        invconv.weight_grad(y, g, 3)
        x.backward(g)
    for name, calls in {"solve": 2, "conv": 1, "weight_grad": 2}.items():
        assert recorder.seen.count(f"invconv.{name}.default") == calls


def test_a_function_mode_sees_the_operators() -> None:
    class Recorder(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(function))
            return function(*args, **kwargs or {})

    seen: list[str] = []
    y, w, g = tensors()
    with Recorder():
        invconv.solve(y, w)
        invconv.conv(y, w)
        invconv.weight_grad(y, g, 3)
    assert {"invconv.solve", "invconv.conv", "invconv.weight_grad"} <= set(seen)


@pytest.mark.parametrize("position", [0, 1])
def test_a_subclass_of_tensor_sees_the_operators(position: int) -> None:
    class Image(torch.Tensor):
        @classmethod
        def __torch_function__(
            cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(function))
            return super().__torch_function__(function, types, args, kwargs or {})

    seen: list[str] = []
    y, w, g = tensors()
    for function, arguments in {
        invconv.solve: [y, w],
        invconv.conv: [y, w],
        invconv.weight_grad: [y, g, 3],
    }.items():
        arguments[position] = arguments[position].as_subclass(Image)
        assert type(function(*arguments)) is Image
    assert {"invconv.solve", "invconv.conv", "invconv.weight_grad"} <= set(seen)


def test_the_profiler_sees_the_operators() -> None:
    y, w, g = tensors()
    with torch.autograd.profiler.profile() as profile:
        invconv.solve(y, w)
        invconv.conv(y, w)
        invconv.weight_grad(y, g, 3)
    names = {event.name for event in profile.function_events}
    assert {"invconv::solve", "invconv::conv", "invconv::weight_grad"} <= names


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_jit_trace_is_no_constant() -> None:
    y, w, _ = tensors()
    traced = torch.jit.trace(lambda y: invconv.conv(invconv.solve(y, w), w), y, check_trace=False)
    torch.testing.assert_close(traced(y + 1), y + 1)


def test_the_tangents_of_forward_mode_come_along() -> None:
    y, w, g = tensors()
    with torch.autograd.forward_ad.dual_level():
        for function, arguments in (
            (invconv.solve, (g, w)),
            (invconv.conv, (g, w)),
            (lambda y, g: invconv.weight_grad(y, g, 3), (g, g)),
        ):
            dual = torch.autograd.forward_ad.make_dual(y, arguments[0])
            result = function(dual, arguments[1])
            tangent = torch.autograd.forward_ad.unpack_dual(result).tangent
            assert torch.equal(tangent, function(*arguments))


def test_transforms_see_what_they_map() -> None:
    y, w, g = tensors()
    assert torch.equal(
        torch.func.vmap(invconv.solve, (None, 0))(y, torch.stack([w, w / 2]))[1],
        invconv.solve(y, w / 2),
    )
    gradient = torch.func.grad(lambda w: (invconv.solve(y, w) * g).sum())(w)
    assert torch.equal(
        gradient,
        -invconv.weight_grad(invconv.solve(y, w), invconv.solve(g, w, transpose=True), 3),
    )


@pytest.mark.parametrize("function", [invconv.solve, invconv.conv, None])
def test_transforms_see_what_they_do_not_map(function: Callable[..., Any] | None) -> None:
    """Tensors from outside of a transform that require a gradient."""
    y, w, _ = tensors()
    y.requires_grad_()

    def result() -> torch.Tensor:
        product: torch.Tensor = invconv.weight_grad(y, y, 3) if function is None else function(y, w)
        return product

    (g,) = torch.autograd.grad(result().square().sum(), y)
    z = torch.ones(result().shape)
    product = torch.func.vmap(lambda z: result() * z)(torch.stack([z, 2 * z]))
    assert torch.equal(product[1], 2 * result())
    total = torch.func.grad(lambda z: (result() * z.square()).sum())(z / 2)
    assert torch.equal(total, result())
    assert torch.equal(torch.autograd.grad((total * result().detach()).sum(), y)[0], g / 2)


@pytest.mark.usefixtures("tensors_as")
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtype", list(_torch._DTYPE_NAMES))
def test_plain_gradients(
    dtype: torch.dtype, transpose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, w, g = (tensor.to(dtype) for tensor in tensors())
    w = w[:, :2]
    leaves = (y.requires_grad_(), w.requires_grad_())
    options: Any = {"corner": ("br", "tr"), "groups": 2, "transpose": transpose}
    # Gradients that are differentiated again take the general way.
    x = invconv.solve(*leaves, **options)
    expected = torch.autograd.grad(x, leaves, g, create_graph=True)
    assert all(gradient.requires_grad for gradient in expected)
    with monkeypatch.context() as patches:
        patches.setattr(_torch, "_filter", never)
        x = invconv.solve(*leaves, **options)
    for incoming in (g, g.mT.contiguous().mT):
        with monkeypatch.context() as patches:
            patches.setattr(_torch, "_solve", never)
            patches.setattr(_torch, "_weight_grad", never)
            dy, dw = torch.autograd.grad(x, leaves, incoming, retain_graph=True)
        assert torch.equal(dy, expected[0]) and torch.equal(dw, expected[1])
        assert dy.stride() == y.stride() and not dy.requires_grad and not dw.requires_grad
    (only,) = torch.autograd.grad(x, leaves[1], g)
    assert torch.equal(only, expected[1])


@pytest.mark.parametrize("needs", [{"y"}, {"weight"}, {"y", "weight"}])
@pytest.mark.parametrize("corner", ["tr", ("br", "tl")])
@pytest.mark.parametrize("function", [invconv.solve, invconv.conv])
def test_plain_calls_are_recorded_as_others_are(
    function: Callable[..., Any], corner: Any, needs: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    g = tensors()[2].requires_grad_()

    def to_second_order() -> list[torch.Tensor]:
        y = torch.tensor(Y, requires_grad="y" in needs)
        w = torch.tensor(W2, requires_grad="weight" in needs)
        leaves = [leaf for leaf in (y, w) if leaf.requires_grad]
        result = function(y, w, corner=corner, groups=2, transpose=True)
        first = torch.autograd.grad(result, leaves, g, create_graph=True)
        total = torch.stack([(gradient**2).sum() for gradient in first]).sum()
        second = torch.autograd.grad(total, [g, *leaves], materialize_grads=True)
        return [result, *first, *second]

    with monkeypatch.context() as patches:
        patches.setattr(_torch, "_is_plain", lambda *_, **__: False)
        expected = to_second_order()
    monkeypatch.setattr(_torch, "_filter", never)
    for value, other in zip(to_second_order(), expected, strict=True):
        assert torch.equal(value, other)


def test_a_mode_sees_the_operators_of_a_gradient() -> None:
    y, w, g = tensors()
    x = invconv.solve(y, w.requires_grad_())
    with Recorder() as recorder:
        torch.autograd.grad(x, w, g)
    assert any("solve" in name for name in recorder.seen)
    assert any("weight_grad" in name for name in recorder.seen)


@pytest.mark.parametrize("needs", ["y", "weight"])
def test_what_needs_a_gradient_gets_one(needs: str) -> None:
    y, w, _ = tensors()
    (y if needs == "y" else w).requires_grad_()
    for function in (invconv.solve, invconv.conv):
        assert function(y, w).requires_grad
        with pytest.raises(ValueError, match=r"do not require a gradient together with out="):
            function(y, w, out=torch.empty(Y.shape))
        with pytest.raises(ValueError, match=r"do not require a gradient together with out="):
            function(y.detach(), w.detach(), out=torch.empty(Y.shape, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_makes_float32_of_the_half_types(dtype: torch.dtype) -> None:
    y, w, g = (t.to(dtype) for t in tensors())
    with torch.autocast("cpu"):
        assert invconv.solve(y, w).dtype == torch.float32
        assert invconv.conv(y, w).dtype == torch.float32
        assert invconv.weight_grad(y, g, 3).dtype == torch.float32


KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "lazy minus sign": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
    "zero without memory": lambda t: torch._efficientzerotensor(t.shape),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [0, 1])
def test_tensors_whose_memory_is_not_their_values(kind: str, position: int) -> None:
    y, w, _ = tensors()
    arguments = [y, w]
    arguments[position] = KINDS[kind](arguments[position])
    copies = [torch.zeros_like(y if p == 0 else w).add_(t) for p, t in enumerate(arguments)]
    for function in (invconv.solve, invconv.conv):
        assert torch.equal(function(*arguments), function(*copies))
    out = KINDS["lazy minus sign"](torch.zeros_like(y))
    assert invconv.solve(y, w, out=out) is out
    assert torch.equal(out.resolve_neg(), invconv.solve(y, w))


def test_a_tensor_whose_storage_is_gone_is_refused() -> None:
    """As models that are split over machines leave their weights between calls."""
    y, w, _ = tensors()
    w.untyped_storage().resize_(0)
    for needs_grad in (False, True):
        with pytest.raises(TypeError, match=r"^\[solve\] expected .*weight.*but got"):
            invconv.solve(y, w.requires_grad_(needs_grad))


def test_out_that_shares_memory_through_another_storage() -> None:
    memory = np.zeros(Y.size + 8, np.float32)
    y = torch.from_numpy(memory[:-8].reshape(Y.shape))
    out = torch.from_numpy(memory[8:].reshape(Y.shape))
    y.copy_(torch.from_numpy(Y))
    w = torch.from_numpy(W)
    assert invconv.solve(y, w, out=out) is out
    np.testing.assert_array_equal(out.numpy(), X)
