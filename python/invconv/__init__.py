"""Exact inverses of convolutions, and backpropagation through them.

``solve(y, weight)`` inverts the causal convolution ``conv(x, weight)``; both take numpy arrays,
torch tensors and other DLPack arrays, and give back what they were given. ``invconv.nn`` (modules),
``invconv.flows`` (normalizing flows), ``invconv.train``, ``invconv.interop`` and ``invconv.jax``
need torch or jax and are imported when they are first used.

The method is that of Nagar and Varma, "Parallel Backpropagation for Inverse of a Convolution with
Application to Normalizing Flows" (AISTATS 2025, arXiv 2410.14634).
"""

from types import ModuleType
from typing import TYPE_CHECKING

from invconv._array import conv, growth, logabsdet, solve, weight_grad
from invconv._core import version as _version
from invconv._settings import build_info, get_num_threads, set_num_threads

__version__ = _version()

if TYPE_CHECKING:
    from invconv import flows as flows
    from invconv import interop as interop
    from invconv import jax as jax
    from invconv import nn as nn
    from invconv import train as train
else:

    def __getattr__(name: str) -> ModuleType:
        """Import the parts that need torch or jax when they are asked for."""
        if name in ("flows", "interop", "jax", "nn", "train"):
            import importlib

            return importlib.import_module(f"invconv.{name}")
        raise AttributeError(f"module 'invconv' has no attribute {name!r}")


__all__ = [
    "__version__",
    "build_info",
    "conv",
    "get_num_threads",
    "growth",
    "logabsdet",
    "set_num_threads",
    "solve",
    "weight_grad",
]
