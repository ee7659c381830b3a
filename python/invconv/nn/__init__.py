"""PyTorch modules whose weight always is a causal convolution that can be inverted."""

from invconv._extras import pip_install as _pip_install

try:
    import torch as _torch  # noqa: F401  (only to give a better message than a bare import error)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"invconv.nn and invconv.flows need PyTorch: {_pip_install('torch')}", name=error.name
    ) from error

from invconv.nn._modules import CausalConv2d, InverseConv2d

__all__ = ["CausalConv2d", "InverseConv2d"]
