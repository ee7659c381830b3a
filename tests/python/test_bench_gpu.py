"""What of ``bench gpu`` needs no GPU.

Where a device's clock and graphs are needed, others stand in for them: they say nothing of times,
but the rest of a run is what it is on a device.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import invconv
from bench import cmake, flows, operations, peers, report, results
from bench.__main__ import app
from bench.gpu import command, every_kernel, limits, native, part, record, timing
from bench.gpu import operations as gpu_operations
from bench.gpu import peers as gpu_peers
from bench.gpu import report as gpu_report
from bench.shapes import GPU_SHAPES, SHAPES, Shape

SMALL = Shape(3, 2, 5, 4, 3)
OTHERS = [Shape(1, 1, 6, 9, 2), Shape(2, 3, 4, 4, 1), Shape(1, 2, 2, 3, 4), Shape(2, 4, 9, 7, 3)]
LIMITS = limits.Limits(peak=6e13, multiply_add=2.5e-9, copy=4e12, launch=1e-6)
RUN: dict[str, Any] = {
    "machine": "NVIDIA H200",
    "multiprocessors": 132,
    "l2_bytes": 60 << 20,
    "versions": {
        "torch": "2.11.0", "cuda": "13.0", "cudnn": "91000", "driver": None, "cupy": "14.2.0",
        "python": "3.12.3",
    },
    "commit": "0123456789abcdef",
    "dirty": False,
    "date": "2026-01-01",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GPU_SHAPES, "small", SMALL)
    monkeypatch.setitem(GPU_SHAPES, "smaller", Shape(1, 2, 3, 3, 3))


# --- the command line ----------------------------------------------------------------------------


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["gpu", *arguments])
    return done.exit_code, done.output


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out = invoke()
    assert status == 2
    assert out == f"python -m bench gpu needs an NVIDIA GPU; torch {torch.__version__} finds none\n"


def test_it_starts_without_invconv() -> None:
    code = (
        "import runpy, sys; import torch; torch.cuda.is_available = lambda: False; "
        "sys.modules['invconv'] = None; sys.argv[1:] = ['gpu', 'solve']; "
        "runpy.run_module('bench', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cmake.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout.startswith("python -m bench gpu needs an NVIDIA GPU")
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["polish"], ["solve", "--shape", "enormous"]])
def test_unknown_parts_and_shapes_are_refused(arguments: list[str]) -> None:
    status, out = invoke(*arguments)
    assert status == 2
    assert arguments[-1] in out


def test_parts_run_in_their_order_and_failures_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(arguments: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(arguments)
        return subprocess.CompletedProcess(arguments, int(arguments[3] == "solve"))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command.subprocess, "run", run)
    status, out = invoke("conv", "solve", "build", "--shape", "small", "--output", str(tmp_path))
    assert [arguments[3] for arguments in commands] == ["build", "solve", "conv"]
    assert all(arguments[-2:] == ["--shape", "small"] for arguments in commands)
    assert status == 1
    assert out.endswith("failed or cut off: solve\n")
    assert invoke("conv", "build", "--output", str(tmp_path))[0] == 0


def test_a_part_without_time_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.subprocess, "run", None)
    assert not command.run("solve", time.time() - 1, [])


# --- a part --------------------------------------------------------------------------------------


def test_a_command_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    assert part.run([sys.executable, "-c", "print('said')"], 60) == (0, "said\n")
    assert part.run([sys.executable, "-c", "raise SystemExit(3)"], 60)[0] == 3
    ready, written = tmp_path / "ready", tmp_path / "written"
    child = f"import pathlib, time; time.sleep(3); pathlib.Path({str(written)!r}).touch()"
    parent = (
        f"import pathlib, subprocess, sys; child = subprocess.Popen([sys.executable, '-c', "
        f"{child!r}]); pathlib.Path({str(ready)!r}).touch(); print('begun', flush=True); "
        "child.wait()"
    )
    status, printed = part.run([sys.executable, "-c", parent], 1.5)
    assert status is None
    if ready.exists():
        assert printed == "begun\n"
    time.sleep(3)
    assert not written.exists()


def a_part(name: str, folder: Path, *shapes: str) -> part.Part:
    """As the command line makes it."""
    options = ["--until", str(time.time() + 600), "--seconds", "0", "--output", str(folder)]
    return part.parse([name, *options, *(f"--shape={shape}" for shape in shapes)])


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU and the host's clock, in the place of a device."""

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.time = time.perf_counter()

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: Event) -> float:
            return (other.time - self.time) * 1e3

    class Graph:
        def __init__(self, call: Callable[[], Any], calls: int) -> None:
            self.call, self.calls = call, calls

        def replay(self) -> None:
            for _ in range(self.calls):
                self.call()

    monkeypatch.setattr(timing, "DEVICE", "cpu")
    monkeypatch.setattr(timing, "COLD_BYTES", 1 << 20)
    monkeypatch.setattr(gpu_operations, "COLD_BYTES", 1 << 20)
    monkeypatch.setattr(timing, "captured", lambda call, calls: (Graph(call, calls), call()))
    monkeypatch.setattr(gpu_operations, "kernels", lambda _: ["solve_block<float>"])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**33, 2**33))
    monkeypatch.setattr(limits, "measure", lambda: LIMITS)
    monkeypatch.setattr(record, "provenance", lambda _: dict(RUN))


def saved(folder: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((folder / "nvidia-h200.json").read_text())
    return figures


def test_rows_are_kept_as_they_come(tmp_path: Path, device: None) -> None:
    one = a_part("conv", tmp_path)
    one.keep("small", {"ratio": 1}, limits={"peak": 1})
    assert saved(tmp_path)["conv"]["rows"] == {"small": {"ratio": 1}}
    one.keep("smaller", {"ratio": 2}, limits={"peak": 1})
    assert set(saved(tmp_path)["conv"]["rows"]) == {"small", "smaller"}
    other = a_part("test", tmp_path)
    other.keep("tests/gpu", {"tests": 3})
    assert set(saved(tmp_path)) == {"conv", "test"}
    assert saved(tmp_path)["conv"]["run"]["limits"] == {"peak": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["nvidia-h200.json"]


@pytest.mark.parametrize("operation", ["solve", "backward", "conv"])
def test_an_operation_is_measured(operation: str, tmp_path: Path, device: None) -> None:
    one = a_part(operation, tmp_path, "small", "mnist-l1")
    part.PARTS[operation][0](one)
    assert not one.failed
    section = saved(tmp_path)[operation]
    assert section["run"]["limits"]["launch"] == LIMITS.launch
    rows = section["rows"]
    assert set(rows) == {"small", "mnist-l1"}
    for row in rows.values():
        assert row["error"] < 1e-5
        assert row["ratio"] == pytest.approx(row["ours_graph_us"] / row["conv2d_graph_us"])
        assert row["efficiency"] == pytest.approx(row["floor_us"] / row["ours_graph_us"])
    aims = {"solve": [3.0, 3.5], "backward": [6.0, pytest.approx(8.05)], "conv": None}
    assert rows["mnist-l1"]["target_us"] == aims[operation]
    assert rows["small"]["target_us"] is None


def test_what_fails_and_what_is_cut_off_leave_the_other_rows(
    tmp_path: Path, device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = a_part("conv", tmp_path, "small", "gray", "wide")
    measure = gpu_operations.measure

    def failing(operation: str, shape: Shape, *rest: Any) -> dict[str, Any]:
        if shape == SHAPES["gray"]:
            one.until = 0  # and so there is no time for the third
            raise RuntimeError("out of memory")
        return measure(operation, shape, *rest)

    monkeypatch.setattr(gpu_operations, "measure", failing)
    part.PARTS["conv"][0](one)
    assert one.failed
    rows = saved(tmp_path)["conv"]["rows"]
    assert set(rows) == {"small", "gray"}
    assert rows["small"]["ratio"] > 0
    assert rows["gray"]["failed"] == "RuntimeError: out of memory"
    page = "\n".join(gpu_report.page("nvidia-h200", saved(tmp_path), {}))
    assert "failed: RuntimeError: out of memory" in page


def test_flows_are_measured(tmp_path: Path, device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "SHAPES", {"tiny": (1, 8, 8), "enormous": (1, 8, 8)})
    monkeypatch.setattr(flows, "memory", lambda preset, shape: 7_000_000)
    one = a_part("flows", tmp_path)
    part.PARTS["flows"][0](one)
    assert one.failed  # there is no preset of the second name
    rows = saved(tmp_path)["flows"]["rows"]
    assert list(rows) == [f"tiny: {family}" for family in flows.FAMILIES]
    assert all(row[f"{kind}_ms"] > 0 for row in rows.values() for kind in flows.KINDS)


def test_peers_are_measured(tmp_path: Path, device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    never = gpu_peers.PEERS["dense solve_triangular"]._replace(memory=lambda _: 1e18)
    monkeypatch.setitem(gpu_peers.PEERS, "too large", never)
    one = a_part("peers", tmp_path, "small", "smaller")
    part.PARTS["peers"][0](one)
    rows = saved(tmp_path)["peers"]["rows"]
    assert set(rows) == {"smaller", "small"}
    found = rows["small"]["peers"]
    assert set(found) == set(gpu_peers.PEERS)
    assert found["too large"]["skipped"].startswith("needs 1,000,000,000.0 GB")
    for name in ("cuBLAS product per diagonal", "dense solve_triangular"):
        assert found[name]["error"] < 1e-5
        assert found[name]["ratio"] > 0
        assert found[name]["ratio_of"] == "graph"
    # No device and no CuPy here: what cannot run is said to, and the part has not succeeded.
    assert one.failed == any("failed" in figures for figures in found.values())


def test_a_long_call_is_made_once(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_peers, "LONG", 0.0)
    found = gpu_peers.measure_all(SMALL, 0, time.time() + 600)["peers"]["dense solve_triangular"]
    assert found["once"]
    assert found["ratio_of"] == "eager"
    assert found["peer_eager_low_us"] == found["peer_eager_high_us"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU they are what they are for")
def test_tests_that_are_all_skipped_show_nothing(tmp_path: Path, device: None) -> None:
    one = a_part("test", tmp_path)
    part.PARTS["test"][0](one)
    assert one.failed
    row = saved(tmp_path)["test"]["rows"]["tests/gpu"]
    assert row.get("tests", 0) == row.get("skipped", 0)


# --- timing --------------------------------------------------------------------------------------


def test_a_call_is_its_share_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            pass

        def record(self) -> None:
            self.time = now

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: Event) -> float:
            return (other.time - self.time) * 1e3

    def take(seconds: float) -> Callable[[], None]:
        def run() -> None:
            nonlocal now
            now += seconds

        return run

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    times = timing.interleaved(
        {
            "four": timing.Candidate(take(8e-6), 4, before=take(1.0)),
            "eager": timing.eager(take(3e-6), 5),
        },
        0,
    )
    assert times["four"] == pytest.approx((2e-6, 2e-6, 2e-6))
    assert times["eager"] == pytest.approx((3e-6, 3e-6, 3e-6))
    assert timing.calls_together(take(10e-6)) in (19, 20)  # 200 us; floats round
    assert timing.calls_together(take(1e-6)) == timing.MOST_CALLS
    assert timing.calls_together(take(1.0)) == 1


# --- what is compared ----------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["solve", "backward", "conv"])
@pytest.mark.parametrize("shape", [SMALL, *OTHERS], ids=str)
def test_ours_is_what_is_exact_but_for_rounding(operation: str, shape: Shape, device: None) -> None:
    problem = gpu_operations.problem_of(operation, shape)
    assert gpu_operations.largest_error(problem.ours(), problem.exact) < 2e-6
    # conv2d reads the whole anchor, so it is another linear map of the same shape.
    assert [result.shape[1:2] for result in problem.conv2d()] == [
        right.shape[1:2] for right in problem.exact
    ]


@pytest.mark.parametrize("shape", [SMALL, *OTHERS], ids=str)
def test_the_entries_are_those_of_the_sparse_matrix(shape: Shape) -> None:
    _, weight = operations.problem(shape)
    rows, columns, values = gpu_peers.entries(weight, shape.height, shape.width)
    matrix = np.zeros((shape.unknowns, shape.unknowns), dtype=np.float32)
    np.add.at(matrix, (rows.numpy(), columns.numpy()), values.numpy())
    assert np.array_equal(matrix, peers.sparse_matrix(weight, *shape[2:4]).toarray())
    assert len(values) <= peers.nonzeros(shape)


@pytest.mark.parametrize("name", ["cuBLAS product per diagonal", "dense solve_triangular"])
@pytest.mark.parametrize("shape", [SMALL, *OTHERS], ids=str)
def test_a_peer_solves_what_it_is_given(name: str, shape: Shape) -> None:
    y, weight = operations.problem(shape)
    x = gpu_peers.PEERS[name].prepare(weight, shape)(y)
    exact = invconv.solve(y.double(), weight.double())
    assert operations.error(x, exact) < 2e-6


def test_what_cannot_fit_is_refused_beforehand() -> None:
    gigabytes = int(139e9)
    dense = gpu_peers.PEERS["dense solve_triangular"]
    sparse = gpu_peers.PEERS["cupyx spsolve_triangular"]
    for name in ("rgb", "one-large", "one-4k", "square-256", "gray-4k"):
        reason = gpu_peers.refusal(dense, GPU_SHAPES[name], gigabytes)
        assert reason is not None and "GB" in reason
    assert gpu_peers.refusal(dense, SHAPES["wide"], gigabytes) is None
    assert gpu_peers.refusal(sparse, SHAPES["one-4k"], gigabytes) is not None
    assert gpu_peers.refusal(sparse, SHAPES["rgb"], gigabytes) is None


def test_every_target_has_its_shape() -> None:
    assert set(gpu_operations.TARGETS) <= set(GPU_SHAPES.values())
    assert set(SHAPES.items()) <= set(GPU_SHAPES.items())
    assert gpu_operations.target("conv", SHAPES["cifar-l1"]) is None


def test_the_floor_is_what_its_limits_say() -> None:
    needs = limits.floors(SMALL, "solve", LIMITS)
    assert needs["arithmetic"] == SMALL.operations / 6e13
    assert needs["bandwidth"] == (2 * SMALL.image_bytes + SMALL.weight_bytes) / 4e12
    assert needs["steps"] == pytest.approx(8 * 2 * 2.5e-9)
    assert needs["launch"] == 1e-6
    assert limits.floors(SMALL, "conv", LIMITS)["steps"] == 0


def test_the_library_does_what_its_numbers_say() -> None:
    sources = {path.name: path.read_text() for path in (cmake.ROOT / "bench" / "cuda").iterdir()}
    probes = sources["probes.cuh"]
    assert f"chain_length = {native.LINKS};" in probes
    assert f"many_chains = {native.CHAINS[True]};" in probes
    exported = set(re.findall(r"invconv_bench_(\w+)\(", sources["baselines.cu"]))
    called = set(re.findall(r'_call\("(\w+)"', Path(native.__file__).read_text()))
    assert exported == called
    assert native.launches(SHAPES["cifar-l1"]) == 31 * 12


@pytest.mark.native
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs a CUDA compiler")
def test_the_library_builds_and_solves_where_there_is_a_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cmake.build(native.PRESET, {"CUDAARCHS": os.environ.get("CUDAARCHS", "90")})
    y, weight = operations.problem(SMALL)
    if torch.cuda.is_available():
        x = torch.empty(y.shape, device="cuda")
        native.solve_per_diagonal(y.cuda(), weight.cuda(), x, True)
        exact = invconv.solve(y.double(), weight.double())
        assert operations.error(x.cpu(), exact) < 2e-6
        native.nothing()
        return
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    for call in (
        native.nothing,
        lambda: native.multiply_adds(torch.empty(32), 1, 32, True, 1),
        lambda: native.solve_per_diagonal(y, weight, torch.empty_like(y), False),
    ):
        with pytest.raises(RuntimeError, match=r"^\[cuda\] launch: "):
            call()


def test_a_library_that_is_not_built_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "library.so")
    monkeypatch.setattr(native, "_library", native._library.__wrapped__)  # without its cache
    with pytest.raises(cmake.Missing, match=r"bench gpu build"):
        native._library()


# --- every kernel --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", every_kernel.DTYPES)
def test_every_problem_of_the_sanitizers_can_be_run(dtype: torch.dtype, device: None) -> None:
    for problem in every_kernel.PROBLEMS:
        every_kernel.run(problem, dtype)


def test_the_kernels_of_the_source_are_found() -> None:
    found = list(every_kernel.in_source())
    text = "".join(path.read_text() for path in (cmake.ROOT / "cuda").glob("*.cu*"))
    assert len(found) == len(re.findall(r"^(?:template.*\n)?__global__", text, re.MULTILINE))
    assert {"solve_image", "solve_image_sums", "solve_wide", "conv_direct"} <= set(found)
    assert not any(name.startswith("__") for name in found)


def test_a_kernel_that_no_problem_launches_is_named(
    tmp_path: Path, device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = sorted(every_kernel.in_source())

    def run(command: list[str], *_: object) -> tuple[int, str]:
        if "--list" not in command:
            return 0, "========= ERROR SUMMARY: 0 errors\n"
        return 0, "profiler_start\n" + "".join(f"kernel {name}<float, 3>\n" for name in others)

    monkeypatch.setattr(part, "run", run)
    monkeypatch.setattr(part.shutil, "which", lambda *_, **__: "compute-sanitizer")
    one = a_part("sanitize", tmp_path)
    part.PARTS["sanitize"][0](one)
    rows = saved(tmp_path)["sanitize"]["rows"]
    assert one.failed
    assert rows["kernels"]["missing"] == [first]
    assert rows["kernels"]["launched"] == [f"{name}<float, 3>" for name in others]
    assert all(rows[tool]["status"] == 0 for tool in part.TOOLS)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void invconv::detail::cuda::solve_strips<float, 3>(x::Groups<float>, int)",
         "solve_strips<float, 3>"),
        ("void a::pack<invconv::float16, true>(a::b)", "pack<float16, true>"),
        ("void (anonymous namespace)::fill(int)", "fill"),
        ("plain", "plain"),
    ],
)  # fmt: skip
def test_a_kernels_short_name(name: str, short: str) -> None:
    assert gpu_operations.short_name(name) == short


def test_what_a_sanitizer_says_last_counts() -> None:
    text = "========= COMPUTE-SANITIZER\nhello\n========= ERROR SUMMARY: 2 errors\n"
    assert part.sanitizer_summary(text) == "ERROR SUMMARY: 2 errors"
    racecheck = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    assert part.sanitizer_summary(racecheck) == racecheck[10:-1]
    assert part.sanitizer_summary("Target application returned an error") is None


# --- the report ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "name"),
    [("NVIDIA H200", "nvidia-h200"), ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3")],
)
def test_the_file_is_named_after_the_device(machine: str, name: str, tmp_path: Path) -> None:
    assert record.file_of(machine, tmp_path) == tmp_path / f"{name}.json"
    assert gpu_report.is_gpu(name)


def operation_row(shape: Shape, **other: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"shape": list(shape)}
    names = [f"{who}_{kind}" for who in ("ours", "conv2d") for kind in ("graph", "cold", "eager")]
    for place, name in enumerate([*names, "tf32_graph"]):
        row |= {f"{name}_us": 4.5 + place, f"{name}_low_us": 4.0, f"{name}_high_us": 12.0}
    row |= {
        "ratio": 0.5, "ratio_eager": 0.75, "ratio_tf32": 0.9, "target_us": [4.0, 5.0],
        "floor_us": 1.0, "floor_of": "launch", "efficiency": 0.2, "gflops": 1234.0, "error": 3e-7,
        "kernels": ["pack_weights<float>", "solve_block<float>", "solve_block<float>"],
    }  # fmt: skip
    return row | other


def figures() -> dict[str, Any]:
    """As a run leaves them, made up."""
    peer = {
        "setup_ms": 2.0, "error": 1e-7, "once": False, "peer_eager_us": 900.0,
        "peer_graph_us": 700.0, "ratio": 70.0, "ratio_of": "graph",
    }  # fmt: skip
    rows = {
        "cifar-l1": operation_row(SHAPES["cifar-l1"]),
        "wide": operation_row(SHAPES["wide"], target_us=None),
        "k7": {"shape": list(SHAPES["k7"]), "failed": "RuntimeError: no"},
    }
    sections: dict[str, Any] = {
        "build": {"90": {"install_seconds": 61.0, "baselines_seconds": 9.0}},
        "test": {"tests/gpu": {
            "status": 0, "tests": 20, "failures": 0, "errors": 0, "skipped": 1, "seconds": 9.0,
        }},
        "sanitize": {
            "kernels": {"launched": ["a<float>", "b"], "missing": ["c"]},
            "memcheck": {"status": 0, "summary": "ERROR SUMMARY: 0 errors", "seconds": 9.0},
            "racecheck": {"status": None, "summary": None, "seconds": 9.0},
        },
        "solve": rows,
        "backward": rows,
        "conv": {"wide": operation_row(SHAPES["wide"], target_us=None)},
        "peers": {"cifar-l1": {
            "shape": list(SHAPES["cifar-l1"]), "unknowns": 3072,
            "peers": {
                "one launch": peer,
                "dense": {"skipped": "needs 155.0 GB"},
                "cuBLAS": peer | {"ratio": 0.9, "ratio_of": "eager"},
                "broken": {"failed": "RuntimeError: no"},
            },
        }},
    }  # fmt: skip
    times = {f"{kind}_ms": 2.0 for kind in flows.KINDS}
    times |= {f"{kind}_ms_quartiles": [1.0, 3.0] for kind in flows.KINDS}
    times |= {"parameters": 5, "step_bytes": 7e6}
    sections["flows"] = {f"mnist: {family}": times for family in flows.FAMILIES}
    run = RUN | {"limits": LIMITS._asdict()}
    return {name: {"run": run, "rows": found} for name, found in sections.items()}


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "nvidia-h200.json"
    path.write_text(json.dumps(figures()))
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n")
    done = CliRunner().invoke(app, ["report"])
    assert done.exit_code == 0, (done.output, done.exception)

    text = readme.read_text()
    assert "not yet run on a GPU" not in text
    assert "NVIDIA H200, 132 multiprocessors, 60 MiB of L2; torch 2.11.0, cuda 13.0" in text
    assert "| 100, 12, 16x16, 3 | 4.50 | 0.50 | 6.50 | 4-5 | 0.20 | 4.50 | 0.50 |  |  |" in text
    assert "19 passed, 0 failed, 1 skipped" in text
    assert "over 2 kernels (never launched: c): memcheck: ERROR SUMMARY: 0 errors; " in text
    assert "racecheck: cut off" in text
    assert "one launch / solve, 1 shapes: geometric mean 70.00" in text
    for kind in ("ratios", "times"):
        picture = tmp_path / "docs" / f"bench-nvidia-h200-{kind}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"docs/{picture.name}" in text

    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    for section in part.PARTS:
        assert f"### `python -m bench gpu {section}`" in page
    assert "`pack_weights<float>`, `solve_block<float>` x2" in page
    assert "targets met: 1 of 1 (cifar-l1)" in page
    assert "60.0 TFLOP/s in float32, copies at 4.00 TB/s, 2.50 ns" in page
    assert "skipped: needs 155.0 GB" in page
    assert "| 0.9x eager **wins** |" in page
    assert "| mnist | FInC Flow | 2.00 (1.00 to 3.00) |" in page
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1


def test_without_figures_of_a_gpu_the_report_says_so() -> None:
    run = results.provenance(1)
    processor = {"overhead": {"run": run, "rows": {}}}
    section = report.readme_section({"cpu-avx2": processor}, {"cpu-avx2": {}})
    assert "CUDA: not yet run on a GPU." in section
