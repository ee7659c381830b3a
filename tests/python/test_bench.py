"""The benchmarks: every command on a tiny problem, the peers' answers, guards and the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import invconv
from bench import (
    core,
    depth,
    floors,
    flows,
    flows_page,
    memory,
    operations,
    operators_table,
    peers,
    plans,
    report,
    results,
    scaling,
    timing,
)
from bench.__main__ import app
from bench.shapes import SHAPES, SQUARES, TINY, Shape

SMALL = Shape(3, 2, 5, 4, 3)


@pytest.fixture(autouse=True)
def bench(keep_threads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small shape, results in a folder of the test's own, and the process left as it was."""
    threads = torch.get_num_threads()
    monkeypatch.setitem(SHAPES, "small", SMALL)
    monkeypatch.setitem(SQUARES, "square-4", Shape(1, 3, 4, 4, 3))
    monkeypatch.setitem(SQUARES, "square-5", Shape(1, 3, 5, 5, 3))
    monkeypatch.setattr(scaling, "SIZES", (16, 32))
    monkeypatch.setattr(scaling, "CHANNELS", (3,))
    monkeypatch.setattr(scaling, "CALLS", 2)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    # How long a call takes is nothing that is tested.
    monkeypatch.setattr(peers, "SETTLE", 0.0)
    monkeypatch.setattr(scaling, "SETTLE", 0.0)
    monkeypatch.setattr(timing, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(results.Load, "others", lambda _: 0.0)
    yield
    torch.set_num_threads(threads)


def call(*arguments: str) -> str:
    """Run a command and return what it printed. One thread: two would wait for busy cores."""
    threads = () if arguments[0] == "report" else ("--threads", "1")
    done = CliRunner().invoke(app, [*arguments, *threads])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def saved() -> dict[str, Any]:
    (figures,) = results.load().values()
    return figures


# --- the table of shapes, and floors ------------------------------------------------------------


def test_operations_inside_are_those_of_a_plain_loop() -> None:
    for shape in (SMALL, Shape(1, 3, 2, 7, 4), Shape(2, 1, 1, 1, 1)):
        batch, channels, height, width, kernel = shape
        count = 0
        for i, j in np.ndindex(height, width):
            for u, v in np.ndindex(min(i + 1, kernel), min(j + 1, kernel)):
                count += channels**2 if u or v else channels * (channels - 1) // 2
        assert shape.operations_inside == 2 * batch * count
        assert shape.operations_inside < shape.operations


def test_the_floor_is_what_its_limits_say() -> None:
    limits = core.Limits(peak=1e9, multiply_add=1e-6, copy={SMALL.image_bytes: 1e6})
    solve = floors.floors(SMALL, "solve", limits)
    assert solve["arithmetic"] == SMALL.operations / 1e9
    assert solve["bandwidth"] == (2 * 4 * 3 * 2 * 5 * 4 + 4 * 4 * 9) / 1e6
    assert solve["steps"] == pytest.approx(8 * 2 * 1e-6)
    assert floors.floors(SMALL, "conv", limits)["steps"] == 0
    assert floors.floors(SMALL, "backward", limits)["arithmetic"] == 2 * solve["arithmetic"]


def test_large_images_are_compared_with_copies_from_memory() -> None:
    assert core.copied(SMALL) == SMALL.image_bytes
    assert core.copied(SHAPES["one-4k"]) == core.LARGE


# --- timing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "calls"), [(0, 2 + 5), (1, 2 + 100), (10, 51 + 1000)])
def test_a_slow_first_call_takes_no_time_from_those_that_are_counted(
    seconds: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, count = 0.0, 0

    def call() -> None:
        nonlocal now, count
        now += 0.01 if count else 0.5
        count += 1

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    times = timing.interleaved({"call": call}, seconds)
    assert times["call"] == pytest.approx((0.01, 0.01, 0.01))
    assert count == pytest.approx(calls, abs=1)  # sums of 0.01 are not exact


# --- the C++ benchmark ---------------------------------------------------------------------------


def listed(name: str, time: float, **counters: float) -> dict[str, Any]:
    """One repetition, as Google Benchmark lists it."""
    return {
        "name": f"{name}/min_time:0.020/repeats:3/real_time",
        "run_type": "iteration",
        "real_time": time,
        "time_unit": "us",
        **counters,
    }


def figures_of(time: float) -> core.Figures:
    """A run in which every operation took so many microseconds."""
    names = [f"{name}:small:1" for name in operations.CORE_OPERATIONS]
    return core.read(
        [
            *(listed(name, time) for name in names),
            *(listed("peak:1", 1, rate=rate) for rate in (90e9, 100e9)),
            *(listed("chain:1", time) for time in (1.5, 1.0)),
            *(listed("hand_over:2", time) for time in (100, 110, 500)),
            listed(f"copy:{SMALL.image_bytes}:1", 1, rate=50e9),
            listed(f"copy:{SMALL.image_bytes}:2", 1, rate=80e9),
        ]
    )


def test_times_are_medians_and_limits_the_best() -> None:
    times = [listed("solve:small:1", time) for time in (1, 2, 9)]
    mean = {**listed("solve:small:1", 4), "run_type": "aggregate"}
    plain = listed("plain_solve:small:1", 5, error=1e-7)
    figures = core.read([*times, mean, plain])
    assert figures.times["solve:small:1"].median == pytest.approx(2e-6)
    assert figures.errors == {"plain_solve:small:1": 1e-7}
    limits = figures_of(1).limits(1)
    assert limits.peak == 100e9
    assert limits.multiply_add == pytest.approx(1e-9)
    assert limits.hand_over == pytest.approx(110e-9)
    assert limits.copy == {SMALL.image_bytes: 50e9}


@pytest.mark.parametrize(("milliseconds", "of_core"), [(0.05, True), (0.5, False)])
def test_efficiency_of_short_calls_is_the_cores(milliseconds: float, of_core: bool) -> None:
    time = timing.Times.of([milliseconds * 1e-3])
    measured = operations.Measured(time, time, 1e-7)
    row = operations.row("backward", "small", SMALL, measured, figures_of(20), 1)
    assert row["core_ms"] == pytest.approx(0.02)
    assert row["efficiency_of_core"] == of_core
    denominator = 0.02 if of_core else milliseconds
    assert row["efficiency"] == pytest.approx(row["floor_ms"] / denominator)
    assert row["efficiency_inside"] <= row["efficiency"]
    assert row["ratio"] == 1


def test_without_cmake_the_commands_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    core.build.cache_clear()
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    out = call("solve", "small", "--seconds", "0")
    core.build.cache_clear()
    assert "without the core's own times and the floors: cmake is not installed" in out
    assert "ratio: geometric mean" in out


# --- the commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["solve", "backward", "conv"])
def test_operations(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "build", lambda: Path("program"))
    monkeypatch.setattr(core, "measure", lambda *_, **__: figures_of(10))
    out = call(operation, "small", "--seconds", "0", "--save")
    assert "3, 2, 5x4, 3" in out
    assert "efficiency: geometric mean" in out
    entry = saved()[operation]
    assert entry["run"]["threads"] == 1
    assert entry["run"]["versions"]["torch"] == torch.__version__
    assert {"machine", "cores", "instruction_set", "commit", "dirty", "date"} <= set(entry["run"])
    assert entry["rows"]["small"]["error"] < 1e-5
    assert entry["rows"]["small"]["ours_ms"] > 0


def test_the_core_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "build", lambda: Path("program"))
    monkeypatch.setattr(core, "measure", lambda *_, **__: figures_of(10))
    assert "weight_grad, 1" in call("core", "small", "--save")
    assert saved()["core"]["rows"]["small"]["conv, 1"] == pytest.approx(0.01)


def test_figures_of_a_busy_machine_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.Load, "others", lambda _: 1000.0)
    arguments = ["conv", "small", "--seconds", "0", "--no-core", "--threads", "1", "--save"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    warning = "other processes kept 1000.0 cores busy"
    assert done.output.count(warning) == 2
    # Above the table and not only below it, where the last figures are.
    assert done.output.index(warning) < done.output.index("3, 2, 5x4, 3")
    assert results.load() == {}


def test_an_unknown_shape_is_refused() -> None:
    done = CliRunner().invoke(app, ["solve", "enormous"])
    assert done.exit_code == 2
    assert "enormous" in done.output


def test_help_names_the_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    known = set(SHAPES) - {"small"}
    for command in ("solve", "backward", "conv", "core", "peers"):
        out = CliRunner().invoke(app, [command, "--help"]).output
        assert all(name in out for name in known)
    assert all(name in out for name in set(SQUARES) - {"square-4", "square-5"})


@pytest.mark.parametrize("built", [False, True])
def test_a_long_build_is_announced(
    built: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "invconv_bench"
    if built:
        program.touch()
    monkeypatch.setattr(core, "PROGRAM", program)
    monkeypatch.setattr(core, "build", lambda: program)
    monkeypatch.setattr(core, "measure", lambda *_, **__: figures_of(10))
    announcement = "building the C++ benchmark (minutes, the first time)"
    assert (announcement in call("conv", "small", "--seconds", "0")) == (not built)
    done = CliRunner().invoke(app, ["build"])
    assert (announcement in done.output) == (not built)


@pytest.mark.parametrize("missing", ["torch", "typer", "rich", "scipy"])
def test_without_the_extra_one_line_says_so(missing: str) -> None:
    code = (
        f"import runpy, sys; sys.modules[{missing!r}] = None; "
        "runpy.run_module('bench', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=memory.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith('python -m bench needs the [bench] extra: pip install ".[bench]"')
    assert done.stderr.count("\n") == 1


def test_scaling_and_overhead() -> None:
    assert "time per pixel within" in call("scaling", "--seconds", "0", "--save")
    out = call("overhead", "--seconds", "0", "--no-core", "--save")
    assert "numpy, out=" in out
    figures = saved()
    assert set(figures["scaling"]["rows"]) == {"3x16x16", "3x32x32"}
    assert all(row["us"] > 0 for row in figures["overhead"]["rows"].values())


def test_overhead_of_graphs() -> None:
    """Eager, compiled and exported calls; inductor, the default, compiles for minutes."""
    rows = scaling.graph_overhead({"tiny": TINY}, 0, "aot_eager")
    kinds = ("eager", "compiled")
    titles = [
        f"{name}{suffix}" for name in ("solve", "F.conv2d") for suffix in ("", " + gradients")
    ]
    expected = {f"tiny: {title}, {kind}" for title in titles for kind in kinds}
    assert expected | {"tiny: solve, exported"} <= set(rows)
    assert all(time > 0 for time in rows.values())


OPERATOR_RESULTS = [
    ("invconv.logabsdet", "func.grad", "passes"),
    ("invconv.logabsdet", "opcheck", "-"),
    ("lfilter as in torchaudio", "func.grad", "fails (no torch.func)"),
    ("lfilter as in torchaudio", "opcheck", "fails (not registered)"),
]


def test_operators() -> None:
    """Of ours and of one that cannot do all: what passes, what fails and why."""
    names = list(dict.fromkeys(name for name, _, _ in OPERATOR_RESULTS))
    found = list(operators_table.measure(names, ["func.grad", "opcheck"], 600))
    assert [(name, entry, result) for name, entry, result, _ in found] == OPERATOR_RESULTS
    table: operators_table.Table = {}
    for name, entry, result, error in found:
        table.setdefault(name, {})[entry] = (result, error)
    page = operators_table.page(table)
    assert "| func.grad | passes | fails (no torch.func) |" in page
    assert "AssertionError: no registered operator" in page


@pytest.mark.parametrize(
    ("code", "patience", "result", "error"),
    [
        ("os.kill(os.getpid(), 9)", 600, "fails (crash)", "exit status -9"),
        ("time.sleep(600)", 5, "fails (timeout)", "longer than 5 s"),
        ("raise ImportError('none here')", 600, "does not import", "ImportError: none here"),
    ],
)
def test_operators_that_end_their_process(
    code: str,
    patience: float,
    result: str,
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The next entry goes on in a new one."""
    (tmp_path / "torchlpc.py").write_text(f"import os, time\n{code}\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    found = list(operators_table.measure(["torchlpc"], ["meta", "fake"], patience))
    assert found == [("torchlpc", entry, result, error) for entry in ("meta", "fake")]


def test_extra_memory_sees_copies_of_the_image() -> None:
    code = (
        "import invconv; from bench import memory; "
        "invconv.solve = lambda y, weight, out=None: y.copy() + 1; "
        "memory._main(1, 1024, 1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=memory.ROOT, capture_output=True, text=True, check=True
    )
    images = int(done.stdout) / Shape(1, 1, 1024, 1024, 3).image_bytes
    assert 1.9 < images < 2.2


def test_results_of_one_commit_gather_and_of_another_are_dropped() -> None:
    run = results.provenance(1) | {"dirty": False, "commit": "a"}
    results.save(results.path_of(run), "solve", {"one": {"ratio": 1}}, run | {"date": "yesterday"})
    results.save(results.path_of(run), "solve", {"two": {"ratio": 2}}, run)
    assert set(saved()["solve"]["rows"]) == {"one", "two"}
    results.save(results.path_of(run), "conv", {"two": {"ratio": 2}}, run)
    results.save(results.path_of(run), "solve", {"three": {"ratio": 3}}, run | {"commit": "b"})
    assert set(saved()["solve"]["rows"]) == {"three"}
    assert set(saved()) == {"solve", "conv"}


# --- peers ---------------------------------------------------------------------------------------


def dense_solve(y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Column after column of M from its definition, and numpy's general solve, in double."""
    batch, channels, height, width = y.shape
    taps = weight.double().clone()
    anchor = taps[:, :, -1, -1]
    anchor.copy_(anchor.tril(-1) + torch.eye(channels, dtype=torch.float64))
    order = channels * height * width
    units = torch.eye(order, dtype=torch.float64).view(order, channels, height, width)
    pad = (weight.shape[3] - 1, 0, weight.shape[2] - 1, 0)
    matrix = torch.nn.functional.conv2d(torch.nn.functional.pad(units, pad), taps)
    columns = y.double().reshape(batch, order).numpy().T
    x = np.linalg.solve(matrix.reshape(order, order).numpy().T, columns)
    return torch.from_numpy(x.T.copy()).view(y.shape)


@pytest.mark.parametrize("name", peers.PEERS)
@pytest.mark.parametrize(
    "shape",
    [SMALL, Shape(1, 1, 6, 9, 2), Shape(2, 3, 4, 4, 1), Shape(1, 2, 2, 3, 4), Shape(2, 4, 9, 7, 3)],
    ids=str,
)
def test_a_peer_solves_what_it_is_given(name: str, shape: Shape) -> None:
    y, weight = operations.problem(shape)
    peer = peers.PEERS[name]
    x = peer.prepare(weight, shape)(y)
    assert x.shape == y.shape
    assert x.dtype == torch.float32
    error = operations.error(x, dense_solve(y, weight))
    assert error < (1e-4 if name == "fft" else 2e-6)


def test_the_sparse_matrix_is_lower_triangular_with_a_unit_diagonal() -> None:
    _, weight = operations.problem(SMALL)
    matrix = peers.sparse_matrix(weight, 5, 4).toarray()
    assert np.array_equal(matrix, np.tril(matrix))
    assert np.array_equal(np.diagonal(matrix), np.ones(len(matrix)))


def test_what_cannot_fit_or_takes_too_long_is_refused_beforehand() -> None:
    def fail(*_: object) -> peers.Solver:
        raise AssertionError("it was run")

    gigabytes = peers.Peer(fail, lambda _: 5e9, exact=True)
    reason = peers.refusal(gigabytes, SMALL, int(1e9), 10)
    assert reason == "needs 5.0 GB; 40% of what is free are 0.4"
    assert peers.refusal(gigabytes, SMALL, int(1e12), 10) is None
    slow = peers.Peer(fail, lambda _: 1, exact=False, seconds=lambda _: 100)
    assert peers.refusal(slow, SMALL, int(1e9), 10) == "would take 100 s"
    too_large = peers.Peer(fail, lambda _: 1e18, exact=True)
    row = peers.measure(too_large, SMALL, 0, 10, torch.zeros(1))
    assert set(row) == {"skipped"}
    # What the guard is there for: a dense matrix of 155 GB.
    assert peers.PEERS["dense"].memory(SHAPES["rgb"]) > 150e9


def test_available_memory_is_plausible() -> None:
    assert 2**20 < peers.available_memory() < 2**50


def test_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    # Impossible to fit, so that the table has one that was skipped.
    never = peers.PEERS["dense"]._replace(memory=lambda _: 1e18)
    monkeypatch.setitem(peers.PEERS, "dense", never)
    out = call("peers", "small", "--seconds", "0", "--no-core", "--save")
    assert "skipped: needs 1,000,000,000.0 GB" in out
    row = saved()["peers"]["rows"]["small"]
    assert row["unknowns"] == 40
    exact = {name for name, peer in peers.PEERS.items() if peer.exact} - {"dense"}
    assert row["best_exact"] in exact
    assert row["best_exact_ratio"] == min(row["peers"][name]["ratio"] for name in exact)


# --- the report ----------------------------------------------------------------------------------


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    done = CliRunner().invoke(app, ["report"])
    assert done.exit_code == 1
    assert "no figures" in done.output

    monkeypatch.setattr(core, "build", lambda: Path("program"))
    monkeypatch.setattr(core, "measure", lambda *_, **__: figures_of(10))
    for operation in ("solve", "backward", "conv"):
        call(operation, "small", "--seconds", "0", "--save")
    squares = ("square-4", "square-5")
    call("peers", "--squares", *squares, "--seconds", "0", "--no-core", "--save")
    call("peers", "small", "--seconds", "0", "--no-core", "--save")
    call("report")

    text = readme.read_text()
    assert text.startswith("before\n<!-- bench -->\n")
    assert text.endswith("<!-- /bench -->\nafter\n")
    assert "old" not in text
    row = saved()["solve"]["rows"]["small"]
    assert f"| 3, 2, 5x4, 3 | {report.digits(row['ours_ms'])} | {row['ratio']:.2f} |" in text
    for picture in tmp_path.glob("docs/*.png"):
        assert f"docs/{picture.name}" in text
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.glob("docs/*.png"))) == 2
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    for section in ("solve", "backward", "conv", "peers", "peers --squares"):
        assert f"### `python -m bench {section}`" in page

    # The same figures give the same pages.
    call("report")
    assert readme.read_text() == text


def test_a_peer_that_wins_is_said_to() -> None:
    figures = {"ms": 1.0, "ours_ms": 2.0, "ratio": 0.5, "once": False}
    row = {"unknowns": 40, "best_exact": "dense", "peers": {"dense": figures}}
    assert "wins" in report.peer_cell(figures)
    assert "the peer wins" in next(iter(report.best_rows({"small": row})))[-1]
    assert "skipped: no room" in report.peer_cell({"skipped": "no room"})


def test_a_readme_without_markers_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("text")
    with pytest.raises(ValueError, match="expected <!-- bench -->"):
        report.replace_section(path, report.BEGIN, report.END, "section")
    assert path.read_text() == "text"


@pytest.mark.parametrize(
    ("value", "text"), [(0.012345, "0.0123"), (1.2, "1.20"), (99.96, "100."), (12345.6, "12,346")]
)
def test_digits(value: float, text: str) -> None:
    assert report.digits(value) == text


def test_the_file_is_named_after_the_instruction_set(tmp_path: Path) -> None:
    run = results.provenance(3)
    path = results.save(results.path_of(run), "overhead", {"numpy": {"us": 1.5}}, run)
    assert path.name == f"cpu-{invconv.build_info()['instruction_set']}.json"
    assert json.loads(path.read_text())["overhead"]["run"]["threads"] == 3


# --- the plans of CUDA kernels ------------------------------------------------------------------


@pytest.mark.skipif(
    invconv.build_info()["cuda_kernels"] == "no", reason="this build has no CUDA kernels"
)
def test_the_page_has_the_table_of_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SHAPES, "small")
    printed = CliRunner().invoke(app, ["plans"])
    assert printed.exit_code == 0
    page = (Path(__file__).parents[2] / "docs" / "cuda.md").read_text()
    committed = page.partition(plans.BEGIN)[2].partition(plans.END)[0]
    assert committed.strip() == printed.output.strip(), "python -m bench plans --save"


def test_memory_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "STEPS", (1, 2, 4))
    # Figures of another machine: how they are measured is tested in test_reversible.py.
    monkeypatch.setattr(
        depth, "peak", lambda steps, *, reversible: (20 if reversible else 10 + 10 * steps) * 10**6
    )
    done = CliRunner().invoke(app, ["memory-depth", "--largest", "2", "--save"])
    assert done.exit_code == 0, (done.output, done.exception)
    cells = [line.replace("│", " ").split() for line in done.output.splitlines()]
    assert ["1", "5", "20.0", "20.0", "1.0"] in cells
    assert ["2", "10", "30.0", "20.0", "1.5"] in cells
    assert not any(line[:1] == ["4"] for line in cells)
    assert (tmp_path / depth.PICTURE).stat().st_size > 1000


# --- flows ---------------------------------------------------------------------------------------


def test_a_family_is_trained_on_a_budget() -> None:
    row = flows.train("digits", "tiny-glow", 1)
    assert (row["epochs"], row["steps"]) == (1, 15)
    # Below uniform images' log2(17) = 4.09.
    assert 2 < row["bits_per_dim"] < 4
    assert row["reconstruction_max_error"] < 1e-4


def test_times_and_memory_of_families() -> None:
    models = {
        name: flows.initialised(f"tiny{suffix}", (1, 8, 8))
        for name, suffix in flows.FAMILIES.items()
    }
    measured = flows.times(models, 3, 0)
    assert set(measured) == set(flows.FAMILIES)
    for calls in measured.values():
        assert {kind: value.low > 0 for kind, value in calls.items()} == dict.fromkeys(
            flows.KINDS, True
        )
        assert calls["mixing"].median < calls["sample"].median
    # A hundred images of 8 x 8 x 4 bytes, and each activation at least once.
    assert flows.memory("tiny", (1, 8, 8)) > 10 * 100 * 8 * 8 * 4


def test_scaling_is_of_two_families() -> None:
    row = flows.scaling("kernel", 2, 0)
    assert [f"{name} ms".replace("sample", "ST").replace("forward", "FT") for name in row] == (
        flows_page.scaling_titles("kernel")[1:]
    )
    assert all(value > 0 for value in row.values())


def test_the_page_of_flows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows_page, "PAGE", tmp_path / "flows.md")
    run = results.provenance(1) | {"others": None}
    times = {f"{kind}_ms": 2.0 for kind in flows.KINDS}
    times |= {f"{kind}_ms_quartiles": [1.0, 3.0] for kind in flows.KINDS}
    speed = {
        f"mnist: {name}": {**times, "parameters": 5, "step_bytes": 7e6} for name in flows.FAMILIES
    }
    scaling = {
        f"{f}, {c}": 1.0 for f in ("Inverse-Flow", "FInC Flow") for c in ("sample", "forward")
    }
    sections = {"speed": speed, "size": {"16": scaling, "32": scaling}, "kernel": {"3": scaling}}
    for section, rows in sections.items():
        path = results.save(tmp_path / "x.json", section, rows, run)
    flows_page.write_page(path, report.provenance)
    text = (tmp_path / "flows.md").read_text()
    assert "| mnist | Inverse-Flow | 2.00 (1.00 to 3.00)" in text
    assert "| 52 | - | 1.31 | 1.6 M |" in text  # the paper's
    assert "| 16x16 | 1.00 |" in text and "## Scaling with the size of kernels" in text
    assert "Bits per dimension under one budget" not in text  # not measured
    assert (tmp_path / flows_page.PLOT).stat().st_size > 1000
