"""The shared library of bench/cuda: the baseline's kernels, and probes of the device."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from .. import cmake
from ..shapes import Shape

PRESET = "bench-cuda"
LIBRARY = cmake.folder(PRESET) / "bench" / "cuda" / "libinvconv_bench_cuda.so"

# Of one thread of ``multiply_adds``, by whether there are many: chains, and links of each a round.
CHAINS = {True: 8, False: 1}
LINKS = 32


def solve_per_diagonal(y: Tensor, weight: Tensor, x: Tensor, synchronise: bool) -> None:
    """Solve into x, with a launch for each diagonal and channel; all contiguous, float32."""
    batch, channels, height, width = y.shape
    sizes = (batch, channels, height, width, weight.shape[-1], int(synchronise))
    pointers = [ctypes.c_void_p(array.data_ptr()) for array in (y, weight, x)]
    _call("solve_per_diagonal", *pointers, *map(ctypes.c_int, sizes))


def multiply_adds(out: Tensor, blocks: int, threads: int, many: bool, rounds: int) -> None:
    """Run ``rounds`` of multiply-adds in each thread; ``out`` has an element for each."""
    numbers = map(ctypes.c_int, (blocks, threads, int(many), rounds))
    _call("multiply_adds", ctypes.c_void_p(out.data_ptr()), *numbers)


def nothing() -> None:
    """Launch an empty kernel."""
    _call("nothing")


def launches(shape: Shape) -> int:
    """Kernels of one ``solve_per_diagonal``."""
    return shape.steps * shape.channels


@functools.cache
def _library() -> ctypes.CDLL:
    if not LIBRARY.exists():
        raise cmake.Missing(f"expected {LIBRARY}, which `python -m bench gpu build` makes")
    return ctypes.CDLL(str(LIBRARY))


def _call(name: str, *arguments: object) -> None:
    function = getattr(_library(), f"invconv_bench_{name}")
    function.restype = ctypes.c_char_p
    message = function(*arguments, ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
    if message is not None:
        raise RuntimeError(message.decode())
