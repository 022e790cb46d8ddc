# SPDX-License-Identifier: Apache-2.0
"""Positioned, vectored file I/O: the system's, or what does the same where it has none.

Linux and the BSDs have preadv and pwritev; macOS has pread and pwrite; Windows has neither, and
there a lock makes seeking and moving bytes one step.
"""

from __future__ import annotations

import os
import threading

from blocklayer.base.buffers import Vector
from blocklayer.protocols.file_libc import libc_function

VECTORED = hasattr(os, "preadv") and hasattr(os, "pwritev")

_position_lock = threading.Lock()


def readv(descriptor: int, vector: Vector, offset: int) -> int:
    """Read into buffers; bytes read, 0 at the end of the file. Raises OSError."""
    if VECTORED:
        return os.preadv(descriptor, vector, offset)
    done = 0
    for view in vector:
        data = _pread(descriptor, len(view), offset + done)
        view[: len(data)] = data
        done += len(data)
        if len(data) < len(view):
            break
    return done


def writev(descriptor: int, vector: Vector, offset: int) -> int:
    """Write buffers; bytes written. Raises OSError."""
    if VECTORED:
        return os.pwritev(descriptor, vector, offset)
    done = 0
    for view in vector:
        count = _pwrite(descriptor, view, offset + done)
        done += count
        if count < len(view):
            break
    return done


def _pread(descriptor: int, length: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, offset)
    with _position_lock:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, length)


def _pwrite(descriptor: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    with _position_lock:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)


_SYNC_FILE_RANGE_WRITE = 2


def begin_writeback(descriptor: int) -> bool:
    """Have the system write the file's dirty pages, without waiting; whether it does.

    An error of that writing is told to whoever flushes the file.
    """
    function = libc_function("sync_file_range", "iqqi")
    return function is not None and function(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE) == 0
