"""Other ways to solve the same systems on a device, and guards against those that cannot fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

import invconv

from .. import peers
from ..operations import error, problem
from ..peers import Solver, anchored, folded, nonzeros, to_columns, to_images
from ..shapes import Shape
from ..timing import Times
from . import native, timing
from .operations import microseconds
from .timing import Candidate, Graphs, calls_together, eager, interleaved

# Seconds; a call that takes longer is made once.
LONG = 0.5


class Peer(NamedTuple):
    """A method, and what it will cost."""

    prepare: Callable[[Tensor, Shape], Solver]
    memory: Callable[[Shape], float]  # of the device, bytes at the peak beyond y and x
    graph: bool  # whether its calls can be captured in a CUDA graph


def entries(weight: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of M, whose unknowns are in the order of :func:`to_columns`."""
    taps = anchored(weight)
    channels, _, kernel, _ = taps.shape
    out = torch.arange(channels, device=weight.device)[:, None]
    into = torch.arange(channels, device=weight.device)
    parts = []
    for u in range(min(kernel, height)):
        for v in range(min(kernel, width)):
            i = torch.arange(u, height, device=weight.device)[:, None, None, None]
            j = torch.arange(v, width, device=weight.device)[:, None, None]
            rows = (i * width + j) * channels + out
            columns = ((i - u) * width + j - v) * channels + into
            sizes = (height - u, width - v, channels, channels)
            values = taps[:, :, kernel - 1 - u, kernel - 1 - v]
            parts.append([part.expand(sizes).reshape(-1) for part in (rows, columns, values)])
    rows, columns, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return rows, columns, values


def dense(weight: Tensor, shape: Shape) -> Solver:
    """torch.linalg.solve_triangular on M as a dense matrix."""
    rows, columns, values = entries(weight, shape.height, shape.width)
    matrix = weight.new_zeros(shape.unknowns, shape.unknowns)
    matrix[rows, columns] = values

    def solve(y: Tensor) -> Tensor:
        x = torch.linalg.solve_triangular(matrix, to_columns(y), upper=False, unitriangular=True)
        return to_images(x, shape)

    return solve


def spsolve_triangular(weight: Tensor, shape: Shape) -> Solver:
    """cupyx.scipy.sparse.linalg.spsolve_triangular, which analyses M anew in each call."""
    import cupy
    import cupyx.scipy.sparse
    import cupyx.scipy.sparse.linalg

    def stream() -> Any:
        return cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)

    with stream():
        rows, columns, values = entries(weight, shape.height, shape.width)
        arrays = [cupy.from_dlpack(array) for array in (values, rows.int(), columns.int())]
        order = (shape.unknowns, shape.unknowns)
        matrix = cupyx.scipy.sparse.coo_matrix((arrays[0], tuple(arrays[1:])), shape=order).tocsr()
        matrix.sum_duplicates()

    def solve(y: Tensor) -> Tensor:
        with stream():
            right = cupy.from_dlpack(to_columns(y))
            x = cupyx.scipy.sparse.linalg.spsolve_triangular(
                matrix, right, lower=True, unit_diagonal=True
            )
            return to_images(torch.utils.dlpack.from_dlpack(x), shape).to(y.dtype)

    return solve


def diagonals(weight: Tensor, shape: Shape) -> Solver:
    """One cuBLAS product for a diagonal of all images, added to what lies there.

    Images lie askew, (diagonal, row, batch, channel), so that what a diagonal needs is one view,
    which is gathered for the product.
    """
    _, channels, height, width, kernel = shape
    inverse, taps = folded(weight)
    matrix = taps.permute(2, 3, 1, 0).reshape(-1, channels)
    rows = torch.arange(height, device=weight.device)[:, None]
    columns = torch.arange(width, device=weight.device)
    margin = kernel - 1

    def solve(y: Tensor) -> Tensor:
        batch = len(y)
        x = y.new_zeros(shape.steps + 2 * margin, height + margin, batch, channels)
        x[rows + columns + 2 * margin, rows + margin] = y.permute(2, 3, 0, 1) @ inverse.T
        diagonal, row, image, _ = x.stride()
        for step in range(shape.steps):
            first, last = max(0, step - width + 1), min(step, height - 1) + 1
            # Tap (a, b) is that of the pixel margin - a rows up and margin - b columns left.
            neighbours = x.as_strided(
                (last - first, batch, kernel, kernel, channels),
                (row, image, diagonal + row, diagonal, 1),
                step * diagonal + first * row,
            )
            there = x[step + 2 * margin, first + margin : last + margin].view(-1, channels)
            there.addmm_(neighbours.reshape(-1, len(matrix)), matrix, alpha=-1)
        straight: Tensor = x[rows + columns + 2 * margin, rows + margin]
        return straight.permute(2, 3, 0, 1)

    return solve


def _launch_per_diagonal(synchronise: bool) -> Callable[[Tensor, Shape], Solver]:
    """One launch for each diagonal and channel, from a native loop: bench/cuda."""

    def prepare(weight: Tensor, shape: Shape) -> Solver:
        def solve(y: Tensor) -> Tensor:
            x = torch.empty_like(y)
            native.solve_per_diagonal(y, weight, x, synchronise)
            return x

        return solve

    return prepare


PEERS = {
    "launch per diagonal and channel, synchronised": Peer(
        _launch_per_diagonal(True), lambda shape: shape.image_bytes, graph=False
    ),
    "launch per diagonal and channel": Peer(
        _launch_per_diagonal(False), lambda shape: shape.image_bytes, graph=True
    ),
    "cuBLAS product per diagonal": Peer(diagonals, lambda shape: 8 * shape.image_bytes, graph=True),
    # torch copies a matrix that is not laid out as cuBLAS wants it.
    "dense solve_triangular": Peer(
        dense, lambda shape: 8 * shape.unknowns**2 + 24 * nonzeros(shape), graph=True
    ),
    "cupyx spsolve_triangular": Peer(spsolve_triangular, peers.sparse_bytes, graph=False),
}


def refusal(peer: Peer, shape: Shape, available: int) -> str | None:
    """Why a peer is not to be run, known beforehand."""
    same = peers.Peer(peer.prepare, peer.memory, exact=True)
    return peers.refusal(same, shape, available, 0)


def measure(
    peer: Peer,
    y: Tensor,
    weight: Tensor,
    shape: Shape,
    seconds: float,
    ours: Mapping[str, Candidate],
    exact: Tensor,
) -> dict[str, Any]:
    """Return the figures of one peer, interleaved with ours; only its own matrix is in memory.

    Args:
        peer: The method.
        y: The images, on the device.
        weight: The weight, on the device.
        shape: That of the images and the kernel.
        seconds: Spent on repeating.
        ours: Our solve, as ``ours_eager`` and ``ours_graph``.
        exact: The solution in double, on the CPU.
    """
    reason = refusal(peer, shape, torch.cuda.mem_get_info()[0])
    if reason is not None:
        return {"skipped": reason}
    torch.cuda.synchronize()
    start = time.perf_counter()
    solve = peer.prepare(weight, shape)
    torch.cuda.synchronize()
    setup = time.perf_counter() - start
    result = solve(y)
    figures: dict[str, Any] = {"setup_ms": setup * 1e3, "error": error(result.cpu(), exact)}
    start = time.perf_counter()
    solve(y)
    torch.cuda.synchronize()
    once = time.perf_counter() - start

    def call() -> Tensor:
        return solve(y)

    if once > LONG:
        times = interleaved(ours, seconds) | {"peer_eager": Times.of([once])}
    else:
        calls = calls_together(call)
        candidates = {**ours, "peer_eager": eager(call, calls)}
        if peer.graph:
            graphs = Graphs(call, 1)
            replayed = graphs.replay().cpu()
            figures["error"] = max(figures["error"], error(replayed, exact))
            candidates["peer_graph"] = graphs.warm
        times = interleaved(candidates, seconds)
    kind = "graph" if "peer_graph" in times else "eager"
    ratio = times[f"peer_{kind}"].median / times[f"ours_{kind}"].median
    return figures | microseconds(times) | {"once": once > LONG, "ratio": ratio, "ratio_of": kind}


def measure_all(shape: Shape, seconds: float, end: float) -> dict[str, Any]:
    """Return the figures of every peer at one shape; those that come after ``end`` are left out."""
    images, weights = problem(shape)
    exact = invconv.solve(images.double(), weights.double())
    y, weight = images.to(timing.DEVICE), weights.to(timing.DEVICE)

    def solve() -> Tensor:
        return invconv.solve(y, weight)

    calls = calls_together(solve)
    ours = {"ours_eager": eager(solve, calls), "ours_graph": Graphs(solve, calls).warm}
    rows: dict[str, Any] = {}
    for name, peer in PEERS.items():
        if time.time() > end:
            rows[name] = {"skipped": "no time left"}
            continue
        try:
            rows[name] = measure(peer, y, weight, shape, seconds, ours, exact)
        except Exception as failure:  # one peer's failure is a finding, and no end of the others
            torch.cuda.synchronize()
            rows[name] = {"failed": f"{type(failure).__name__}: {failure}"}
        torch.cuda.empty_cache()
    return {"shape": list(shape), "unknowns": shape.unknowns, "peers": rows}
