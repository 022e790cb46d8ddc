# SPDX-License-Identifier: Apache-2.0
"""Files that tell the process id of a server, and are locked as long as it lives."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from blocklayer.cli.failures import Failure


@contextmanager
def pid_file(path: str, prefix: str = "") -> Iterator[None]:
    """A file with the process's id; removed at the end. `prefix` begins what errors say.

    A file that another process holds is left alone. Raises `Failure`.
    """
    path = os.path.abspath(path)
    descriptor = _locked(path, prefix)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        try:
            if _is_at(descriptor, path):
                os.unlink(path)
        except OSError:
            pass  # somebody else has removed it
        os.close(descriptor)


def _locked(path: str, prefix: str) -> int:
    """A descriptor of the file at `path`, with the lock."""
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Failure(f"{prefix}Could not create '{path}': {error.strerror}") from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise Failure(
                f"{prefix}Cannot lock pid file '{path}': another process holds it"
            ) from None
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # its last owner has just removed it: make another one


def _is_at(descriptor: int, path: str) -> bool:
    """Whether an open file is still what the path means."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    mine = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)
