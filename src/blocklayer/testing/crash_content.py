# SPDX-License-Identifier: Apache-2.0
"""What a disk reads as, all of it, found by walking its extents; damaged places included."""

from __future__ import annotations

from dataclasses import dataclass, field

from blocklayer.base.errors import FormatError
from blocklayer.base.units import SECTOR
from blocklayer.core.mapping import resolve
from blocklayer.core.node import FormatNode, Node
from blocklayer.testing.crash import ZERO_SECTOR

Header = tuple[int, str | None]
"""What an image says of itself, switched in one piece: size and name of the backing file."""


@dataclass(slots=True)
class Content:
    """What a disk reads as.

    sectors      those that are not zero
    unreadable   guest ranges (start, end) whose reading fails because the image is damaged there
    """

    header: Header
    sectors: dict[int, bytes] = field(default_factory=dict)
    unreadable: list[tuple[int, int]] = field(default_factory=list)

    def same_where_readable(self, other: Content) -> bool:
        """Whether `other`, all of which is readable, agrees with what could be read here."""
        if self.header != other.header:
            return False
        if self.sectors == other.sectors:
            return True
        hidden = set[int]()
        for start, end in self.unreadable:
            hidden.update(range(start // SECTOR, end // SECTOR))
        readable = {s: content for s, content in other.sectors.items() if s not in hidden}
        return self.sectors == readable


def header_of(node: Node) -> Header:
    """Size and backing file of an open image."""
    return node.size, node.backing_filename if isinstance(node, FormatNode) else None


def read_content(node: Node) -> Content:
    """Everything a disk reads as, found by walking its extents."""
    content = Content(header_of(node))
    offset, size = 0, node.size
    granularity = node.cluster_size if isinstance(node, FormatNode) else SECTOR
    while offset < size:
        length = size - offset
        try:
            extent = resolve(node, offset, length, holes=False)
        except FormatError:
            # A run fails as a whole when one of its clusters is damaged: look at one alone.
            length = min(length, granularity - offset % granularity)
            try:
                extent = resolve(node, offset, length, holes=False)
            except FormatError:
                content.unreadable.append((offset, offset + length))
                offset += length
                continue
        if not extent.zero:
            _read_sectors(node, offset, extent.length, content.sectors)
        offset += extent.length
    return content


def _read_sectors(node: Node, offset: int, length: int, sectors: dict[int, bytes]) -> None:
    data = bytearray(length)
    node.readv(offset, [memoryview(data)])
    whole = bytes(data)
    for number, start in enumerate(range(0, length, SECTOR), offset // SECTOR):
        piece = whole[start : start + SECTOR]
        if piece != ZERO_SECTOR:
            sectors[number] = piece
