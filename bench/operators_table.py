"""``python -m bench operators``: what our torch operators can do, and the field's, as a table.

The entries run in other processes: a crash of one is its result, and ends nothing else.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

from . import capabilities, field
from .cmake import ROOT

PAGE = ROOT / "docs" / "operators.md"
_MARK = "result: "
# What the packages of the field are called where they are installed.
PACKAGES = ("torch", "torchlpc", "philtorch", "causal-conv1d", "natten")

# The first word that fits an error, from its text.
REASONS = (
    ("setup_context", "no torch.func"),
    ("suitable backend", "no backend"),
    ("FlexAttention", "no backend"),
    ("UnsupportedOperatorException", "no fake"),
    ("running with fake tensors", "no fake"),
    ("test_faketensor", "no fake"),
    ("Meta tensors", "no meta"),
    ("Unsupported:", "graph break"),
    ("jvp", "no forward mode"),
    ("vmap", "no vmap"),
    ("batching rule", "no vmap"),
    ("no registered operator", "not registered"),
    ("not close", "wrong values"),
    ("Jacobian mismatch", "wrong values"),
    ("not implemented for", "no dtype"),
)


def run_entries(name: str, *entries: str) -> None:
    """Run entries of the list on one operator, and print what each came to: see ``measure``."""
    try:
        operator = field.FIELD[name]()
    except ImportError as error:
        for entry in entries:
            _report(entry, "does not import", error)
        return
    for entry in entries:
        if entry not in capabilities.names_for(operator):
            _report(entry, "-")
            continue
        try:
            capabilities.run(entry, operator)
        except BaseException as error:  # also what is no Exception, such as a panic
            _report(entry, f"fails ({reason(f'{type(error).__name__}: {error}')})", error)
        else:
            _report(entry, "passes")


def _report(entry: str, result: str, error: BaseException | None = None) -> None:
    text = "" if error is None else " ".join(f"{type(error).__name__}: {error}".split())
    print(_MARK + "\t".join((entry, result, text)), flush=True)


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
    """Yield (operator, entry, result, error), one after the other.

    A process runs the entries of an operator; where one ends it, a new one goes on with the next.
    """
    for name in operators:
        left = list(entries)
        while left:
            command = [sys.executable, "-W", "ignore", "-m", "bench.operators_table", name, *left]
            with subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ) as process:
                assert process.stdout is not None
                timer = _timer(process, patience)
                for line in process.stdout:
                    if line.startswith(_MARK):
                        timer.cancel()
                        entry, result, error = line.removeprefix(_MARK).rstrip("\n").split("\t")
                        left.remove(entry)
                        yield name, entry, result, error
                        timer = _timer(process, patience)
            late = not timer.is_alive()
            timer.cancel()
            if left:
                why = f"longer than {patience:g} s" if late else f"exit status {process.returncode}"
                yield name, left.pop(0), f"fails ({'timeout' if late else 'crash'})", why


def _timer(process: subprocess.Popen[str], patience: float) -> threading.Timer:
    timer = threading.Timer(patience, process.kill)
    timer.start()
    return timer


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
        "Measured by `python -m bench operators` on the CPU, not copied from a documentation, with",
        f"{versions()}. Each entry compares values with a",
        "reference in plain torch operations, in float64 (`bench/capabilities.py`).",
        "`tests/python/test_torch_ops.py` has the same list as tests.",
        "",
        "The others are the field's operators whose computation is closest: all-pole filters",
        "(torchlpc, philtorch, and the formula of torchaudio's `lfilter`, written out in",
        "`bench/field.py`, since torchaudio has no build for this torch), a causal convolution,",
        "and a stencil. *does not import*: why stands at the end.",
        "*graph break*: `torch.compile(fullgraph=True)` or `torch.export` cannot trace it.",
        "natten has FlexAttention alone on the CPU: no float64 and no backward;",
        "causal-conv1d's build looks for a CUDA compiler.",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for entry in next(iter(table.values())):
        cells = [table[name][entry][0] for name in names]
        lines.append(f"| {entry} | " + " | ".join(cells) + " |")
    lines += ["", "## The entries", ""]
    for entry, check in capabilities.CAPABILITIES.items():
        text = " ".join((check.__doc__ or "").split()).replace("``", "`")
        lines.append(f"- **{entry}**: {text}")
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
            affected = "all" if len(where) == len(table[name]) else "; ".join(where)
            lines.append(f"- {name}, {affected}: `{error}`")
    return "\n".join(lines) + "\n"


def _shortened(error: str) -> str:
    # Paths and addresses differ from machine to machine.
    plain = re.sub(r"https?://\S+", "...", error)
    plain = re.sub(r"(/[\w.+-]+){2,}/", "", plain).replace("`", "'")
    plain = re.sub(r"0x[0-9a-f]+", "0x...", plain)
    return plain if len(plain) <= 160 else plain[:157] + "..."


if __name__ == "__main__":
    run_entries(*sys.argv[1:])
