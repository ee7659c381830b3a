"""What tables and plots are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .timing import geometric_mean

OPERATIONS = {
    "solve": ("solve", "`F.conv2d`"),
    "backward": ("both gradients", "`F.conv2d`'s backward"),
    "conv": ("conv", "`F.conv2d`"),
}

# Okabe and Ito's colours, which people with any colour vision tell apart.
OURS = "#000000"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8B7500", "#666666")
MARKERS = "osD^vPX*"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Return a table in markdown; all but the first ``left`` columns are flushed right."""
    rule = ["---" if index < left else "---:" for index in range(len(titles))]
    lines = [list(titles), rule, *map(list, rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def digits(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def summary(values: dict[str, float], *, low_is_good: bool) -> str:
    """The geometric mean of values by name, and the worst of them."""
    worst = (max if low_is_good else min)(values, key=lambda name: values[name])
    bound = "at most" if low_is_good else "at least"
    mean = geometric_mean(values.values())
    return f"geometric mean {mean:.2f}, {bound} {values[worst]:.2f} ({worst})"


def bullets(lines: Iterable[str]) -> str:
    """Return a list in markdown."""
    return "\n".join(f"- {line}" for line in lines)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a plot, in a folder that need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib, so that the same figures give the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
