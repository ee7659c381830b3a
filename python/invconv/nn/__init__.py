"""PyTorch modules whose weight always is a causal convolution that can be inverted."""

try:
    import torch  # noqa: F401  (only to give a better message than a bare import error)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "invconv.nn and invconv.flows need PyTorch: pip install 'invconv[torch]'", name=error.name
    ) from error

from invconv.nn._modules import CausalConv2d, InverseConv2d

__all__ = ["CausalConv2d", "InverseConv2d"]
