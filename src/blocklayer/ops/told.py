# SPDX-License-Identifier: Apache-2.0
"""Telling, when an operation fails or is stopped, what has become of the images."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from blocklayer.core.names import FilenameLike


@contextlib.contextmanager
def told(state: str | Callable[[], str]) -> Iterator[None]:
    """Whatever ends the block early gets a note on the state things are left in."""
    try:
        yield
    except BaseException as error:
        error.add_note(state if isinstance(state, str) else state())
        raise


def tell_of_target(error: BaseException, target: FilenameLike, *, made: bool) -> None:
    """A copy failed half way, and what was `made` for it has been removed, if it could be."""
    if isinstance(target, dict):
        target = str(getattr(target, "typed", "The target"))
    target = os.fspath(target)
    if not made or os.path.exists(target):
        error.add_note(f"'{target}' holds a part of the copy only: do not use it")
    else:
        error.add_note(f"'{target}' was not complete, and has been removed")
