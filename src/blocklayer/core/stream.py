# SPDX-License-Identifier: Apache-2.0
"""A disk as a file object, for libraries that want one: shutil, tarfile, dissect, pytsk3."""

from __future__ import annotations

import io
import os

from blocklayer.base.buffers import Buffer, byte_view
from blocklayer.base.errors import BlocklayerError

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.disk import Disk


class DiskStream(io.RawIOBase):
    """A position on a disk. The disk's size is fixed: writing past its end writes a part.

    Closing the stream does not close the disk. Errors are `OSError`s, as file objects have them,
    with the package's own error as their cause.
    """

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self._disk = disk
        self._position = 0
        self.name = disk.filename

    def readable(self) -> bool:
        """Always."""
        return True

    def writable(self) -> bool:
        """As the disk."""
        return not self._disk.read_only

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; it may lie behind the end, where reads return nothing."""
        self._check_open()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._disk.size}
        if whence not in bases:
            raise ValueError(f"invalid whence ({whence})")
        position = bases[whence] + offset
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def readinto(self, buffer: Buffer) -> int:
        """Read into `buffer`; fewer bytes only at the end of the disk."""
        self._check_open()
        view = byte_view(buffer)
        count = max(0, min(len(view), self._disk.size - self._position))
        if count:
            try:
                self._disk.read_into(self._position, view[:count])
            except BlocklayerError as error:
                raise OSError(error.errno, str(error)) from error
        self._position += count
        return count

    def write(self, data: Buffer) -> int:
        """Write `data`, or as much of it as fits in front of the end of the disk."""
        self._check_open()
        view = byte_view(data)
        count = max(0, min(len(view), self._disk.size - self._position))
        if len(view) and not count:
            raise OSError(28, f"No space left on '{self._disk.filename}': the disk ends here")
        try:
            self._disk.write(self._position, view[:count])
        except BlocklayerError as error:
            raise OSError(error.errno, str(error)) from error
        self._position += count
        return count

    def flush(self) -> None:
        """Flush the disk."""
        if not self.closed and not self._disk.closed and not self._disk.read_only:
            self._disk.flush()

    def truncate(self, size: int | None = None) -> int:
        """A disk keeps its size."""
        raise io.UnsupportedOperation("use blocklayer.resize to change the size of a disk")

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
