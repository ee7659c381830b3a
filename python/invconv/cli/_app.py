"""The commands. What needs torch is imported inside them, so that --help is quick."""

import atexit
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import invconv
from invconv._check import DTYPES

app = typer.Typer(
    name="invconv",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_DEFAULT_DATA = "mnist5k"
_DEFAULT_PRESET = "small"
_RUNS = Path("runs")
_DEFAULT_RUN = _RUNS / f"{_DEFAULT_DATA}-{_DEFAULT_PRESET}"

_Run = Annotated[
    Path, typer.Argument(help="A run directory, or a model.safetensors file.", show_default=True)
]
_Device = Annotated[str, typer.Option(help="Where to compute, as torch names it.")]

# The training presets, for --help: theirs are in invconv.train, which imports torch. Behind the
# name of each size may stand a neighbour of Inverse-Flow, which is trained alike.
PRESET_HELP: Mapping[str, Mapping[str, float]] = {
    "epochs": {
        "tiny": 3, "small": 30, "mnist": 100, "cifar10": 100, "imagenet32": 20, "imagenet64": 20,
    },
    "batch_size": {
        "tiny": 100, "small": 50, "mnist": 100, "cifar10": 100, "imagenet32": 128,
        "imagenet64": 128,
    },
    "lr": {
        "tiny": 0.01, "small": 0.01, "mnist": 0.001, "cifar10": 0.001, "imagenet32": 0.001,
        "imagenet64": 0.001,
    },
}  # fmt: skip
PRESET_SUFFIXES = ("", "-finc", "-glow", "-realnvp")


def _defaults(name: str) -> str:
    given = ", ".join(f"{preset} {value}" for preset, value in PRESET_HELP[name].items())
    return f"Default: the preset's ({given})."


def _check_preset(name: str | None) -> str | None:
    sizes = PRESET_HELP["epochs"]
    if name is not None and name not in {
        size + suffix for size in sizes for suffix in PRESET_SUFFIXES
    }:
        raise typer.BadParameter(
            f"{name!r} is none of {', '.join(sizes)}, nor one of them with "
            f"{', '.join(PRESET_SUFFIXES[1:])} behind it"
        )
    return name


def _check_rate(rate: float | None) -> float | None:
    if rate is not None and not 0 < rate < math.inf:
        raise typer.BadParameter(f"{rate} is not above 0 and finite")
    return rate


def _show_version(asked: bool) -> None:
    if asked:
        print(invconv.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Normalizing flows with exact inverse convolutions: train, sample, evaluate."""


def slow_threads(load: float, threads: int, cores: int) -> str | None:
    """A line on what torch's threads will meet on a machine with this load, or None.

    OpenMP's threads wait for each other by spinning, many times in a step; each of them that shares
    its core with other work holds up all of them for whole time slices.
    """
    # The average of the last minute hardly knows this process yet, and creeps up to its value.
    if threads == 1 or load < 0.9 or load + threads < cores + 0.9:
        return None
    return (
        f"other work loads this machine's {cores} cores by {load:.1f}, and {threads} threads often "
        "wait for each other: with OMP_NUM_THREADS=1 in the environment training may be several "
        "times faster"
    )


@app.command()
def train(
    data: Annotated[
        str | None,
        typer.Option(
            help="mnist5k (5000 MNIST digits), digits (scikit-learn's, 8 x 8), photos (tiles of "
            "photographs, 32 x 32), hf:NAME of the Hugging Face hub, or a folder: of image files "
            "of one size (perhaps in folders train and test), or with the files of MNIST (IDX), "
            f"CIFAR-10 (binary) or ImageNet32 or 64 (npz). Default: {_DEFAULT_DATA}."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            callback=_check_preset,
            help="tiny (seconds), small (two CPU cores), mnist, cifar10 (the paper's), imagenet32 "
            "or imagenet64; with -finc, -glow or -realnvp behind it, the same model with that "
            "flow's layer in place of the inverse convolution, for comparison. "
            f"Default: {_DEFAULT_PRESET}.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help=f"Passes over the training images. {_defaults('epochs')}"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help=f"Images in one step. {_defaults('batch_size')}")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(callback=_check_rate, help=f"Largest learning rate. {_defaults('lr')}"),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(min=0, help="Of AdamW. Default: 0, which is Adam.")
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option(
            "--flip/--no-flip",
            help="Mirror half of the images. Default: the preset's (of photographs alone).",
        ),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(min=1, help="Parts to take each batch in, for less memory. Default: 1."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="no, or bf16: couplings' nets in bfloat16 (autocast). Default: no."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop after so many epochs without better validation bits/dim. Default: never.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of all random numbers. Default: 0.")
    ] = None,
    conditional: Annotated[
        bool,
        typer.Option(
            "--conditional",
            help="Model each class of the images (mnist5k and digits have ten).",
        ),
    ] = False,
    reversible: Annotated[
        bool,
        typer.Option("--reversible", help="Less memory for more time: activations are recomputed."),
    ] = False,
    device: _Device = "cpu",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that read images ahead; 0: none.")
    ] = 0,
    checkpoint_minutes: Annotated[
        float,
        typer.Option(min=0, help="Save so often what --resume needs, and after every epoch."),
    ] = 10.0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write logs into the run's folder tensorboard.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out after its last saved epoch. It keeps the options "
            "that it was begun with; others, more epochs too, are refused.",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The run directory. Default: runs/DATA-PRESET.")
    ] = None,
) -> None:
    """Train a flow on images; without any option, on 5000 MNIST digits, in minutes.

    The run directory holds the configuration, a row of figures for each epoch, the best epoch's
    model, a summary and three pictures. A run that was interrupted or killed goes on with --resume,
    to the same end. With several processes, start it with torchrun or accelerate launch: torchrun
    --nproc-per-node 2 -m invconv train ...
    """
    import torch
    from accelerate import PartialState

    from invconv import data as datasets
    from invconv import train as training
    from invconv.cli._display import Display

    source = data or _DEFAULT_DATA
    if out is None:
        name = datasets.short_name(source)
        out = _RUNS / f"{name}-{preset or _DEFAULT_PRESET}"
    where = training.select_device(device)
    given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "flip": flip,
        "accumulate": accumulate,
        "precision": precision,
        "patience": patience,
    }
    processes = PartialState(cpu=where.type == "cpu")
    # Gloo's threads hold what is Python's. If they outlive the interpreter, they can abort the
    # process: "terminate called without an active exception", pytorch/pytorch issue 190489.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit.register(torch.distributed.destroy_process_group)
    main = processes.is_main_process
    if resume:
        asked = data and training.absolute_source(data)
        config = training.read_config(
            out,
            data=asked,
            preset=preset,
            seed=seed,
            conditional=conditional or None,
            reversible=reversible or None,
            **given,
        )
        images = datasets.load(config.data)
        if training.checksum(images) != config.data_checksum:
            raise training.RunError(f"{config.data}: the images changed since {out} was begun")
    else:
        images = datasets.load(source)
        config = training.new_config(
            source,
            images,
            preset or _DEFAULT_PRESET,
            seed or 0,
            conditional=conditional,
            reversible=reversible,
            **given,
        )
        if main:
            training.create_run(out, config)
        processes.wait_for_everyone()

    # Of several processes the first one speaks.
    console = Console(highlight=False, quiet=not main)
    console.print(
        f"{images.name}: {len(images.train)} training, {len(images.validation)} validation and "
        f"{len(images.test)} test images of {' x '.join(map(str, images.image_shape))}; "
        f"run directory {out}",
        soft_wrap=True,
    )
    summary_file = out / "summary.json"
    if summary_file.exists():
        console.print("this run is finished already")
        summary = json.loads(summary_file.read_text())
    else:
        if resume and not training.has_checkpoint(out):
            console.print("no checkpoint was saved yet: this run begins anew")
        if where.type == "cpu" and hasattr(os, "getloadavg"):
            hint = slow_threads(os.getloadavg()[0], torch.get_num_threads(), os.cpu_count() or 1)
            if hint is not None:
                console.print(hint, soft_wrap=True)
        with Display(console) as display:
            try:
                summary = training.train(
                    config,
                    images,
                    out,
                    device=where,
                    listener=display,
                    workers=workers,
                    checkpoint_minutes=checkpoint_minutes,
                    tensorboard=tensorboard,
                )
            except KeyboardInterrupt:
                command = training.resume_command(out)
                line = (
                    f"interrupted; go on with: {command}"
                    if training.has_checkpoint(out)
                    else f"interrupted before anything was saved; begin again with: {command}"
                )
                print(f"invconv train: {line}", file=sys.stderr)
                raise typer.Exit(130) from None
    if not main:
        return
    console.print(
        f"test {summary['test_bits_per_dim']:.4f} bits/dim, reconstruction error at most "
        f"{summary['reconstruction_max_error']:.1e}, 100 samples in "
        f"{summary['sample_seconds_per_100']:.3f} s, {summary['train_seconds']:.0f} s of training",
        soft_wrap=True,
    )
    pictures = ", ".join(str(path) for path in sorted(out.glob("*.png")))
    console.print(f"pictures: {pictures}", soft_wrap=True)


@app.command()
def sample(
    run: _Run = _DEFAULT_RUN,
    n: Annotated[
        int | None, typer.Option("-n", "--number", min=1, help="How many images. Default: 100.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0, help="Spread of the latents; below 1 is tamer, less varied. Default: 0.8."
        ),
    ] = None,
    label: Annotated[
        int | None,
        typer.Option(
            "--class", min=0, help="Of a conditional model: this class. Default: all in turn."
        ),
    ] = None,
    interpolate: Annotated[
        bool,
        typer.Option(
            "--interpolate",
            help="In place of samples: rows from one test image to another (of its class, if the "
            "model is conditional), spherically through the latents, which so keep the length that "
            "those of images have; on a straight line they would be too short in the middle.",
        ),
    ] = False,
    rows: Annotated[
        int | None,
        # A picture has at most 2^16 pixels to a side, of which an image takes 120.
        typer.Option(min=1, max=500, help="With --interpolate: pairs of images. Default: 8."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=2, max=500, help="With --interpolate: images of a row, with its ends. Default: 9."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="With --interpolate: as for train. Default: what the run was trained on."
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**64 - 1,
            help="Of the latents; with --interpolate of the choice of images.",
        ),
    ] = 0,
    device: _Device = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The picture, a PNG. Default: samples-TEMPERATURE-SEED.png in the run, or "
            "interpolation-SEED.png."
        ),
    ] = None,
) -> None:
    """Draw images from a trained model into one picture."""
    of_samples = {"--number": n, "--temperature": temperature}
    of_rows = {"--rows": rows, "--steps": steps, "--data": data}
    for option, value in (of_samples if interpolate else of_rows).items():
        if value is not None:
            raise typer.BadParameter(
                f"{'not' if interpolate else 'only'} with --interpolate", param_hint=option
            )
    if out is not None and out.suffix.lower() != ".png":
        raise typer.BadParameter(
            f"expected a name that ends in .png, but got {out}", param_hint="--out"
        )

    import torch

    from invconv import data as datasets
    from invconv import train as training

    model = training.load_model(run).to(training.select_device(device))
    classes = model.config.num_classes
    if label is not None and label >= classes:
        known = f"has the classes 0 to {classes - 1}" if classes else "is not conditional"
        raise training.RunError(f"the model {known}, so it has no class {label}")
    folder = run if run.is_dir() else run.parent
    suffix = "" if label is None else f"-class-{label}"
    if interpolate:
        images = datasets.load(data or _trained_on(run))
        out = out or folder / f"interpolation-{seed}{suffix}.png"
        titles, between = training.interpolate(
            model, images, 8 if rows is None else rows, 9 if steps is None else steps, seed, label
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        training.save_interpolations(out, titles, between, images.name)
    else:
        n = 100 if n is None else n
        temperature = 0.8 if temperature is None else temperature
        context = training.every_class(model, n) if label is None else label
        generator = torch.Generator().manual_seed(seed)
        drawn = model.sample(n, temperature, context=context, generator=generator)
        out = out or folder / f"samples-{temperature:g}-{seed}{suffix}.png"
        out.parent.mkdir(parents=True, exist_ok=True)
        title = f"{n} samples at temperature {temperature:g}" + suffix.replace("-", " ")
        training.save_grid(out, drawn, model.config.quantization, title)
    print(out)


def _trained_on(run: Path) -> str:
    """The source of the images that a run, or the one a model file lies in, was trained on."""
    from invconv import train as training

    folder = run if run.is_dir() else run.parent
    if not (folder / "config.json").exists():
        raise training.RunError(
            f"{folder} has no config.json that tells the images of {run}; name them with --data"
        )
    return training.read_config(folder).data


@app.command(name="eval")
def evaluate(
    run: _Run = _DEFAULT_RUN,
    data: Annotated[
        str | None, typer.Option(help="As for train. Default: what the run was trained on.")
    ] = None,
    importance_samples: Annotated[
        int,
        typer.Option(
            min=1,
            help="Draws of the dequantization noise for each image; above 1 also the importance-"
            "weighted bound, which is nearer to the likelihood.",
        ),
    ] = 1,
    device: _Device = "cpu",
) -> None:
    """Measure a trained model on the test images; prints JSON, like a run's summary."""
    from invconv import data as datasets
    from invconv import train as training

    model = training.load_model(run).to(training.select_device(device))
    images = datasets.load(data or _trained_on(run))
    figures = training.evaluate(model, images, importance_samples=importance_samples)
    print(json.dumps(figures, indent=2))


def _read_sizes(option: str, text: str, *counts: int) -> tuple[int, ...]:
    """Return integers written with commas between them."""
    try:
        sizes = tuple(int(word) for word in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) not in counts or min(sizes) < 1:
        raise typer.BadParameter(
            f"expected {' or '.join(map(str, counts))} numbers from 1 on, with commas between "
            f"them, but got {text!r}",
            param_hint=option,
        )
    return sizes


@app.command()
def info(
    shape: Annotated[
        str | None,
        typer.Option(help="Of images, as 100,12,16,16: show how a call with them is carried out."),
    ] = None,
    kernel_size: Annotated[
        str | None, typer.Option(help="With --shape: as 3, or 3,5. Default: 3.")
    ] = None,
    operation: Annotated[
        str | None,
        typer.Option(
            help="With --shape: solve, conv, weight_grad or solve_backward. Default: solve."
        ),
    ] = None,
    groups: Annotated[
        int | None, typer.Option(min=1, help="With --shape: of channels. Default: 1.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="With --shape: float16, bfloat16, float32 or float64. Default: float32."),
    ] = None,
) -> None:
    """Show the versions, the compiled core and the devices in use; with --shape a call's plan."""
    from invconv.cli._info import describe, describe_plan

    if shape is None:
        of_shape = {
            "--kernel-size": kernel_size,
            "--operation": operation,
            "--groups": groups,
            "--dtype": dtype,
        }
        for option, value in of_shape.items():
            if value is not None:
                raise typer.BadParameter("only with --shape", param_hint=option)
        print(describe())
        return
    batch, channels, height, width = _read_sizes("--shape", shape, 4)
    sizes = _read_sizes("--kernel-size", "3" if kernel_size is None else kernel_size, 1, 2)
    operation = "solve" if operation is None else operation
    groups = 1 if groups is None else groups
    dtype = "float32" if dtype is None else dtype
    operations = ("solve", "conv", "weight_grad", "solve_backward")
    if operation not in operations:
        raise typer.BadParameter(
            f"{operation!r} is none of {', '.join(operations)}", param_hint="--operation"
        )
    if dtype not in DTYPES:
        raise typer.BadParameter(f"{dtype!r} is none of {', '.join(DTYPES)}", param_hint="--dtype")
    try:
        kernel = (sizes[0], sizes[-1])
        print(describe_plan((batch, channels, height, width), kernel, operation, groups, dtype))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
