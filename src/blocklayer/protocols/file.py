# SPDX-License-Identifier: Apache-2.0
"""The `file` protocol: a regular file or a block device.

Reads past the end of the file give zeroes; writes past it grow the file. Every system call that is
not everywhere (SEEK_DATA, fallocate, O_DIRECT, OFD locks) is a feature with a fallback.
"""

from __future__ import annotations

import errno
import os
import stat
import threading

from blocklayer.base.buffers import Vector, fill_zero, slice_vector, vector_length
from blocklayer.base.errors import InvalidArgument, IoError, NotSupported, OpenError, ReadOnly
from blocklayer.base.extent import DATA, ZERO
from blocklayer.base.options import OptionTree, parse_bool, parse_number
from blocklayer.base.units import KiB
from blocklayer.core.beneath import Located
from blocklayer.core.drivers import PROTOCOL, Driver
from blocklayer.core.node import EMULATE, NATIVE, Mapped, Node
from blocklayer.core.opening import Opener, OpenFlags
from blocklayer.protocols import file_io, file_locks, file_zero

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

IOV_MAX = 1024
"""Buffers in one vectored call (Linux: UIO_MAXIOV)."""


FOLIO_MAX = 512 * KiB
"""Bytes of a write that the page cache may keep as one folio: for larger ones the kernel may have
to move memory about first, and whoever overwrites a part of them pays more."""


OPEN_FILES = "/proc/self/fd"
"""Where Linux has names for a process's open files."""


NO_RANGE = (0, 0)


class FileNode(Node):
    """An open file descriptor."""

    driver = "file"

    def __init__(self, filename: str, flags: OpenFlags, located: Located | None = None) -> None:
        super().__init__(filename, read_only=flags.read_only)
        self._flags = flags
        self._size_lock = threading.Lock()
        self._flush_failed = False
        self._flush_lock = threading.Lock()
        self._has_holes = hasattr(os, "SEEK_DATA")
        self._known_data = NO_RANGE
        """Found to hold data: some file systems (tmpfs) look at each page up to its end again."""
        self._holes_made = 0
        self.abilities = file_zero.Abilities()
        self._was_located = located is not None
        if located is None:
            self.descriptor = self._open_descriptor(flags.read_only)
        else:
            self.descriptor = located.take()
        try:
            status = os.fstat(self.descriptor)
            self._require_storage(status)
            self.is_device = stat.S_ISBLK(status.st_mode)
            self.size = self._find_size()
            self._lock = self._take_lock(self.descriptor, flags.read_only)
            if flags.cache.direct:
                self.limits.request_alignment = _direct_alignment(self.descriptor)
        except BaseException:
            os.close(self.descriptor)
            raise

    def _open_descriptor(self, read_only: bool) -> int:
        mode = os.O_RDONLY if read_only else os.O_RDWR
        # O_NONBLOCK: a FIFO must be refused, not waited for; regular files ignore it.
        mode |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
        if self._flags.cache.direct:
            if not hasattr(os, "O_DIRECT"):
                raise NotSupported(f"O_DIRECT does not exist here, for '{self.filename}'")
            mode |= os.O_DIRECT
        name = self._name_to_open()
        try:
            status = os.stat(name)
            if not stat.S_ISDIR(status.st_mode):
                # Before it is opened: that alone rewinds a tape, and starts a watchdog.
                self._require_storage(status)
            return os.open(name, mode)
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno == errno.EINVAL and self._flags.cache.direct:
                reason = "the file system does not support O_DIRECT"
            raise OpenError(reason, self.filename, error.errno or errno.EIO) from None
        except ValueError as error:
            raise OpenError(str(error), self.filename, errno.EINVAL) from None

    def _name_to_open(self) -> str:
        """What was found below a folder is opened again by its descriptor, not by its name."""
        if not self._was_located:
            return self.filename
        name = f"{OPEN_FILES}/{self.descriptor}"
        if not os.path.exists(name):
            raise ReadOnly(f"'{self.filename}' is below an image that is not trusted: read-only")
        return name

    def _find_size(self) -> int:
        try:
            return os.lseek(self.descriptor, 0, os.SEEK_END)
        except OSError as error:  # the kernel's files have no end
            reason = error.strerror or str(error)
            raise OpenError(reason, self.filename, error.errno or errno.EIO) from None

    def _require_storage(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
            raise OpenError(
                "The file is neither a regular file nor a block device", self.filename, errno.EINVAL
            )

    def _take_lock(self, descriptor: int, read_only: bool) -> file_locks.ImageLock | None:
        flags = self._flags
        if flags.force_share and not read_only:
            raise InvalidArgument("force-share=on can only be used with read-only images")
        if flags.locking == "off":
            return None
        lock = file_locks.ImageLock(descriptor, self.filename, locking=flags.locking)
        lock.acquire(self._lock_mode(read_only))
        return lock

    def _lock_mode(self, read_only: bool) -> file_locks.LockMode:
        if self._flags.force_share:
            return file_locks.FORCE_SHARE
        if not read_only:
            return file_locks.WRITER
        return file_locks.BACKING if self._flags.backing_role else file_locks.READER

    @property
    def zero_ability(self) -> str:
        """Native until the file system has refused every rung of the ladder."""
        return NATIVE if self.abilities.zero_range or self.abilities.punch_hole else EMULATE

    @property
    def inline_descriptor(self) -> int | None:
        """The descriptor, where the inline path's system calls exist and need no alignment."""
        if file_io.VECTORED and self.limits.request_alignment == 1:
            return self.descriptor
        return None

    # --- moving bytes ---------------------------------------------------------------------------

    def readv(self, offset: int, vector: Vector) -> None:
        """Read; short reads are continued, and what lies past the end of the file is zero."""
        length = vector_length(vector)
        done = 0
        while done < length:
            part = vector if not done else slice_vector(vector, done, length - done)
            try:
                count = file_io.readv(self.descriptor, part[:IOV_MAX], offset + done)
            except OSError as error:
                raise IoError.from_os(
                    error, "read", self.filename, offset + done, length - done
                ) from None
            done += count
            # With O_DIRECT a read that ends inside a block has met the end of the file, and cannot
            # be continued there.
            if not count or done % self.limits.request_alignment:
                fill_zero(slice_vector(vector, done, length - done) if done < length else [])
                return

    def writev(self, offset: int, vector: Vector) -> None:
        """Write; short writes are continued."""
        length = vector_length(vector)
        if offset + length <= self.size:
            self._write_all(offset, vector, length)
            return
        # The file and `size` grow as one: a truncation that did not know of these bytes would cut
        # them off again.
        with self._size_lock:
            self._write_all(offset, vector, length)
            self.size = max(self.size, offset + length)

    def _write_all(self, offset: int, vector: Vector, length: int) -> None:
        done = 0
        while done < length:
            part = vector
            most = length if self._flags.cache.direct else _write_max(offset + done)
            if done or length > most:
                part = slice_vector(vector, done, min(length - done, most))
            try:
                count = file_io.writev(self.descriptor, part[:IOV_MAX], offset + done)
            except OSError as error:
                raise IoError.from_os(
                    error, "write", self.filename, offset + done, length - done
                ) from None
            if not count:
                raise IoError(
                    "nothing was written", self.filename, errno.EIO, "write", offset + done
                )
            done += count

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Zero without writing, by whatever the file system can do."""
        if offset + length > self.size and not self.is_device:
            self._grow_for_zero(offset + length)
        try:
            file_zero.zero(self.descriptor, self.filename, offset, length, flags, self.abilities)
        finally:
            self._forget_data()

    def check_zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Ask the file system, where it has not been asked before."""
        if not self.is_device:
            file_zero.check_zero(self.descriptor, self.filename, self.abilities)
        elif self.zero_ability != NATIVE:
            raise NotSupported(f"'{self.filename}' cannot zero without writing")

    def _forget_data(self) -> None:
        """There may be a new hole."""
        self._holes_made += 1
        self._known_data = NO_RANGE

    def _grow_for_zero(self, end: int) -> None:
        with self._size_lock:
            if end > self.size:
                self._ftruncate(end)

    def share(self, descriptor: int, source_offset: int, offset: int, length: int) -> None:
        """Refer to another file's blocks. Raises `NotSupported`, `IoError`."""
        from blocklayer.protocols import file_share

        with self._size_lock:
            file_share.share(
                self.descriptor, self.filename, offset, descriptor, source_offset, length
            )
            self.size = max(self.size, offset + length)

    def can_share(self, descriptor: int) -> bool:
        """Ask the file system."""
        from blocklayer.protocols import file_share

        return file_share.can_share(self.descriptor, descriptor)

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole; a file system that cannot leaves the bytes as they are."""
        length = min(length, self.size - offset)
        if length > 0:
            try:
                file_zero.discard(self.descriptor, self.filename, offset, length, self.abilities)
            finally:
                self._forget_data()

    def flush(self) -> None:
        """fdatasync. After a failure every later flush fails too.

        The kernel reports a lost write once and then forgets it: a later fsync would succeed over
        data that never reached the disk. So would one at the same time: they come one by one.
        """
        if self._flags.cache.no_flush or self.read_only:
            return
        with self._flush_lock:
            if self._flush_failed:
                raise IoError(
                    "an earlier flush failed, so data may be lost",
                    self.filename,
                    errno.EIO,
                    "flush",
                )
            try:
                getattr(os, "fdatasync", os.fsync)(self.descriptor)
            except OSError as error:
                self._flush_failed = True
                raise IoError.from_os(error, "flush", self.filename) from None

    def begin_flush(self) -> bool:
        """sync_file_range, which leaves the errors of what it starts to the next flush."""
        if self._flags.cache.no_flush or self.read_only:
            return True
        return file_io.begin_writeback(self.descriptor)

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Change the file's length."""
        if self.is_device:
            if size > self.size:
                raise NotSupported("Cannot grow device files")
            return
        if preallocation not in ("off", "falloc", "full"):
            raise InvalidArgument(f"Unsupported preallocation mode '{preallocation}'")
        with self._size_lock:
            if preallocation != "off" and size > self.size:
                self._preallocate(self.size, size, preallocation)
            self._ftruncate(size)

    def _ftruncate(self, size: int) -> None:
        try:
            os.ftruncate(self.descriptor, size)
        except OSError as error:
            raise IoError.from_os(error, "truncate", self.filename, size) from None
        self.size = size
        self._forget_data()

    def _preallocate(self, start: int, end: int, mode: str) -> None:
        try:
            if mode == "falloc":
                os.posix_fallocate(self.descriptor, start, end - start)
                return
            file_zero.set_aside(self.descriptor, start, end - start)
        except (OSError, AttributeError) as error:
            reason = error if isinstance(error, OSError) else OSError(errno.ENOTSUP, str(error))
            self._undo_growth(start)
            raise IoError.from_os(
                reason, "preallocate", self.filename, start, end - start
            ) from None
        try:
            file_zero.write_zeroes(self.descriptor, self.filename, start, end - start)
        except IoError:
            self._undo_growth(start)
            raise

    def _undo_growth(self, size: int) -> None:
        """A preallocation that failed half way gives its space back."""
        os.ftruncate(self.descriptor, size)

    @property
    def grows_zeroed(self) -> bool:
        """Regular files grow by a hole."""
        return not self.is_device

    # --- where bytes live -----------------------------------------------------------------------

    def map(self, offset: int, length: int) -> Mapped:
        """DATA or a hole (ZERO), as the file system tells.

        What it has told of data is believed until this node makes a hole: another program's may be
        taken for data that reads as zeroes.
        """
        if offset >= self.size:
            return ZERO, length, None, offset
        start, end = self._known_data
        if start <= offset < end:
            return DATA, min(length, end - offset), None, offset
        if not self._has_holes or self.is_device:
            return DATA, min(length, self.size - offset), None, offset
        made = self._holes_made
        try:
            start = os.lseek(self.descriptor, offset, os.SEEK_DATA)
            if start > offset:
                return ZERO, min(length, start - offset), None, offset
            end = os.lseek(self.descriptor, offset, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data up to the end of the file
                return ZERO, length, None, offset
            self._has_holes = False
            return DATA, min(length, self.size - offset), None, offset
        end = max(end, offset + 1)
        if made == self._holes_made:
            self._known_data = offset, min(end, self.size)
        return DATA, min(length, end - offset), None, offset

    # --- life -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close; the gate has flushed."""
        self.tracker.close()
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor < 0:
            return
        if self._lock is not None:
            # Before closing: a forked child that shares the descriptor would keep the lock alive.
            self._lock.release()
        os.close(descriptor)

    def reopen(self, read_only: bool) -> None:
        """Open the file again in the other mode; on failure nothing has changed."""
        if read_only == self.read_only:
            return
        if self._flags.force_share and not read_only:
            raise InvalidArgument("force-share=on can only be used with read-only images")
        descriptor = self._open_descriptor(read_only)
        old = self.descriptor
        if self._lock is not None:
            try:
                self._lock.acquire(self._lock_mode(read_only))
                self._lock.move(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        self.descriptor, self.read_only = descriptor, read_only
        os.close(old)

    def info(self) -> dict[str, Any]:
        """Space that the file takes on its file system."""
        return {"actual-size": os.fstat(self.descriptor).st_blocks * 512}


def _write_max(offset: int) -> int:
    """Bytes for one call: a folio is no larger than what the place of its first byte allows."""
    return 2 * FOLIO_MAX if offset % (2 * FOLIO_MAX) else FOLIO_MAX


def _direct_alignment(descriptor: int) -> int:
    """Bytes to which O_DIRECT requests on this file must be aligned, found by trying."""
    import mmap

    memory = mmap.mmap(-1, 65536)
    for alignment in (512, 1024, 2048, 4096, 8192, 16384, 32768):
        view = memoryview(memory)[:alignment]
        try:
            os.preadv(descriptor, [view], 0)
            return alignment
        except OSError as error:
            if error.errno != errno.EINVAL:
                break
        finally:
            view.release()
    return 4096


def _open(opener: Opener, options: OptionTree) -> Node:
    filename = options.pop("filename", None)
    if not isinstance(filename, str) or not filename:
        raise InvalidArgument("The 'file' block driver requires a file name")
    flags = opener.flags
    locking = options.pop("locking", flags.locking)
    if isinstance(locking, bool) or locking not in ("auto", "on", "off"):
        locking = "on" if parse_bool(locking, "locking") else "off"
    if "aio" in options:
        from blocklayer.core.modes import AIO_MODES

        aio = options.pop("aio")
        if aio not in AIO_MODES:
            raise InvalidArgument(f"Invalid parameter 'aio': '{aio}'")
    for name in ("drop-cache", "x-check-cache-dropped"):  # of migrations, which there are not
        parse_bool(options.pop(name, False), name)
    parse_number(options.pop("aio-max-batch", 0), "aio-max-batch")
    located = options.pop("located", None)
    if located is not None and not isinstance(located, Located):
        raise InvalidArgument("Invalid parameter 'located'")
    return FileNode(filename, flags.replace(locking=locking), located)


DRIVER = Driver(name="file", kind=PROTOCOL, open=_open)
