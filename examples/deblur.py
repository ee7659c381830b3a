"""Deblurring: exactly where the blur is causal, by preconditioned least squares where it is not.

**Exactly.** A screen whose light fades leaves trails behind what moves, all to one side of it. Such
a blur ``y = M x`` is a causal convolution: M is triangular, and :func:`invconv.solve` gives
``x = M^-1 y``, with rounding errors alone.

**With noise.** A lens out of focus blurs to all sides, and the sensor adds noise:
``y = A x + noise``, where A keeps what the frame shows of the blurred scene. The estimate is the
minimum of ``|A x - y|^2 + lambda |D x|^2``, with D the differences of neighbouring pixels:

    ``N x = A^T y``,  ``N = A^T A + lambda D^T D``.

The scene goes on outside of the frame, so x has a margin of unknowns, and nothing is assumed about
them (Almeida and Figueiredo, Deconvolving images with unknown boundaries, IEEE TIP 2013); a filter
in Fourier space takes the frame for periodic. Conjugate gradients find x.

**The preconditioner.** But for the border, N is a convolution, with the spectrum
``S = |H|^2 + lambda (4 - 2 cos w1 - 2 cos w2)``. If ``S = |B|^2`` for a causal convolution B, then
``B^T B`` is close to N, and its inverse ``B^-1 B^-T`` is a pair of solves, the first one adjoint.
``log B`` is one half of the Fourier series of ``log S``, the cepstrum (Ekstrom and Woods, Two-
dimensional spectral factorization, IEEE TASSP 1976): a half plane of its coefficients, which is two
quadrants. So B is a product of two convolutions, one towards "tl" and one towards "tr".

**The comparison** is with scikit-image's Wiener-Hunt filter, with its own regulariser (Laplacian)
and with D, and with its Richardson-Lucy; these get the frame with a margin of reflections. Every
method has one parameter. It is chosen on another photograph with the same blur and noise: the value
of a grid with the best PSNR there. The PSNR inside leaves out 16 pixels along the border, and shows
how much of a difference is the border's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from skimage import color, data, metrics, restoration
from skimage.util import img_as_float32

import invconv

Image = npt.NDArray[Any]  # gray, float32

NOISE = 0.005
BORDER = 16  # the second PSNR leaves it out
LAMBDAS = 10 ** np.arange(-3.5, -0.9, 0.25)
ITERATIONS = np.array([10, 20, 40, 80, 160])


def conv(x: Image, taps: Image, *, corner: str = "tl", transpose: bool = False) -> Image:
    """M x or M^T x of one gray image."""
    return invconv.conv(
        x[None], taps[None, None], corner=corner, unit_diagonal=False, transpose=transpose
    )[0]


def solve(y: Image, taps: Image, *, corner: str = "tl", transpose: bool = False) -> Image:
    """M^-1 y or M^-T y of one gray image."""
    return invconv.solve(
        y[None], taps[None, None], corner=corner, unit_diagonal=False, transpose=transpose
    )[0]


def fading_trails(size: int) -> Image:
    """A causal blur: light that moved right and down, the more faded the longer ago."""
    ago = np.arange(size)[::-1]  # the last tap is the pixel itself
    taps = np.exp(-(ago[:, None] + ago) / 2)
    return (taps / taps.sum()).astype(np.float32)


def out_of_focus(size: int) -> Image:
    """A disc of that diameter, each tap the part of its pixel that the disc covers."""
    fine = 8
    x = (np.arange(size * fine) + 0.5) / fine - size / 2
    disc = np.hypot(x[:, None], x) <= (size - 1) / 2
    taps = disc.reshape(size, fine, size, fine).mean((1, 3))
    return (taps / taps.sum()).astype(np.float32)


def expose(scene: Image, psf: Image) -> Image:
    """A x: the blurred scene, without the margin where light from outside of it is missing."""
    last = len(psf) - 1
    return conv(scene, psf)[last:, last:]


def expose_adjoint(frame: Image, psf: Image) -> Image:
    """A^T y."""
    return conv(np.pad(frame, ((len(psf) - 1, 0),) * 2), psf, transpose=True)


def roughness(x: Image) -> Image:
    """D^T D x: the negative Laplacian."""
    near = np.pad(x, 1, "edge")
    return 4 * x - near[:-2, 1:-1] - near[2:, 1:-1] - near[1:-1, :-2] - near[1:-1, 2:]


def difference_spectrum(rows: npt.NDArray[Any], columns: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """|D|^2 at these frequencies, in cycles per pixel."""
    return 4 - 2 * np.cos(2 * np.pi * rows)[:, None] - 2 * np.cos(2 * np.pi * columns)


def spectral_factor(psf: Image, lam: float, size: int) -> Image:
    """The taps of B's part towards "tl"; the one towards "tr" is its mirror image, as psf's is.

    The quadrant's coefficients of log S; the axes belong to both parts, and so count one half.
    """
    frequencies = np.fft.fftfreq(256)
    spectrum = np.abs(np.fft.fft2(psf, (256, 256))) ** 2
    spectrum += lam * difference_spectrum(frequencies, frequencies)
    cepstrum = np.fft.ifft2(np.log(spectrum)).real
    cepstrum[128:] = cepstrum[:, 128:] = 0
    cepstrum[0] /= 2
    cepstrum[:, 0] /= 2
    factor = np.fft.ifft2(np.exp(np.fft.fft2(cepstrum))).real
    return factor[:size, :size][::-1, ::-1].astype(np.float32)


def least_squares(
    frame: Image, psf: Image, lam: float, *, factor_size: int = 6, rtol: float = 1e-4
) -> tuple[Image, list[float]]:
    """Conjugate gradients for N x = A^T y, without a preconditioner if ``factor_size`` is 0.

    Returns the part of x inside of the frame, and ``|A^T y - N x| / |A^T y|`` before the first and
    after every iteration.
    """
    margin = len(psf) // 2
    if factor_size:
        tl = spectral_factor(psf, lam, factor_size)
        tr = tl[:, ::-1]

    def normal(x: Image) -> Image:
        return expose_adjoint(expose(x, psf), psf) + np.float32(lam) * roughness(x)

    def precondition(r: Image) -> Image:
        if not factor_size:
            return r
        r = solve(solve(r, tl, transpose=True), tr, corner="tr", transpose=True)
        return solve(solve(r, tr, corner="tr"), tl)

    right = expose_adjoint(frame, psf)
    x = np.pad(frame, margin, "edge")
    r = right - normal(x)
    p, before = np.zeros_like(r), 1.0
    residuals = [float(np.linalg.norm(r) / np.linalg.norm(right))]
    while not residuals[-1] <= rtol:
        if len(residuals) > 500:
            raise RuntimeError(f"no convergence: the relative residual is {residuals[-1]:.1e}")
        z = precondition(r)
        now = float(np.vdot(r, z))
        p = z + np.float32(now / before) * p
        q = normal(p)
        step = np.float32(now / np.vdot(p, q))
        x, r, before = x + step * p, r - step * q, now
        residuals.append(float(np.linalg.norm(r) / np.linalg.norm(right)))
    return x[margin:-margin, margin:-margin], residuals


def by_wiener(frame: Image, psf: Image, balance: float, *, differences: bool = False) -> Image:
    """scikit-image's Wiener-Hunt filter, with the Laplacian or with D as its regulariser."""
    margin = 2 * len(psf)
    padded = np.pad(frame, margin, "reflect")
    rows, columns = np.fft.fftfreq(padded.shape[0]), np.fft.rfftfreq(padded.shape[1])
    # A complex array counts as a transfer function.
    reg = np.sqrt(difference_spectrum(rows, columns)).astype(complex) if differences else None
    restored = restoration.wiener(padded, psf, balance, reg=reg, clip=False)
    return restored[margin:-margin, margin:-margin]


def by_richardson_lucy(frame: Image, psf: Image, iterations: float) -> Image:
    """scikit-image's Richardson-Lucy, which needs values of at least 0."""
    margin = 2 * len(psf)
    padded = np.pad(frame.clip(0, 1), margin, "reflect")
    restored = restoration.richardson_lucy(padded, psf, int(iterations), clip=False)
    return restored[margin:-margin, margin:-margin]


METHODS: dict[str, tuple[Callable[[Image, Image, float], Image], npt.NDArray[Any]]] = {
    "Richardson-Lucy": (by_richardson_lucy, ITERATIONS),
    "Wiener, Laplacian": (by_wiener, LAMBDAS),
    "Wiener, D": (partial(by_wiener, differences=True), LAMBDAS),
    "least squares": (lambda *arguments: least_squares(*arguments)[0], LAMBDAS),
}


def photograph(name: str, size: int) -> Image:
    """The middle of one of scikit-image's photographs, gray, 0 to 1."""
    image = img_as_float32(getattr(data, name)())
    image = color.rgb2gray(image) if image.ndim == 3 else image
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def noisy(scene: Image, psf: Image, seed: int) -> tuple[Image, Image]:
    """The frame that the camera takes, and the sharp one that it should have been."""
    margin = len(psf) // 2
    frame = expose(scene, psf)
    noise = np.random.default_rng(seed).standard_normal(frame.shape, dtype=np.float32)
    return frame + np.float32(NOISE) * noise, scene[margin:-margin, margin:-margin]


def psnr(truth: Image, image: Image, border: int = 0) -> float:
    """In dB, of values clipped to 0 ... 1 and without so many pixels along the border."""
    inside = np.s_[border : len(truth) - border, border : len(truth) - border]
    clipped = image.clip(0, 1)
    return float(metrics.peak_signal_noise_ratio(truth[inside], clipped[inside], data_range=1))


def main() -> None:
    """Print the figures and save the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("deblur.png"), help="the picture")
    parser.add_argument("--size", type=int, default=512, help="of the photographs; 512 is whole")
    options = parser.parse_args()
    if not 64 <= options.size <= 512:
        parser.error(f"argument --size: expected 64 to 512, but got {options.size}")
    scene = photograph("camera", options.size)

    trails = fading_trails(9)
    smeared = conv(scene, trails)
    exact = solve(smeared, trails)
    growth = invconv.growth(trails[None, None], scene.shape, unit_diagonal=False)
    print("A causal blur, 9 x 9 taps, without noise")
    print(f"  PSNR of the blurred image     {psnr(scene, smeared):.2f} dB")
    print(f"  errors can grow by            {growth:.1f}")
    print(f"  largest error of its inverse  {np.abs(exact - scene).max():.1e}")

    psf = out_of_focus(9)
    frame, truth = noisy(scene, psf, seed=0)
    other_frame, other_truth = noisy(photograph("astronaut", options.size), psf, seed=1)
    print(f"Out of focus, 9 x 9 taps, noise {NOISE}")
    print(f"  {'':18}{'parameter':>10}{'PSNR dB':>10}{'inside':>10}{'seconds':>10}")
    score = f"{psnr(truth, frame):10.2f}{psnr(truth, frame, BORDER):10.2f}"
    print(f"  {'the frame itself':18}{'':>10}{score}")
    restored: dict[str, Image] = {}
    for name, (method, values) in METHODS.items():
        scores = [psnr(other_truth, method(other_frame, psf, value)) for value in values]
        best = values[np.argmax(scores)]
        begin = time.perf_counter()
        restored[name] = method(frame, psf, best)
        seconds = time.perf_counter() - begin
        score = f"{psnr(truth, restored[name]):10.2f}{psnr(truth, restored[name], BORDER):10.2f}"
        print(f"  {name:18}{best:10.3g}{score}{seconds:10.3f}")

    print("Iterations of least squares, and seconds")
    curves = {}
    for name, factor_size in (("without preconditioner", 0), ("a pair of solves", 6)):
        begin = time.perf_counter()
        _, curves[name] = least_squares(frame, psf, best, factor_size=factor_size)
        seconds = time.perf_counter() - begin
        print(f"  {name:24}{len(curves[name]) - 1:4}{seconds:10.3f}")

    draw(
        {
            "causal blur": smeared,
            "its exact inverse": exact,
            "out of focus, noisy": frame,
            **restored,
        },
        curves,
        options.out,
    )


def draw(images: dict[str, Image], curves: dict[str, list[float]], path: Path) -> None:
    """A detail of every image, and the residuals of conjugate gradients."""
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    axes = figure.subplots(2, 4).flat
    for axis, (title, image) in zip(axes, images.items(), strict=False):
        middle = len(image) // 2
        detail = image[middle - middle // 2 : middle, middle - middle // 4 : middle + middle // 4]
        axis.imshow(detail, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    last = figure.axes[-1]
    for name, residuals in curves.items():
        last.semilogy(residuals, marker=".", label=name)
    last.set_title("relative residual", fontsize=10)
    last.set_xlabel("iteration")
    last.legend(fontsize=8)
    figure.savefig(path, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
