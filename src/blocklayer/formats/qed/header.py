# SPDX-License-Identifier: Apache-2.0
"""Reading, validating and rewriting the QED header.

Rewrites go through the first sector: the 64 bytes change, what follows them stays.
"""

from __future__ import annotations

from blocklayer.base.errors import (
    CorruptImage,
    FormatError,
    InvalidArgument,
    IoError,
    NotSupported,
    TruncatedImage,
)
from blocklayer.base.units import SECTOR
from blocklayer.core.node import Node
from blocklayer.formats.qed.layout import (
    BACKING_FILENAME_MAX,
    F_BACKING_FILE,
    F_BACKING_FORMAT_NO_PROBE,
    KNOWN_FEATURES,
    MAGIC,
    Geometry,
    Header,
    is_cluster_size_valid,
    is_table_size_valid,
)


def read_bytes(file: Node, offset: int, length: int) -> bytearray:
    """`length` bytes of metadata. Raises `IoError`."""
    data = bytearray(length)
    file.readv(offset, [memoryview(data)])
    return data


def read_header(file: Node) -> tuple[Header, Geometry]:
    """The validated header (specification, "Header"). Raises `FormatError`."""
    name = file.filename
    if file.size < Header.SIZE:
        raise TruncatedImage(
            f"Image not in QED format: the file has {file.size} bytes,"
            f" fewer than the {Header.SIZE} of a header",
            name,
        )
    try:
        header = Header.unpack_from(read_bytes(file, 0, Header.SIZE))
    except IoError as error:
        raise FormatError(f"Failed to read QED header: {error}", name) from error
    if header.magic != MAGIC:
        raise FormatError("Image not in QED format", name)
    unknown = header.features & ~KNOWN_FEATURES
    if unknown:
        raise NotSupported(f"Unsupported QED features: {unknown:x}")
    if not is_cluster_size_valid(header.cluster_size):
        raise FormatError(f"QED cluster size is invalid: {header.cluster_size}", name)
    if not is_table_size_valid(header.table_size):
        raise FormatError(f"QED table size is invalid: {header.table_size}", name)
    geometry = Geometry(header.cluster_size, header.table_size)
    if header.image_size % SECTOR or header.image_size > geometry.image_size_max:
        raise FormatError(
            f"QED image size is invalid: {header.image_size} is not a multiple of {SECTOR}"
            f" up to {geometry.image_size_max}",
            name,
        )
    _validate_places(file, header, geometry)
    return header, geometry


def _validate_places(file: Node, header: Header, geometry: Geometry) -> None:
    """Header, L1 table and backing file name must lie where they may."""
    name = file.filename
    header_bytes = header.header_size * header.cluster_size
    if not header.header_size or header.header_size > 0xFFFFFFFF // header.cluster_size:
        raise FormatError(
            f"QED header size is too large: {header.header_size} clusters"
            if header.header_size
            else "QED header size is invalid: 0 clusters",
            name,
        )
    l1_end = header.l1_table_offset + geometry.table_bytes
    if geometry.in_cluster(header.l1_table_offset) or header.l1_table_offset < header_bytes:
        raise FormatError(f"QED table offset is invalid: {header.l1_table_offset:#x}", name)
    if l1_end > geometry.cluster_start(file.size):
        raise TruncatedImage(
            f"QED table offset is invalid: the L1 table would end at {l1_end:#x},"
            f" but the file ends at {file.size:#x}",
            name,
        )
    if header.features & F_BACKING_FILE:
        end = header.backing_filename_offset + header.backing_filename_size
        if end > header_bytes:
            raise FormatError(
                f"QED backing filename offset is invalid: the name would end at {end:#x},"
                f" the header at {header_bytes:#x}",
                name,
            )


def read_backing_name(file: Node, header: Header) -> tuple[str | None, str | None]:
    """The backing file's name and format, as far as the header tells."""
    if not header.features & F_BACKING_FILE:
        return None, None
    size = header.backing_filename_size
    if not size:
        return None, None
    if size > BACKING_FILENAME_MAX:
        raise FormatError(
            f"Failed to read backing filename: it has {size} bytes,"
            f" more than {BACKING_FILENAME_MAX}",
            file.filename,
        )
    data = read_bytes(file, header.backing_filename_offset, size)
    if b"\0" in data:
        raise CorruptImage(
            "Failed to read backing filename: it contains a zero byte", file.filename
        )
    no_probe = header.features & F_BACKING_FORMAT_NO_PROBE
    # surrogateescape: file names are bytes, and must come out as they went in.
    return bytes(data).decode("utf-8", "surrogateescape"), "raw" if no_probe else None


def write_header(file: Node, header: Header) -> None:
    """Rewrite the header in one sector."""
    sector = read_bytes(file, 0, SECTOR)
    sector[: Header.SIZE] = header.pack()
    file.writev(0, [memoryview(sector)])


def with_backing(
    header: Header, name: str | None, format_name: str | None, offset: int
) -> tuple[Header, bytes]:
    """The header and name bytes for a backing file whose name is stored at `offset`."""
    features = header.features & ~(F_BACKING_FILE | F_BACKING_FORMAT_NO_PROBE)
    if name is None:
        return (
            header.replace(features=features, backing_filename_offset=0, backing_filename_size=0),
            b"",
        )
    encoded = encode_backing_name(name)
    features |= F_BACKING_FILE
    if format_name == "raw":
        features |= F_BACKING_FORMAT_NO_PROBE
    return (
        header.replace(
            features=features,
            backing_filename_offset=offset,
            backing_filename_size=len(encoded),
        ),
        encoded,
    )


def encode_backing_name(name: str) -> bytes:
    """A backing file's name as stored. Raises `InvalidArgument`."""
    try:
        encoded = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        encoded = b""
    if not encoded or b"\0" in encoded:
        raise InvalidArgument(f"Invalid backing file name {name!r}")
    return encoded


def fits_header(header: Header, length: int) -> bool:
    """Whether a name of `length` bytes can stand in the header clusters, beside no other name."""
    room = header.header_size * header.cluster_size - Header.SIZE
    return length <= min(room, BACKING_FILENAME_MAX)


def place_backing_name(header: Header, length: int) -> int | None:
    """Where in the header clusters a new name can stand beside the old one; None if nowhere.

    One write of one sector then switches between them, and a crash leaves either. Names stand at
    one end or the other, so that what is free is in one piece.
    """
    limit = header.header_size * header.cluster_size
    old_start = header.backing_filename_offset if header.features & F_BACKING_FILE else 0
    old_end = old_start + header.backing_filename_size if old_start else 0
    for start in (Header.SIZE, limit - length):
        end = start + length
        if start >= Header.SIZE and end <= limit and (end <= old_start or start >= old_end):
            return start
    return None
