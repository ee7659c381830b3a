"""Other ways to solve the same systems, exactly or not, and guards against those that cannot fit.

Each peer is prepared for a weight and a shape, which is its set-up, and then solves batches of
images. The channel dependency inside a pixel, the anchor A, is folded away in the set-up where that
helps a peer: ``A^-1 y = (I + A^-1 N) x``.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from torch import Tensor

import invconv

from .operations import error, problem
from .shapes import Shape
from .timing import SETTLE, Times, interleaved

Solver = Callable[[Tensor], Tensor]


class Peer(NamedTuple):
    """A method, and what it will cost."""

    prepare: Callable[[Tensor, Shape], Solver]
    # Bytes at the peak of the set-up or of a call, beyond y and x.
    memory: Callable[[Shape], float]
    # Whether it is a direct solve, whose error is that of rounding alone, for every weight.
    exact: bool
    # Seconds of a call, for those that may take hours.
    seconds: Callable[[Shape], float] | None = None


# ---- the matrix M --------------------------------------------------------------------------------


def anchored(weight: Tensor) -> Tensor:
    """The weight as it is read: ones on the anchor's diagonal and zeros above."""
    weight = weight.clone()
    anchor = weight[:, :, -1, -1]
    anchor.copy_(anchor.tril(-1) + torch.eye(len(anchor), device=anchor.device))
    return weight


def sparse_matrix(weight: Tensor, height: int, width: int) -> scipy.sparse.csc_array:
    """M, lower triangular: unknowns pixel after pixel, and within a pixel channel after channel."""
    taps = anchored(weight).numpy()
    kernel = taps.shape[-1]
    parts = []
    for u in range(min(kernel, height)):
        for v in range(min(kernel, width)):
            shift = scipy.sparse.kron(
                scipy.sparse.eye_array(height, k=-u, dtype=taps.dtype),
                scipy.sparse.eye_array(width, k=-v, dtype=taps.dtype),
            )
            block = scipy.sparse.coo_array(taps[:, :, kernel - 1 - u, kernel - 1 - v])
            parts.append(scipy.sparse.kron(shift, block, format="coo"))
    rows, columns = (np.concatenate([part.coords[axis] for part in parts]) for axis in (0, 1))
    values = np.concatenate([part.data for part in parts])
    order = height * width * len(taps)
    return scipy.sparse.coo_array((values, (rows, columns)), shape=(order, order)).tocsc()


def to_columns(images: Tensor) -> Tensor:
    """Right-hand sides for :func:`sparse_matrix`, (n, batch), from images (batch, C, H, W)."""
    return images.permute(0, 2, 3, 1).reshape(len(images), -1).T


def to_images(columns: Tensor, shape: Shape) -> Tensor:
    """What :func:`to_columns` undoes."""
    _, channels, height, width, _ = shape
    return columns.T.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


def nonzeros(shape: Shape) -> float:
    """Entries of M, at most."""
    return shape.unknowns * shape.channels * shape.kernel**2


def sparse_bytes(shape: Shape) -> float:
    """Bytes that making M takes."""
    # Measured: coordinates of 64 bits, their concatenation and the compressed copy live together.
    return 64 * nonzeros(shape) + 2 * shape.image_bytes


# ---- direct solves -------------------------------------------------------------------------------


def dense(weight: Tensor, shape: Shape) -> Solver:
    """torch.linalg.solve_triangular on M as a dense matrix."""
    matrix = torch.from_numpy(sparse_matrix(weight, shape.height, shape.width).toarray(order="C"))

    def solve(y: Tensor) -> Tensor:
        columns = to_columns(y)
        return to_images(
            torch.linalg.solve_triangular(matrix, columns, upper=False, unitriangular=True), shape
        )

    return solve


def spsolve_triangular(weight: Tensor, shape: Shape) -> Solver:
    """scipy.sparse.linalg.spsolve_triangular; M is not copied in each call."""
    matrix = sparse_matrix(weight, shape.height, shape.width)

    def solve(y: Tensor) -> Tensor:
        columns = to_columns(y).numpy()
        x = scipy.sparse.linalg.spsolve_triangular(
            matrix, columns, lower=True, unit_diagonal=True, overwrite_A=True
        )
        return to_images(torch.from_numpy(x), shape)

    return solve


def splu(weight: Tensor, shape: Shape) -> Solver:
    """scipy.sparse.linalg.splu: the set-up factors M, which is its own factor, without fill-in."""
    factor = scipy.sparse.linalg.splu(
        sparse_matrix(weight, shape.height, shape.width),
        permc_spec="NATURAL",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True, "Equil": False},
    )
    return lambda y: to_images(torch.from_numpy(factor.solve(to_columns(y).numpy())), shape)


def folded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A^-1 of shape (C, C), and the taps A^-1 N of shape (C, C, k, k), with zeros at the anchor."""
    taps = anchored(weight).double()
    inverse = torch.linalg.inv(taps[:, :, -1, -1])
    taps[:, :, -1, -1] = 0
    return inverse.to(weight), torch.einsum("oc,cikl->oikl", inverse, taps).to(weight)


def diagonals(weight: Tensor, shape: Shape) -> Solver:
    """A loop over the anti-diagonals in torch: one matrix product for a diagonal of all images.

    Images lie askew, (diagonal, row, batch, channel), so that what a diagonal needs is one view.
    """
    _, channels, height, width, kernel = shape
    inverse, taps = folded(weight)
    matrix = taps.permute(2, 3, 1, 0).reshape(-1, channels)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    margin = kernel - 1

    def solve(y: Tensor) -> Tensor:
        batch = len(y)
        right = y.new_zeros(shape.steps, height, batch, channels)
        right[rows + columns, rows] = y.permute(2, 3, 0, 1) @ inverse.T
        x = y.new_zeros(shape.steps + 2 * margin, height + margin, batch, channels)
        diagonal, row, image, _ = x.stride()
        for step in range(shape.steps):
            first, last = max(0, step - width + 1), min(step, height - 1) + 1
            # Tap (a, b) is that of the pixel margin - a rows up and margin - b columns left.
            neighbours = x.as_strided(
                (last - first, batch, kernel, kernel, channels),
                (row, image, diagonal + row, diagonal, 1),
                step * diagonal + first * row,
            )
            known = neighbours.reshape(-1, len(matrix)) @ matrix
            x[step + 2 * margin, first + margin : last + margin] = right[
                step, first:last
            ] - known.view(-1, batch, channels)
        straight: Tensor = x[rows + columns + 2 * margin, rows + margin]
        return straight.permute(2, 3, 0, 1)

    return solve


# ---- iterations, and the Fourier transform -------------------------------------------------------


def fixed_point(weight: Tensor, shape: Shape, to_tolerance: bool = False) -> Solver:
    """Fixed-point iteration with conv2d: each round makes one more diagonal final."""
    inverse, taps = folded(weight)
    pad = (shape.kernel - 1, 0, shape.kernel - 1, 0)

    def solve(y: Tensor) -> Tensor:
        right = F.conv2d(y, inverse[:, :, None, None])
        x = right
        for _ in range(shape.steps - 1):
            before, x = x, right - F.conv2d(F.pad(x, pad), taps)
            if to_tolerance and (x - before).abs().max() <= 2.0**-24 * x.abs().max():
                break
        return x

    return solve


def fixed_point_to_tolerance(weight: Tensor, shape: Shape) -> Solver:
    """The same until a round changes nothing beyond rounding: early for small weights alone."""
    return fixed_point(weight, shape, to_tolerance=True)


def fixed_point_seconds(shape: Shape) -> float:
    """Seconds of all rounds, from the time of one."""
    images, weight = problem(shape)
    inputs = F.pad(images, (shape.kernel - 1, 0, shape.kernel - 1, 0))
    F.conv2d(inputs, weight)
    start = time.perf_counter()
    F.conv2d(inputs, weight)
    return (time.perf_counter() - start) * (shape.steps - 1)


# The image seen as periodic up to this factor. What wraps around comes back times it; the rounding
# errors of double at the far corner grow with the inverse of its square: 1e-5 balances the two.
ALPHA = 1e-5


def fft(weight: Tensor, shape: Shape) -> Solver:
    """Division in the Fourier domain of the alpha-circulant matrix closest to M, in double."""
    _, channels, height, width, kernel = shape
    down, right = (
        ALPHA ** (torch.arange(size, dtype=torch.float64) / size) for size in (height, width)
    )
    scale = down[:, None] * right
    response = torch.zeros(channels, channels, height, width, dtype=torch.float64)
    # Row u of the flipped taps is the one of the pixel u rows up.
    behind = anchored(weight).double().flip(2, 3)
    for u in range(kernel):
        for v in range(kernel):
            wrapped = ALPHA ** (u / height + v / width)
            response[:, :, u % height, v % width] += behind[:, :, u, v] * wrapped
    inverse = torch.linalg.inv(torch.fft.rfft2(response).permute(2, 3, 0, 1))

    def solve(y: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(y * scale).permute(2, 3, 1, 0)
        x: Tensor = torch.fft.irfft2((inverse @ spectrum).permute(3, 2, 0, 1), s=(height, width))
        return (x / scale).to(y.dtype)

    return solve


def _fft_bytes(shape: Shape) -> float:
    # The response and its inverse, complex and in double, and the copies that torch.linalg makes.
    pixels = shape.height * (shape.width // 2 + 1)
    return 4 * 16 * pixels * shape.channels**2 + 10 * shape.image_bytes


PEERS = {
    "dense": Peer(dense, lambda shape: 4 * shape.unknowns**2 + sparse_bytes(shape), exact=True),
    "spsolve_triangular": Peer(spsolve_triangular, sparse_bytes, exact=True),
    "splu": Peer(splu, lambda shape: sparse_bytes(shape) + 24 * nonzeros(shape), exact=True),
    "diagonals": Peer(diagonals, lambda shape: 8 * shape.image_bytes, exact=True),
    "fixed-point": Peer(
        fixed_point, lambda shape: 5 * shape.image_bytes, exact=False, seconds=fixed_point_seconds
    ),
    "fixed-point-tolerance": Peer(
        fixed_point_to_tolerance, lambda shape: 5 * shape.image_bytes, exact=False
    ),
    "fft": Peer(fft, _fft_bytes, exact=False),
}


# Of the free memory, what a peer may take: it is an estimate, and the machine has other work.
SHARE = 0.4

# ---- measuring -----------------------------------------------------------------------------------


def available_memory() -> int:
    """Bytes that this process may still take without the system swapping or killing it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        limits += [int(found[1]) * 1024] if found else []
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            limits.append(int(most) - int((group / "memory.current").read_text()))
    except OSError:
        pass  # not Linux, or no limit
    return min(limits)


def refusal(peer: Peer, shape: Shape, available: int, seconds: float) -> str | None:
    """Why a peer is not to be run, known beforehand: it cannot fit, or takes too long."""
    needed, most = peer.memory(shape) / 1e9, SHARE * available / 1e9
    if needed > most:
        return f"needs {needed:,.1f} GB; {SHARE:.0%} of what is free are {most:.1f}"
    if peer.seconds is not None and (estimate := peer.seconds(shape)) > seconds:
        return f"would take {estimate:.0f} s"
    return None


def measure(
    peer: Peer, shape: Shape, seconds: float, patience: float, exact: Tensor
) -> dict[str, Any]:
    """Return the figures of one peer, interleaved with ours; only its own matrix is in memory.

    Args:
        peer: The method.
        shape: The images and the kernel.
        seconds: Spent on repeating; a call that takes longer than a second is made once.
        patience: Seconds that a call may take.
        exact: The solution of :func:`problem` in double.
    """
    reason = refusal(peer, shape, available_memory(), patience)
    if reason is not None:
        return {"skipped": reason}
    y, weight = problem(shape)
    with torch.no_grad():
        start = time.perf_counter()
        solve = peer.prepare(weight, shape)
        setup = time.perf_counter() - start
        start = time.perf_counter()
        result = solve(y)
        once = time.perf_counter() - start
        figures: dict[str, Any] = {
            "exact": peer.exact,
            "setup_ms": setup * 1e3,
            "error": error(result, exact),
            "once": once > 1,
        }

        def ours() -> Tensor:
            return invconv.solve(y, weight)

        if once > 1:
            times = interleaved({"ours": ours}, min(seconds, 0.5)) | {"peer": Times.of([once])}
        else:
            candidates = {"ours": ours, "peer": lambda: solve(y)}
            times = interleaved(candidates, seconds, settle=SETTLE)
    return figures | _milliseconds(times["peer"], times["ours"])


def measure_all(
    shape: Shape, seconds: float, patience: float, plain: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the figures of every peer at one shape, and which exact one comes closest to ours.

    ``plain`` are those of the plain C++ loop, as :func:`plain_loop` has them, if there are any.
    """
    y, weight = problem(shape)
    exact = invconv.solve(y.double(), weight.double())
    rows = {name: measure(peer, shape, seconds, patience, exact) for name, peer in PEERS.items()}
    if plain is not None:
        rows["plain C++"] = dict(plain)
    candidates = [name for name, figures in rows.items() if figures.get("exact")]
    # The closest one; the plain loop is no library's, and stands for itself.
    best = min(
        (name for name in candidates if name in PEERS),
        key=lambda name: rows[name]["ratio"],
        default=None,
    )
    ours = [
        figures["ours_ms"] for name, figures in rows.items() if name in PEERS and "ms" in figures
    ]
    return {
        "shape": list(shape),
        "unknowns": shape.unknowns,
        "ours_ms": float(np.median(ours)) if ours else None,
        "peers": rows,
        "best_exact": best,
        "best_exact_ratio": rows[best]["ratio"] if best else None,
    }


def plain_loop(core: Times, plain: Times, largest_error: float) -> dict[str, Any]:
    """Return the figures of the plain loop against the core, both of one C++ benchmark."""
    return {"exact": True, "setup_ms": 0.0, "error": largest_error, "once": False} | _milliseconds(
        plain, core
    )


def _milliseconds(peer: Times, ours: Times) -> dict[str, float]:
    return {
        "ms": peer.median * 1e3,
        "low_ms": peer.low * 1e3,
        "high_ms": peer.high * 1e3,
        "ours_ms": ours.median * 1e3,
        "ratio": peer.median / ours.median,
    }
