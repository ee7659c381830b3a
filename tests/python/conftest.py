"""What the test modules share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import invconv


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """Give the number of threads back as it was, whatever the test sets."""
    before = invconv.get_num_threads()
    yield
    invconv.set_num_threads(before)
