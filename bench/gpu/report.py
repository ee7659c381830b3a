"""Tables and plots of the figures of one GPU, as in bench/report.py."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..flows_page import SPEED_NOTES, SPEED_TITLES, speed_rows
from ..results import Rows
from ..shapes import Shape
from ..tables import (
    COLOURS,
    MARKERS,
    OPERATIONS,
    OURS,
    bullets,
    digits,
    save_figure,
    summary,
    table,
)
from .part import PARTS, TOOLS

NOT_YET = (
    "CUDA: not yet run on a GPU. `python -m bench gpu` builds, tests and measures on a machine "
    "with one."
)

NOTES = """\
Microseconds. Graph: a call's share of a CUDA graph of up to 50 that follow each other, so that the
L2 cache holds what fits into it; quartiles beside it. Cold: a graph of one call, after all of L2
was overwritten. Eager: calls from Python that follow each other. All are medians of interleaved
runs, by the device's clock; nobody needs a set-up: a weight is packed in every call, and cuDNN has
chosen its quickest algorithm beforehand. conv2d is cuDNN's on images that were padded before, in
float32; TF32 rounds its factors to 11 bits, which is torch's default for it. Floor: the largest of
operations / the measured rate of multiply-adds, bytes / the bandwidth of copying 1 GiB, steps x
dependent multiply-adds, and an empty kernel in a graph; every tap counts, and what lies in L2
already can be quicker, so that efficiency, floor / graph, can pass 1. Target: what an H200 should
reach, from published latencies. Error: the largest, against float64 on the CPU, relative to the
largest value."""

PEER_NOTES = """\
Solves of the same systems, each interleaved with ours. The ratio is of graphs where the peer can be
captured in one, else of eager calls. One product per diagonal: cuBLAS, on images that lie askew,
and a copy that gathers its operand. `spsolve_triangular` analyses the matrix in every call. A
launch for each diagonal and channel, with the host waiting after each, is how the method was first
published; both rows are called from a native loop."""

TF32_NOTE = "The nets' convolutions are cuDNN's in TF32, which is torch's default."

TITLES = (
    "shape", "B, C, HxW, k", "graph", "quartiles", "cold", "eager", "conv2d graph", "conv2d cold",
    "conv2d eager", "ratio", "ratio eager", "ratio to TF32", "target", "floor", "efficiency",
    "GFLOP/s", "error", "kernels",
)  # fmt: skip

PEER_TITLES = (
    "shape", "n per image", "peer", "set-up ms", "eager us", "graph us", "against ours", "error",
)  # fmt: skip


PICTURES = {"ratios": "Time over torch's time", "times": "Times of a solve, ours and others'"}


def is_gpu(name: str) -> bool:
    """Whether a file of figures is that of a GPU."""
    return name.startswith("nvidia-")


def done(rows: Rows) -> Rows:
    """The rows that have figures."""
    return {name: row for name, row in rows.items() if "failed" not in row}


def provenance(run: Mapping[str, Any]) -> str:
    """One line: what the figures were measured on and with."""
    versions = run["versions"]
    names = ("torch", "cuda", "cudnn", "driver", "cupy", "python")
    commit = (run["commit"] or "unknown")[:10] + (" with changes" if run["dirty"] else "")
    return (
        f"{run['machine']}, {run['multiprocessors']} multiprocessors, "
        f"{run['l2_bytes'] / 2**20:.0f} MiB of L2; "
        + ", ".join(f"{name} {versions[name]}" for name in names if versions[name] is not None)
        + f"; commit {commit}, {run['date']}"
    )


def limits(run: Mapping[str, Any]) -> str:
    """One line: what the device was measured to be able to do."""
    found = run["limits"]
    return (
        f"the device: {found['peak'] / 1e12:.1f} TFLOP/s in float32, copies at "
        f"{found['copy'] / 1e12:.2f} TB/s, {found['multiply_add'] * 1e9:.2f} ns from one "
        f"multiply-add to the next that needs it, {found['launch'] * 1e6:.2f} us for an empty "
        "kernel in a graph"
    )


def kernels_cell(kernels: Sequence[str]) -> str:
    """Each kernel once, with how often it was launched."""
    counts = {name: kernels.count(name) for name in kernels}
    return ", ".join(
        f"`{name}`" + (f" x{count}" if count > 1 else "") for name, count in counts.items()
    )


def target_cell(target: Sequence[float] | None) -> str:
    """The target's bounds."""
    return f"{target[0]:g}-{target[1]:g}" if target else ""


def operation_rows(rows: Rows) -> Iterable[list[str]]:
    """The cells of one operation's table."""
    for name, row in rows.items():
        shape = Shape(*row["shape"])
        if "failed" in row:
            yield [name, str(shape), f"failed: {row['failed']}", *[""] * (len(TITLES) - 3)]
            continue
        yield [
            name,
            str(shape),
            digits(row["ours_graph_us"]),
            f"{digits(row['ours_graph_low_us'])}-{digits(row['ours_graph_high_us'])}",
            *(digits(row[f"ours_{kind}_us"]) for kind in ("cold", "eager")),
            *(digits(row[f"conv2d_{kind}_us"]) for kind in ("graph", "cold", "eager")),
            *(f"{row[kind]:.2f}" for kind in ("ratio", "ratio_eager", "ratio_tf32")),
            target_cell(row["target_us"]),
            f"{digits(row['floor_us'])} {row['floor_of']}",
            f"{row['efficiency']:.2f}",
            f"{row['gflops']:,.0f}",
            f"{row['error']:.1e}",
            kernels_cell(row["kernels"]),
        ]


def operation_summary(rows: Rows) -> list[str]:
    """What is said below one operation's table."""
    lines = []
    for key, title in (
        ("ratio", "ratio"),
        ("ratio_eager", "ratio eager"),
        ("ratio_tf32", "ratio to TF32"),
        ("efficiency", "efficiency"),
    ):
        values = {name: row[key] for name, row in done(rows).items()}
        if values:
            lines.append(f"{title}: {summary(values, low_is_good=key != 'efficiency')}")
    aimed = {name: row for name, row in done(rows).items() if row["target_us"]}
    met = [name for name, row in aimed.items() if row["ours_graph_us"] <= row["target_us"][1]]
    if aimed:
        named = f" ({', '.join(met)})" if met else ""
        lines.append(f"targets met: {len(met)} of {len(aimed)}{named}")
    return lines


def peer_rows(rows: Rows) -> Iterable[list[str]]:
    """The cells of the peers' table: one line for each peer of each shape."""
    for name, row in rows.items():
        for peer, figures in row["peers"].items():
            head = [name, f"{row['unknowns']:,}", peer]
            reason = next((key for key in ("failed", "skipped") if key in figures), None)
            if reason is not None:
                yield [*head, "", f"{reason}: {figures[reason]}", "", "", ""]
                continue
            once = " (one call)" if figures["once"] else ""
            yield [
                *head,
                digits(figures["setup_ms"]),
                digits(figures["peer_eager_us"]) + once,
                digits(figures["peer_graph_us"]) if "peer_graph_us" in figures else "",
                ratio_cell(figures),
                f"{figures['error']:.1e}",
            ]


def ratio_cell(figures: Mapping[str, Any]) -> str:
    """How many times as long as ours a peer takes."""
    wins = " **wins**" if figures["ratio"] < 1 else ""
    eager = " eager" if figures["ratio_of"] == "eager" else ""
    return f"{figures['ratio']:.1f}x{eager}{wins}"


def checks(figures: Mapping[str, Any]) -> list[str]:
    """What tests and sanitizers said, a line for each."""
    lines = []
    for row in figures.get("test", {"rows": {}})["rows"].values():
        bad = row.get("failures", 0) + row.get("errors", 0)
        passed = row.get("tests", 0) - row.get("skipped", 0) - bad
        cut = ", cut off" if row["status"] is None else ""
        lines.append(
            f"`pytest tests/gpu`: {passed} passed, {bad} failed, {row.get('skipped', 0)} "
            f"skipped{cut}"
        )
    rows = figures.get("sanitize", {"rows": {}})["rows"]
    if "kernels" in rows:
        missing = rows["kernels"]["missing"]
        without = f" (never launched: {', '.join(missing)})" if missing else ""
        lines.append(
            f"compute-sanitizer over {len(rows['kernels']['launched'])} kernels{without}: "
            + "; ".join(
                f"{tool}: {rows[tool]['summary'] or 'cut off'}" for tool in TOOLS if tool in rows
            )
        )
    return lines


# ---- plots ---------------------------------------------------------------------------------------


def plot_times(figures: Mapping[str, Any], path: Path) -> None:
    """Points: time of a solve in each shape, ours and others', with floor and target."""
    rows = done(figures["solve"]["rows"])
    peers = figures.get("peers", {"rows": {}})["rows"]
    names = list(rows)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    others: dict[str, dict[str, float]] = {
        "cuDNN conv2d": {name: row["conv2d_graph_us"] for name, row in rows.items()}
    }
    for name, row in peers.items():
        for peer, found in row["peers"].items():
            if "ratio_of" in found:
                others.setdefault(peer, {})[name] = found[f"peer_{found['ratio_of']}_us"]
    for index, (other, times) in enumerate(others.items()):
        places = [place for place, name in enumerate(names) if name in times]
        axes.plot(
            places,
            [times[names[place]] for place in places],
            MARKERS[index % 8],
            label=other,
            color=COLOURS[index % 8],
            markersize=5,
        )
    axes.plot([row["ours_graph_us"] for row in rows.values()], "o", label="invconv", color=OURS)
    axes.plot(
        [row["floor_us"] for row in rows.values()], "_", label="floor", color="grey", markersize=14
    )
    aimed = [place for place, name in enumerate(names) if rows[name]["target_us"]]
    bounds = [rows[names[place]]["target_us"] for place in aimed]
    axes.vlines(
        aimed,
        [low for low, _ in bounds],
        [high for _, high in bounds],
        label="target",
        color="grey",
        linewidth=6,
        alpha=0.5,
    )
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_ylabel("microseconds")
    axes.set_title("A solve: replayed from a CUDA graph where it can be captured", fontsize=10)
    axes.grid(which="major", axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    save_figure(figure, path)


# ---- pages ---------------------------------------------------------------------------------------


def page(name: str, figures: Mapping[str, Any], drawn: Mapping[str, str]) -> list[str]:
    """The paragraphs of one GPU, in markdown."""
    parts = [f"## {name}"]
    for section in (name for name in PARTS if name in figures):
        run, rows = figures[section]["run"], figures[section]["rows"]
        parts += [f"### `python -m bench gpu {section}`", provenance(run) + "."]
        if section in OPERATIONS:
            parts += [table(TITLES, operation_rows(rows), 2)]
            parts += [bullets([*operation_summary(rows), limits(run)]), NOTES]
        elif section == "peers":
            parts += [table(PEER_TITLES, peer_rows(rows), 3), PEER_NOTES]
        elif section == "flows":
            parts += [table(SPEED_TITLES, speed_rows(rows), 2), f"{SPEED_NOTES} {TF32_NOTE}"]
        elif section == "build":
            lines = [
                f"architecture {architecture}: {row['install_seconds']:.0f} s"
                for architecture, row in rows.items()
            ]
            parts += [bullets(lines)]
        else:
            parts += [bullets(checks({section: figures[section]}))]
    return parts + [f"![{kind}]({file})" for kind, file in drawn.items()]


def readme(name: str, figures: Mapping[str, Any], drawn: Mapping[str, str]) -> list[str]:
    """What the README says of one GPU."""
    parts = [f"### {name}"]
    sections = [section for section in OPERATIONS if section in figures]
    lines = checks(figures)
    if sections:
        run = figures[sections[0]]["run"]
        all_rows = {section: done(figures[section]["rows"]) for section in sections}
        parts += [
            f"{provenance(run)}. float32, microseconds, medians of calls replayed from a CUDA "
            "graph; cuDNN's convolution (float32) is timed in the same run. Target: what an H200 "
            "should reach, from published latencies.",
            _readme_table(all_rows),
        ]
        means = []
        for section, rows in all_rows.items():
            title, theirs = OPERATIONS[section]
            if rows:
                ratios = {shape: row["ratio"] for shape, row in rows.items()}
                means.append(f"{title} / {theirs}: {summary(ratios, low_is_good=True)}")
        lines = [*means, limits(run), *lines]
    if "peers" in figures:
        lines += peer_summary(figures["peers"]["rows"])
    if lines:
        parts.append(bullets(lines))
    return parts + [f"![{PICTURES[kind]}](docs/{file})" for kind, file in drawn.items()]


def _readme_table(all_rows: Mapping[str, Rows]) -> str:
    shapes = {name: row["shape"] for rows in all_rows.values() for name, row in rows.items()}
    titles = ["B, C, HxW, kernel"]
    for section in all_rows:
        title, theirs = OPERATIONS[section]
        titles += [title, f"{title} / {theirs}"]
        titles += ["eager", "target", "efficiency"] if section == "solve" else []
    lines = []
    for name, shape in shapes.items():
        cells = [str(Shape(*shape))]
        for section, rows in all_rows.items():
            row = rows.get(name)
            if row is None:
                cells += [""] * (5 if section == "solve" else 2)
                continue
            cells += [digits(row["ours_graph_us"]), f"{row['ratio']:.2f}"]
            if section == "solve":
                cells += [digits(row["ours_eager_us"]), target_cell(row["target_us"])]
                cells += [f"{row['efficiency']:.2f}"]
        lines.append(cells)
    return table(titles, lines)


def peer_summary(rows: Rows) -> list[str]:
    """One line for each peer: how many times as long as ours it takes."""
    ratios: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        for peer, figures in row["peers"].items():
            if "ratio" in figures:
                ratios.setdefault(peer, {})[name] = figures["ratio"]
    return [
        f"{peer} / solve, {len(values)} shapes: {summary(values, low_is_good=False)}, median "
        f"{statistics.median(values.values()):.1f}"
        for peer, values in ratios.items()
    ]
