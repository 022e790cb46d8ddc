# SPDX-License-Identifier: Apache-2.0
"""Sharing blocks between files: both refer to the same ones until either is written to.

Some file systems can (xfs, btrfs, bcachefs …), within one of them, and in whole blocks.
"""

from __future__ import annotations

import errno
import sys

from blocklayer.base.errors import IoError, NotSupported
from blocklayer.base.layout import Layout, u64

_FICLONERANGE = 0x4020940D
"""ioctl_ficlonerange(2). Where Linux has another number for it, the answer is that it cannot."""


class FileCloneRange(Layout, byte_order="<" if sys.byteorder == "little" else ">"):
    """The kernel's ``struct file_clone_range``."""

    src_fd = u64("descriptor")
    src_offset = u64("bytes")
    src_length = u64("bytes")
    dest_offset = u64("bytes")


_CANNOT = frozenset(
    {
        errno.EOPNOTSUPP,  # the file system cannot
        errno.ENOTTY,  # nor does it know the question
        errno.EXDEV,  # the files lie on two of them
        errno.EINVAL,  # the blocks are of another size
        errno.ETXTBSY,  # one of them is a swap file
        errno.EPERM,  # or may not be changed
    }
)


def share(
    descriptor: int, filename: str, offset: int, source: int, source_offset: int, length: int
) -> None:
    """Make a range of one file refer to the blocks of another. Raises `NotSupported`, `IoError`."""
    try:
        from fcntl import ioctl
    except ImportError:
        raise NotSupported("Blocks cannot be shared between files on this system") from None
    arguments = FileCloneRange(
        src_fd=source, src_offset=source_offset, src_length=length, dest_offset=offset
    ).pack()
    try:
        ioctl(descriptor, _FICLONERANGE, arguments)
    except OSError as error:
        if error.errno in _CANNOT:
            raise NotSupported(f"'{filename}' cannot share blocks here: {error.strerror}") from None
        raise IoError.from_os(error, "share blocks", filename, offset, length) from None


def can_share(descriptor: int, source: int) -> bool:
    """Whether two open files may refer to the same blocks; nothing is changed.

    Asked with offsets that no file system takes: one that shares blocks objects to them, another to
    the question.
    """
    try:
        from fcntl import ioctl
    except ImportError:
        return False
    arguments = FileCloneRange(src_fd=source, src_offset=1, src_length=1, dest_offset=1).pack()
    try:
        ioctl(descriptor, _FICLONERANGE, arguments)
    except OSError as error:
        return error.errno == errno.EINVAL
    return True
