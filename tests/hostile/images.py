# SPDX-License-Identifier: Apache-2.0
"""QED images as an attacker makes them: honest ones, and what becomes of them field by field.

Values to try are taken from the layout's own declaration, so that a new field is attacked as soon
as it exists.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from blocklayer.base.units import GiB, KiB, MiB
from blocklayer.formats.qed.layout import F_BACKING_FILE, MAGIC, ZERO_CLUSTER, Header

BASE_NAME = b"base"
BASE_BYTES = b"BACKING!" * (128 * KiB // 8)
ENTRY_BYTES = 8


def encode(entries: list[int]) -> bytes:
    """Table entries as they stand on disk."""
    return b"".join(entry.to_bytes(ENTRY_BYTES, "little") for entry in entries)


@dataclass(frozen=True)
class Image:
    """A sparse file: bytes at offsets, and its length. `places` are offsets worth pointing to."""

    pieces: tuple[tuple[int, bytes], ...]
    length: int
    places: tuple[int, ...] = ()
    entries: tuple[int, ...] = ()
    """Offsets in the file of table entries worth damaging."""
    links: tuple[tuple[str, str], ...] = ()
    """Other names of the file: what kind of link, and its name in the same directory."""

    def with_bytes(self, offset: int, data: bytes) -> Image:
        """The image with some bytes overwritten."""
        return replace(self, pieces=(*self.pieces, (offset, data)))

    def with_field(self, name: str, value: int) -> Image:
        """The image with another value in a header field."""
        size = next(field.size for field in Header.FIELDS if field.name == name)
        return self.with_bytes(Header.offset_of(name), value.to_bytes(size, "little"))

    def with_entry(self, offset: int, value: int) -> Image:
        """The image with another value in the table entry at `offset`."""
        return self.with_bytes(offset, value.to_bytes(ENTRY_BYTES, "little"))

    def with_length(self, length: int) -> Image:
        """The image cut, or with a hole behind it."""
        return replace(self, length=length)

    def write(self, path: Path) -> None:
        """Make the file, in place of what was there."""
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for offset, data in self.pieces:
                os.pwrite(descriptor, data, offset)
            os.ftruncate(descriptor, self.length)
        finally:
            os.close(descriptor)
        for kind, name in self.links:
            link = path.parent / name
            link.unlink(missing_ok=True)
            if kind == "symbolic":
                link.symlink_to(path.name)
            else:
                link.hardlink_to(path)

    def with_backing(self, name: bytes) -> Image:
        """The image with another backing file name, of any bytes."""
        named = self.with_field("features", F_BACKING_FILE).with_bytes(Header.SIZE, name)
        named = named.with_field("backing_filename_offset", Header.SIZE)
        return named.with_field("backing_filename_size", len(name))

    @property
    def header(self) -> Header:
        """The header as it was before anything was damaged."""
        return Header.unpack_from(self.pieces[0][1])


def make(cluster: int = 4 * KiB, table: int = 1, *, backing: bool = False) -> Image:
    """An image with two L2 tables, data, zero clusters, gaps, and markers where metadata is.

    | header | L1 | data 0 | L2 a | data 1-3 | L2 b | data 4-5 |
    """
    table_bytes = cluster * table
    entries = table_bytes // ENTRY_BYTES
    l1 = cluster
    data_0 = l1 + table_bytes
    l2_a = data_0 + cluster
    data_1 = l2_a + table_bytes
    l2_b = data_1 + 3 * cluster
    data_4 = l2_b + table_bytes
    length = data_4 + 2 * cluster
    span = entries * cluster
    header = Header(
        magic=MAGIC,
        cluster_size=cluster,
        table_size=table,
        header_size=1,
        features=F_BACKING_FILE if backing else 0,
        l1_table_offset=l1,
        image_size=2 * span + 8 * cluster,
        backing_filename_offset=Header.SIZE if backing else 0,
        backing_filename_size=len(BASE_NAME) if backing else 0,
    )
    name = BASE_NAME if backing else b""
    marker = (header.pack() + name).ljust(512, b"\xee") + b"METADATA" * 8
    clusters = [data_0, data_1, data_1 + cluster, data_1 + 2 * cluster, data_4, data_4 + cluster]
    first = [clusters[0], clusters[1], clusters[2], 0, ZERO_CLUSTER, ZERO_CLUSTER, 0, clusters[3]]
    pieces = [
        (0, marker),
        (l1, encode([l2_a, l2_b])),
        (l2_a, encode(first)),
        (l2_b, encode([0, clusters[4]])),
        (l2_b + table_bytes - ENTRY_BYTES, encode([clusters[5]])),
    ]
    pieces += [(at, b"DATA%04d" % n * 64) for n, at in enumerate(clusters)]
    return Image(
        tuple(pieces),
        length,
        places=(0, l1, l2_a, l2_b, clusters[0], clusters[3], clusters[5]),
        entries=(
            *(l1, l1 + ENTRY_BYTES, l1 + 2 * ENTRY_BYTES, l1 + table_bytes - ENTRY_BYTES),
            *(l2_a + index * ENTRY_BYTES for index in (0, 1, 3, 4, 7)),
            *(l2_b, l2_b + table_bytes - ENTRY_BYTES),
        ),
    )


BASES = {
    "small": make(),
    "overlay": make(table=2, backing=True),
    "default": make(64 * KiB, 4, backing=True),
    "huge": make(64 * MiB, 16),
}
"""Small enough to be read as a whole, over a backing file, as made by default, and the largest."""


# --- what to put where ----------------------------------------------------------------------------


def _values(valid: int, bits: int, places: tuple[int, ...]) -> Iterator[int]:
    yield from (0, 1, 2, 3, valid - 1, valid + 1, valid + 512, valid * 2, valid // 2, -valid)
    yield from (-1, 1 << (bits - 1), (1 << (bits - 1)) - 1, 1 << (bits // 2), 63, 64, 511, 512)
    yield from (4095, 4096, 4097, 64 * KiB, MiB, 64 * MiB, 128 * MiB, GiB)
    yield from (1 << shift for shift in range(0, bits, 7))
    for place in places:
        yield from (place, place + 1, place - 1)


def header_values(image: Image, name: str) -> list[int]:
    """Values to put into a header field."""
    field = next(field for field in Header.FIELDS if field.name == name)
    valid = getattr(image.header, name)
    bits = 8 * field.size
    ends = (image.length, image.length + image.header.cluster_size)
    found = {value % (1 << bits) for value in _values(valid, bits, (*image.places, *ends))}
    return sorted(found - {valid})


def entry_values(image: Image) -> list[int]:
    """Values to put into a table entry."""
    cluster = image.header.cluster_size
    ends = (image.length - cluster, image.length, image.length + cluster)
    inside = tuple(place + cluster for place in image.places)
    found = _values(cluster, 64, (*image.places, *inside, *ends))
    return sorted({value % (1 << 64) for value in found})


def header_damages(image: Image, name: str) -> Iterator[tuple[str, Image]]:
    """Every damage of one header field, with its name."""
    for value in header_values(image, name):
        yield f"{name} = {value:#x}", image.with_field(name, value)


def entry_damages(image: Image, offset: int) -> Iterator[tuple[str, Image]]:
    """Every damage of one table entry, with its name."""
    for value in entry_values(image):
        yield f"entry at {offset:#x} = {value:#x}", image.with_entry(offset, value)


def lengths(image: Image) -> list[int]:
    """Lengths to cut an image to, or to make it longer."""
    cluster = image.header.cluster_size
    edges = {
        0,
        4,
        63,
        64,
        512,
        cluster,
        image.length - cluster,
        image.length,
        image.length + cluster,
    }
    for offset, data in image.pieces:
        edges |= {offset, offset + len(data), offset + cluster}
    near = {edge + step for edge in edges for step in (-1, 0, 1)}
    return sorted(length for length in near if length >= 0)


def table_of(values: list[int]) -> bytes:
    """A large table in little time."""
    return array("Q", values).tobytes()
