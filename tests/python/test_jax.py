"""invconv.jax: the primitives under jax's transformations, against a dense matrix in jax itself."""

from __future__ import annotations

import doctest
import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import torch

import invconv
import invconv.jax as ij

SHAPE, TAPS = (2, 4, 3, 4), (4, 2, 3, 2)
CASES = [
    {"groups": 2, "corner": corner, "unit_diagonal": unit, "transpose": transpose}
    for corner in ("tl", ("tr", "bl"))
    for unit in (True, False)
    for transpose in (False, True)
]
# Sums of some tens of products of order 1, and solves whose matrix has a condition below 100.
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}

every_case = pytest.mark.parametrize(
    "options", CASES, ids=lambda case: "-".join(map(str, case.values()))
)

pytestmark = pytest.mark.usefixtures("double")


def arrays(seed: int = 0, corner: Any = "tl") -> tuple[jax.Array, jax.Array]:
    """Images, and a weight whose diagonal is near 1."""
    rng = np.random.default_rng(seed)
    weight = 0.1 * rng.standard_normal(TAPS)
    names = reference.corner_of_each_group(corner, 2)
    for o in range(4):
        weight[(o, o % 2, *reference.padding(names[o // 2], 3, 2).anchor)] = 0.8 + 0.1 * o
    return jnp.asarray(rng.standard_normal(SHAPE)), jnp.asarray(weight)


def conv_by_lax(
    x: Any,
    weight: Any,
    *,
    groups: int = 1,
    corner: Any = "tl",
    unit_diagonal: bool = True,
    transpose: bool = False,
) -> Any:
    """The convolution in jax's own operations."""
    channels, _, kh, kw = weight.shape
    names = reference.corner_of_each_group(corner, groups)
    read = reference.is_read(corner, unit_diagonal, groups, weight.shape)
    ones = np.zeros(weight.shape)
    size = channels // groups
    for o in range(channels):
        ones[(o, o % size, *reference.padding(names[o // size], kh, kw).anchor)] = unit_diagonal
    weight = jnp.where(read, weight, 0.0) + ones

    def forward(x: Any) -> Any:
        parts = []
        for group, name in enumerate(names):
            channel = slice(group * size, (group + 1) * size)
            pad = reference.padding(name, kh, kw)
            parts.append(
                jax.lax.conv_general_dilated(
                    x[:, channel],
                    weight[channel],
                    (1, 1),
                    ((pad.top, pad.bottom), (pad.left, pad.right)),
                )
            )
        return jnp.concatenate(parts, 1)

    return jax.linear_transpose(forward, x)(x)[0] if transpose else forward(x)


def solve_by_matrix(y: jax.Array, weight: jax.Array, **options: Any) -> jax.Array:
    """The dense matrix's own solve."""
    one = y.shape[1:]
    columns = jnp.eye(int(np.prod(one))).reshape(-1, *one)
    matrix = conv_by_lax(columns, weight, **options).reshape(len(columns), -1).T
    return jnp.linalg.solve(matrix, y.reshape(len(y), -1).T).T.reshape(y.shape)


def weight_grad_by_lax(x: jax.Array, g: jax.Array, **options: Any) -> jax.Array:
    """The derivative by its definition."""
    return jax.grad(lambda weight: (g * conv_by_lax(x, weight, **options)).sum())(jnp.zeros(TAPS))


def pairs(options: dict[str, Any]) -> Iterator[tuple[Callable[..., Any], Callable[..., Any], Any]]:
    """Each function with these options, its reference, and its arrays."""
    y, weight = arrays(corner=options["corner"])
    yield (
        functools.partial(ij.solve, **options),
        functools.partial(solve_by_matrix, **options),
        (y, weight),
    )
    yield (
        functools.partial(ij.conv, **options),
        functools.partial(conv_by_lax, **options),
        (y, weight),
    )
    if not options["transpose"]:
        of_weight = {k: v for k, v in options.items() if k != "transpose"}
        yield (
            functools.partial(ij.weight_grad, kernel_size=(3, 2), **of_weight),
            functools.partial(weight_grad_by_lax, **of_weight),
            (y, arrays(1)[0]),
        )


def assert_close(result: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), result, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@every_case
def test_the_bits_of_the_core(options: dict[str, Any], dtype: str) -> None:
    y, weight = (a.astype(dtype) for a in arrays(corner=options["corner"]))
    y_, weight_ = (
        torch.from_numpy(np.array(a, np.float64)).to(getattr(torch, dtype)) for a in (y, weight)
    )
    of_weight = {k: v for k, v in options.items() if k != "transpose"}
    for result, expected in (
        (ij.solve(y, weight, **options), invconv.solve(y_, weight_, **options)),
        (ij.conv(y, weight, **options), invconv.conv(y_, weight_, **options)),
        (
            jax.jit(functools.partial(ij.solve, **options))(y, weight),
            invconv.solve(y_, weight_, **options),
        ),
        (
            ij.weight_grad(y, y, (3, 2), per_sample=True, **of_weight),
            invconv.weight_grad(y_, y_, (3, 2), per_sample=True, **of_weight),
        ),
    ):
        assert result.dtype == dtype
        np.testing.assert_array_equal(np.asarray(result, np.float64), expected.double().numpy())


@every_case
def test_derivatives_of_every_kind(options: dict[str, Any]) -> None:
    for function, expected, inputs in pairs(options):
        assert_close(jax.jit(function)(*inputs), expected(*inputs))

        def loss(f: Callable[..., Any], *inputs: Any) -> Any:
            return (f(*inputs) ** 2).sum()

        ours, theirs = functools.partial(loss, function), functools.partial(loss, expected)
        both = (0, 1)
        assert_close(jax.grad(ours, both)(*inputs), jax.grad(theirs, both)(*inputs))
        assert_close(jax.jit(jax.grad(ours, both))(*inputs), jax.grad(theirs, both)(*inputs))
        tangents = tuple(a[::-1] for a in inputs)
        assert_close(jax.jvp(function, inputs, tangents), jax.jvp(expected, inputs, tangents))
        assert_close(
            jax.linearize(function, *inputs)[1](*tangents), jax.jvp(expected, inputs, tangents)[1]
        )
        assert_close(jax.jacfwd(function, both)(*inputs), jax.jacfwd(expected, both)(*inputs))
        assert_close(jax.jacrev(function, both)(*inputs), jax.jacrev(expected, both)(*inputs))


@every_case
def test_second_derivatives(options: dict[str, Any]) -> None:
    """Forward over reverse, reverse over reverse and reverse over forward."""
    for function, expected, (a, b) in pairs(options):
        direction = jnp.cos(jnp.arange(b.size)).reshape(b.shape)

        def loss(
            f: Callable[..., Any], t: Any, a: Any = a, b: Any = b, direction: Any = direction
        ) -> Any:
            return (f(a * (1 + t), b + t * direction) ** 2).sum()

        def of_images(f: Callable[..., Any], a: Any, b: Any = b) -> Any:
            return (f(a, b) ** 3).sum()

        ours, theirs = functools.partial(loss, function), functools.partial(loss, expected)
        second = jax.grad(jax.grad(theirs))(0.1)
        for nested in (
            jax.jacfwd(jax.grad(ours)),
            jax.grad(jax.grad(ours)),
            jax.grad(jax.jacfwd(ours)),
        ):
            np.testing.assert_allclose(nested(0.1), second, rtol=1e-9)
        assert_close(
            jax.hessian(functools.partial(of_images, function))(a),
            jax.hessian(functools.partial(of_images, expected))(a),
        )


@pytest.mark.parametrize("per_sample", [False, True])
def test_vmap_is_a_loop(per_sample: bool) -> None:
    """Over images, over weights and over both, at any axis, twice, and inside of a gradient."""
    options: dict[str, Any] = {"groups": 2, "corner": ("tr", "bl"), "unit_diagonal": False}
    stacks = [arrays(seed, options["corner"]) for seed in range(3)]
    y = jnp.stack([image for image, _ in stacks])
    weight = jnp.stack([weight for _, weight in stacks])
    if per_sample:
        weight = jnp.stack([weight, weight[::-1]], 1)  # of each of the two images
    for f in (ij.solve, ij.conv):
        function = functools.partial(f, **options)
        for axes in ((0, 0), (0, None), (None, 0)):
            a = y if axes[0] == 0 else y[0]
            b = weight if axes[1] == 0 else weight[0]
            expected = jnp.stack(
                [
                    function(a[i] if axes[0] == 0 else a, b[i] if axes[1] == 0 else b)
                    for i in range(3)
                ]
            )
            assert_close(jax.vmap(function, axes)(a, b), expected)
            gradient = jax.grad(lambda a, b, f=function: (f(a, b) ** 2).sum(), (0, 1))
            assert_close(
                jax.vmap(gradient, axes)(a, b),
                jax.tree.map(
                    lambda *of: jnp.stack(of),
                    *[
                        gradient(a[i] if axes[0] == 0 else a, b[i] if axes[1] == 0 else b)
                        for i in range(3)
                    ],
                ),
            )
        moved = jax.vmap(function, (2, -1), 1)(jnp.moveaxis(y, 0, 2), jnp.moveaxis(weight, 0, -1))
        assert_close(moved, jnp.moveaxis(jax.vmap(function)(y, weight), 0, 1))
        twice = jax.vmap(jax.vmap(function, (None, 0)), (0, None))(y, weight)
        assert_close(twice, jnp.stack([jnp.stack([function(a, b) for b in weight]) for a in y]))
    both = jax.vmap(lambda x, g: ij.weight_grad(x, g, (3, 2), per_sample=per_sample, **options))
    expected = [ij.weight_grad(a, a, (3, 2), per_sample=per_sample, **options) for a in y]
    assert_close(both(y, y), jnp.stack(expected))


def test_one_image_at_a_time() -> None:
    """vmap over a function of images (C, H, W) is the function of the batch, to the bit."""
    y, weight = arrays()
    options: dict[str, Any] = {"groups": 2}
    result = jax.vmap(lambda y: ij.solve(y, weight, **options))(y)
    np.testing.assert_array_equal(result, ij.solve(y, weight, **options))


def test_inside_jax_control_flow() -> None:
    y, weight = arrays()

    @jax.jit
    def iterate(y: jax.Array) -> jax.Array:
        def step(y: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.checkpoint(lambda y: ij.solve(y, weight, groups=2))(y), None

        return jax.lax.scan(step, y, None, length=3)[0]

    expected = y
    for _ in range(3):
        expected = solve_by_matrix(expected, weight, groups=2)
    assert_close(iterate(y), expected)
    assert_close(
        jax.grad(lambda y: iterate(y).sum())(y),
        jax.grad(
            lambda y: functools.reduce(
                lambda y, _: solve_by_matrix(y, weight, groups=2), range(3), y
            ).sum()
        )(y),
    )


@pytest.mark.parametrize("options", CASES[::2])  # without transpose, which it does not take
def test_logabsdet(options: dict[str, Any]) -> None:
    _, weight = arrays(corner=options["corner"])
    options = {k: v for k, v in options.items() if k != "transpose"}
    one = jnp.zeros((1, 4, 3, 4))
    matrix = jax.jacfwd(lambda x, weight: conv_by_lax(x, weight, **options).ravel())

    def expected(weight: jax.Array) -> jax.Array:
        return jnp.linalg.slogdet(matrix(one, weight).reshape(48, 48))[1]

    ours = functools.partial(ij.logabsdet, size=(3, 4), **options)
    assert_close(jax.jit(ours)(weight), expected(weight))
    assert_close(jax.grad(ours)(weight), jax.grad(expected)(weight))
    assert_close(jax.hessian(ours)(weight), jax.hessian(expected)(weight))


def test_a_logabsdet_of_half_types_and_of_nothing() -> None:
    weight = jnp.full((1, 1, 1, 1), 2.0, jnp.bfloat16)
    result = ij.logabsdet(weight, 3, unit_diagonal=False)
    assert (result.dtype, float(result)) == (jnp.bfloat16, float(jnp.bfloat16(9 * np.log(2))))
    assert ij.logabsdet(0 * weight, (0, 3), unit_diagonal=False) == 0
    assert ij.logabsdet(weight, 3) == 0
    # More pixels than an integer of jax can count.
    large = ij.logabsdet(weight, 2**62, unit_diagonal=False)
    assert float(large) == float(jnp.bfloat16(2.0**124 * np.log(2)))


@pytest.mark.parametrize("shape", [(0, 4, 3, 4), (2, 4, 0, 4), (2, 0, 3, 4)])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    y = jnp.zeros(shape)
    weight = jnp.zeros((shape[1], shape[1], 3, 2))
    assert ij.solve(y, weight).shape == shape
    gradient = jax.grad(lambda weight: ij.solve(y, weight).sum())(weight)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(weight))


@pytest.mark.parametrize("shape", [(2, 4, 3, 4), (0, 4, 3, 4), (2, 4, 0, 4), (2, 0, 3, 4)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_vmap_of_nothing(shape: tuple[int, ...], per_sample: bool) -> None:
    """Over no arrays at all, and over empty ones."""
    batch, channels = shape[:2]
    y = jnp.ones(shape)
    weight = jnp.zeros(((batch,) if per_sample else ()) + (channels, channels, 3, 2))
    for size in (0, 3):
        stacks = [jnp.broadcast_to(array, (size, *array.shape)) for array in (y, weight)]
        for axes in ((0, 0), (0, None), (None, 0)):
            inputs = [
                stack if axis == 0 else one
                for stack, axis, one in zip(stacks, axes, (y, weight), strict=True)
            ]
            for function in (ij.solve, ij.conv):
                # The weight is zero, and its diagonal 1.
                np.testing.assert_array_equal(jax.vmap(function, axes)(*inputs), stacks[0])
                gradient = jax.grad(lambda y, w, f=function: f(y, w).sum(), (0, 1))
                of_y, of_weight = jax.vmap(gradient, axes)(*inputs)
                np.testing.assert_array_equal(of_y, stacks[0])
                assert of_weight.shape == stacks[1].shape


def test_without_jit() -> None:
    y, weight = arrays()
    with jax.disable_jit():
        result = jax.grad(lambda y: ij.solve(y, weight, groups=2).sum())(y)
    expected = ij.solve(jnp.ones_like(y), weight, groups=2, transpose=True)
    np.testing.assert_array_equal(result, expected)


SHARED = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
import invconv.jax as ij

shard_map = getattr(jax, "shard_map", None)
if shard_map is None:
    from jax.experimental.shard_map import shard_map
mesh = Mesh(np.array(jax.devices()), ("i",))
assert mesh.size == 2
rng = np.random.default_rng(0)
y = jnp.asarray(rng.standard_normal((4, 4, 5, 6)), jnp.float32)
weight = jnp.asarray(0.1 * rng.standard_normal((4, 2, 3, 3)), jnp.float32)
for f in (ij.solve, ij.conv):
    f = functools.partial(f, groups=2)
    loss = lambda y, weight: (f(y, weight) ** 2).sum()
    share = functools.partial(shard_map, mesh=mesh, in_specs=(P("i"), P()))
    shared = share(f, out_specs=P("i"))
    both = lambda y, w: jax.lax.scan(lambda y, _: (f(y, w), 0), y, length=2)[0]
    twice = share(both, out_specs=P("i"))
    total = share(lambda y, w: jax.lax.psum(loss(y, w), "i"), out_specs=P())
    np.testing.assert_array_equal(jax.jit(shared)(y, weight), f(y, weight))
    np.testing.assert_array_equal(jax.jit(twice)(y, weight), f(f(y, weight), weight))
    expected = jax.grad(loss, (0, 1))(y, weight)
    for whole in (total, lambda y, weight: (shared(y, weight) ** 2).sum()):
        for result, of in zip(jax.jit(jax.grad(whole, (0, 1)))(y, weight), expected, strict=True):
            # Sums of 480 products, in another order.
            np.testing.assert_allclose(result, of, rtol=1e-4, atol=1e-4)
summed = lambda x, g: jax.lax.psum(ij.weight_grad(x, g, 3, groups=2), "i")
result = share(summed, in_specs=(P("i"), P("i")), out_specs=P())(y, y)
np.testing.assert_allclose(result, ij.weight_grad(y, y, 3, groups=2), rtol=1e-4, atol=1e-4)
"""


def test_shared_out_over_devices() -> None:
    """The shares of a batch on two devices, whose derivatives by one weight add up."""
    # The number of devices is fixed when jax starts.
    flags = "--xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", SHARED], check=True, env=environment)


def test_exported_for_any_number_of_stacks() -> None:
    y, weight = arrays()
    stacks, batch = jax.export.symbolic_shape("n, b")
    exported = jax.export.export(
        jax.jit(jax.vmap(lambda y: ij.solve(y, weight, groups=2))),
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("invconv_solve")],
    )(jax.ShapeDtypeStruct((stacks, batch, *SHAPE[1:]), y.dtype))
    expected = ij.solve(y, weight, groups=2)
    np.testing.assert_array_equal(exported.call(jnp.stack([y] * 3)), jnp.stack([expected] * 3))


def test_numpy_arrays_and_scalars_become_jax_arrays() -> None:
    y, weight = (np.asarray(a) for a in arrays())
    result = ij.solve(y, weight, groups=np.int64(2))
    assert isinstance(result, jax.Array)
    np.testing.assert_array_equal(result, invconv.solve(y, weight, groups=2))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"weight": jnp.zeros((4, 3, 3, 3))},
            ValueError,
            r"\[solve\] expected weight of shape \(C, C/groups",
        ),
        (
            {"weight": jnp.zeros((3, 4, 4, 3, 3))},
            ValueError,
            r"\[solve\] expected weight of shape \(B, C, C/groups",
        ),
        ({"y": jnp.zeros((4, 3))}, ValueError, r"\[solve\] expected y of shape \(B, C, H, W\)"),
        (
            {"y": jnp.zeros(SHAPE, "int32")},
            TypeError,
            r"expected y of dtype .*y.astype\(jnp.float32\) makes one",
        ),
        (
            {"y": jnp.zeros(SHAPE, "float16")},
            TypeError,
            r"\[solve\] expected y and weight of one dtype",
        ),
        ({"corner": "lt"}, ValueError, r"\[solve\] expected corner to be 'tl', 'tr', 'bl' or 'br'"),
        ({"corner": ("tl", "tr")}, ValueError, r"\[solve\] expected one corner, or one for each"),
        ({"groups": 3}, ValueError, r"\[solve\] expected groups to divide C = 4"),
        ({"groups": 1.0}, TypeError, r"\[solve\] expected groups to be an integer"),
        ({"transpose": 1}, TypeError, r"\[solve\] expected transpose to be a bool"),
    ],
)
def test_errors_come_when_it_is_traced(
    change: dict[str, Any], kind: type[Exception], message: str, jit: bool
) -> None:
    arguments: dict[str, Any] = {
        "y": jnp.zeros(SHAPE, "float32"),
        "weight": jnp.zeros((4, 4, 3, 3), "float32"),
    }
    arguments |= {
        k: v.astype("float32") if getattr(v, "dtype", "") == "float64" else v
        for k, v in change.items()
    }
    named = {k: arguments.pop(k) for k in list(arguments) if k not in ("y", "weight")}
    function = functools.partial(ij.solve, **named)
    with pytest.raises(kind, match=message):
        (jax.jit(function) if jit else function)(*arguments.values())


def test_a_traced_array_is_sent_here() -> None:
    y, weight = arrays()
    with pytest.raises(TypeError, match=r"invconv\.jax has this function for traced arrays"):
        jax.jit(lambda y: invconv.solve(y, weight, groups=2))(y)


def test_the_bits_do_not_depend_on_threads() -> None:
    rng = np.random.default_rng(0)
    y = jnp.asarray(rng.standard_normal((5, 3, 40, 30)), jnp.float32)
    weight = jnp.asarray(0.1 * rng.standard_normal((3, 3, 3, 3)), jnp.float32)
    before = invconv.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            invconv.set_num_threads(threads)
            results.append(np.asarray(jax.jit(ij.solve)(y, weight)))
    finally:
        invconv.set_num_threads(before)
    for one, other in itertools.pairwise(results):
        np.testing.assert_array_equal(one, other)


def test_examples() -> None:
    results = doctest.testmod(ij)
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize(
    ("version", "message"),
    [("", "has no handlers for jax; build it anew"), ("99.0", "has handlers for version 99.0 of")],
)
def test_a_build_that_does_not_fit_says_how_to_make_one(version: str, message: str) -> None:
    # As such builds do, the core tells another version.
    code = (
        f"from invconv import _core\n_core.jax_ffi_version = lambda: {version!r}\n"
        "try:\n    import invconv.jax\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert message in done.stdout and f"-C build.requires=jaxlib=={jax.__version__}" in done.stdout


def test_nothing_else_imports_jax() -> None:
    code = "import sys, invconv, invconv.flows\nassert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
