# SPDX-License-Identifier: Apache-2.0
"""Changing the name of the backing file, so that a crash leaves the old one or the new one.

The new name is written beside the old one, and one sector with the header switches between them.
Two long names may not fit a header of one small cluster: then the L1 table, which stands behind
it, is moved away first, and its clusters become part of the header.

    | header old-name | L1 | …              copy the L1 table to the end of the file; flush
    | header old-name | L1 | … L1 |         the header: more clusters, another L1 table; flush
    | header old-name new-name | … L1 |     the new name; flush; the header; flush
"""

from __future__ import annotations

from blocklayer.base.errors import BlocklayerError, NotSupported, OutOfRange
from blocklayer.formats.qed.header import (
    encode_backing_name,
    fits_header,
    place_backing_name,
    read_bytes,
    with_backing,
    write_header,
)
from blocklayer.formats.qed.layout import BACKING_FILENAME_MAX, Header

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.formats.qed.driver import QedNode


def store_backing(node: QedNode, name: str | None, format_name: str | None) -> None:
    """Rewrite the name in the header; the driver holds its lock, and no request is in flight."""
    length = len(encode_backing_name(name)) if name else 0
    if not fits_header(node.header, length):
        raise OutOfRange(
            f"No space left in the file header: the name has {length} bytes and must fit"
            f" {node.header.header_size} header clusters and {BACKING_FILENAME_MAX} bytes"
        )
    offset = place_backing_name(node.header, length)
    if offset is None:
        _lengthen_header(node)
        offset = place_backing_name(node.header, length)
    if offset is None:
        raise NotSupported(
            "Operation not supported: there is no room for the new name beside the old one, and"
            " the header cannot be made longer; remove the old name first"
        )
    header, encoded = with_backing(node.header, name, format_name, offset)
    if encoded:
        node.file.writev(offset, [memoryview(encoded)])
    # Not only the name: what was copied up, so that the old backing file is not needed any more,
    # must be there before it goes.
    node.file.flush()
    _switch(node, header)


def _switch(node: QedNode, header: Header) -> None:
    """Make another header the one, and make it last."""
    write_header(node.file, header)
    node.file.flush()
    node.header = header


def _lengthen_header(node: QedNode) -> None:
    """Give the header the L1 table's clusters, if that is what stands behind it."""
    old = node.header
    if old.l1_table_offset != old.header_size * old.cluster_size:
        return
    place = node.allocate_table()
    step = old.cluster_size
    for done in range(0, node.geometry.table_bytes, step):
        piece = read_bytes(node.file, old.l1_table_offset + done, step)
        node.file.writev(place + done, [memoryview(piece)])
    node.file.flush()
    header = old.replace(l1_table_offset=place, header_size=old.header_size + old.table_size)
    try:
        _switch(node, header)
    except BlocklayerError:
        node.put_back(old)
        raise
