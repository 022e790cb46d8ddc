# SPDX-License-Identifier: Apache-2.0
"""Zeroing and discarding in a file without writing: a ladder of what the file system can do.

Three strengths of zeroing:

    default    what is allocated stays allocated, holes stay holes
    UNMAP      allocated space may become a hole
    ALLOCATE   everything is allocated afterwards

The rungs are ZERO_RANGE, PUNCH_HOLE (with an allocation behind it where the space must stay), and
writing, which is the caller's. A rung that the file system refuses is remembered and not tried
again; refusals happen before anything is changed, so none in the middle loses anything.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from blocklayer.base.buffers import zero_pieces
from blocklayer.base.errors import IoError, NotSupported
from blocklayer.base.units import GiB
from blocklayer.core.node import ALLOCATE, UNMAP
from blocklayer.protocols.file_libc import libc_function

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10

_REFUSALS = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL, errno.ENODEV})

PROBE_DISTANCE = 64 * GiB
"""How far behind the end of a file a hole is tried: nobody's writes get there meanwhile."""


class Abilities:
    """What the file system below one open file can do; True until it refuses."""

    def __init__(self) -> None:
        self.zero_range = self.punch_hole = self.allocate = True
        self.punches = False
        """Whether a hole has been punched: then `punch_hole` is known, not hoped."""
        self.seek_data = hasattr(os, "SEEK_DATA")


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    function = libc_function("fallocate64", "iiqq")
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    import ctypes

    while function(descriptor, mode, offset, length):
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def _try(
    abilities: Abilities, rung: str, descriptor: int, mode: int, offset: int, length: int
) -> bool:
    """One rung: False if the file system refuses it, now and from now on."""
    if not getattr(abilities, rung):
        return False
    try:
        _fallocate(descriptor, mode, offset, length)
    except OSError as error:  # also where there is no fallocate at all
        if error.errno in _REFUSALS:
            setattr(abilities, rung, False)
            return False
        raise
    return True


def set_aside(descriptor: int, offset: int, length: int) -> None:
    """Have space for what is to be written, where the file system can do that. Raises `OSError`.

    A disk that is too small is noticed before it is full.
    """
    try:
        _fallocate(descriptor, 0, offset, length)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise


def zero(
    descriptor: int, filename: str, offset: int, length: int, flags: int, abilities: Abilities
) -> None:
    """Make a range inside the file read as zeroes; `NotSupported` if only writing can."""
    try:
        if flags & UNMAP and _punch(abilities, descriptor, offset, length):
            return
        if flags & ALLOCATE or not abilities.seek_data:
            _zero_allocated(abilities, descriptor, filename, offset, length)
            return
        for start, end in list(data_ranges(descriptor, offset, offset + length, abilities)):
            _zero_allocated(abilities, descriptor, filename, start, end - start)
    except OSError as error:
        raise IoError.from_os(error, "write_zeroes", filename, offset, length) from None


def check_zero(descriptor: int, filename: str, abilities: Abilities) -> None:
    """Raise `NotSupported` where `zero` would, without changing anything.

    A hole far behind the end of the file tells. A file system with ZERO_RANGE alone is refused as
    well: that rung cannot be tried without a trace.
    """
    if abilities.punches:
        return
    place = 0
    try:
        # As long as the file is now, whoever has made it longer.
        place = os.fstat(descriptor).st_size + PROBE_DISTANCE
        if _punch(abilities, descriptor, place, 1):
            return
    except OSError as error:
        if error.errno != errno.EFBIG:  # no file can be so long: nothing is known
            raise IoError.from_os(error, "write_zeroes", filename, place, 1) from None
    raise NotSupported(f"The file system of '{filename}' cannot zero without writing")


def _punch(abilities: Abilities, descriptor: int, offset: int, length: int) -> bool:
    mode = _PUNCH_HOLE | _KEEP_SIZE
    done = _try(abilities, "punch_hole", descriptor, mode, offset, length)
    abilities.punches |= done
    return done


def _zero_allocated(
    abilities: Abilities, descriptor: int, filename: str, offset: int, length: int
) -> None:
    """Zero a range and keep (or make) it allocated."""
    if _try(abilities, "zero_range", descriptor, _ZERO_RANGE | _KEEP_SIZE, offset, length):
        return
    # One byte first: where space cannot be allocated again, none must be given up.
    if (
        _try(abilities, "allocate", descriptor, _KEEP_SIZE, offset, 1)
        and _punch(abilities, descriptor, offset, length)
        and _try(abilities, "allocate", descriptor, _KEEP_SIZE, offset, length)
    ):
        return
    raise NotSupported(f"The file system of '{filename}' cannot zero without writing")


def data_ranges(
    descriptor: int, start: int, end: int, abilities: Abilities
) -> Iterator[tuple[int, int]]:
    """The parts of a range that are not holes."""
    while start < end:
        try:
            data = os.lseek(descriptor, start, os.SEEK_DATA)
            if data >= end:
                return
            hole = os.lseek(descriptor, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            abilities.seek_data = False
            yield start, end
            return
        yield data, min(hole, end)
        start = hole


def discard(descriptor: int, filename: str, offset: int, length: int, abilities: Abilities) -> None:
    """Punch a hole where possible; a refusal is no error, discarding is a hint."""
    try:
        _punch(abilities, descriptor, offset, length)
    except OSError as error:
        raise IoError.from_os(error, "discard", filename, offset, length) from None


def write_zeroes(descriptor: int, filename: str, offset: int, length: int) -> None:
    """Write zeroes in bounded pieces: what remains where nothing else works."""
    for start, zeroes in zero_pieces(offset, length):
        done = 0
        while done < len(zeroes):
            try:
                done += os.pwrite(descriptor, zeroes[done:], start + done)
            except OSError as error:
                raise IoError.from_os(error, "write", filename, start + done) from None
