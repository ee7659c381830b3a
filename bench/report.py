"""Tables and plots from the files in results/: docs/benchmarks.md, and the README's section."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .gpu import report as gpu
from .results import Rows
from .shapes import Shape
from .tables import COLOURS, MARKERS, OPERATIONS, OURS, bullets, digits, save_figure, summary, table

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"

SECTIONS = (*OPERATIONS, "peers", "squares", "scaling", "overhead", "core")


# ---- tables --------------------------------------------------------------------------------------


def provenance(run: dict[str, Any]) -> str:
    """One line: what the figures were measured on and with."""
    versions = ", ".join(
        f"{name} {run['versions'][name]}" for name in ("torch", "numpy", "scipy", "python")
    )
    others = run.get("others") or 0
    busy = f"; other processes kept {others:.1f} cores busy" if others > 0.1 else ""
    return (
        f"{run['machine']}, {run['threads']} of {run['cores']} cores, {run['instruction_set']}; "
        f"{versions}; commit {_commit(run)}, {run['date']}{busy}"
    )


def _commit(run: dict[str, Any]) -> str:
    return (run["commit"] or "unknown")[:10] + (" with changes" if run["dirty"] else "")


def operation_rows(rows: Rows) -> Iterable[list[str]]:
    """The cells of one operation's table."""
    for name, row in rows.items():
        known = "floor_ms" in row
        mark = "\\*" if row.get("efficiency_of_core") else ""
        yield [
            name,
            str(Shape(*row["shape"])),
            digits(row["ours_ms"]),
            f"{digits(row['ours_low_ms'])}-{digits(row['ours_high_ms'])}",
            digits(row["conv2d_ms"]),
            f"{row['ratio']:.2f}",
            digits(row["core_ms"]) if known else "",
            f"{digits(row['floor_ms'])} {row['floor_of']}" if known else "",
            f"{row['efficiency']:.2f}{mark}" if known else "",
            f"{row['efficiency_inside']:.2f}{mark}" if known else "",
            f"{row['gflops']:.1f}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['error']:.1e}",
        ]


OPERATION_TITLES = (
    "shape", "B, C, HxW, k", "ms", "quartiles", "conv2d ms", "ratio", "core ms", "floor ms",
    "efficiency", "inside", "GFLOP/s", "MB", "error",
)  # fmt: skip


def operation_summary(rows: Rows) -> list[str]:
    """What is said below one operation's table."""
    lines = []
    for key, title in (
        ("ratio", "ratio"),
        ("efficiency", "efficiency"),
        ("efficiency_inside", "inside"),
    ):
        values = {name: row[key] for name, row in rows.items() if key in row}
        if values:
            lines.append(f"{title}: {summary(values, low_is_good=key == 'ratio')}")
    known = [row for row in rows.values() if "peak_gflops" in row]
    if known:
        copies = [row["copy_gb_per_s"] for row in known]
        lines.append(
            f"the machine: {known[-1]['peak_gflops']:.0f} GFLOP/s, copies at {min(copies):.0f} to "
            f"{max(copies):.0f} GB/s, {known[-1]['multiply_add_ns']:.2f} ns from one multiply-add "
            "to the next that needs it"
            + (
                f", {known[-1]['hand_over_ns']:.0f} ns from one thread to the other and back"
                if "hand_over_ns" in known[-1]
                else ""
            )
        )
    return lines


OPERATION_NOTES = """\
Milliseconds are medians, the quartiles beside them. Floor: the largest of operations / the measured
FMA peak, bytes / the measured bandwidth of copying an array of the images' size or, where these lie
in no cache, a large one, and steps x dependent multiply-adds. Efficiency: floor / time, where \\*
marks the core's own time from the C++ benchmark (for calls below 0.1 ms). Taps outside the image
count as operations, as in a convolution, though ours leave them out: efficiency can pass 1.
"inside": the same if they do not count. Error:
the largest, against float64, relative to the largest value."""


def peer_cell(figures: dict[str, Any]) -> str:
    """Time, ratio to ours and error of one peer, or why it was not run."""
    if "skipped" in figures:
        return f"skipped: {figures['skipped']}"
    wins = " **wins**" if figures["ratio"] < 1 else ""
    once = " (one call)" if figures["once"] else ""
    return f"{digits(figures['ms'])}{once}, {figures['ratio']:.1f}x{wins}"


def peer_rows(rows: Rows) -> Iterable[list[str]]:
    """The cells of the peers' table: one line for each peer of each shape."""
    for name, row in rows.items():
        for peer, figures in row["peers"].items():
            ran = "skipped" not in figures
            yield [
                name,
                f"{row['unknowns']:,}",
                peer + (" (exact)" if figures.get("exact") else ""),
                digits(figures["setup_ms"]) if ran else "",
                peer_cell(figures),
                f"{figures['error']:.1e}" if ran else "",
            ]


PEER_TITLES = ("shape", "n per image", "peer", "set-up ms", "ms, against ours", "error")


def best_rows(rows: Rows) -> Iterable[list[str]]:
    """The cells of the table of the best exact peers."""
    for name, row in rows.items():
        best = row["best_exact"]
        if best is None:
            yield [name, f"{row['unknowns']:,}", "none fits", "", ""]
            continue
        figures = row["peers"][best]
        who = "the peer wins" if figures["ratio"] < 1 else ""
        yield [
            name,
            f"{row['unknowns']:,}",
            best,
            f"{digits(figures['ours_ms'])} / {digits(figures['ms'])}",
            f"{figures['ratio']:.1f}x {who}".rstrip(),
        ]


BEST_TITLES = ("shape", "n per image", "best exact peer", "ours / peer ms", "ratio")


def scaling_rows(rows: Rows) -> Iterable[list[str]]:
    """The cells of the table of single images."""
    for row in rows.values():
        yield [
            f"{row['size']}x{row['size']}",
            str(row["channels"]),
            digits(row["one_thread_ms"]),
            digits(row["ms"]),
            f"{row['speedup']:.2f}",
            f"{row['ns_per_pixel']:.2f}",
            f"{row['extra']:.2%}",
        ]


SCALING_TITLES = (
    "image", "channels", "one thread ms", "all threads ms", "speedup", "ns per pixel",
    "extra memory",
)  # fmt: skip


def scaling_summary(rows: Rows) -> list[str]:
    """What is said below the table of single images."""
    lines = []
    for channels in sorted({row["channels"] for row in rows.values()}):
        own = [row for row in rows.values() if row["channels"] == channels]
        per_pixel = [row["ns_per_pixel"] for row in own]
        lines.append(
            f"{channels} channel{'s' if channels > 1 else ''}: time per pixel within "
            f"{max(per_pixel) / min(per_pixel):.2f}x, speedup at least "
            f"{min(row['speedup'] for row in own):.2f}, extra memory at most "
            f"{max(row['extra'] for row in own):.2%} of the image"
        )
    return lines


def overhead_rows(rows: Rows) -> Iterable[list[str]]:
    """The cells of the table of calls."""
    for name, row in rows.items():
        yield [name, f"{row['us']:.2f}"]


OVERHEAD_TITLES = ("call", "microseconds")


def core_titles(rows: Rows) -> list[str]:
    """The columns of the table of the core alone: operations with each number of threads."""
    return ["shape", *next(iter(rows.values()))]


def core_rows(rows: Rows) -> Iterable[list[str]]:
    """The cells of the table of the core alone, in milliseconds."""
    for name, row in rows.items():
        yield [name, *(digits(time) for time in row.values())]


# ---- plots ---------------------------------------------------------------------------------------


def plot_ratios(figures: dict[str, Any], path: Path) -> None:
    """Bars: our time over torch's, for each shape and operation."""
    sections = [name for name in OPERATIONS if name in figures]
    shapes = list(dict.fromkeys(shape for name in sections for shape in figures[name]["rows"]))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(sections)
    for index, section in enumerate(sections):
        rows = figures[section]["rows"]
        places = [place for place, shape in enumerate(shapes) if "ratio" in rows.get(shape, {})]
        title, theirs = OPERATIONS[section]
        axes.bar(
            [place + (index - (len(sections) - 1) / 2) * width for place in places],
            [rows[shapes[place]]["ratio"] for place in places],
            width,
            label=f"{title} / {theirs.replace('`', '')}",
            color=COLOURS[index],
        )
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(shapes)), shapes, rotation=35, ha="right")
    axes.set_ylabel("time / torch's time")
    axes.set_title("Below the line, invconv is faster than torch's convolution", fontsize=10)
    # Below the axes, where it covers no bar.
    figure.legend(loc="outside lower center", ncols=len(sections), fontsize=8, frameon=False)
    save_figure(figure, path)


def plot_growth(figures: dict[str, Any], path: Path) -> None:
    """Lines: time against unknowns for us and each peer, on logarithmic axes."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    rows = list(figures["squares"]["rows"].values())
    ours = [(row["unknowns"], row["ours_ms"]) for row in rows if row["ours_ms"] is not None]
    peers = list(dict.fromkeys(peer for row in rows for peer in row["peers"]))
    for index, peer in enumerate(peers):
        points = [
            (row["unknowns"], row["peers"][peer]["ms"])
            for row in rows
            if "ms" in row["peers"].get(peer, {})
        ]
        colour, marker = COLOURS[index % 8], MARKERS[index % 8]
        axes.plot(*_columns(points), label=peer, color=colour, marker=marker, markersize=5)
    axes.plot(*_columns(ours), label="invconv", color=OURS, marker="o", linewidth=2.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    if ours:
        _slopes(axes, ours)
    axes.set_xlabel("unknowns n of one image (3 channels)")
    axes.set_ylabel("milliseconds")
    axes.set_title("One square image: time of a solve, without set-up", fontsize=10)
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def _slopes(axes: Axes, ours: list[tuple[int, float]]) -> None:
    """Dotted lines of O(n) and O(n^2) through our middle point, inside the present limits."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    middle, time = ours[len(ours) // 2]
    for power, text in ((1, "O(n)"), (2, "O(n²)")):
        ends = [(n, time * (n / middle) ** power) for n in (left, right)]
        axes.plot(*_columns(ends), ":", color="grey", linewidth=1, zorder=0)
        # At the line's upper end inside the axes.
        at = min(right, middle * (top / time) ** (1 / power)) * 0.8
        axes.annotate(text, (at, time * (at / middle) ** power), color="grey", ha="right")
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


# ---- pages ---------------------------------------------------------------------------------------


def plots(name: str, figures: dict[str, Any], docs: Path) -> dict[str, str]:
    """Draw what there are figures for and return the files' names, by kind."""
    drawn = {}
    if any(section in figures for section in OPERATIONS):
        drawn["ratios"] = f"bench-{name}-ratios.png"
        plot_ratios(figures, docs / drawn["ratios"])
    if gpu.is_gpu(name) and "solve" in figures:
        drawn["times"] = f"bench-{name}-times.png"
        gpu.plot_times(figures, docs / drawn["times"])
    if "squares" in figures:
        drawn["growth"] = f"bench-{name}-growth.png"
        plot_growth(figures, docs / drawn["growth"])
    return drawn


def full_page(results: dict[str, dict[str, Any]], drawn: dict[str, dict[str, str]]) -> str:
    """Return the page of all tables and plots, in markdown."""
    parts = ["# Benchmarks", "Written by `python -m bench report` from `bench/results/`."]
    for name, figures in results.items():
        if gpu.is_gpu(name):
            parts += gpu.page(name, figures, drawn[name])
            continue
        parts.append(f"## {name}")
        for section in (name for name in SECTIONS if name in figures):
            run, rows = figures[section]["run"], figures[section]["rows"]
            command = "peers --squares" if section == "squares" else section
            parts += [f"### `python -m bench {command}`", provenance(run) + "."]
            if section in OPERATIONS:
                parts += [table(OPERATION_TITLES, operation_rows(rows), 2)]
                parts += [bullets(operation_summary(rows)), OPERATION_NOTES]
            elif section in ("peers", "squares"):
                parts += [table(BEST_TITLES, best_rows(rows)), table(PEER_TITLES, peer_rows(rows))]
            elif section == "scaling":
                parts += [table(SCALING_TITLES, scaling_rows(rows))]
                parts += [bullets(scaling_summary(rows))]
            elif section == "overhead":
                parts += [table(OVERHEAD_TITLES, overhead_rows(rows))]
            elif section == "core":
                parts += ["Milliseconds:", table(core_titles(rows), core_rows(rows))]
        parts += [f"![{kind}]({file})" for kind, file in drawn[name].items()]
    return "\n\n".join(parts) + "\n"


def readme_section(results: dict[str, dict[str, Any]], drawn: dict[str, dict[str, str]]) -> str:
    """Return what stands between the README's markers: the ratios, the plots and the summaries.

    Of the machine with the most figures all of them; of others the means alone; then the GPUs.
    """
    parts = []
    processors = [item for item in results.items() if not gpu.is_gpu(item[0])]
    most_first = sorted(processors, key=lambda item: -len(item[1]))
    for place, (name, figures) in enumerate(most_first):
        if len(results) > 1:
            parts.append(f"### {name}")
        sections = [section for section in OPERATIONS if section in figures]
        if place > 0:
            if sections:
                parts += [provenance(figures[sections[0]]["run"]) + ":"]
                parts += [bullets(_means({key: figures[key]["rows"] for key in sections}))]
            continue
        if sections:
            parts += [_readme_operations(figures, sections)]
        if "ratios" in drawn[name]:
            parts.append(f"![Time over torch's time](docs/{drawn[name]['ratios']})")
        if "peers" in figures:
            rows = figures["peers"]["rows"]
            parts += [
                "Against the best direct solve that fits in memory, of torch's `solve_triangular` "
                "on the dense matrix, scipy's `spsolve_triangular`, scipy's `splu` with the factor "
                "reused, and a loop over anti-diagonals in torch (set-up not counted):",
                table(BEST_TITLES, best_rows(rows)),
            ]
        if "growth" in drawn[name]:
            parts.append(f"![Time against unknowns](docs/{drawn[name]['growth']})")
        if "scaling" in figures:
            lines = scaling_summary(figures["scaling"]["rows"])
            sizes = [row["size"] for row in figures["scaling"]["rows"].values()]
            parts += [
                f"One image, {min(sizes)}x{min(sizes)} to {max(sizes)}x{max(sizes)} "
                f"(commit {_commit(figures['scaling']['run'])}):",
                bullets(lines),
            ]
        if "overhead" in figures:
            parts += [
                "A call on a tiny problem, (1, 4, 8, 8):",
                table(OVERHEAD_TITLES, overhead_rows(figures["overhead"]["rows"])),
            ]
    devices = [name for name in results if gpu.is_gpu(name)]
    for name in devices:
        parts += gpu.readme(name, results[name], drawn[name])
    if not devices:
        parts.append(gpu.NOT_YET)
    peers = " and every peer" if any("peers" in figures for figures in results.values()) else ""
    parts.append(
        f"All tables, with floors, errors{peers}, are in [docs/benchmarks.md]"
        '(docs/benchmarks.md); `pip install ".[bench]"` and `python -m bench --help` measure anew.'
    )
    return "\n\n".join(parts)


def _readme_operations(figures: dict[str, Any], sections: list[str]) -> str:
    """The ratios of every shape, and the means below."""
    run = figures[sections[0]]["run"]
    all_rows = {section: figures[section]["rows"] for section in sections}
    shapes = {name: row["shape"] for rows in all_rows.values() for name, row in rows.items()}
    titles = ["B, C, HxW, kernel"]
    for section in sections:
        title, theirs = OPERATIONS[section]
        titles += [f"{title} ms", f"{title} / {theirs}"]
        titles += ["efficiency"] if section == "solve" else []
    lines = []
    for name, shape in shapes.items():
        cells = [str(Shape(*shape))]
        for section, rows in all_rows.items():
            row = rows.get(name, {})
            cells.append(digits(row["ours_ms"]) if row else "")
            cells.append(f"{row['ratio']:.2f}" if row else "")
            if section == "solve":
                cells.append(f"{row['efficiency']:.2f}" if "efficiency" in row else "")
        lines.append(cells)
    about = (
        f"{provenance(run)}. float32, medians; torch's convolution of the same shape is timed in "
        "the same run. Efficiency is the time that the machine's arithmetic (every tap counted, as "
        "in a convolution), memory and latency ask for, over ours; taps outside the image are left "
        "out, so it can pass 1."
    )
    return "\n\n".join([about, table(titles, lines), bullets(_means(all_rows))])


def _means(all_rows: dict[str, Rows]) -> list[str]:
    """The means of each operation's ratios and efficiencies."""
    means = []
    for section, rows in all_rows.items():
        title, theirs = OPERATIONS[section]
        for key, what in (
            ("ratio", f"{title} / {theirs}"),
            ("efficiency", f"efficiency of {title}"),
        ):
            values = {name: row[key] for name, row in rows.items() if key in row}
            if values:
                means.append(f"{what}: {summary(values, low_is_good=key == 'ratio')}")
    return means


def replace_section(path: Path, begin: str, end: str, section: str) -> None:
    """Put the section between the markers.

    Raises:
        ValueError: If the file does not have both markers.
    """
    text = path.read_text()
    if begin not in text or end not in text:
        raise ValueError(f"expected {begin} and {end} in {path}")
    pattern = re.compile(f"{begin}.*{end}", re.DOTALL)
    path.write_text(pattern.sub(lambda _: f"{begin}\n{section}\n{end}", text))


def write(results: dict[str, dict[str, Any]], root: Path) -> list[Path]:
    """Write plots, docs/benchmarks.md and the README's section; return what was written."""
    docs = root / "docs"
    drawn = {name: plots(name, figures, docs) for name, figures in results.items()}
    page, readme = docs / "benchmarks.md", root / "README.md"
    page.write_text(full_page(results, drawn))
    replace_section(readme, BEGIN, END, readme_section(results, drawn))
    return [page, readme, *(docs / file for files in drawn.values() for file in files.values())]
