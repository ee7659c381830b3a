"""The type stubs of the compiled module: generated, installed, and as they were."""

from __future__ import annotations

import ast
import importlib.resources
from pathlib import Path

import invconv._core

PACKAGE = importlib.resources.files("invconv")
REFERENCE = Path(__file__).with_name("reference_core.pyi")


def declarations(stub: str) -> str:
    """What a stub declares, without comments and layout, which nanobind may change."""
    return ast.unparse(ast.parse(stub))


def test_the_installed_stub_is_the_reference() -> None:
    installed = PACKAGE.joinpath("_core.pyi")
    assert installed.is_file(), "the build installed no _core.pyi"
    assert declarations(installed.read_text(encoding="utf-8")) == declarations(
        REFERENCE.read_text(encoding="utf-8")
    ), (
        f"The functions of invconv._core changed. If they were meant to, replace what follows the "
        f"comments at the top of {REFERENCE} by the contents of {installed}"
    )


def test_the_stub_declares_what_the_module_has() -> None:
    tree = ast.parse(PACKAGE.joinpath("_core.pyi").read_text(encoding="utf-8"))
    declared = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert declared == {name for name in dir(invconv._core) if not name.startswith("_")}


def test_the_package_says_that_it_is_typed() -> None:
    assert PACKAGE.joinpath("py.typed").is_file()
