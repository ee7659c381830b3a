"""The Inverse-Flow model and its configuration."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from invconv import _check
from invconv.flows._actnorm import ActNorm
from invconv.flows._bijection import Bijection, Sequential, per_image, sum_over_image
from invconv.flows._convolutions import CausalConvolution, Convolution1x1, InverseConvolution
from invconv.flows._coupling import AffineCoupling, SplitPrior
from invconv.flows._permutations import Reverse, Squeeze
from invconv.flows._preprocessing import Dequantization, Logit
from invconv.flows._reversible import Reversible
from invconv.flows._spline import RationalQuadraticSpline

_CORNERS = ("tl", "br", "tr", "bl")
# Of a unit's four groups: the reversal behind it takes each to that of the opposite corner.
_UNIT_CORNERS = ("tl", "tr", "bl", "br")
_CAUSAL = ("inverse_conv", "conv")
_MIXINGS = (*_CAUSAL, "conv1x1", "reverse")
_ACTIVATIONS = ("spline", None)


class StandardNormal(torch.nn.Module):
    """Independent standard normal variables: the density of every latent.

    ``log p(z) = -sum(z^2) / 2 - D log(2 pi) / 2`` for the D values of an image.

    Example:
        >>> import torch
        >>> from invconv.flows import StandardNormal
        >>> StandardNormal().log_prob(torch.zeros(2, 1, 1, 1)).tolist()
        [-0.9189385175704956, -0.9189385175704956]
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of each image in nats, shape ``(batch,)``."""
        return -0.5 * sum_over_image(z * z + math.log(2 * math.pi))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Everything that determines the architecture of an :class:`InverseFlow`.

    Attributes:
        image_shape: (C, H, W); height and width divisible by ``2**levels``.
        quantization: Q, how many values a channel can take: 0 ... Q - 1.
        logit_alpha: see :class:`Logit`.
        levels: L, squeezes with a split prior between them.
        steps: K, flow steps in each level.
        hidden: channels inside the coupling nets.
        mixing: what mixes the channels of a step, the one thing in which these models differ:
            ``"inverse_conv"`` (Inverse-Flow, a solve from image to latent), ``"conv"`` (FInC Flow,
            the same layer turned round), ``"conv1x1"`` (Glow) or ``"reverse"`` (in the manner of
            RealNVP, a fixed reversal of the channels alone, which the first two have as well).
        kernel_size: of the causal convolutions, from 2 to 11, in pixels.
        four_corners: each causal convolution is a unit of four, one for each corner, on a quarter
            of the channels each; otherwise a step has one corner, in turn.
        bound: rho in (0, 1) of the causal convolutions; None leaves them free.
        activation: of the steps, ``"spline"`` or None.
        spline_bins: pieces of each spline.
        spline_tail: the splines bend inside [-tail, tail].
        split_prior: half of the channels leave after each level but the last; otherwise all of them
            go through all levels.
        num_classes: how many classes the images fall into, for a model of each; 0 for a model of
            all of them.
        reversible: the levels are :class:`Reversible`: less memory in training, more time.

    Raises:
        ValueError: a value is outside its range, or ``four_corners`` without a causal convolution.
        TypeError: a value is of another type.

    Example:
        >>> from invconv.flows import FlowConfig
        >>> config = FlowConfig(image_shape=(3, 32, 32), levels=3)
        >>> FlowConfig.from_json(config.to_json()) == config
        True
    """

    image_shape: tuple[int, int, int]
    quantization: int = 256
    logit_alpha: float = 1e-6
    levels: int = 2
    steps: int = 4
    hidden: int = 64
    mixing: str = "inverse_conv"
    kernel_size: int = 3
    four_corners: bool = False
    bound: float | None = 0.9
    activation: str | None = "spline"
    spline_bins: int = 16
    spline_tail: float = 3.0
    split_prior: bool = True
    num_classes: int = 0
    reversible: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", tuple(self.image_shape))
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ValueError(
                f"[FlowConfig] expected image_shape (C, H, W), but got {self.image_shape}"
            )
        for name in ("levels", "steps", "hidden", "kernel_size", "num_classes"):
            _check.integer("FlowConfig", name, getattr(self, name))
        for name in ("four_corners", "split_prior", "reversible"):
            _check.boolean("FlowConfig", name, getattr(self, name))
        for name in ("levels", "steps", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"[FlowConfig] expected {name} of at least 1, but got {getattr(self, name)}"
                )
        if self.num_classes < 0:
            raise ValueError(
                f"[FlowConfig] expected num_classes of at least 0, but got {self.num_classes}"
            )
        multiple = 2**self.levels
        _, height, width = self.image_shape
        if height % multiple or width % multiple:
            raise ValueError(
                f"[FlowConfig] expected height and width divisible by {multiple} "
                f"(levels = {self.levels}), but got {height} x {width}"
            )
        if self.mixing not in _MIXINGS:
            raise ValueError(f"[FlowConfig] expected mixing in {_MIXINGS}, but got {self.mixing!r}")
        if not 2 <= self.kernel_size <= 11:
            raise ValueError(
                f"[FlowConfig] expected kernel_size from 2 to 11, but got {self.kernel_size}"
            )
        if self.four_corners and self.mixing not in _CAUSAL:
            raise ValueError(
                f"[FlowConfig] expected four_corners only with mixing in {_CAUSAL}, "
                f"but got {self.mixing!r}"
            )
        if self.bound is not None:
            _check.bound("FlowConfig", self.bound)
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"[FlowConfig] expected activation in {_ACTIVATIONS}, but got {self.activation!r}"
            )

    def to_json(self) -> str:
        """The configuration as one JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "FlowConfig":
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: the text is not JSON, or names a field that does not exist or lacks one.
        """
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"[FlowConfig] expected its own fields: {error}") from error


# The size of a model: the smallest, for trying things out in seconds; one for two CPU cores; those
# of the paper, whose parameters are as many as it reports; and Glow's depths for ImageNet (its
# table 4), which end at 4 x 4 pixels, with half of its width.
_SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"levels": 2, "steps": 1, "hidden": 8},
    "small": {"levels": 2, "steps": 4, "hidden": 64},
    "mnist": {"levels": 2, "steps": 16, "hidden": 184},
    "cifar10": {"levels": 2, "steps": 16, "hidden": 132},
    "imagenet32": {"levels": 3, "steps": 48, "hidden": 256},
    "imagenet64": {"levels": 4, "steps": 48, "hidden": 256},
}
_NEIGHBOURS = {"": "inverse_conv", "-finc": "conv", "-glow": "conv1x1", "-realnvp": "reverse"}

# The rest of a FlowConfig under a short name: a size, and behind it the neighbour of Inverse-Flow.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        size + suffix: MappingProxyType({**fields, "mixing": mixing})
        for size, fields in _SIZES.items()
        for suffix, mixing in _NEIGHBOURS.items()
    }
)


def _check_tensor(what: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"[InverseFlow] expected a tensor of {what}, but got {type(value).__name__}"
        )


def _check_range(expected: str, what: str, x: Tensor, largest: int) -> None:
    """Check that x is from 0 to ``largest``; NaN is not."""
    if x.numel() == 0:
        return
    # As numbers: beside a tensor of bytes 256 would count as 0.
    lowest, highest = x.min().item(), x.max().item()
    if not 0 <= lowest <= highest <= largest:
        raise ValueError(
            f"[InverseFlow] expected {expected} from 0 to {largest}, "
            f"but got {what} from {lowest} to {highest}"
        )


class InverseFlow(torch.nn.Module):
    """Normalizing flow whose image-to-latent pass solves inverse convolutions.

    Dequantization, logit and a spline that evens out the histogram of the pixel values, then L
    levels of [squeeze, K steps]; a step is ActNorm, inverse convolution (corners tl, br, tr, bl in
    turn), channel reversal, spline activation and affine coupling. After each level but the last,
    half of the channels leave through a split prior. With another ``mixing`` it is FInC Flow, Glow
    or a RealNVP, which differ in what stands between ActNorm and activation, and in nothing else.
    The log-likelihood is the change of variables (Nagar and Varma, AISTATS 2025, arXiv 2410.14634):

        ``log p(x) = sum_latents log N(z; 0, 1) + sum_layers log|det J|``.

    Images are ``(batch, C, H, W)``. An integer tensor holds levels 0 ... Q - 1 and is dequantized;
    a floating-point tensor is taken as already continuous, with values in [0, 1]. Everything is
    computed and returned in the dtype of the parameters.

    With ``num_classes`` it models ``p(x | class)``: couplings, split priors and the splines of the
    steps depend on the class. ``context`` is then the labels of the images, integers
    0 ... num_classes - 1 of shape ``(batch,)``, and is None otherwise.

    Args:
        config: the architecture; or give the fields of :class:`FlowConfig` by name instead.

    Raises:
        ValueError: from the configuration.
        TypeError: both a configuration and fields, or unknown fields.

    Example:
        >>> import torch
        >>> from invconv.flows import InverseFlow
        >>> flow = InverseFlow(image_shape=(1, 8, 8), levels=2, steps=1, hidden=8)
        >>> images = torch.randint(0, 256, (5, 1, 8, 8))
        >>> flow.log_prob(images).shape, flow.sample(3).dtype
        (torch.Size([5]), torch.uint8)
        >>> [tuple(z.shape) for z in flow.encode(images)]
        [(5, 2, 4, 4), (5, 8, 2, 2)]
        >>> flow = InverseFlow(image_shape=(1, 8, 8), steps=1, hidden=8, num_classes=10)
        >>> labels = torch.tensor([7, 7, 3])
        >>> flow.log_prob(images[:3], labels).shape, flow.sample(3, context=labels).shape
        (torch.Size([3]), torch.Size([3, 1, 8, 8]))

        The paper's models, of 1.6 and 1.76 million parameters:

        >>> from invconv.flows import PRESETS
        >>> f"{InverseFlow(image_shape=(1, 28, 28), **PRESETS['mnist']).num_parameters:,}"
        '1,637,429'
        >>> f"{InverseFlow(image_shape=(3, 32, 32), **PRESETS['cifar10']).num_parameters:,}"
        '1,764,159'
    """

    def __init__(self, config: FlowConfig | None = None, /, **fields: Any) -> None:
        super().__init__()
        if config is None:
            config = FlowConfig(**fields)
        elif not isinstance(config, FlowConfig):
            raise TypeError(
                "[InverseFlow] expected a FlowConfig, or its fields by name, as "
                f"image_shape=(1, 28, 28), but got {type(config).__name__}"
            )
        elif fields:
            raise TypeError("[InverseFlow] expected a config or its fields by name, but got both")
        self.config = config
        self.dequantization = Dequantization(config.quantization)
        channels, height, width = config.image_shape
        self.marginal = Sequential(
            [
                Logit(config.logit_alpha),
                ActNorm(channels),
                RationalQuadraticSpline(channels, config.spline_bins, config.spline_tail),
            ]
        )
        self.base = StandardNormal()
        self.levels = torch.nn.ModuleList()
        self.priors = torch.nn.ModuleList()
        self.latent_shapes: list[tuple[int, int, int]] = []
        for level in range(config.levels):
            channels, height, width = 4 * channels, height // 2, width // 2
            layers: list[Bijection] = [Squeeze()]
            for step in range(config.steps):
                layers += self._step(channels, _CORNERS[(level * config.steps + step) % 4])
            self.levels.append((Reversible if config.reversible else Sequential)(layers))
            if config.split_prior and level < config.levels - 1:
                self.priors.append(
                    SplitPrior(channels, config.hidden, context_features=config.num_classes)
                )
                channels //= 2
                self.latent_shapes.append((channels, height, width))
        self.latent_shapes.append((channels, height, width))

    def _step(self, channels: int, corner: str) -> list[Bijection]:
        config = self.config
        layers: list[Bijection] = [ActNorm(channels), *self._mixing(channels, corner)]
        if config.activation == "spline":
            layers.append(
                RationalQuadraticSpline(
                    channels,
                    config.spline_bins,
                    config.spline_tail,
                    context_features=config.num_classes,
                )
            )
        layers.append(AffineCoupling(channels, config.hidden, context_features=config.num_classes))
        return layers

    def _mixing(self, channels: int, corner: str) -> list[Bijection]:
        config = self.config
        if config.mixing == "conv1x1":
            return [Convolution1x1(channels)]  # with a permutation of its own
        if config.mixing == "reverse":
            return [Reverse()]
        kind = InverseConvolution if config.mixing == "inverse_conv" else CausalConvolution
        # A squeeze comes first, so four groups always divide the channels.
        unit = kind(
            channels,
            config.kernel_size,
            corner=_UNIT_CORNERS if config.four_corners else corner,
            groups=len(_UNIT_CORNERS) if config.four_corners else 1,
            bound=config.bound,
        )
        return [unit, Reverse()]

    @property
    def num_parameters(self) -> int:
        """How many numbers training adjusts."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def _like(self) -> Tensor:
        """Any parameter: its dtype and device are the model's."""
        return next(self.parameters())

    def dequantize(
        self, x: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images as reals in [0, 1], in the model's dtype, and the log-determinant of that.

        Integer images get uniform noise from ``generator``; floating-point ones pass unchanged,
        with log-determinant 0.

        Raises:
            ValueError: wrong shape, or a value outside 0 ... Q - 1, or [0, 1] if floating-point.
            TypeError: images that are no tensor.
        """
        shape = self.config.image_shape
        _check_tensor("images", x)
        if x.ndim != 4 or tuple(x.shape[1:]) != shape:
            expected = ", ".join(map(str, shape))
            raise ValueError(
                f"[InverseFlow] expected images of shape (batch, {expected}), "
                f"but got {tuple(x.shape)}"
            )
        largest = 1 if x.is_floating_point() else self.config.quantization - 1
        kind = "floating-point" if x.is_floating_point() else "integer"
        _check_range(f"{kind} images with values", "values", x, largest)
        values = x.to(self._like.dtype)
        if x.is_floating_point():
            return values, per_image(values)
        z, logabsdet = self.dequantization(values, generator=generator)
        return z, logabsdet

    def _one_hot(self, context: Tensor | None, batch: int) -> Tensor | None:
        """The labels as the context of the layers, ``(batch, num_classes)``."""
        classes = self.config.num_classes
        if context is None and classes == 0:
            return None
        if classes == 0:
            raise ValueError(
                "[InverseFlow] expected context None, because the model has no classes, "
                f"but got {type(context).__name__}"
            )
        if context is None:
            raise ValueError(
                f"[InverseFlow] expected context to be {batch} labels, because the model has "
                f"{classes} classes, but got None"
            )
        _check_tensor("labels", context)
        if context.is_floating_point() or context.is_complex() or context.dtype == torch.bool:
            raise TypeError(f"[InverseFlow] expected integer labels, but got {context.dtype}")
        if tuple(context.shape) != (batch,):
            raise ValueError(
                f"[InverseFlow] expected labels of shape ({batch},), but got {tuple(context.shape)}"
            )
        _check_range("labels", "labels", context, classes - 1)
        like = self._like
        return F.one_hot(context.to(like.device).long(), classes).to(like.dtype)

    def _to_latents(self, x: Tensor, condition: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
        x, logabsdet = self.marginal(x)
        latents = []
        for index, level in enumerate(self.levels):
            x, change = level(x, condition)
            logabsdet = logabsdet + change
            if index < len(self.priors):
                x, change = self.priors[index](x, condition)
                logabsdet = logabsdet + change
                x, final = x.chunk(2, 1)
                latents.append(final)
        return (*latents, x), logabsdet

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The same as :meth:`log_prob`, for wrappers that call the module itself."""
        return self.log_prob(x, context, generator=generator)

    def log_prob(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Log-likelihood of each image in nats, shape ``(batch,)``.

        For integer images it is a lower bound on ``log P(x)``, see :meth:`bits_per_dim`, estimated
        with one draw of the dequantization noise. For floating-point images it is the log-density.

        Args:
            x: images, see the class.
            context: their labels if the model has classes.
            generator: source of the noise.

        Raises:
            ValueError: as :meth:`dequantize`, or labels that the model has no use for, or of the
                wrong shape, or outside 0 ... num_classes - 1.
            TypeError: images or labels that are no tensors, or labels that are not integers.
        """
        _check_tensor("images", x)
        condition = self._one_hot(context, len(x))
        x, logabsdet = self.dequantize(x, generator=generator)
        latents, change = self._to_latents(x, condition)
        logabsdet = logabsdet + change
        for z in latents:
            logabsdet = logabsdet + self.base.log_prob(z)
        return logabsdet

    def bits_per_dim(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Bits per dimension of integer images, shape ``(batch,)``: lower is better.

        An image of D = C H W integers has probability ``P(x)``, the integral of the model's density
        over the unit cube at x. With u uniform in that cube, and p the density on ``[0, 1)^D``,

            ``log P(x) = log E_u[p((x + u) / Q) / Q^D] >= E_u[log p((x + u) / Q)] - D log Q``

        by Jensen's inequality; :meth:`log_prob` is the right-hand side with one draw of u. In bits
        and per dimension that is ``-log_prob(x) / (D log 2)``, an upper bound on the length of a
        lossless code. The uniform density, which knows nothing, has ``log2 Q``: 8 for 8 bits.

        Args:
            x: integer images with values 0 ... Q - 1.
            context: as for :meth:`log_prob`; the code is then one for images of a known class.
            generator: source of the dequantization noise.

        Raises:
            TypeError: as :meth:`log_prob`, or floating-point images, which have a density but no
                code length.
            ValueError: as :meth:`log_prob`.
        """
        if isinstance(x, Tensor) and x.is_floating_point():
            raise TypeError(f"[bits_per_dim] expected an integer tensor, but got {x.dtype}")
        dims = math.prod(self.config.image_shape)
        return self.log_prob(x, context, generator=generator) / (-dims * math.log(2))

    def encode(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, ...]:
        """Images to latents: ``(batch, *shape)`` for each of ``latent_shapes``, one of each level.

        Without split priors there is the last one alone.

        Under the model all their values are independent standard normal.

        Args:
            x: images, see the class.
            context: as for :meth:`log_prob`.
            generator: source of the dequantization noise.

        Raises:
            TypeError, ValueError: as :meth:`log_prob`.
        """
        _check_tensor("images", x)
        condition = self._one_hot(context, len(x))
        x, _ = self.dequantize(x, generator=generator)
        return self._to_latents(x, condition)[0]

    def decode(self, latents: Sequence[Tensor], context: Tensor | None = None) -> Tensor:
        """Latents to images with values in [0, 1]; undoes :meth:`encode` of dequantized images.

        Args:
            latents: as :meth:`encode` returns them.
            context: as for :meth:`log_prob`.

        Raises:
            TypeError, ValueError: wrong number or shapes of latents, or labels as in
                :meth:`log_prob`.
        """
        shapes = [tuple(z.shape[1:]) for z in latents]
        if shapes != self.latent_shapes:
            raise ValueError(
                f"[InverseFlow] expected latents of shapes (batch, ...) with {self.latent_shapes}, "
                f"but got {shapes}"
            )
        condition = self._one_hot(context, len(latents[0]))
        *finals, x = (z.to(self._like.dtype) for z in latents)
        for index in reversed(range(len(self.levels))):
            if index < len(finals):
                x = cast(SplitPrior, self.priors[index]).decode(
                    torch.cat([x, finals[index]], 1), condition
                )
            x = cast(Sequential, self.levels[index]).decode(x, condition)
        x = self.marginal.decode(x)
        # The inverse logit reaches alpha / (1 - 2 alpha) beyond either end.
        return x.clamp(0, 1)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        temperature: float = 1.0,
        *,
        context: Tensor | int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw n images, ``(n, C, H, W)``, integers 0 ... Q - 1, uint8 if Q <= 256 else int64.

        Args:
            n: how many.
            temperature: standard deviation of the latents; below 1 gives tamer, less varied images.
            context: if the model has classes, the class of each image, ``(n,)``, or of all.
            generator: source of the latents, of any device.

        Raises:
            ValueError: a negative number, a temperature that is negative or not finite, or labels
                as in :meth:`log_prob`.
            TypeError: n or labels that are not integers.
        """
        n = _check.integer("sample", "n", n)
        if n < 0 or not 0 <= temperature < math.inf:
            raise ValueError(
                "[sample] expected n >= 0 and a finite temperature >= 0, "
                f"but got n = {n}, temperature = {temperature}"
            )
        if context is not None and not isinstance(context, Tensor):
            context = torch.full((n,), _check.integer("sample", "context", context))
        like = self._like
        device = like.device if generator is None else generator.device
        latents = [
            temperature
            * torch.randn(n, *shape, generator=generator, device=device, dtype=like.dtype)
            for shape in self.latent_shapes
        ]
        values = self.decode([z.to(like.device) for z in latents], context)
        images, _ = self.dequantization.inverse(values)
        return images.to(torch.uint8 if self.config.quantization <= 256 else torch.int64)
