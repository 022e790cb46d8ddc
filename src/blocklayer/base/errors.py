# SPDX-License-Identifier: Apache-2.0
"""Every error this package raises on purpose.

An error is a class with typed fields and a message template. The class also carries what the edges
need, so that a command, an NBD server and a QMP monitor answer from one table:

    errno       what a system call would have answered
    exit_code   what a command exits with
    qmp_class   QMP's error class
"""

from __future__ import annotations

import errno as _errno
import os

from blocklayer.base.record import Record

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, ClassVar


def _rebuild(cls: type[BlocklayerError], fields: dict[str, Any]) -> BlocklayerError:
    error = cls.__new__(cls)
    error.__dict__.update(fields)
    return error


class BlocklayerError(Record, Exception, eq=False):
    """Base of all errors of this package; `message` says everything a person needs."""

    message: str

    template: ClassVar[str] = "{message}"
    errno: ClassVar[int] = _errno.EIO
    exit_code: ClassVar[int] = 1
    qmp_class: ClassVar[str] = "GenericError"

    def __str__(self) -> str:
        return self.template.format(**vars(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), dict(vars(self)))


class InvalidArgument(BlocklayerError, eq=False):
    """An option, name, size or offset that no image could satisfy."""

    errno = _errno.EINVAL


class OutOfRange(BlocklayerError, eq=False):
    """A request that does not lie within the disk."""

    errno = _errno.EIO


class NotSupported(BlocklayerError, eq=False):
    """The driver or the system cannot do this.

    For zeroing and discarding it is not final: the request gate falls back to writing.
    """

    errno = _errno.ENOTSUP


class ReadOnly(BlocklayerError, eq=False):
    """A change was asked of something opened read-only."""

    errno = _errno.EACCES


class Closed(BlocklayerError, eq=False):
    """The disk or node was used after it was closed."""

    errno = _errno.EBADF


class Cancelled(BlocklayerError, eq=False):
    """The caller asked a long operation to stop, and it did."""

    errno = _errno.ECANCELED


class ProtocolError(BlocklayerError, eq=False):
    """The other end of a connection broke a rule of its protocol; `message` says which."""

    errno = _errno.EPROTO


class RemoteError(BlocklayerError, eq=False):
    """The other end of a connection, or the way there, says no; `code` is the system's number."""

    code: int = _errno.EIO

    @property
    def errno(self) -> int:  # type: ignore[override]
        """The reason's errno."""
        return self.code


class _OnFile(BlocklayerError, eq=False):
    """An error about one file."""

    filename: str


class OpenError(_OnFile, eq=False):
    """An image could not be opened; `message` says why."""

    code: int = _errno.EINVAL

    template = "Could not open '{filename}': {message}"

    @property
    def errno(self) -> int:  # type: ignore[override]
        """The reason's errno."""
        return self.code


class Refused(OpenError, eq=False):
    """An image that is not trusted asks for what it may not have; nothing of it was opened."""

    code: int = _errno.EACCES

    template = "Refused to open '{filename}': {message}"


class CreateError(_OnFile, eq=False):
    """An image could not be created; nothing was left behind."""

    code: int = _errno.EINVAL

    template = "{filename}: {message}"

    @property
    def errno(self) -> int:  # type: ignore[override]
        """The reason's errno."""
        return self.code


class FormatError(_OnFile, eq=False):
    """The file is not a valid image of its format: a header field is wrong or not supported."""

    template = "{message}"
    errno = _errno.EINVAL


class TruncatedImage(FormatError, eq=False):
    """A part of the image lies beyond the end of its file."""


class CorruptImage(FormatError, eq=False):
    """A table of the image holds something impossible."""

    errno = _errno.EINVAL


class TooDamaged(CorruptImage, eq=False):
    """A repair would clear more than it saves; nothing was changed."""


class ChainError(_OnFile, eq=False):
    """The backing chain is a loop, or absurdly deep."""

    template = "{message}"
    errno = _errno.ELOOP


class LockError(_OnFile, eq=False):
    """Another process uses the image in a way that excludes this one."""

    template = "{message}\nIs another process using the image [{filename}]?"
    errno = _errno.EAGAIN


class IoError(_OnFile, eq=False):
    """The operating system failed a request.

    `operation` is read, write, flush …; `offset` and `length` are bytes, -1 where there are none.
    """

    code: int = _errno.EIO
    operation: str = ""
    offset: int = -1
    length: int = -1

    @property
    def errno(self) -> int:  # type: ignore[override]
        """The operating system's error number."""
        return self.code

    @property
    def reason(self) -> str:
        """The operating system's words alone, as tools print them: ``No space left on device``."""
        return os.strerror(self.code)

    def __str__(self) -> str:
        where = f" at offset {self.offset}" if self.offset >= 0 else ""
        where += f", length {self.length}" if where and self.length >= 0 else ""
        return f"{self.operation} failed on '{self.filename}'{where}: {self.message}"

    @classmethod
    def from_os(
        cls, error: OSError, operation: str, filename: str, offset: int = -1, length: int = -1
    ) -> IoError:
        """The same failure with the place where it happened."""
        code = error.errno or _errno.EIO
        reason = error.strerror or str(error)
        return cls(reason, filename, code, operation, offset, length)


def os_reason(error: BlocklayerError | OSError) -> str:
    """The words of `error`'s errno, as the C tools print them after ``read failed:``."""
    return os.strerror(error.errno or _errno.EIO)
