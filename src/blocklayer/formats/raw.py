# SPDX-License-Identifier: Apache-2.0
"""The raw format: guest bytes are file bytes, or a window (`offset`, `size`) of them.

A file whose length is not a multiple of 512 is a disk of the next multiple, whose tail reads as
zeroes: sector based tools see it that way.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from blocklayer.base.align import align_up
from blocklayer.base.buffers import Vector, vector_length, zero_vector
from blocklayer.base.errors import (
    BlocklayerError,
    InvalidArgument,
    IoError,
    NotSupported,
    OutOfRange,
)
from blocklayer.base.extent import DATA
from blocklayer.base.options import OptionTree
from blocklayer.base.units import SECTOR, parse_size
from blocklayer.core import drivers
from blocklayer.core.drivers import FORMAT, CreateOption, Driver
from blocklayer.core.node import FormatNode, Inline, Mapped, Node, Span, WritePlan
from blocklayer.core.opening import Opener

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any


class RawNode(FormatNode):
    """A window onto its file."""

    driver = "raw"
    recurse_status = True
    changeable = {"offset": 0, "size": None}  # noqa: RUF012  # never changed

    def __init__(
        self, file: Node, *, read_only: bool, offset: int = 0, size: int | None = None
    ) -> None:
        super().__init__(file, read_only=read_only)
        self._first_sector = threading.Lock()
        self._look_through(offset, size)

    def _look_through(self, offset: int, size: int | None) -> None:
        """The window. Raises `InvalidArgument` if the file has no such place."""
        file = self.file
        windowed, ends_inside = bool(offset) or size is not None, size is not None
        available = file.size - offset
        if size is None:
            size = align_up(max(available, 0), SECTOR)
        elif size > available or size % SECTOR:
            raise InvalidArgument(
                f"The raw window of {size} bytes at {offset} must lie within the {file.size} bytes"
                f" of '{file.filename}' and be a multiple of {SECTOR}"
            )
        if available < 0:
            raise InvalidArgument(f"Offset {offset} lies behind the end of '{file.filename}'")
        self._offset, self._windowed, self.size = offset, windowed, size
        self._ends_inside = ends_inside

    def change(self, options: OptionTree) -> Callable[[], None]:
        """Another window."""
        before = self._offset, self._windowed, self.size, self._ends_inside
        self._look_through(*_take_window(dict(options)))

        def undo() -> None:
            self._offset, self._windowed, self.size, self._ends_inside = before

        return undo

    @property
    def zero_when_new(self) -> bool:
        """A device keeps what was on it."""
        return self.file.grows_zeroed

    @property
    def zero_ability(self) -> str:
        """As the file."""
        return self.file.zero_ability

    def map(self, offset: int, length: int) -> Mapped:
        """Always the file."""
        return DATA, length, self.file, offset + self._offset

    def place(self, offset: int, length: int) -> tuple[Node, int, int]:
        """Everything has its place."""
        return self.file, offset + self._offset, length

    def plan_write(self, offset: int, length: int) -> WritePlan:
        """Never needed."""
        raise AssertionError("raw allocates nothing")

    def commit_writes(self, plans: Sequence[WritePlan]) -> None:
        """Nothing to make visible."""

    def writev(self, offset: int, vector: Vector) -> None:
        """Write, unless it would turn an image of guessed format into one of another format."""
        with self._guarded(offset, vector):
            super().writev(offset, vector)

    def read_each(self, requests: Sequence[Span]) -> list[BlocklayerError | None]:
        """All at once from the file, unless somebody listens to what is read."""
        if self.sink is not None:
            return super().read_each(requests)
        return self.file.read_each([(offset + self._offset, v) for offset, v in requests])

    def write_each(self, requests: Sequence[Span]) -> list[BlocklayerError | None]:
        """All at once to the file, unless somebody listens, or the first sector is guarded."""
        guarded = self.probed and any(o < drivers.PROBE_LENGTH for o, _ in requests)
        if guarded or self.sink is not None:
            return super().write_each(requests)
        return self.file.write_each([(offset + self._offset, v) for offset, v in requests])

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Zero; a zero is a part of some signatures."""
        with self._guarded(offset, zero_vector(min(length, drivers.PROBE_LENGTH))):
            super().zero(offset, length, flags)

    def discard(self, offset: int, length: int) -> None:
        """Discard, which may zero."""
        with self._guarded(offset, zero_vector(min(length, drivers.PROBE_LENGTH))):
            super().discard(offset, length)

    @contextmanager
    def _guarded(self, offset: int, vector: Vector) -> Iterator[None]:
        """One change of the first sector at a time: each is judged by what the others made."""
        if not self.probed or offset >= drivers.PROBE_LENGTH:
            yield
            return
        with self._first_sector:
            self._guard_first_sector(offset, vector)
            yield

    def _guard_first_sector(self, offset: int, vector: Vector) -> None:
        """A guest must not be able to make its raw disk be opened as qcow2 the next time."""
        head = bytearray(drivers.PROBE_LENGTH)
        self.file.readv(self._offset, [memoryview(head)])
        position = offset
        for view in vector:
            piece = view[: max(0, drivers.PROBE_LENGTH - position)]
            head[position : position + len(piece)] = piece
            position += len(view)
        if drivers.probe_signature(head) or drivers.foreign_signature(head):
            raise IoError(
                "the format was guessed, and this write would make the image look like another"
                " format; open it with format 'raw' to allow it",
                self.filename,
                errno.EPERM,
                "write",
                offset,
                vector_length(vector),
            )

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Resize the file below; a window that was given a size keeps it."""
        if self._ends_inside:
            raise NotSupported("Cannot resize fixed-size raw disks")
        if size + self._offset > 2**63 - 1:
            raise OutOfRange(f"A raw disk cannot have {size} bytes")
        self.file.truncate(size + self._offset, preallocation)
        self.size = align_up(size, SECTOR)

    def follow_child_size(self) -> None:
        """A window that was given a size keeps it."""
        if not self._ends_inside:
            self.size = align_up(max(self.file.size - self._offset, 0), SECTOR)

    def inline(self) -> Inline | None:
        """Straight to the file's descriptor."""
        descriptor = self.file.inline_descriptor
        if descriptor is None:
            return None
        base = self._offset
        guarded = drivers.PROBE_LENGTH if self.probed else 0

        def read(offset: int, length: int) -> int:
            if offset >= 0 and offset + length <= self.size:
                return offset + base
            return -1

        def write(offset: int, length: int) -> int:
            # A write into the tail grows the file, which the node must notice.
            if guarded <= offset and offset + base + length <= self.file.size:
                return read(offset, length)
            return -1

        return Inline(read, write, descriptor)

    def info(self) -> dict[str, Any]:
        """A window shows itself."""
        return {"offset": self._offset, "size": self.size} if self._windowed else {}


def _take_window(options: OptionTree) -> tuple[int, int | None]:
    """Offset and size, None for the rest of the file."""
    offset = parse_size(options.pop("offset", 0), "offset")
    return offset, parse_size(options.pop("size")) if "size" in options else None


def _open(opener: Opener, options: OptionTree) -> Node:
    offset, size = _take_window(options)
    file = opener.open_child(options, "file")
    try:
        return RawNode(file, read_only=opener.flags.read_only, offset=offset, size=size)
    except BaseException:
        file.close()
        raise


def _resolve(options: dict[str, Any]) -> dict[str, Any]:
    if options.get("backing_file"):
        raise NotSupported("Backing file not supported for file format 'raw'")
    mode = options.get("preallocation", "off")
    if mode not in ("off", "falloc", "full"):
        raise InvalidArgument(f"Unsupported preallocation mode '{mode}'")
    return {**options, "size": align_up(options["size"], SECTOR), "preallocation": mode}


def _create(storage: Node, options: dict[str, Any]) -> None:
    storage.truncate(options["size"], options["preallocation"])


def _measure(options: dict[str, Any], data: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """A raw file is as long as its disk, whatever is in it."""
    return options["size"], options["size"]


DRIVER = Driver(
    name="raw",
    kind=FORMAT,
    open=_open,
    create=_create,
    resolve=_resolve,
    measure=_measure,
    create_options=(
        CreateOption(
            "preallocation", "str", "Preallocation mode (allowed values: off, falloc, full)"
        ),
        CreateOption("size", "size", "Virtual disk size"),
    ),
)
