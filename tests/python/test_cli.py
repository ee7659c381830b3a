"""The ``invconv`` program: its commands, what it prints when something is wrong, and kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import invconv
from invconv.cli import main
from invconv.cli._app import PRESET_HELP, PRESET_SUFFIXES, slow_threads
from invconv.cli._display import Display
from invconv.flows import PRESETS as FLOW_PRESETS
from invconv.train import PRESETS

PROGRAM = Path(sysconfig.get_path("scripts")) / "invconv"
PAGE = Path(__file__).parents[2] / "docs" / "training.md"
# One thread: these models are tiny, and the results then do not depend on the machine's cores.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty gray images, 8 x 8."""
    folder: Path = tmp_path_factory.mktemp("noise")
    random = np.random.RandomState(0)
    for index in range(40):
        image = random.randint(0, 60, (8, 8)) + 100 * (np.arange(8) == index % 8)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{index:02}.png")
    return folder


def options(images: Path, out: Path, epochs: int = 10) -> list[str]:
    return ["train", "--data", str(images), "--preset", "tiny", "--epochs", str(epochs),
            "--batch-size", "8", "--out", str(out)]  # fmt: skip


def call(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the program, run within this process."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    code = stop.value.code
    captured = capsys.readouterr()
    return (code if isinstance(code, int) else 0), captured.out, captured.err


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the installed program."""
    out: Path = tmp_path_factory.mktemp("runs") / "finished"
    done = subprocess.run(
        [PROGRAM, *options(images, out)], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^a model of 3,341 parameters$", done.stdout, re.MULTILINE)
    assert "epoch  10/10" in done.stdout
    assert "bits/dim" in done.stdout
    assert done.stderr == ""
    return out


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip


def wait_for_epochs(process: subprocess.Popen[str], out: Path, epochs: int) -> None:
    """Until the run has saved that many epochs; ends early only if the process did."""
    metrics = out / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= epochs:
            return
        time.sleep(0.001)


# --- help and usage ---------------------------------------------------------------------------


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(["--help"], capsys)
    assert code == 0
    for command in ("train", "sample", "eval", "info"):
        assert command in out


def test_train_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(["train", "--help"], capsys)
    assert code == 0
    options = "data preset epochs batch-size lr seed device resume out"
    for option in options.split():
        assert f"--{option}" in out


def test_train_help_tells_the_presets_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, defaults in PRESET_HELP.items():
        with_neighbours = {
            size + suffix: value for size, value in defaults.items() for suffix in PRESET_SUFFIXES
        }
        assert with_neighbours == {key: getattr(preset, name) for key, preset in PRESETS.items()}
    monkeypatch.setenv("COLUMNS", "300")
    code, out, _ = call(["train", "--help"], capsys)
    assert code == 0
    assert "(tiny 3, small 30, mnist 100, cifar10 100, imagenet32 20, imagenet64 20)" in out
    assert "(tiny 0.01, small 0.01, mnist 0.001, " in out
    assert "more epochs too, are refused" in out


def test_the_page_on_training_tells_the_presets_as_they_are() -> None:
    rows = re.findall(r"^\| (\w+) \|([\d. |]+)\| (yes|no) \|$", PAGE.read_text(), re.MULTILINE)
    assert [name for name, _, _ in rows] == list(PRESET_HELP["epochs"])
    for name, figures, flip in rows:
        model, preset = FLOW_PRESETS[name], PRESETS[name]
        assert [float(figure) for figure in figures.split("|")] == [
            model["levels"], model["steps"], model["hidden"],
            preset.epochs, preset.batch_size, preset.lr,
        ]  # fmt: skip
        assert (flip == "yes") == preset.flip


def test_the_commands_of_the_page_on_training_are_ours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert "docs/training.md" in (PAGE.parents[1] / "README.md").read_text()
    text = PAGE.read_text().replace("\\\n", " ")
    commands = re.findall(r"\binvconv (train|eval|sample)( .*)?$", text, re.MULTILINE)
    # Also what the list of the options of train begins with.
    commands += [("train", line) for line in re.findall(r"^- (`--.*?)(?: |:)", text, re.MULTILINE)]
    helps = {name: call([name, "--help"], capsys)[1] for name in ("train", "eval", "sample")}
    seen = set()
    for name, arguments in commands:
        for option in re.findall(r"--[a-z-]+", arguments):
            assert re.search(rf"{option}\b", helps[name]), option
            seen.add((name, option))
    assert len(seen) > 20


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["train", "--epochs", "many"],
        ["train", "--epochs", "0"],
        ["train", "--batch-size", "0"],
        ["train", "--lr", "0"],
        ["train", "--lr", "inf"],
        ["train", "--lr", "nan"],
        ["train", "--seed", "-1"],
        ["sample", "--seed", str(2**64)],
        ["train", "--preset", "enormous"],
        ["train", "--preset", "small-reverse"],
        ["sample", "--number", "0"],
        ["sample", "--temperature", "-1"],
        ["sample", "--rows", "3"],
        ["sample", "--steps", "3"],
        ["sample", "--data", "digits"],
        ["sample", "--interpolate", "--steps", "1"],
        ["sample", "--out", "samples.jpg"],
        ["sample", "--interpolate", "--rows", "501"],
        ["sample", "--interpolate", "--steps", "501"],
        ["sample", "--interpolate", "--number", "3"],
        ["sample", "--interpolate", "--temperature", "1"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(arguments, capsys)
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["epochs", "batch-size", "lr", "preset"])
def test_wrong_usage_is_said_before_the_slow_imports(option: str) -> None:
    done = without("torch", "train", f"--{option}", "0")
    assert done.returncode == 2
    assert f"--{option}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "nowhere"], "invconv train: no folder 'nowhere', and no data set"),
        (["train", "--device", "abacus"], "invconv train: device 'abacus' cannot be used"),
        # Names that torch knows: tensors without values, and a module that is not there.
        (["train", "--device", "meta"], "invconv train: device 'meta' cannot be used"),
        (["train", "--device", "hpu"], "invconv train: device 'hpu' cannot be used"),
        (["train", "--resume", "--out", "nowhere"], "nowhere holds no run to resume"),
        (
            ["sample"],
            'invconv sample: no run in runs/mnist5k-small; train one with "invconv train", or name '
            "a run directory\n",
        ),
        (["eval", "nowhere"], "invconv eval: no run in nowhere; train one with"),
        (["eval", "."], "invconv eval: no run in .; train one with"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(arguments, capsys)
    assert code == 1
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unreadable_image_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"nothing")
    code, _, err = call(options(tmp_path / "images", tmp_path / "run"), capsys)
    assert code == 1
    assert "broken.png: cannot be read as an image" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_run_directory_that_cannot_be_made(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = call(options(images, tmp_path / "file" / "run"), capsys)
    assert code == 1
    assert err.startswith("invconv train: [Errno")
    assert err.count("\n") == 1


def test_a_run_without_a_finished_epoch(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "a run"
    run.mkdir()
    (run / "config.json").write_bytes((finished / "config.json").read_bytes())
    for command in ("sample", "eval"):
        code, _, err = call([command, str(run)], capsys)
        assert code == 1
        assert err == (
            f"invconv {command}: no epoch of {run} is finished yet; go on with: "
            f"invconv train --resume --out '{run}'\n"
        )


def test_eval_of_what_is_no_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("this is no run")
    code, _, err = call(["eval", str(text)], capsys)
    assert code == 1
    assert err.startswith(f"invconv eval: {text}: not a readable safetensors file")
    assert err.endswith("; expected a run directory, or the model.safetensors of one\n")

    model = tmp_path / "model.safetensors"
    model.write_bytes((finished / "model.safetensors").read_bytes())
    code, _, err = call(["eval", str(model)], capsys)
    assert code == 1
    assert err.endswith(f"that tells the images of {model}; name them with --data\n")


def without(missing: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program where a package is missing."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing.split()!r})); "
        "from invconv.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


@pytest.mark.parametrize("missing", ["typer", "torch", "safetensors"])
def test_missing_extra_is_one_line(missing: str) -> None:
    done = without(missing, "train", "--data", "digits")
    assert done.returncode == 1
    start = (
        'invconv train needs the [flows] extra: pip install "invconv[flows]" or, from a checkout, '
        'pip install ".[flows]"'
    )
    assert done.stderr.startswith(start)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("missing", ["torch", "typer rich torch matplotlib safetensors"])
def test_info_and_version_need_numpy_alone(missing: str) -> None:
    done = without(missing, "info")
    assert (done.returncode, done.stderr) == (0, "")
    for value in invconv.build_info().values():
        assert value in done.stdout
    assert re.search(r"^torch +not installed$", done.stdout, re.MULTILINE)
    done = without(missing, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{invconv.__version__}\n", "")


def test_the_package_is_the_program() -> None:
    for arguments in (["--version"], ["train", "--lr", "0"]):
        done = subprocess.run(
            [sys.executable, "-m", "invconv", *arguments],
            capture_output=True, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        if arguments == ["--version"]:
            assert (done.returncode, done.stdout) == (0, f"{invconv.__version__}\n")
        else:
            assert done.returncode == 2
            assert done.stderr.startswith("Usage: invconv train")


@pytest.mark.parametrize("suffix", ["-finc", "-glow", "-realnvp"])
def test_the_neighbours_train_as_well(
    suffix: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(images, tmp_path / "run", epochs=1)
    arguments[arguments.index("tiny")] = f"tiny{suffix}"
    code, out, err = call(arguments, capsys)
    assert (code, err) == (0, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert f"a model of {summary['parameters']:,} parameters" in out
    assert summary["reconstruction_max_error"] < 1e-3


# --- a busy machine ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "threads", "cores", "slow"),
    [
        (1.0, 2, 2, True),
        (3.7, 2, 2, True),
        (0.3, 2, 2, False),  # this process itself
        (1.0, 1, 2, False),
        (3.0, 2, 8, False),
        (7.0, 2, 8, True),
        (1.0, 8, 8, True),
    ],
)
def test_threads_that_share_their_cores(load: float, threads: int, cores: int, slow: bool) -> None:
    line = slow_threads(load, threads, cores)
    assert (line is not None) == slow
    assert line is None or ("OMP_NUM_THREADS=1" in line and f"{load:.1f}" in line)


@pytest.mark.skipif(not hasattr(os, "getloadavg"), reason="no load average on this system")
@pytest.mark.parametrize("load", [0.0, 1000.0])
def test_train_says_when_the_machine_is_busy(
    load: float,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    code, out, _ = call(options(images, tmp_path / "run", epochs=1), capsys)
    assert code == 0
    assert out.count("OMP_NUM_THREADS=1") == (1 if load else 0)
    assert "OMP_NUM_THREADS=1" not in out or out.index("OMP_NUM_THREADS=1") < out.index("epoch ")


# --- train, sample, eval, info ----------------------------------------------------------------


def test_finished_run_is_kept(
    finished: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    code, _, err = call(options(images, finished), capsys)
    assert code == 1
    assert "holds a finished run" in err
    code, out, _ = call([*options(images, finished), "--resume"], capsys)
    assert code == 0
    assert "finished already" in out
    summary = json.loads((finished / "summary.json").read_text())
    assert f"test {summary['test_bits_per_dim']:.4f} bits/dim" in out
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_resuming_on_other_images_or_options_is_refused(
    finished: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call([*options(images, finished, epochs=9), "--resume"], capsys)
    assert code == 1
    assert "--epochs 10, so it cannot go on with --epochs 9" in err

    for path in images.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    code, _, _ = call(options(tmp_path, tmp_path / "run", epochs=1), capsys)
    assert code == 0
    Image.new("L", (8, 8)).save(tmp_path / "00.png")
    # The pictures of a run inside the image folder would count as images; leave none behind.
    for path in (tmp_path / "run").glob("*.png"):
        path.unlink()
    code, _, err = call(["train", "--resume", "--out", str(tmp_path / "run")], capsys)
    assert code == 1
    assert "the images changed since" in err


def test_eval_prints_the_summarys_figures(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for run in (finished, finished / "model.safetensors"):
            code, out, _ = call(["eval", str(run)], capsys)
            assert code == 0
            figures = json.loads(out)
            for key in ("test_bits_per_dim", "reconstruction_max_error", "parameters"):
                assert figures[key] == summary[key]
    finally:
        torch.set_num_threads(torch_threads)


def test_eval_on_other_images(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(["eval", str(finished), "--data", "digits"], capsys)
    assert code == 1
    assert "with 256 values, but digits has (1, 8, 8) with 17" in err


def test_sample_writes_a_picture(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(["sample", str(finished), "-n", "5", "--temperature", "0.5"], capsys)
    assert code == 0
    picture = finished / "samples-0.5-0.png"
    assert out.strip() == str(picture)
    first = np.asarray(Image.open(picture))
    picture.unlink()
    for seed, same in ((0, True), (1, False)):
        target = tmp_path / "missing" / "folders" / f"{seed}.png"
        code, _, _ = call(
            ["sample", str(finished), "-n", "5", "--temperature", "0.5", "--seed", str(seed),
             "--out", str(target)], capsys,
        )  # fmt: skip
        assert code == 0
        assert np.array_equal(np.asarray(Image.open(target)), first) == same


def test_sample_interpolates(
    finished: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(["sample", str(finished), "--interpolate"], capsys)
    assert code == 0
    picture = finished / "interpolation-0.png"
    assert out.strip() == str(picture)
    first = np.asarray(Image.open(picture))
    picture.unlink()
    model = tmp_path / "model.safetensors"
    model.write_bytes((finished / "model.safetensors").read_bytes())
    for run, options, same in (
        (finished, ["--rows", "8", "--steps", "9"], True),
        (model, ["--data", str(images)], True),
        (finished, ["--seed", "1"], False),
        (finished, ["--steps", "4"], False),
    ):
        target = tmp_path / "missing" / "folders" / "picture.png"
        code, _, err = call(
            ["sample", str(run), "--interpolate", *options, "--out", str(target)], capsys
        )
        assert (code, err) == (0, "")
        assert np.array_equal(np.asarray(Image.open(target)), first) == same
    for options, message in (
        ([str(model)], f"that tells the images of {model}; name them with --data\n"),
        ([str(finished), "--data", "digits"], "but digits has (1, 8, 8) with 17"),
        ([str(finished), "--class", "1"], "the model is not conditional, so it has no class 1\n"),
    ):
        code, _, err = call(["sample", "--interpolate", *options], capsys)
        assert code == 1
        assert message in err and err.count("\n") == 1


def test_sample_refuses_a_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"weight": torch.zeros(3)}, path)
    code, _, err = call(["sample", str(path)], capsys)
    assert code == 1
    assert "not a readable safetensors file" in err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(["info"], capsys)
    assert code == 0
    for word in (invconv.__version__, torch.__version__, np.__version__, "cpu", "threads"):
        assert word in out


def test_info_tells_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(["info", "--shape", "100,12,16,16"], capsys)
    assert code == 0
    assert re.search(r"^cpu .* threads; workspace ", out, re.MULTILINE)
    kernels = invconv.build_info()["cuda_kernels"] == "yes"
    on_cuda = "solve_.* to a block; launches: [0-9]" if kernels else "no kernels in this build"
    assert re.search(rf"^cuda\S* +{on_cuda}", out, re.MULTILINE)
    code, out, _ = call(["info", "--shape", "2,3,4,4", "--operation", "solve_backward"], capsys)
    assert code == 0
    assert re.search(r"^cpu .* in [0-9]+ lanes, sums; ", out, re.MULTILINE)
    for bad, message in (
        (["--shape", "1,2,3"], "expected 4 numbers"),
        (["--shape", "1,2,3,x"], "expected 4 numbers"),
        (["--shape", "1,3,4,4", "--groups", "2"], "groups to divide C = 3, but got 2"),
        (["--shape", "1,3,4,4", "--operation", "sum"], "none of solve"),
        (["--shape", "1,3,4,4", "--dtype", "int8"], "none of float16"),
        (["--shape", "1,3,4,4", "--kernel-size", "0"], "expected 1 or 2 numbers"),
        (["--shape", "1,3,4,4", "--kernel-size", "3,3,3"], "expected 1 or 2 numbers"),
        (["--kernel-size", "5"], "only with --shape"),
        (["--shape", "1,3,4,4", "--dtype", ""], "none of float16"),
    ):
        code, _, err = call(["info", *bad], capsys)
        assert code == 2
        assert message in re.sub(r"[\s│]+", " ", err)


# --- runs that are stopped from outside -------------------------------------------------------


def test_an_interrupt_in_a_destructor_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from invconv.cli._display import Display

    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    forgotten: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", forgotten.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Display(Console(quiet=True)) as display:
            display.started(1, 0, 1, 10)
            display.batch_done(1, 5, 3.0)
            Dying()
            assert len(forgotten) == 1
            with pytest.raises(KeyboardInterrupt):
                display.batch_done(1, 5, 3.0)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_control_c(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # In the background of a script interrupts are ignored, which a program inherits.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start(options(images, out, epochs=100_000))
    signal.signal(signal.SIGINT, before)
    wait_for_epochs(process, out, 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err == (f"invconv train: interrupted; go on with: invconv train --resume --out {out}\n")
    assert not list(out.glob("*.tmp"))
    assert safetensors.torch.load_file(out / "checkpoint.safetensors")


@pytest.mark.parametrize("saved", [0, 1])
def test_control_c_promises_only_what_is_saved(
    saved: int,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(self: Display, epoch: int, *_: object) -> None:
        if epoch > saved:
            raise KeyboardInterrupt

    monkeypatch.setattr(Display, "batch_done", interrupt)
    out = tmp_path / "run"
    code, _, err = call(options(images, out), capsys)
    assert code == 130
    assert (out / "checkpoint.safetensors").exists() == (saved > 0)
    what = "interrupted" if saved else "interrupted before anything was saved"
    which = "go on" if saved else "begin again"
    assert err == f"invconv train: {what}; {which} with: invconv train --resume --out {out}\n"
    code, text, _ = call(["train", "--resume", "--out", str(out)], capsys)
    assert code == 130
    assert ("no checkpoint was saved yet: this run begins anew" in text) == (saved == 0)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_full_disk(finished: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # The configuration and the first metrics fit, the model does not: the kernel refuses to write
    # beyond the limit, as on a full disk.
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)); "
        "from invconv.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", limited]
    done = subprocess.run(
        [*command, *options(images, out)], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 1
    path = out / "model.safetensors"
    assert done.stderr == f"invconv train: [Errno 27] File too large: '{path}'\n"
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "metrics.jsonl"]

    # A good checkpoint survives the same accident, and the run ends as if there had been none.
    process = start(options(images, tmp_path / "second"))
    wait_for_epochs(process, tmp_path / "second", 2)
    process.kill()
    process.communicate()
    checkpoint = tmp_path / "second" / "checkpoint.safetensors"
    before = checkpoint.read_bytes()
    resume = ["train", "--resume", "--out", str(tmp_path / "second")]
    done = subprocess.run([*command, *resume], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1
    assert checkpoint.read_bytes() == before
    done = subprocess.run([PROGRAM, *resume], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    first, second = (
        json.loads((run / "summary.json").read_text())["test_bits_per_dim"]
        for run in (finished, tmp_path / "second")
    )
    assert first == second
