# SPDX-License-Identifier: Apache-2.0
"""Where guest bytes live: the answers of `Node.map`, and the extents that users see."""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Final, TypeAlias

    Row: TypeAlias = tuple[int, int, bool, bool, bool, int, int | None, str | None]
    """An extent's fields in their order: what walks of millions of extents are made of."""

# Kinds of mapping. Plain integers: `map` is on the hot path, where an enum costs ten times more.
DATA: Final = 1
"""The bytes are stored: at an offset of the node's own storage."""
ZERO: Final = 2
"""The bytes read as zeroes and hide what is below."""
BACKING: Final = 3
"""This layer has nothing here: look at the same offset of the backing child."""
OPAQUE: Final = 4
"""Only the driver can produce the bytes: compressed, encrypted."""


class Extent:
    """A run of guest bytes with one answer.

    offset, length   the run, in guest bytes
    data             a read fetches bytes from storage (false: it is known without reading)
    zero             it is known to read as zeroes
    present          some layer of the chain has it (false: no layer does, it reads as zeroes)
    depth            the layer that has it: 0 is the disk itself, 1 its backing file …; of what no
                     layer has, the lowest that is long enough
    host_offset      where its first byte lies in `filename`, or None
    filename         the file that holds it, or None
    """

    __slots__ = (
        "data",
        "depth",
        "filename",
        "host_offset",
        "length",
        "offset",
        "present",
        "zero",
    )

    def __init__(
        self,
        offset: int,
        length: int,
        data: bool,
        zero: bool,
        present: bool,
        depth: int,
        host_offset: int | None = None,
        filename: str | None = None,
    ) -> None:
        self.offset = offset
        self.length = length
        self.data = data
        self.zero = zero
        self.present = present
        self.depth = depth
        self.host_offset = host_offset
        self.filename = filename

    def row(self) -> Row:
        """The fields in their order."""
        return (
            self.offset,
            self.length,
            self.data,
            self.zero,
            self.present,
            self.depth,
            self.host_offset,
            self.filename,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Extent) and self.row() == other.row()

    def __hash__(self) -> int:
        return hash(self.row())

    def __repr__(self) -> str:
        place = "" if self.host_offset is None else f" at {self.host_offset:#x} in {self.filename}"
        return f"<Extent {self.offset:#x}+{self.length:#x} {self.status} depth {self.depth}{place}>"

    def moved(self, offset: int) -> Extent:
        """The same extent at another guest offset."""
        return self.part(self.offset, self.length, offset)

    def part(self, start: int, length: int, offset: int | None = None) -> Extent:
        """`length` bytes from guest offset `start`, which `offset` may rename."""
        host = self.host_offset
        return Extent(
            start if offset is None else offset,
            length,
            self.data,
            self.zero,
            self.present,
            self.depth,
            None if host is None else host + start - self.offset,
            self.filename,
        )

    def joined(self, following: Extent) -> Extent:
        """This extent and the one that follows it as one."""
        return self.part(self.offset, self.length + following.length)

    @property
    def end(self) -> int:
        """The guest offset behind the run."""
        return self.offset + self.length

    @property
    def status(self) -> str:
        """``data``, ``zero`` (stored as zeroes or a zero cluster) or ``hole`` (in no layer)."""
        if not self.present:
            return "hole"
        return "zero" if self.zero else "data"

    def follows(self, other: Extent) -> bool:
        """Whether this extent continues `other`, so that one extent can say both."""
        if (self.data, self.zero, self.present, self.depth, self.filename) != (
            other.data,
            other.zero,
            other.present,
            other.depth,
            other.filename,
        ):
            return False
        if self.host_offset is None or other.host_offset is None:
            return self.host_offset is other.host_offset
        return self.host_offset == other.host_offset + other.length
