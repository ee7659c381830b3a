"""The ``invconv`` program."""

import sys
from collections.abc import Sequence

import invconv
from invconv._extras import pip_install
from invconv.data import UserError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; always ends in SystemExit.

    ``info`` and ``--version`` need numpy alone, the other commands the extra.

    Exit codes: 0 done, 1 something outside the program is wrong (one line says what), 2 wrong
    usage, 130 interrupted.

    Args:
        arguments: of the command line, without the program's name; None reads ``sys.argv``.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in arguments if not word.startswith("-")), "")
    title = f"invconv {command}".strip()
    try:
        # Here and not above: `import invconv.cli` works without the extra, and fails politely.
        from invconv.cli._app import app

        app(arguments, prog_name="invconv")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "invconv":
            raise
        if arguments in (["info"], ["--version"]):
            from invconv.cli._info import describe

            print(describe() if arguments == ["info"] else invconv.__version__)
            sys.exit(0)
        _fail(f"{title} needs the [flows] extra: {pip_install('flows')} ({error})")
    except (UserError, OSError) as error:
        _fail(f"{title}: {error}")


def _fail(line: str) -> None:
    print(line, file=sys.stderr)
    sys.exit(1)
