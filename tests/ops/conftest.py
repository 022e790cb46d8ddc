# SPDX-License-Identifier: Apache-2.0
"""What tests of operations are given."""

import importlib
import os
import pkgutil
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import blocklayer

NOBODY = 65534


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that every user may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def as_nobody() -> Callable[[], AbstractContextManager[None]]:
    """A context in which permissions of files hold, which root is above."""
    # Others may not be able to read the modules that are imported when they are needed.
    for module in pkgutil.walk_packages(blocklayer.__path__, "blocklayer."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    @contextmanager
    def context() -> Iterator[None]:
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(user)

    return context


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which no file can become longer than a number of bytes."""

    @contextmanager
    def context(length: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return context
