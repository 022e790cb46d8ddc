# SPDX-License-Identifier: Apache-2.0
"""One prison for all tests of a worker."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.prison import Prison


@pytest.fixture(scope="session")
def prison() -> Iterator[Prison]:
    """Where images are opened that may do anything."""
    prison = Prison()
    yield prison
    prison.close()


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one: no flushes, and files of any length."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as name:
        yield Path(name)
