"""Normalizing flows with inverse convolutions: layers, and the whole Inverse-Flow model.

Every layer is a :class:`Bijection`: ``forward(x, context=None) -> (z, logabsdet)`` goes from image
to latent and ``inverse(z, context=None) -> (x, logabsdet)`` back, with ``logabsdet`` of shape
``(batch,)``, as in nflows.
"""

from invconv import nn as _nn  # noqa: F401  (first, for its message where torch is missing)
from invconv.flows._actnorm import ActNorm
from invconv.flows._bijection import Bijection, Sequential
from invconv.flows._convolutions import CausalConvolution, Convolution1x1, InverseConvolution
from invconv.flows._coupling import AffineCoupling, SplitPrior
from invconv.flows._model import PRESETS, FlowConfig, InverseFlow, StandardNormal
from invconv.flows._permutations import Reverse, Squeeze
from invconv.flows._preprocessing import Dequantization, Logit
from invconv.flows._reversible import Reversible
from invconv.flows._spline import RationalQuadraticSpline

__all__ = [
    "PRESETS",
    "ActNorm",
    "AffineCoupling",
    "Bijection",
    "CausalConvolution",
    "Convolution1x1",
    "Dequantization",
    "FlowConfig",
    "InverseConvolution",
    "InverseFlow",
    "Logit",
    "RationalQuadraticSpline",
    "Reverse",
    "Reversible",
    "Sequential",
    "SplitPrior",
    "Squeeze",
    "StandardNormal",
]
