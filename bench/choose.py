"""Names on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import typer


def choose(names: Sequence[str] | None, known: Iterable[str], what: str) -> list[str]:
    """Return the names, in the order in which they are known; all if there are none.

    Raises:
        BadParameter: If one is not known.
    """
    known = list(known)
    for name in names or []:
        if name not in known:
            raise typer.BadParameter(f"expected {what} of {', '.join(known)}, but got {name}")
    return [name for name in known if not names or name in names]
