"""How to install what a part of the package needs beyond numpy."""

from __future__ import annotations


def pip_install(extra: str) -> str:
    """Return the commands that install an extra, for a message."""
    # In double quotes, which every shell knows.
    return f'pip install "invconv[{extra}]" or, from a checkout, pip install ".[{extra}]"'
