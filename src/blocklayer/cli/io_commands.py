# SPDX-License-Identifier: Apache-2.0
"""The commands of `blk io` that move bytes."""

from __future__ import annotations

import time
from collections.abc import Callable

from blocklayer.base.errors import BlocklayerError, os_reason
from blocklayer.base.record import Record
from blocklayer.cli.failures import Failure
from blocklayer.cli.getopt import Option
from blocklayer.cli.io_language import (
    NO_MEMORY,
    REQUEST_MAX,
    UNLIMITED,
    Call,
    Failed,
    IoCommand,
    Misused,
    Refused,
    number_word,
    pattern_word,
)
from blocklayer.cli.io_report import Statistics, dump_lines, has_pattern
from blocklayer.cli.io_session import Session
from blocklayer.core.disk import Disk
from blocklayer.core.modes import PREALLOCATION_MODES

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeVar

    from blocklayer.core.batch import Request

    T = TypeVar("T")

DEFAULT_PATTERN = 0xCD

_MACHINE = Option("-C", "", "report statistics for programs")
_QUIET = Option("-q", "", "no statistics")
_IGNORED = Option("-p", "", "ignored, as others ignore it")
_DUMP = Option("-v", "", "dump what was read")
_EXPECT = Option("-P", "PATTERN", "every byte must be this one")
_FILL = Option("-P", "PATTERN", "write this byte (default 0xcd)")
_FUA = Option("-f", "", "to stable storage")
_ZERO = Option("-z", "", "write zeroes by the fastest means")
_UNMAP = Option("-u", "", "with -z: the space may be given back")
_INVALID = Option("-i", "", "an invalid request, which is only counted")
_VM_STATE = Option("-b", "", "the VM state instead of the disk")

READ_OPTIONS = (
    Option("-a", "", "by the asynchronous path (accepted: there is one path only)"),
    _VM_STATE,
    _MACHINE,
    Option("-l", "LENGTH", "with -P: bytes to look at"),
    _IGNORED,
    _EXPECT,
    _QUIET,
    Option("-s", "OFFSET", "with -P: bytes not to look at first"),
    _DUMP,
)
WRITE_OPTIONS = (
    _VM_STATE,
    Option("-c", "", "compressed"),
    _MACHINE,
    _FUA,
    Option("-n", "", "with -z: fail rather than write slowly"),
    _IGNORED,
    _FILL,
    _QUIET,
    Option("-s", "FILE", "write the content of a file, over and over"),
    _UNMAP,
    _ZERO,
)


def _disk(session: Session) -> Disk:
    assert session.disk is not None  # see `IoCommand.needs_disk`
    return session.disk


def _timed(name: str, action: Callable[[], T]) -> tuple[T, float]:
    """What a request gives, and the seconds it took. Raises `Refused` if it fails."""
    start = time.perf_counter()
    try:
        result = action()
    except BlocklayerError as error:
        raise Refused(f"{name} failed: {os_reason(error)}") from None
    return result, time.perf_counter() - start


def _statistics(
    call: Call, verb: str, *, offset: int, length: int, seconds: float, requests: int = 1
) -> list[str]:
    if "q" in call:
        return []
    statistics = Statistics(verb, offset, length, seconds, requests)
    return call.found(
        statistics.lines(machine_readable="C" in call),
        offset=offset,
        bytes=length,
        operations=requests,
        seconds=round(seconds, 9),
    )


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line)


def _aside(session: Session, call: Call, work: Callable[[], list[str]]) -> None:
    """Do `work` while other commands run. Its failure is told, and is not the command's."""

    def told() -> list[tuple[Call, list[str]]]:
        try:
            return [(call, work())]
        except Refused as error:
            call.error = error
        except MemoryError:
            call.error = Refused(NO_MEMORY)
        return [(call, [str(call.error)])]

    call.is_later = True
    session.start(told)


def _length(text: str, *, unless: str = "") -> int:
    """The length of one request."""
    length = number_word(text)
    if length > REQUEST_MAX:
        raise Refused(f"length cannot exceed {REQUEST_MAX}{unless}, given {text}")
    return length


def _total(texts: list[str]) -> int:
    """The length of a request with several buffers."""
    total = 0
    for text in texts:
        length = number_word(text)
        if length > REQUEST_MAX:
            raise Refused(f"Argument '{text}' exceeds maximum size {REQUEST_MAX}")
        total += length
        if total > REQUEST_MAX:
            raise Refused(f"The total number of bytes exceed the maximum size {REQUEST_MAX}")
    return total


def _refuse_other_space(verb: str, *, offset: int, length: int) -> None:
    """VM state and compressed clusters: in whole sectors, and in no format yet."""
    for name, value in (("offset", offset), ("count", length)):
        if value % 512:
            raise Refused(f"{value} is not a sector-aligned value for '{name}'")
    raise Refused(f"{verb} failed: Operation not supported")


# --- reading ------------------------------------------------------------------------------------


class _Read(Record, frozen=True):
    """A read: bytes from `skipped` on, `checked` of them, are compared with `pattern`."""

    offset: int
    length: int
    pattern: int | None
    skipped: int
    checked: int

    def perform(self, disk: Disk, call: Call, name: str) -> tuple[list[str], bool]:
        """What is printed of it, and whether the pattern is there."""
        data, seconds = _timed(name, lambda: disk.read(self.offset, self.length))
        matched = self.pattern is None or has_pattern(
            data[self.skipped : self.skipped + self.checked], self.pattern
        )
        lines = []
        if not matched:
            place = f"offset {self.offset + self.skipped}, {self.checked} bytes"
            lines.append(f"Pattern verification failed at {place}")
        if "v" in call and "q" not in call:
            lines += dump_lines(data, self.offset)
        lines += _statistics(call, "read", offset=self.offset, length=self.length, seconds=seconds)
        return lines, matched


def _expected(call: Call) -> int | None:
    return pattern_word(call.last("P")) if "P" in call else None


def _read_now(session: Session, call: Call, name: str, read: _Read) -> None:
    lines, matched = read.perform(_disk(session), call, name)
    _print(lines)
    if not matched:
        raise Failed(lines[0])


def _read(session: Session, call: Call) -> None:
    pattern = _expected(call)
    checked = number_word(call.last("l")) if "l" in call else None
    skipped = number_word(call.last("s", "0"))
    if pattern is None and ("l" in call or "s" in call):
        raise Misused
    offset, length = number_word(call.names[0]), _length(call.names[1])
    checked = length - skipped if checked is None else checked
    if checked < 0 or skipped + checked > length:
        raise Refused("pattern verification range exceeds end of read data")
    if "b" in call:
        _refuse_other_space("read", offset=offset, length=length)
    _read_now(session, call, "read", _Read(offset, length, pattern, skipped, checked))


def _vectored_read(call: Call) -> _Read:
    """Several buffers in a row are one buffer to the disk."""
    pattern = _expected(call)
    offset, length = number_word(call.names[0]), _total(call.names[1:])
    return _Read(offset, length, pattern, 0, length)


def _readv(session: Session, call: Call) -> None:
    _read_now(session, call, "readv", _vectored_read(call))


def _aio_read(session: Session, call: Call) -> None:
    if "i" in call:
        print("injecting invalid read request")
        return
    disk, read = _disk(session), _vectored_read(call)

    def work() -> list[str]:
        lines, matched = read.perform(disk, call, "readv")
        if not matched:
            call.error = Failed(lines[0])
        return lines

    _aside(session, call, work)


# --- writing ------------------------------------------------------------------------------------


class _Write(Record, frozen=True):
    """A write of `content` over and over, or of zeroes if there is none."""

    offset: int
    length: int
    content: bytes | None

    def perform(self, disk: Disk, call: Call, name: str) -> list[str]:
        """What is printed of it."""
        data = b"" if self.content is None else _repeated(self.content, self.length)
        _, seconds = _timed(name, lambda: self._write(disk, call, data))
        return self.report(call, seconds)

    def report(self, call: Call, seconds: float) -> list[str]:
        """What is printed of it when it is done."""
        return _statistics(call, "wrote", offset=self.offset, length=self.length, seconds=seconds)

    def request(self, call: Call) -> Request:
        """The same as a request of a batch."""
        from blocklayer.core.batch import Request

        fua = "f" in call
        if self.content is None:
            return Request.write_zeroes(self.offset, self.length, unmap="u" in call, fua=fua)
        return Request.write(self.offset, _repeated(self.content, self.length), fua=fua)

    def _write(self, disk: Disk, call: Call, data: bytes) -> None:
        if self.content is not None:
            disk.write(self.offset, data, fua="f" in call)
            return
        disk.write_zeroes(
            self.offset,
            self.length,
            unmap="u" in call,
            no_fallback="n" in call,
            fua="f" in call,
        )


def _repeated(content: bytes, length: int) -> bytes:
    return (content * -(-length // len(content)))[:length]


def _filling(call: Call) -> bytes:
    return bytes([pattern_word(call.last("P")) if "P" in call else DEFAULT_PATTERN])


def _file_content(filename: str) -> bytes:
    with open(filename, "rb") as file:
        content = file.read(REQUEST_MAX)
    if not content:
        raise OSError(0, "file is empty", filename)
    return content


_CONFLICTS: tuple[tuple[str, str, str], ...] = (
    ("b", "z", "-b and -z cannot be specified at the same time"),
    ("f", "bc", "-f and -b or -c cannot be specified at the same time"),
)


def _check_write_options(call: Call) -> None:
    for first, others, message in _CONFLICTS:
        if first in call and any(other in call for other in others):
            raise Refused(message)
    for letter in "nu":
        if letter in call and "z" not in call:
            raise Refused(f"-{letter} requires -z to be specified")
    if sum(letter in call for letter in "zPs") > 1:
        raise Refused("Only one of -z, -P, and -s can be specified at the same time")


def _write(session: Session, call: Call) -> None:
    content: bytes | None = _filling(call)
    _check_write_options(call)
    offset = number_word(call.names[0])
    if "n" in call:
        length = number_word(call.names[1])
    else:
        length = _length(call.names[1], unless=" without -n")
    if "s" in call:
        content = _file_content(call.last("s"))
    if "z" in call:
        content = None
    elif "b" in call or "c" in call:
        _refuse_other_space("write", offset=offset, length=length)
    _print(_Write(offset, length, content).perform(_disk(session), call, "write"))


def _writev(session: Session, call: Call) -> None:
    filling = _filling(call)
    offset, length = number_word(call.names[0]), _total(call.names[1:])
    write = _Write(offset, length, filling)
    _print(write.perform(_disk(session), call, "writev"))


def _aio_write(session: Session, call: Call) -> None:
    content: bytes | None = _filling(call)
    if "i" in call:
        print("injecting invalid write request")
        return
    if "u" in call and "z" not in call:
        raise Refused("-u requires -z to be specified")
    if "z" in call:
        if len(call.names) != 2:
            raise Refused("-z supports only a single length parameter")
        content = None
    write = _Write(number_word(call.names[0]), _total(call.names[1:]), content)

    def told(request: Request, seconds: float) -> list[str]:
        if request.error is not None:
            call.error = Refused(f"aio_write failed: {os_reason(request.error)}")
            call.error.__cause__ = request.error
            return [str(call.error)]
        return write.report(call, seconds)

    session.begin_write(call, lambda: write.request(call), told)


def _multiwrite(session: Session, call: Call) -> None:
    """Requests between semicolons; each has a pattern one higher than the one before."""
    pattern = pattern_word(call.last("P")) if "P" in call else DEFAULT_PATTERN
    writes = []
    for number, words in enumerate(_between_semicolons(call.names)):
        if len(words) < 2:
            raise Misused
        filling = bytes([(pattern + number) & 0xFF])
        writes.append(_Write(number_word(words[0]), _total(words[1:]), filling))
    requests = [write.request(call) for write in writes]
    disk = _disk(session)
    start = time.perf_counter()
    disk.submit(requests)
    seconds = time.perf_counter() - start
    for request in requests:
        if request.error is not None:
            raise Refused(f"aio_multiwrite failed: {os_reason(request.error)}")
    total = sum(write.length for write in writes)
    offset, count = writes[0].offset, len(writes)
    _print(_statistics(call, "wrote", offset=offset, length=total, seconds=seconds, requests=count))


def _between_semicolons(words: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == ";":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _aio_flush(session: Session, call: Call) -> None:
    session.wait()


def _flush(session: Session, call: Call) -> None:
    try:
        _disk(session).flush()
    except BlocklayerError as error:
        raise Failure(f"flush failed: {os_reason(error)}") from None


def _discard(session: Session, call: Call) -> None:
    offset, length = number_word(call.names[0]), _length(call.names[1])
    disk = _disk(session)
    _, seconds = _timed("discard", lambda: disk.discard(offset, length))
    _print(_statistics(call, "discard", offset=offset, length=length, seconds=seconds))


def _truncate(session: Session, call: Call) -> None:
    size = number_word(call.names[0])
    mode = call.last("m", "off")
    if mode not in PREALLOCATION_MODES:
        raise Failure(f"Invalid preallocation mode '{mode}'")
    _disk(session).resize(size, preallocation=mode)


_SIZED = (2, UNLIMITED)
_ONE_RANGE = (2, 2)

COMMANDS = (
    IoCommand(
        "read",
        "r",
        _read,
        "[-abCqv] [-P pattern [-s off] [-l len]] off len",
        "read, and verify or dump",
        words=_SIZED,
        arguments=_ONE_RANGE,
        options=READ_OPTIONS,
    ),
    IoCommand(
        "readv",
        "",
        _readv,
        "[-Cqv] [-P pattern] off len [len..]",
        "read into several buffers",
        words=_SIZED,
        options=(_MACHINE, _EXPECT, _QUIET, _DUMP),
    ),
    IoCommand(
        "write",
        "w",
        _write,
        "[-bcCfnquz] [-P pattern | -s source_file] off len",
        "write a pattern, a file's content or zeroes",
        words=_SIZED,
        arguments=_ONE_RANGE,
        options=WRITE_OPTIONS,
        changes=True,
    ),
    IoCommand(
        "writev",
        "",
        _writev,
        "[-Cfq] [-P pattern] off len [len..]",
        "write from several buffers",
        words=_SIZED,
        options=(_MACHINE, _FUA, _QUIET, _FILL),
        changes=True,
    ),
    IoCommand(
        "multiwrite",
        "",
        _multiwrite,
        "[-Cq] [-P pattern] off len [len..] [; off len [len..]]..",
        "write a batch of requests that are merged where they touch",
        words=_SIZED,
        options=(_MACHINE, _QUIET, _FILL),
        changes=True,
    ),
    IoCommand(
        "aio_read",
        "",
        _aio_read,
        "[-Ciqv] [-P pattern] off len [len..]",
        "begin a read; aio_flush waits for it, and its failure is not the command's",
        words=_SIZED,
        options=(_MACHINE, _EXPECT, _INVALID, _QUIET, _DUMP),
    ),
    IoCommand(
        "aio_write",
        "",
        _aio_write,
        "[-Cfiquz] [-P pattern] off len [len..]",
        "begin a write; aio_flush waits for it, and its failure is not the command's",
        words=_SIZED,
        options=(_MACHINE, _FUA, _INVALID, _FILL, _QUIET, _UNMAP, _ZERO),
        changes=True,
        gathers=True,
    ),
    IoCommand("aio_flush", "", _aio_flush, "", "wait for everything that was begun"),
    IoCommand("flush", "f", _flush, "", "bring what was written to stable storage"),
    IoCommand(
        "discard",
        "d",
        _discard,
        "[-Cq] off len",
        "tell that nobody needs a range",
        words=_SIZED,
        arguments=_ONE_RANGE,
        options=(_MACHINE, _QUIET),
        changes=True,
    ),
    IoCommand(
        "truncate",
        "t",
        _truncate,
        "[-m prealloc_mode] off",
        "give the disk another size",
        words=(1, 3),
        arguments=(1, 1),
        options=(
            Option(
                "-m",
                "MODE",
                "preallocation: off, metadata, falloc, full",
                choices=PREALLOCATION_MODES,
            ),
        ),
        changes=True,
    ),
)
