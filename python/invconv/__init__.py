"""Exact inverses of convolutions, and backpropagation through them.

``solve(y, weight)`` inverts the causal convolution ``conv(x, weight)``; both take numpy arrays,
torch tensors and other DLPack arrays, and give back what they were given. ``invconv.nn`` (modules)
and ``invconv.flows`` (normalizing flows) need torch and are imported on their own.

The method is that of Nagar and Varma, "Parallel Backpropagation for Inverse of a Convolution with
Application to Normalizing Flows" (AISTATS 2025, arXiv 2410.14634).
"""

from invconv._array import conv, growth, logabsdet, solve, weight_grad
from invconv._core import version as _version
from invconv._settings import build_info, get_num_threads, set_num_threads

__version__ = _version()

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
