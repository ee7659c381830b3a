"""System identification: the taps of a 2-D recursive filter, from its input and noisy output.

A recursive (IIR) filter computes each output from the input and from outputs before it,

    ``x[p] = y[p] - sum_t a_t x[p - t]``,  that is  ``M x = y``,  ``x = M^-1 y``:

a solve. Here a quarter-plane filter with eight taps, 3 x 3 with the pixel itself, runs over white
noise y, and ``d = x + noise`` is seen of its output. Two errors can be made small to find the taps
(Ljung, System Identification, 1999; Regalia, Adaptive IIR Filtering in Signal Processing and
Control, 1995):

* the **equation error** ``M d - y`` is linear in the taps: one least-squares problem. But what the
  taps multiply there is noisy itself, so that they come out too small, with any amount of data;
* the **output error** ``M^-1 y - d`` is the white noise where the taps are right, and to minimise
  its square is maximum likelihood. It is not linear in the taps: it takes derivatives of a solve.

Both ways down start from the equation error's taps. **Gradient descent** (Adam) on
:class:`invconv.nn.InverseConv2d` is what a filter within a network gets; its backward pass is
another solve. **Gauss-Newton** has the Jacobian ``J = d(M^-1 y)/da`` from forward mode, one solve
for each tap, and needs few steps even though the taps are strongly correlated. J also tells how
well an unbiased estimate can do: its covariance is at least ``sigma^2 (J^T J)^-1`` (Cramer-Rao).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import invconv
from invconv.nn import InverseConv2d

TRUE = torch.tensor([0.05, -0.10, 0.08, -0.12, 0.30, -0.62, 0.15, -0.68], dtype=torch.float64)
NOISE = 0.6  # the filter's output has a standard deviation of 2


def weight(taps: Tensor) -> Tensor:
    """The 3 x 3 weight with these eight taps and, last, 1 for the pixel itself."""
    return torch.cat([taps, taps.new_ones(1)]).view(1, 1, 3, 3)


def run(y: Tensor, taps: Tensor) -> Tensor:
    """Filter an image, ``(1, H, W)``."""
    return invconv.solve(y, weight(taps))


def least_squares(matrix: Tensor, right: Tensor) -> Tensor:
    """The minimum of ``|matrix a - right|``."""
    solution: Tensor = torch.linalg.lstsq(matrix, right.unsqueeze(1)).solution
    return solution.squeeze(1)


def by_equation_error(y: Tensor, d: Tensor) -> Tensor:
    """Minimise ``|M d - y|^2``."""
    # Row by row the taps' order, as the columns of a matrix: d, moved by each tap's offset.
    shifted = torch.nn.functional.unfold(torch.nn.functional.pad(d, (2, 0, 2, 0)), 3)
    return least_squares(shifted[:8].T, (y - d).flatten())


def by_gradient_descent(
    y: Tensor, d: Tensor, start: Tensor, steps: int
) -> tuple[Tensor, list[Tensor]]:
    """Minimise ``|M^-1 y - d|^2`` in reverse mode; also the taps before every step."""
    layer = InverseConv2d(1, 3, dtype=y.dtype)
    layer.load_state_dict({"taps": weight(start)})
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.003, betas=(0.95, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = []
    for _ in range(steps):
        history.append(layer.taps.detach().flatten()[:8].clone())
        loss = (layer(y) - d).square().mean()
        optimizer.zero_grad()
        loss.backward()
        # Close to instability gradients grow without limit.
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return layer.taps.detach().flatten()[:8], history


def jacobian(y: Tensor, taps: Tensor) -> Tensor:
    """``d(M^-1 y)/da`` in forward mode, one column for each tap."""
    return torch.func.jacfwd(lambda a: run(y, a).flatten())(taps)


def by_gauss_newton(y: Tensor, d: Tensor, start: Tensor, steps: int) -> tuple[Tensor, list[Tensor]]:
    """Minimise ``|M^-1 y - d|^2``, linear again and again; also the taps before every step."""
    taps, history = start, []
    for _ in range(steps):
        history.append(taps)
        taps = taps + least_squares(jacobian(y, taps), (d - run(y, taps)).flatten())
    return taps, history


def main() -> None:
    """Print the figures and save the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("recursive_filter.png"), help="picture")
    parser.add_argument("--size", type=int, default=256, help="of the images, in pixels")
    parser.add_argument("--steps", type=int, default=1500, help="of gradient descent")
    parser.add_argument("--seed", type=int, default=0, help="of the images")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    y, fresh = torch.randn(2, 1, options.size, options.size, dtype=torch.float64)
    x = run(y, TRUE)
    d = x + NOISE * torch.randn_like(x)

    start = by_equation_error(y, d)
    descent, descent_history = by_gradient_descent(y, d, start, steps=options.steps)
    newton, newton_history = by_gauss_newton(y, d, start, steps=8)
    j = jacobian(y, newton)
    deviation = NOISE * (j.T @ j).inverse().diagonal().sqrt()

    estimates = {
        "equation error": start,
        f"gradient descent, {options.steps} steps": descent,
        "Gauss-Newton, 8 steps": newton,
    }
    print(f"Input and noisy output, {options.size} x {options.size}; the noise is {NOISE}")
    print(f"  {'':30}{'largest error':>15}{'RMS error over':>16}{'error on':>14}")
    print(f"  {'':30}{'of a tap':>15}{'Cramer-Rao':>16}{'new input, %':>14}")
    for name, taps in estimates.items():
        largest = (taps - TRUE).abs().max()
        scaled = ((taps - TRUE) / deviation).square().mean().sqrt()
        clean = run(fresh, TRUE)
        output = 100 * (run(fresh, taps) - clean).norm() / clean.norm()
        print(f"  {name:30}{largest:15.4f}{scaled:16.2f}{output:14.3f}")
    print("Taps")
    print(f"  {'true':>8}{'equation':>10}{'descent':>10}{'Newton':>10}  Cramer-Rao deviation")
    for row in zip(TRUE, start, descent, newton, deviation, strict=True):
        print("  {:8.4f}{:10.4f}{:10.4f}{:10.4f}  {:.4f}".format(*row))
    histories = {"gradient descent": descent_history, "Gauss-Newton": newton_history}
    draw(estimates, deviation, histories, options.out)


def draw(
    estimates: dict[str, Tensor],
    deviation: Tensor,
    histories: dict[str, list[Tensor]],
    path: Path,
) -> None:
    """Impulse responses, errors of the taps, and convergence."""
    figure = Figure(figsize=(10, 3.7), layout="constrained")
    response, errors, convergence = figure.subplots(1, 3)
    impulse = torch.zeros(1, 16, 16, dtype=torch.float64)
    impulse[0, 0, 0] = 1
    response.imshow(run(impulse, TRUE)[0].numpy(), cmap="RdBu", vmin=-1, vmax=1)
    response.set_title("the filter's impulse response", fontsize=10)
    for (name, taps), marker in zip(estimates.items(), "xso", strict=True):
        errors.plot(range(1, 9), (taps - TRUE).numpy(), marker, fillstyle="none", label=name)
    band = 2 * deviation.numpy()
    errors.fill_between(range(1, 9), -band, band, color="0.85")
    errors.set_title("errors of the taps (gray: two C.-R. deviations)", fontsize=10)
    errors.set_xlabel("tap")
    handles, names = errors.get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, loc="outside lower center", ncols=3)
    for name, history in histories.items():
        largest = (torch.stack(history) - TRUE).abs().amax(1).numpy()
        convergence.loglog(range(1, len(history) + 1), largest, label=name)
    convergence.set_title("largest error of a tap", fontsize=10)
    convergence.set_xlabel("step")
    convergence.legend(fontsize=8)
    figure.savefig(path, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
