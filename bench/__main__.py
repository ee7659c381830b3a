"""The benchmarks' command line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

try:
    import torch
    import typer
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    import invconv

    from . import (
        capabilities,
        depth,
        field,
        flows,
        flows_page,
        operations,
        operators_table,
        peers,
        plans,
        report,
        results,
        scaling,
        timing,
    )
    from . import core as cpp
    from .choose import choose
    from .cmake import Missing
    from .gpu import command
    from .results import Rows
    from .shapes import SHAPES, SQUARES, TINY, Shape
except ModuleNotFoundError as error:
    if error.name == "invconv" and sys.argv[1:2] == ["gpu"]:
        from .gpu.command import gpu  # which installs it

        sys.argv[:2] = ["python -m bench gpu"]
        typer.run(gpu)
    sys.exit(f'python -m bench needs the [bench] extra: pip install ".[bench]" ({error})')

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
# A file or a pipe gets whole tables.
console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)

Shapes = Annotated[
    list[str] | None,
    typer.Argument(help=f"Of the standard shapes {', '.join(SHAPES)}; all if none is named."),
]
Threads = Annotated[int, typer.Option(min=1, help="For invconv, torch and the C++ benchmark.")]
Seconds = Annotated[float, typer.Option(min=0, help="Time spent on each shape.")]
Core = Annotated[
    bool, typer.Option(help="Build and run the C++ benchmark: the core's own time, and the floor.")
]
Save = Annotated[bool, typer.Option("--save", help="Keep the figures in bench/results/.")]


@app.callback()
def main() -> None:
    """Benchmarks of invconv. Every figure of the README is one that a command here prints."""


@app.command()
def build() -> None:
    """Build the C++ benchmark, or bring it up to date; the other commands do so when needed."""
    console.print(str(_build()), soft_wrap=True)


def _time_operation(operation: str, description: str) -> None:
    """Register the command that times one operation against torch's."""

    @app.command(operation, help=description)
    def command(
        shapes: Shapes = None,
        threads: Threads = 2,
        seconds: Seconds = 2.0,
        core: Core = True,
        save: Save = False,
    ) -> None:
        run = _start(threads)
        chosen = _choose(shapes, SHAPES)
        figures = None
        if core and _builds():
            figures = operations.core_figures(operation, chosen, threads, seconds)
        rows: Rows = {}
        for name, shape in track(chosen.items(), "timing", console=console, transient=True):
            measured = operations.measure(operation, shape, seconds)
            rows[name] = operations.row(operation, name, shape, measured, figures, threads)
        _show(report.OPERATION_TITLES, report.operation_rows(rows), run, left=2)
        _say(report.operation_summary(rows))
        _keep(operation, rows, run, save)


_time_operation(
    "solve", "Time solve against torch's conv2d of the same shape, in one interleaved run."
)
_time_operation(
    "backward", "Time both gradients of solve against those of torch's conv2d, through autograd."
)
_time_operation(
    "conv", "Time conv against torch's conv2d of the same shape, in one interleaved run."
)


@app.command(name="core")
def core_(
    shapes: Shapes = None,
    threads: Annotated[int, typer.Option(min=1, help="Beside one thread.")] = 2,
    seconds: Annotated[
        float, typer.Option(min=0, help="Spent on each of 5 repetitions of each operation.")
    ] = 0.05,
    save: Save = False,
) -> None:
    """Time the operations of the C++ library alone, with one thread and with more: milliseconds."""
    run = _start(threads)
    chosen = _choose(shapes, SHAPES)
    if not _builds():
        raise typer.Exit(1)
    names = operations.CORE_OPERATIONS
    counts = sorted({1, threads})
    times = cpp.measure(names, chosen, counts, seconds=seconds).times
    rows: Rows = {
        shape: {
            f"{name}, {count}": times[f"{name}:{shape}:{count}"].median * 1e3
            for name in names
            for count in counts
        }
        for shape in chosen
    }
    _show(report.core_titles(rows), report.core_rows(rows), run)
    _keep("core", rows, run, save)


@app.command(name="scaling")
def scaling_(
    threads: Threads = 2,
    seconds: Annotated[
        float, typer.Option(min=0, help="Time spent on each number of channels.")
    ] = 20.0,
    largest: Annotated[int, typer.Option(min=512, help="Rows of the largest image.")] = 8192,
    save: Save = False,
) -> None:
    """Time solves of one growing image: per pixel, with one thread and more, and their memory."""
    run = _start(threads)
    sizes = [size for size in scaling.SIZES if size <= largest]
    rows: Rows = {}
    for channels in track(scaling.CHANNELS, "timing", console=console, transient=True):
        rows |= scaling.one_image(channels, sizes, threads, seconds)
    _show(report.SCALING_TITLES, report.scaling_rows(rows), run)
    _say(report.scaling_summary(rows))
    _keep("scaling", rows, run, save)


@app.command()
def overhead(
    threads: Threads = 2,
    seconds: Seconds = 2.0,
    core: Core = True,
    graphs: Annotated[
        bool, typer.Option(help="Also compiled and exported, tiny and cifar-l1; minutes.")
    ] = False,
    save: Save = False,
) -> None:
    """Time a call on a tiny problem, (1, 4, 8, 8), from C++, numpy and torch."""
    run = _start(threads)
    rows: Rows = {}
    if core and _builds():
        figures = cpp.measure(["solve"], {"tiny": TINY}, [threads])
        rows["the core alone"] = {"us": figures.times[f"solve:tiny:{threads}"].median * 1e6}
    rows |= {name: {"us": time} for name, time in scaling.overhead(seconds).items()}
    if graphs:
        chosen = {"tiny": TINY, "cifar-l1": SHAPES["cifar-l1"]}
        times = scaling.graph_overhead(chosen, seconds, "inductor")
        rows |= {name: {"us": time} for name, time in times.items()}
    _show(report.OVERHEAD_TITLES, report.overhead_rows(rows), run)
    _keep("overhead", rows, run, save)


@app.command(name="peers")
def peers_(
    shapes: Shapes = None,
    squares: Annotated[
        bool,
        typer.Option(
            "--squares",
            help=f"One image of growing size, in place of the shapes: {', '.join(SQUARES)}.",
        ),
    ] = False,
    threads: Threads = 2,
    seconds: Annotated[float, typer.Option(min=0, help="Spent on each peer of each shape.")] = 0.5,
    patience: Annotated[
        float, typer.Option(min=0, help="Peers whose call would take longer are skipped: seconds.")
    ] = 20.0,
    core: Core = True,
    save: Save = False,
) -> None:
    """Time other ways to solve the same systems, each interleaved with ours."""
    run = _start(threads)
    chosen = _choose(shapes, SQUARES if squares else SHAPES)
    plain = _plain_loops(chosen, threads) if core and _builds() else {}
    rows: Rows = {}
    for name, shape in track(chosen.items(), "timing", console=console, transient=True):
        rows[name] = peers.measure_all(shape, seconds, patience, plain.get(name))
    _show(report.PEER_TITLES, report.peer_rows(rows), run)
    _show(report.BEST_TITLES, report.best_rows(rows), run)
    _keep("squares" if squares else "peers", rows, run, save)


@app.command(name="plans")
def plans_(
    save: Annotated[bool, typer.Option("--save", help="Put the table into docs/cuda.md.")] = False,
) -> None:
    """Show which CUDA kernel each standard shape takes, in float32; no device is needed."""
    if invconv.build_info()["cuda_kernels"] == "no":
        console.print("this build has no CUDA kernels: build it where nvcc is found")
        raise typer.Exit(1)
    _say([plans.section(SHAPES)])
    if save:
        plans.write(SHAPES, results.ROOT / "docs" / "cuda.md")


app.command(name="gpu")(command.gpu)


@app.command(name="memory-depth")
def memory_depth(
    largest: Annotated[int, typer.Option(min=1, help="Flow steps of the deepest flow.")] = 32,
    save: Annotated[
        bool, typer.Option("--save", help=f"Draw the figures into {depth.PICTURE}.")
    ] = False,
) -> None:
    """Measure the peak memory of a training step against depth, of Sequential and Reversible."""
    steps = [count for count in depth.STEPS if count <= largest]
    measured = track(steps, "measuring", console=console, transient=True)
    rows: Rows = {str(count): depth.measure(count) for count in measured}
    table = Table()
    for title in depth.TITLES:
        table.add_column(title, justify="right")
    for cells in depth.table_rows(rows):
        table.add_row(*cells)
    console.print(table)
    if save:
        depth.plot(rows, results.ROOT / depth.PICTURE)
        console.print(str(results.ROOT / depth.PICTURE), soft_wrap=True)


@app.command(name="flows")
def flows_(
    sections: Annotated[
        list[str] | None,
        typer.Argument(help=f"Of {', '.join(flows_page.TEXTS)}; all if none is named."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="With train: of each family.")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="For invconv and torch.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=0, help="Spent on each call of all families together.")
    ] = 20.0,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the figures, and write docs/flows.md.")
    ] = False,
) -> None:
    """Train and time Inverse-Flow, FInC Flow, Glow and a RealNVP-style flow, as in the paper."""
    for section in choose(sections, flows_page.TEXTS, "sections"):
        run = _start(threads)
        rows: Rows = {}
        titles: Sequence[str]
        if section == "train":
            chosen = [(s, f) for s in ("mnist5k", "photos") for f in flows.FAMILIES]
            for source, family in track(chosen, "training", console=console, transient=True):
                preset = f"small{flows.FAMILIES[family]}"
                rows[f"{source}, small: {family}"] = flows.train(source, preset, epochs)
            titles, cells = flows_page.TRAIN_TITLES, flows_page.train_rows(rows)
        elif section == "speed":
            for size in track(flows.SHAPES, "timing", console=console, transient=True):
                rows |= flows.speed(size, seconds)
            titles, cells = flows_page.SPEED_TITLES, flows_page.speed_rows(rows)
        else:
            values = flows.SIZES if section == "size" else flows.KERNELS
            for value in track(values, "timing", console=console, transient=True):
                rows[str(value)] = flows.scaling(section, value, seconds / 10)
            titles, cells = flows_page.scaling_titles(section), flows_page.scaling_rows(rows)
        _show(titles, cells, run, left=1 if section in ("size", "kernel") else 2)
        _keep(section, rows, run, save, flows.path_of(run))
    if save:
        flows_page.write_page(flows.path_of(run), report.provenance)
        console.print(str(flows_page.PAGE), soft_wrap=True)


@app.command(name="operators")
def operators_(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(field.FIELD)}; all if none is named.")
    ] = None,
    patience: Annotated[float, typer.Option(min=1, help="Seconds for an entry.")] = 300.0,
    save: Annotated[bool, typer.Option("--save", help="Write docs/operators.md.")] = False,
) -> None:
    """Run the list of what a torch operator should be able to do, on ours and on the field's."""
    chosen = choose(names, field.FIELD, "operators")
    found: operators_table.Table = {}
    entries = list(capabilities.CAPABILITIES)
    for name, entry, result, error in operators_table.measure(chosen, entries, patience):
        found.setdefault(name, {})[entry] = (result, error)
        console.print(f"{name}: {entry}: {result}", soft_wrap=True, markup=False)
    table = Table()
    for title in ("", *found):
        table.add_column(title)
    for entry in entries:
        table.add_row(entry, *(results_of[entry][0] for results_of in found.values()))
    console.print(table)
    if save:
        operators_table.PAGE.write_text(operators_table.page(found), encoding="utf-8")
        console.print(f"written to {operators_table.PAGE}", soft_wrap=True)


@app.command(name="report")
def report_() -> None:
    """Render bench/results/ into docs/benchmarks.md, its plots and the README's section."""
    found = results.load()
    if not found:
        console.print(f"no figures in {results.FOLDER}: run the other commands with --save first")
        raise typer.Exit(1)
    for path in report.write(found, results.ROOT):
        console.print(str(path), soft_wrap=True)


def _start(threads: int) -> dict[str, Any]:
    """Set the threads of both sides and return what the run is made with."""
    timing.keep_freed_memory()
    invconv.set_num_threads(threads)
    torch.set_num_threads(threads)
    return results.provenance(threads) | {"load": results.Load()}


def _choose(names: Sequence[str] | None, known: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name: known[name] for name in choose(names, known, "shapes")}


def _build() -> Path:
    if not cpp.PROGRAM.exists():
        console.print("building the C++ benchmark (minutes, the first time)")
    return cpp.build()


def _builds() -> bool:
    """Whether there is a C++ benchmark; says why if not."""
    try:
        _build()
    except Missing as missing:
        console.print(f"without the core's own times and the floors: {missing}", markup=False)
        return False
    return True


def _plain_loops(shapes: Mapping[str, Shape], threads: int) -> dict[str, dict[str, Any]]:
    figures = cpp.measure(["solve", "plain_solve"], shapes, [threads], seconds=0.02, repetitions=3)
    return {
        name: peers.plain_loop(
            figures.times[f"solve:{name}:{threads}"],
            figures.times[f"plain_solve:{name}:{threads}"],
            figures.errors[f"plain_solve:{name}:{threads}"],
        )
        for name in shapes
    }


def _show(
    titles: Sequence[str], rows: Iterable[Sequence[str]], run: Mapping[str, Any], left: int = 1
) -> None:
    console.print(report.provenance(dict(run)), soft_wrap=True)
    _warn(run, run["load"].others())
    table = Table()
    for index, title in enumerate(titles):
        table.add_column(title, justify="left" if index < left else "right")
    for cells in rows:
        table.add_row(*(cell.replace("\\*", "*").replace("**", "") for cell in cells))
    console.print(table)


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)


def _warn(run: Mapping[str, Any], others: float | None) -> bool:
    """Whether others took processors that the run needed; says so."""
    # Two threads that must wait for each other wait for whole time slices of anyone between them:
    # every ratio of such a run is wrong, and more often than not in our favour.
    spare = max((run["cores"] or 1) - run["threads"], 0)
    competed = others is not None and others > spare + 0.1
    if competed:
        console.print(
            f"[bold]other processes kept {others:.1f} cores busy meanwhile: "
            "these figures do not count[/bold]"
        )
    return competed


def _keep(
    section: str, rows: Rows, run: dict[str, Any], save: bool, path: Path | None = None
) -> None:
    others = run.pop("load").others()
    run["others"] = others
    competed = _warn(run, others)
    if save and competed:
        console.print("not kept: measure again on an idle machine, or with fewer threads")
        raise typer.Exit(1)
    if save:
        path = results.save(path or results.path_of(run), section, rows, run)
        console.print(f"kept in {path}", soft_wrap=True)


if __name__ == "__main__":
    app()
