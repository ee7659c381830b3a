"""What the test modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import invconv

# Tests run in two processes, which share the cores: torch's idle threads must not spin on them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


# Files of few tests that take minutes, first of all: else one process would wait for the other.
LONGEST = ("test_cpp.py", "test_train_processes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """Give the number of threads back as it was, whatever the test sets."""
    before = invconv.get_num_threads()
    yield
    invconv.set_num_threads(before)


@pytest.fixture
def double() -> Iterator[None]:
    """Let jax have float64."""
    import jax  # here, since most tests do without it
    import jax.experimental

    # Until 0.8 it had this place.
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(True):
        yield
