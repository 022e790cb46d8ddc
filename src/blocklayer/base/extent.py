# SPDX-License-Identifier: Apache-2.0
"""Where guest bytes live: the answers of `Node.map`, and the extents that users see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Kinds of mapping. Plain integers: `map` is on the hot path, where an enum costs ten times more.
DATA: Final = 1
"""The bytes are stored: at an offset of the node's own storage."""
ZERO: Final = 2
"""The bytes read as zeroes and hide what is below."""
BACKING: Final = 3
"""This layer has nothing here: look at the same offset of the backing child."""
OPAQUE: Final = 4
"""Only the driver can produce the bytes: compressed, encrypted."""

KIND_NAMES: Final = {DATA: "data", ZERO: "zero", BACKING: "backing", OPAQUE: "opaque"}


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of guest bytes with one answer.

    offset, length   the run, in guest bytes
    data             a read fetches bytes from storage (false: it is known without reading)
    zero             it is known to read as zeroes
    present          some layer of the chain has it (false: no layer does, it reads as zeroes)
    depth            the layer that has it: 0 is the disk itself, 1 its backing file …
    host_offset      where its first byte lies in `filename`, or None
    filename         the file that holds it, or None
    """

    offset: int
    length: int
    data: bool
    zero: bool
    present: bool
    depth: int
    host_offset: int | None = None
    filename: str | None = None

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
