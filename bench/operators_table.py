"""``python -m bench operators``: what our torch operators can do, and the field's, as a table.

Each entry is run in a process of its own: a crash of one is its result, and ends nothing else.
"""

from __future__ import annotations

import importlib.metadata
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import capabilities, field

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"
PASSES = "passes"
# What the packages of the field are called where they are installed.
PACKAGES = ("torch", "torchlpc", "philtorch", "causal-conv1d", "natten")

# The first word that fits an error, from its text.
REASONS = (
    ("timeout", "timeout"),
    ("double", "no double"),
    ("forward AD", "no forward mode"),
    ("forward-mode", "no forward mode"),
    ("jvp", "no forward mode"),
    ("vmap", "no vmap"),
    ("setup_context", "no torch.func"),
    ("no registered operator", "not registered"),
    ("Unsupported", "graph break"),
    ("data-dependent", "graph break"),
    ("fake", "no fake"),
    ("meta", "no meta"),
    ("No backend", "no backend"),
    ("not close", "wrong values"),
    ("Jacobian mismatch", "wrong values"),
    ("dtype", "dtype"),
)


def run_one(name: str, entry: str) -> None:
    """Run one entry of the list on one operator, in a process of its own: see ``_cell``."""
    try:
        operator = field.FIELD[name]()
    except ImportError as error:
        print(f"missing {error}")
        return
    try:
        if entry in capabilities.names_for(operator):
            capabilities.run(entry, operator)
            print(PASSES)
        else:
            print("-")
    except BaseException as error:  # also what is no Exception, such as a panic
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"error {text}")


def _cell(name: str, entry: str, patience: float) -> tuple[str, str]:
    """What one entry came to, in a word, and the error behind it."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.operators_table", name, entry]
    try:
        done = subprocess.run(
            command, cwd=PAGE.parents[1], capture_output=True, text=True, timeout=patience
        )
    except subprocess.TimeoutExpired:
        return "fails (timeout)", f"longer than {patience:g} s"
    if done.returncode < 0:
        crash = signal.Signals(-done.returncode).name
        return f"fails ({crash})", crash
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        return "fails (crash)", " ".join(done.stderr.split())[-300:]
    word, _, rest = lines[-1].partition(" ")
    if word == "missing":
        return "not installable", rest
    return (f"fails ({reason(rest)})", rest) if word == "error" else (word, "")


def reason(text: str) -> str:
    """Why something failed, in a word or two."""
    for part, word in REASONS:
        if part.lower() in text.lower():
            return word
    return text.split(":")[0]


Table = dict[str, dict[str, tuple[str, str]]]


def measure(
    operators: Sequence[str], entries: Sequence[str], patience: float
) -> Iterator[tuple[str, str, str, str]]:
    """Yield (operator, entry, result, error), one after the other."""
    for name in operators:
        missing = ""
        for entry in entries:
            result, error = (
                ("not installable", missing) if missing else _cell(name, entry, patience)
            )
            if result == "not installable":
                missing = error
            yield name, entry, result, error


def versions() -> str:
    """The packages that were run."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def page(table: Mapping[str, Mapping[str, tuple[str, str]]]) -> str:
    """The docs page: the table, what the entries are, and the errors behind the failures."""
    names = list(table)
    lines = [
        "# What the torch operators can do",
        "",
        f"Measured by `python -m bench operators` on the CPU with {versions()}: nothing here is copied "
        "from a documentation.",
        "Each entry compares values with a reference in plain torch operations, in float64",
        "(`bench/capabilities.py`), and runs in a process of its own. `tests/python/test_torch_ops.py` "
        "has the same list as tests.",
        "",
        "The others are the field's operators whose computation is closest: all-pole filters",
        "(torchlpc, philtorch, and the formula of torchaudio's `lfilter`, written out in",
        "`bench/field.py`, since torchaudio has no build for this torch), a causal convolution,",
        "and a stencil. *not installable*: its import failed here; why stands at the end.",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for entry in next(iter(table.values())):
        cells = [table[name][entry][0] for name in names]
        lines.append(f"| {entry} | " + " | ".join(cells) + " |")
    lines += ["", "## The entries", ""]
    for entry, check in capabilities.CAPABILITIES.items():
        lines.append(f"- **{entry}**: {' '.join((check.__doc__ or '').split())}")
    lines += [
        "",
        "`-`: the entry does not apply. `logabsdet` has no batch, and is a composition of torch's",
        "own operators rather than one of its own.",
        "",
        "## The precision of float32",
        "",
        "`torch.set_float32_matmul_precision` and `torch.backends.cuda.matmul.allow_tf32` change",
        "nothing on the CPU: no product here is taken in fewer bits than its dtype has, and a test",
        "compares the bits. float16 and bfloat16 are storage alone; the recurrence is float32.",
        "",
        "## Why what fails fails",
        "",
    ]
    for name in names:
        errors: dict[str, list[str]] = {}
        for entry, (result, error) in table[name].items():
            if error:
                errors.setdefault(_shortened(error), []).append(entry if result else "")
        for error, where in errors.items():
            affected = "all" if len(where) == len(table[name]) else ", ".join(where)
            lines.append(f"- {name}, {affected}: `{error}`")
    return "\n".join(lines) + "\n"


def _shortened(error: str) -> str:
    # Paths and addresses differ from machine to machine.
    plain = re.sub(r"(/[\w.+-]+){2,}/", "", error).replace("`", "'")
    plain = re.sub(r"0x[0-9a-f]+", "0x...", plain)
    return plain if len(plain) <= 160 else plain[:157] + "..."


if __name__ == "__main__":
    run_one(*sys.argv[1:])
