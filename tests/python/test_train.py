"""invconv.train: run directories, exact resuming, and runs that fail without losing anything."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image

from invconv import data as datasets
from invconv.data import ImageData, ImageSet
from invconv.flows import InverseFlow
from invconv.train import (
    Listener,
    RunError,
    TrainConfig,
    create_run,
    evaluate,
    interpolate,
    load_model,
    new_config,
    read_config,
    train,
)
from invconv.train._files import write_atomic
from invconv.train._fit import _learning_rate
from invconv.train._loader import load_batches, shifted
from invconv.train._pictures import _arc, _latent_image

CPU = torch.device("cpu")
RESULTS = {"config.json", "metrics.jsonl", "checkpoint.safetensors", "model.safetensors",
           "summary.json", "samples.png", "reconstruction.png", "curve.png"}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty images, 8 x 4, of horizontal and vertical stripes and noise."""
    folder: Path = tmp_path_factory.mktemp("stripes")
    random = np.random.RandomState(0)
    for index in range(40):
        image = random.randint(0, 60, (8, 4))
        image[index % 8 if index % 2 else slice(None), index % 4] += 150
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{index:02}.png")
    return folder


def configure(images: Path, **given: Any) -> tuple[TrainConfig, ImageData]:
    data = datasets.load(images)
    options = {"seed": 0, "epochs": 4, "batch_size": 8, **given}
    return new_config(str(images), data, "tiny", **options), data


def run(images: Path, out: Path, listener: Listener | None = None, **given: Any) -> dict[str, Any]:
    """Begin a run, or go on with the one in ``out``."""
    config, data = configure(images, **given)
    if not (out / "config.json").exists():
        create_run(out, config)
    return train(read_config(out), data, out, device=CPU, listener=listener or Listener())


@pytest.fixture(scope="module")
def unbroken(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four epochs."""
    out: Path = tmp_path_factory.mktemp("runs") / "unbroken"
    run(images, out)
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / "model.safetensors")


def assert_same_outcome(first: Path, second: Path) -> None:
    """The same final figures and weights, to the bit."""
    summaries = [json.loads((out / "summary.json").read_text()) for out in (first, second)]
    for key in ("test_bits_per_dim", "reconstruction_max_error", "parameters", "epochs"):
        assert summaries[0][key] == summaries[1][key]
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, weights(second)[name]), name
    tables = [(out / "metrics.jsonl").read_text().splitlines() for out in (first, second)]
    rows = [[{**json.loads(line), "seconds": 0} for line in table] for table in tables]
    assert rows[0] == rows[1]


# --- what a run leaves ------------------------------------------------------------------------


def test_run_directory(unbroken: Path) -> None:
    assert {path.name for path in unbroken.iterdir()} == RESULTS
    rows = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["validation_bits_per_dim"] < rows[0]["validation_bits_per_dim"]
    for picture in unbroken.glob("*.png"):
        with Image.open(picture) as image:
            assert min(image.size) > 100
            assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_summary(unbroken: Path, images: Path) -> None:
    summary = json.loads((unbroken / "summary.json").read_text())
    assert set(summary) == {
        "test_bits_per_dim", "test_nats", "reconstruction_max_error", "sample_seconds_per_100",
        "sample_seconds_per_100_spread", "forward_seconds_per_100",
        "forward_seconds_per_100_spread", "parameters", "device", "threads", "versions",
        "epochs", "best_epoch", "train_seconds",
    }  # fmt: skip
    model = load_model(unbroken)
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())
    assert summary["versions"]["torch"] == torch.__version__
    # Six layers in float32 whose slopes are a few units, on values in [0, 1].
    assert 0 <= summary["reconstruction_max_error"] < 1e-4
    assert min(summary["sample_seconds_per_100"], summary["forward_seconds_per_100"]) > 0
    # The figures can be had again from the files alone.
    again = evaluate(model, datasets.load(images))
    for key in ("test_bits_per_dim", "reconstruction_max_error"):
        assert again[key] == summary[key]


def test_test_figure_is_that_of_the_averaged_model(unbroken: Path, images: Path) -> None:
    _, data = configure(images)
    model = load_model(unbroken)
    numbers = np.arange(len(data.test))
    ((x, _),) = load_batches(data.test, 256, [numbers], key=(2, 0))
    with torch.no_grad():
        bits = (8 - model.log_prob(x).double() / (32 * math.log(2))).mean().item()
    summary = json.loads((unbroken / "summary.json").read_text())
    assert summary["test_bits_per_dim"] == pytest.approx(bits, rel=1e-12)
    assert summary["test_nats"] == pytest.approx(bits * 32 * math.log(2), rel=1e-12)
    # Integers get other noise, of which the figure depends on little.
    with torch.no_grad():
        again = torch.cat(
            [model.bits_per_dim(torch.from_numpy(data.test.images)) for _ in range(50)]
        )
    assert again.mean().item() == pytest.approx(bits, abs=0.1)


def test_importance_weighted_bits_fall_with_the_number_of_draws(
    unbroken: Path, images: Path
) -> None:
    _, data = configure(images)
    model = load_model(unbroken)
    figures = evaluate(model, data, importance_samples=64)
    assert figures["importance_samples"] == 64
    bound = figures["importance_weighted_bits_per_dim"]
    assert bound < figures["test_bits_per_dim"]
    # The same in numpy.
    draws = []
    for draw in range(64):
        numbers = np.arange(len(data.test))
        ((x, _),) = load_batches(data.test, 256, [numbers], key=(2, draw))
        with torch.no_grad():
            draws.append(model.log_prob(x).double().numpy() - 32 * math.log(256))
    log_mean = np.log(np.exp(np.array(draws) - np.max(draws)).mean(0)) + np.max(draws)
    assert bound == pytest.approx(-log_mean.mean() / (32 * math.log(2)), rel=1e-9)


def test_config_round_trips(unbroken: Path) -> None:
    config = read_config(unbroken)
    assert TrainConfig.from_json(config.to_json()) == config
    assert config.flow == load_model(unbroken).config
    for text in ("", "[]", "{}", '{"flow": {}}', "null"):
        with pytest.raises(ValueError):
            TrainConfig.from_json(text)


def test_seed_determines_the_run(images: Path, tmp_path: Path, unbroken: Path) -> None:
    run(images, tmp_path / "same")
    assert_same_outcome(unbroken, tmp_path / "same")
    run(images, tmp_path / "other", seed=1, epochs=1)
    assert not torch.equal(
        weights(tmp_path / "other")["levels.0.layers.1.mean"],
        weights(unbroken)["levels.0.layers.1.mean"],
    )


def test_training_leaves_the_global_random_state_alone(images: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    run(images, tmp_path / "run", epochs=1)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- interpolation ----------------------------------------------------------------------------


def test_rows_go_from_one_test_image_to_another(unbroken: Path, images: Path) -> None:
    _, data = configure(images)
    model = load_model(unbroken)
    titles, rows = interpolate(model, data, 5, 4, 0)
    assert rows.shape == (5, 4, 1, 8, 4)
    assert rows.min() >= 0 and rows.max() <= 1
    for title, row in zip(titles, rows, strict=True):
        pair = [int(number) for number in title.split(" to ")]
        assert pair[0] != pair[1]
        levels = torch.from_numpy(data.test.images[pair]).float()
        ((x, _),) = load_batches(data.test, 256, [np.array(pair)], key=(2,))
        assert torch.equal((x * 256).floor(), levels)
        torch.testing.assert_close(row[[0, -1]], x, rtol=0, atol=1e-3)
        # Every image between them is another.
        assert min((a - b).abs().max() for a, b in itertools.pairwise(row)) > 1e-2
    again, same = interpolate(model, data, 3, 4, 0)
    assert again == titles[:3] and torch.equal(same, rows[:3])
    assert interpolate(model, data, 5, 4, 1)[0] != titles


def test_rows_of_a_model_of_classes_stay_within_a_class() -> None:
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, (30, 1, 4, 4)).astype(np.uint8)
    # Of class 1 there is one test image, of class 3 none.
    labels = np.array([0, 2] * 14 + [1, 2])
    test = ImageSet(pixels, labels)
    data = ImageData("made", 256, test, test, test, 4)
    torch.manual_seed(0)
    model = InverseFlow(image_shape=(1, 4, 4), steps=1, hidden=8, num_classes=4)
    # Away from the start, where couplings and splines do nothing and no label counts.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
        model(torch.from_numpy(pixels), torch.from_numpy(labels))  # ActNorm's first batch
    model.eval()

    def check(label: int | None, classes: list[int]) -> None:
        titles, rows = interpolate(model, data, 3, 3, 0, label)
        for title, row, of in zip(titles, rows, classes, strict=True):
            name, numbers = title.splitlines()
            pair = np.array([int(number) for number in numbers.split(" to ")])
            assert name == f"class {of}"
            assert (labels[pair] == of).all()
            ((x, _),) = load_batches(test, 256, [pair], key=(2,))
            torch.testing.assert_close(row[[0, -1]], x, rtol=0, atol=1e-3)

    check(None, [0, 2, 0])
    check(2, [2, 2, 2])
    with pytest.raises(RunError, match="made has no two test images of class 1 to interpolate"):
        interpolate(model, data, 3, 3, 0, 1)
    single = ImageData("made", 256, test, test, ImageSet(pixels[:2], labels[:2]), 4)
    with pytest.raises(RunError, match="no two test images of one class"):
        interpolate(model, single, 3, 3, 0)
    with pytest.raises(RunError, match="of 4 classes; these images have none"):
        interpolate(model, ImageData("made", 256, test, test, ImageSet(pixels)), 3, 3, 0)


def test_interpolation_needs_two_images_that_fit(unbroken: Path, images: Path) -> None:
    _, data = configure(images)
    model = load_model(unbroken)
    single = ImageData("one", 256, data.train, data.validation, ImageSet(data.test.images[:1]))
    with pytest.raises(RunError, match=r"^one has no two test images to interpolate between$"):
        interpolate(model, single, 1, 2, 0)
    with pytest.raises(RunError, match=r"shape \(1, 8, 4\) with 256 values, but digits has"):
        interpolate(model, datasets.load("digits"), 1, 2, 0)


@pytest.mark.parametrize("split_prior", [True, False])
def test_latents_are_shown_at_the_places_of_their_pixels(split_prior: bool) -> None:
    # Neither activation nor weights move anything at first, and ActNorm does not in eval mode.
    flow = InverseFlow(
        image_shape=(1, 8, 12), levels=2, steps=1, hidden=4, mixing="reverse", activation=None,
        split_prior=split_prior,
    ).eval()  # fmt: skip
    x = torch.rand(3, 1, 8, 12)
    shown = _latent_image(flow, flow.encode(x))
    assert shown.shape == x.shape
    # No layer but a squeeze moves a value to another place, and two of them by less than 4 pixels.
    marginal, _ = flow.marginal(x)
    blocks = (F.avg_pool2d(images, 4) for images in (shown, marginal))
    torch.testing.assert_close(*blocks)


def test_the_way_between_latents_is_an_arc() -> None:
    # The parts of each are one vector: the angle between these is a right one.
    start = (torch.full((1, 1, 1, 2), 1.0), torch.full((1, 2, 1, 1), 1.0))
    end = (torch.full((1, 1, 1, 2), -1.0), torch.full((1, 2, 1, 1), 1.0))
    arc = torch.cat([z.flatten(1) for z in _arc(start, end, 4)], 1)
    torch.testing.assert_close(arc.norm(dim=1), torch.full((4,), 2.0, dtype=torch.float64))
    steps = torch.acos((arc[:-1] * arc[1:]).sum(1) / 4)
    torch.testing.assert_close(steps, torch.full((3,), math.pi / 6, dtype=torch.float64))
    assert torch.equal(arc[0], torch.ones(4, dtype=torch.float64))
    # Between equal ones it stands still.
    for z, at in zip(_arc(start, start, 3), start, strict=True):
        torch.testing.assert_close(z, at.double().expand(3, -1, -1, -1))


# --- resuming ---------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process: no handler in the program catches it."""


class StopAtBatch(Listener):
    def __init__(self, batch: int) -> None:
        self.left = batch

    def batch_done(self, epoch: int, images: int, bits_per_dim: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("batch", [1, 4, 5, 11, 16])
def test_resumes_exactly_from_within_an_epoch(
    images: Path, tmp_path: Path, unbroken: Path, batch: int
) -> None:
    with pytest.raises(Killed):
        run(images, tmp_path / "run", StopAtBatch(batch))
    run(images, tmp_path / "run")
    assert_same_outcome(unbroken, tmp_path / "run")


def test_resumes_exactly_from_between_any_two_file_operations(
    images: Path, tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every file appears by os.replace, so these are all the states that a kill can leave: the
    # process ends before the n-th of them.
    replace = os.replace
    run(images, tmp_path / "unbroken", epochs=2)
    states = 0
    for n in range(1, 100):
        out = tmp_path / str(n)
        calls, killed = 0, out

        def dying(source: Path, target: Path, last: int = n) -> None:
            nonlocal calls, killed
            calls, killed = calls + 1, source
            if calls == last:
                shutil.copy(source, tmp_path / "left")
                raise Killed
            replace(source, target)

        monkeypatch.setattr(os, "replace", dying)
        with contextlib.suppress(Killed):
            run(images, out, epochs=2)
        monkeypatch.setattr(os, "replace", replace)
        if calls < n:
            break
        states += 1
        # A real kill runs no handler, so the temporary file stays behind.
        shutil.move(tmp_path / "left", killed)
        run(images, out, epochs=2)
        assert {path.name for path in out.iterdir()} == RESULTS
        assert_same_outcome(tmp_path / "unbroken", out)
    # The configuration, the first metrics, three files for each epoch, three pictures, the summary.
    assert states == 1 + 1 + 2 * 3 + 3 + 1


class Epochs(Listener):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def epoch_done(self, row: Mapping[str, float]) -> None:
        self.seen.append(int(row["epoch"]))


def test_resuming_loses_at_most_one_epoch(images: Path, tmp_path: Path) -> None:
    # Four batches an epoch: this is in the third.
    with pytest.raises(Killed):
        run(images, tmp_path / "run", StopAtBatch(10))
    rest = Epochs()
    run(images, tmp_path / "run", rest)
    assert rest.seen == [3, 4]


def test_a_finished_run_is_not_begun_again(unbroken: Path, images: Path) -> None:
    config, _ = configure(images)
    with pytest.raises(RunError, match="holds a finished run; choose another directory"):
        create_run(unbroken, config)


def test_an_unfinished_run_is_not_begun_again(images: Path, tmp_path: Path) -> None:
    config, _ = configure(images)
    with pytest.raises(Killed):
        run(images, tmp_path, StopAtBatch(5))
    with pytest.raises(RunError, match="holds an unfinished run; go on with --resume"):
        create_run(tmp_path, config)


def test_a_run_without_a_checkpoint_may_begin_again(images: Path, tmp_path: Path) -> None:
    config, _ = configure(images)
    with pytest.raises(Killed):
        run(images, tmp_path, StopAtBatch(2))
    create_run(tmp_path, config)


def test_resuming_needs_agreeing_options(unbroken: Path, tmp_path: Path) -> None:
    assert read_config(unbroken, epochs=4, lr=None) == read_config(unbroken)
    with pytest.raises(RunError, match=r"begun with --batch-size 8, so .* with --batch-size 9"):
        read_config(unbroken, batch_size=9)
    with pytest.raises(RunError, match="holds no run to resume"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"flow": 3}')
    with pytest.raises(RunError, match=r"config\.json: damaged"):
        read_config(tmp_path)


# --- damaged and hostile files ----------------------------------------------------------------


class Mischief:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    middle = len(content) - 200
    path.write_bytes(
        {
            "empty": b"",
            "half": content[: len(content) // 2],
            "one bit": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
            "text": b"this is no checkpoint",
            "huge header": b"\xff" * 8 + content[8:],
            "pickle": pickle.dumps(Mischief(path.with_name("executed"))),
            "torch": b"",
            "foreign": safetensors.torch.save({"a": torch.zeros(3)}),
        }[kind]
    )
    if kind == "torch":
        torch.save({"model": Mischief(path.with_name("executed"))}, path)


@pytest.mark.parametrize(
    "kind", ["empty", "half", "one bit", "text", "huge header", "pickle", "torch", "foreign"]
)
@pytest.mark.parametrize("name", ["checkpoint.safetensors", "model.safetensors"])
def test_damaged_file_is_refused_and_kept(
    unbroken: Path, images: Path, tmp_path: Path, kind: str, name: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    (out / "summary.json").unlink()
    damage(out / name, kind)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(RunError) as error:
        if name == "model.safetensors":
            load_model(out)
        else:
            run(images, out)
    assert str(error.value).startswith(f"{out / name}: ")
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert "executed" not in before


def test_files_of_another_model_are_refused(unbroken: Path, tmp_path: Path, images: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    config = json.loads((out / "config.json").read_text())
    config["flow"]["hidden"] = 9
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"not a checkpoint of this run: Error.* loading state_dict"):
        run(images, out)
    shutil.copy(out / "checkpoint.safetensors", out / "model.safetensors")
    with pytest.raises(RunError, match="does not hold a model"):
        load_model(out)


def test_missing_model(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(RunError, match=r"^no run in .*; train one with"):
            load_model(path)


def test_damaged_metrics_are_refused(unbroken: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    (out / "metrics.jsonl").write_text("{")
    with pytest.raises(RunError, match=r"metrics\.jsonl: not lines of JSON"):
        run(images, out)


def test_write_atomic_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    # A directory in the way of the new file: the write fails whoever runs the test.
    (tmp_path / "file.tmp").mkdir()
    with pytest.raises(OSError, match=str(path)):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


# --- losses that are not finite ---------------------------------------------------------------


def test_loss_that_is_not_finite_keeps_the_last_checkpoint(
    unbroken: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(images, out, StopAtBatch(10))
    config = json.loads((out / "config.json").read_text())
    config["lr"] = 1e30
    (out / "config.json").write_text(json.dumps(config))
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".jsonl"}
    with pytest.raises(RunError, match=r"is (nan|inf) in epoch 3, .* checkpoint is kept"):
        run(images, out)
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".jsonl"}
    assert after == before
    # With the old learning rate it goes on as if nothing had happened.
    config["lr"] = read_config(unbroken).lr
    (out / "config.json").write_text(json.dumps(config))
    run(images, out)
    assert_same_outcome(unbroken, out)


def test_weights_stay_finite_when_a_gradient_is_not(images: Path, tmp_path: Path) -> None:
    # The layers keep gradients finite wherever the loss is, so this one is poisoned on its way.
    def poison(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Conv2d) and output.requires_grad:
            output.register_hook(lambda gradient: gradient * math.inf)

    handle = torch.nn.modules.module.register_module_forward_hook(poison)
    try:
        with pytest.raises(RunError, match=r"gradient norm is (nan|inf) in epoch 1, batch 1 of 4"):
            run(images, tmp_path)
    finally:
        handle.remove()
    assert not (tmp_path / "checkpoint.safetensors").exists()


# --- the pieces -------------------------------------------------------------------------------


def test_shift_moves_framed_images_by_one_pixel_at_most() -> None:
    framed = np.zeros((1, 5, 6), np.uint8)
    framed[0, 1:-1, 1:-1] = np.arange(1, 13).reshape(3, 4)
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(400):
        moved = shifted(framed, random)
        _, row, column = np.argwhere(moved == 1)[0]
        np.testing.assert_array_equal(
            moved[0, row : row + 3, column : column + 4], framed[0, 1:4, 1:5]
        )
        assert moved.sum() == framed.sum()
        seen.add((row - 1, column - 1))
    assert seen == {(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}


def test_shift_leaves_other_images_alone() -> None:
    random = np.random.default_rng(0)
    for index in range(200):
        image = np.zeros((3, 4, 5), np.uint8)
        image[2, index % 4, index % 2 * 4] = 9
        image[1, 1, 2] = 5
        np.testing.assert_array_equal(shifted(image, random), image)


# --- batches ----------------------------------------------------------------------------------


def test_batches_have_the_same_bits_whoever_makes_them() -> None:
    images = np.random.RandomState(0).randint(0, 256, (30, 3, 4, 5)).astype(np.uint8)
    labels = np.arange(30)
    order = np.random.RandomState(1).permutation(30)
    options: dict[str, Any] = {"key": (3, 4), "shift": True, "flip": True}

    def load(batches: list[Any], **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        parts = list(load_batches(ImageSet(images, labels), 256, batches, **{**options, **given}))
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts if y is not None])

    x, y = load(np.array_split(order, 4))
    assert torch.equal(y, torch.from_numpy(order))
    for batches, workers in ((np.array_split(order, 4), 2), (np.array_split(order, 7), 0)):
        again, _ = load(batches, workers=workers)
        assert torch.equal(again, x)
    assert not torch.equal(load([order], key=(3, 5))[0], x)
    # Below the noise are the images, half of them mirrored.
    levels = (x * 256).floor().to(torch.uint8).numpy()
    mirrored = (levels == images[order, :, :, ::-1]).all((1, 2, 3))
    as_is = (levels == images[order]).all((1, 2, 3))
    assert (mirrored ^ as_is).all() and 5 < mirrored.sum() < 25


def test_dequantized_images_stay_below_the_next_level() -> None:
    for levels in (2, 17, 256):
        images = np.full((200, 3, 8, 8), levels - 1, np.uint8)
        ((x, _),) = load_batches(ImageSet(images), levels, [np.arange(200)], key=(0,))
        assert x.dtype == torch.float32 and x.max() < 1
        assert ((x * levels).floor() == levels - 1).all()
        noise = x * levels - (levels - 1)
        # Of 38400 uniform numbers the mean has a deviation of 0.0015, each end a gap of 3e-5.
        assert abs(noise.mean() - 0.5) < 0.01 and noise.min() < 1e-3 and noise.max() > 0.999


def test_learning_rate_rises_and_falls(images: Path) -> None:
    config, _ = configure(images, epochs=10, lr=0.5)
    rates = [_learning_rate(config, step, 20) for step in range(1, 201)]
    peak = rates.index(max(rates))
    assert 15 <= peak < 20
    assert rates == sorted(rates[: peak + 1]) + sorted(rates[peak + 1 :], reverse=True)
    assert 0 < rates[0] < 0.05 < 0.45 < max(rates) <= 0.5
    # A step with the rate 0 would train nothing, and might be the only one.
    assert 0 < rates[-1] < 1e-4
    once, _ = configure(images, epochs=1, lr=0.5)
    assert _learning_rate(once, 1, 1) == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "expected epochs of at least 1, but got 0"),
        ({"batch_size": 0}, "expected batch_size of at least 1"),
        ({"lr": 0.0}, "expected lr above 0"),
        ({"lr": math.nan}, "expected lr above 0"),
        ({"seed": -1}, "expected seed from 0 to 2"),
        ({"seed": 2**64}, "expected seed from 0 to 2"),
    ],
)
def test_bad_options(images: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        configure(images, **given)


def test_images_that_do_not_fit_the_model(tmp_path: Path, unbroken: Path) -> None:
    for index in range(10):
        Image.fromarray(np.zeros((6, 7), np.uint8)).save(tmp_path / f"{index}.png")
    with pytest.raises(RunError, match=r"height and width divisible by 2 .*, but got 6 x 7"):
        configure(tmp_path)
    with pytest.raises(RunError, match=r"shape \(1, 8, 4\) with 256 values, but digits has"):
        evaluate(load_model(unbroken), datasets.load("digits"))


@pytest.mark.parametrize(("size", "levels"), [((6, 8), 1), ((8, 12), 2), ((64, 64), 2)])
def test_levels_follow_the_size_of_the_images(
    tmp_path: Path, size: tuple[int, int], levels: int
) -> None:
    for index in range(10):
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f"{index}.png")
    config, _ = configure(tmp_path)
    assert config.flow.levels == levels


def test_one_image_per_batch_and_one_batch_per_epoch(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "ones", batch_size=1, epochs=1)
    run(images, tmp_path / "all", batch_size=1000, epochs=1)
    assert isinstance(load_model(tmp_path / "ones"), InverseFlow)
