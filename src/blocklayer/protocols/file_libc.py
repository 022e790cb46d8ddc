# SPDX-License-Identifier: Apache-2.0
"""Functions of the C library that Python does not offer, where they exist."""

from __future__ import annotations

from functools import cache

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from collections.abc import Callable


@cache
def libc_function(name: str, arguments: str) -> Callable[..., int] | None:
    """One of them, or None. The arguments are named by letters: ``i`` int, ``q`` 64-bit offset.

    It returns what the C function returns; `ctypes.get_errno` tells of errors.
    """
    try:
        import ctypes

        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (ImportError, AttributeError, OSError):
        return None
    types = {"i": ctypes.c_int, "q": ctypes.c_int64}
    function.argtypes = tuple(types[letter] for letter in arguments)
    found: Callable[..., int] = function
    return found
