# SPDX-License-Identifier: Apache-2.0
"""Locks on an open image file that QEMU understands, and that understand QEMU's.

Whoever opens an image says two things: what it does with the image (the permissions in use), and
what it cannot bear others to do (those it does not share). Each is told by a read lock on one byte:
byte 100 + bit for a permission in use, byte 200 + bit for one not shared. Read locks never exclude
each other and need no write access; they are signs that others can see. So everybody first puts up
its own signs, then looks for signs of others that contradict them, and takes its own down again if
there are any. Two that start at one moment may both be refused; they are never both admitted.
No lock is ever put on the image's contents: bytes 100 to 203 only lend their numbers.

The locks belong to the open file description (Linux: F_OFD_SETLK), so that two opens within one
process exclude each other too, and closing some other descriptor of the file loses nothing.

Observed with QEMU 7.2 (qed and qcow2 behave alike; "-" for no lock):

    situation                                                image file           backing files
    format image, read-write: qemu-io, qemu-nbd,             100 101 103 201 203  100 201 203
      qemu-img resize, commit, rebase, amend, check -r,
      convert -n as target; a daemon's node without users
    format image, read-only: qemu-io -r, qemu-nbd -r,        100 201 203          100 201 203
      qemu-img check, map, compare, measure
    qemu-img convert, source (raw too)                       100 201 203          100 201 203
    qemu-img info, of a format image                         201 203              -
    force-share (-U), read-only; qemu-img info -U: none      100                  100
    raw, read-write: qemu-io, qemu-img convert as target     100 101
    raw, read-only: qemu-io -r, qemu-img map, compare        100                  100 (as backing)
    raw: qemu-img info, a daemon's node without users        -
    raw: qemu-nbd or a daemon's NBD export, writable         100 101 203
    raw: qemu-nbd -r or a daemon's read-only NBD export      100 203
    raw: qemu-img resize                                     100 101 103
    qemu-img create, while the file is made (any format)     101 103 203          -
    copy-on-read, block-stream: the overlay                  100 101 102 103 201 203
    block-commit, qemu-img commit: the file committed to     100 101 103 201 203
    blockdev-mirror, target: format image                    100 101 103 200 201 203
    blockdev-mirror, target: raw                             101 200 201 203
    blockdev-backup, target: raw                             101 203
    locking=off                                              -

QEMU 7.2 has bits 0 to 3 and looks at no other byte; when it reopens a file in another mode, it
repeats its locks on the new descriptor before it closes the old one.

The modes here are those of QEMU's format images, for raw images too: two writers of one raw image
are refused, where qemu-io would let both go ahead.
"""

from __future__ import annotations

import errno
import functools
import os
import struct
import sys
from collections.abc import Iterable

from blocklayer.base.errors import BlocklayerError, IoError, LockError, NotSupported
from blocklayer.base.record import Record

try:
    import fcntl
except ImportError:  # not a Unix
    _HAS_OFD = False
else:
    # Where other systems have these locks, their structure is another one.
    _HAS_OFD = sys.platform == "linux" and hasattr(fcntl, "F_OFD_SETLK")

_USED = 100
_UNSHARED = 200

_FLOCK = struct.Struct("@hhqqi0q")
"""Linux's struct flock with 64-bit offsets: type, whence, start, length, process, padding.

Sizes and alignment are those of this machine's C compiler.
"""

_CONFLICTS = (errno.EAGAIN, errno.EACCES)
_REFUSALS = (errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems answer that have no locks, or whose lock server is away."""


class Permission:
    """What one may do with an image; a bit's number is its place in the locked bytes.

    Plain numbers: every command locks files, and importing enum takes longer than that.
    """

    CONSISTENT_READ = 1
    """Read, and rely on what is read."""
    WRITE = 2
    """Change what others see."""
    WRITE_UNCHANGED = 4
    """Write what reads the same afterwards, as copy-on-read does."""
    RESIZE = 8


_LABELS = ("consistent read", "write", "write unchanged", "resize")
"""QEMU's names, by the number of the bit."""

_ALL = 15


class LockMode(Record, frozen=True):
    """What an open image is used for, and what others may use it for meanwhile."""

    used: int
    shared: int

    @property
    def offsets(self) -> frozenset[int]:
        """The bytes to lock."""
        used = [_USED + bit for bit in _bits(self.used)]
        unshared = [_UNSHARED + bit for bit in _bits(_ALL & ~self.shared)]
        return frozenset(used + unshared)


READER = LockMode(
    used=Permission.CONSISTENT_READ,
    shared=Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED,
)
"""An image opened read-only: others may read it too."""

WRITER = LockMode(
    used=Permission.CONSISTENT_READ | Permission.WRITE | Permission.RESIZE,
    shared=Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED,
)
"""An image opened read-write, and a file that is made into one."""

FORCE_SHARE = LockMode(used=Permission.CONSISTENT_READ, shared=_ALL)
"""An image read whatever others do to it: only a mirror that is still filling it refuses."""

BACKING = READER
"""A backing file opened by its overlay: any number of overlays may share it."""


class ImageLock:
    """The lock of one open file description. Not thread-safe.

    `locking` is `on`, `off`, or `auto`: on where the system and the file system can, else off.
    Whoever keeps the descriptor open in forked children calls `release` before closing it, as the
    lock lives as long as the last of them.
    """

    def __init__(self, fd: int, filename: str, *, locking: str = "auto") -> None:
        self._fd = fd
        self._filename = filename
        self._locking = locking
        self._held: frozenset[int] = frozenset()

    def acquire(self, mode: LockMode) -> None:
        """Lock, or change the mode. Raises `LockError`, and then nothing has changed.

        New bytes are taken before old ones are given up. A mode with no new bytes cannot fail:
        whoever came later has seen ours.
        """
        if not self._is_wanted():
            return
        offsets = mode.offsets
        try:
            self._add(offsets - self._held)
        except OSError as error:
            if self._locking == "auto" and error.errno in _REFUSALS:
                return
            raise self._failure(error) from None
        _unlock(self._fd, self._held - offsets)
        self._held = offsets

    def release(self) -> None:
        """Give the lock up. It may be acquired again."""
        _unlock(self._fd, self._held)
        self._held = frozenset()

    def move(self, fd: int) -> None:
        """Carry the lock over to `fd`, another open description of the same file, without a gap.

        To reopen in another mode: `acquire` the mode, `move`, close the old descriptor.
        """
        try:
            # Nobody can have come between: our own bytes on the old descriptor have kept them out.
            _lock(fd, self._held)
        except OSError as error:
            raise self._failure(error) from None
        _unlock(self._fd, self._held)
        self._fd = fd

    def _is_wanted(self) -> bool:
        if self._locking == "off":
            return False
        if not supported() and self._locking == "on":
            raise NotSupported(
                f"Cannot lock '{self._filename}': this system has no locks on open files"
                " (OFD locks); open it with locking=auto or locking=off"
            )
        return supported()

    def _add(self, offsets: Iterable[int]) -> None:
        _lock(self._fd, offsets)
        try:
            for offset in sorted(offsets):
                self._check(offset)
        except BaseException:
            _unlock(self._fd, offsets)
            raise

    def _check(self, offset: int) -> None:
        """Raise if somebody's byte contradicts ours at `offset`."""
        ours, theirs = (_USED, _UNSHARED) if offset < _UNSHARED else (_UNSHARED, _USED)
        bit = offset - ours
        if _is_locked(self._fd, theirs + bit):
            shared = "shared " if ours == _UNSHARED else ""
            raise LockError(f'Failed to get {shared}"{_LABELS[bit]}" lock', self._filename)

    def _failure(self, error: OSError) -> BlocklayerError:
        if error.errno in _CONFLICTS:
            # A write lock, of something that is not QEMU and locks whole files.
            return LockError("Failed to lock the file", self._filename)
        if error.errno in _REFUSALS:
            reason = os.strerror(error.errno or 0)
            return NotSupported(f"Cannot lock '{self._filename}': {reason}")
        return IoError.from_os(error, "lock", self._filename)


@functools.cache
def supported() -> bool:
    """Whether locks of open file descriptions exist here, found by asking the kernel."""
    if not _HAS_OFD:
        return False
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        _is_locked(fd, _USED)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _bits(permissions: int) -> list[int]:
    return [bit for bit in range(len(_LABELS)) if permissions >> bit & 1]


def _flock(fd: int, command: int, kind: int, offset: int) -> int:
    """Ask the kernel about one byte; the type of lock that it answers."""
    asked = _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0)
    return int(_FLOCK.unpack(fcntl.fcntl(fd, command, asked))[0])


def _is_locked(fd: int, offset: int) -> bool:
    """Whether anybody else has locked a byte, in whatever way."""
    return _flock(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, offset) != fcntl.F_UNLCK


def _lock(fd: int, offsets: Iterable[int]) -> None:
    """Lock all bytes or none. They must not be locked yet."""
    taken: list[int] = []
    try:
        for offset in sorted(offsets):
            _flock(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, offset)
            taken.append(offset)
    except BaseException:
        _unlock(fd, taken)
        raise


def _unlock(fd: int, offsets: Iterable[int]) -> None:
    for offset in offsets:
        try:
            _flock(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, offset)
        except OSError:
            pass  # closing the descriptor gives up what is left
