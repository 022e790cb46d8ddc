# SPDX-License-Identifier: Apache-2.0
"""Growing and shrinking a QED disk so that no byte appears from nowhere.

New bytes read as zeroes, even where a longer backing file, or entries that an older shrink left
behind, would show something else. The size in the header changes in one sector: before (growing:
everything behind the old end is zero by then) or after (shrinking) the tables.
"""

from __future__ import annotations

from array import array

from blocklayer.base.buffers import zero_vector
from blocklayer.base.errors import IoError, NotSupported
from blocklayer.base.extent import ZERO
from blocklayer.core import zeroing
from blocklayer.core.checking import Repair
from blocklayer.formats.qed.layout import SLICE_ENTRIES, UNALLOCATED

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.formats.qed.driver import QedNode


def grow(node: QedNode, size: int) -> None:
    """Make the disk longer; the new bytes read as zeroes."""
    if node.has_backing and node.backing is None:
        raise NotSupported(
            f"Cannot grow '{node.filename}' without its backing file, which may be longer"
        )
    old = node.size
    visible = node.backing.size if node.backing is not None else 0
    first = node.geometry.cluster_up(old)
    tail = min(first, size) - old
    if tail:
        _zero_tail(node, old, tail, visible)
    _clear_entries(node, first)
    if first < min(size, visible):
        end = min(size, node.geometry.cluster_up(visible))
        zeroing.zero_clusters(node, first, end, 0)
    node.file.flush()
    node.set_image_size(size)


def _zero_tail(node: QedNode, old: int, length: int, visible: int) -> None:
    """Zero the rest of the cluster in which the disk has ended so far."""
    placed = node.place(old, length)
    if placed is not None:
        child, host, count = placed
        zeroing.zero_range(child, host, count, 0)
    elif visible > old and node.map(old, 1)[0] != ZERO:
        node.writev(old, zero_vector(length))


def shrink(node: QedNode, size: int) -> None:
    """Make the disk shorter, and give the space of what is cut off back."""
    end = node.geometry.cluster_up(size)
    placed = node.place(size, end - size) if end > size else None
    _require_table(node, end)
    node.file.flush()
    node.set_image_size(size)
    if placed is not None:
        child, host, count = placed
        zeroing.zero_range(child, host, count, 0)
    _clear_entries(node, end)
    node.file.flush()
    _give_space_back(node)


def _require_table(node: QedNode, start: int) -> None:
    """Raise, before anything is changed, if the table in which entries are to be cleared is bad."""
    if node.geometry.l2_index(start):
        index = node.geometry.l1_index(start)
        table = node.tables.l1_entry(index)
        if table:
            node.tables.require_table(index, table)


def make_empty(node: QedNode) -> None:
    """Make the whole disk unallocated and give its space back."""
    _clear_entries(node, 0)
    node.file.flush()
    _give_space_back(node)


def _give_space_back(node: QedNode) -> None:
    """What nothing references any more; the disk is as it should be whether this works or not."""
    from blocklayer.formats.qed.check import check

    result = check(node, Repair(leaks=True))
    if result.failure is not None:
        raise IoError(result.failure, node.filename, operation="giving back space")


def _clear_entries(node: QedNode, start: int) -> None:
    """Make everything from guest offset `start` (a cluster's) on unallocated, slice by slice."""
    geometry = node.geometry
    tables = node.tables
    first_table, first_index = geometry.l1_index(start), geometry.l2_index(start)
    kept = first_table + bool(first_index)
    try:
        _clear_from(node, first_table, first_index, kept)
    finally:
        tables.forget()


def _clear_from(node: QedNode, first_table: int, first_index: int, kept: int) -> None:
    """Clear L1 entries from `kept` on, and the end of the table before if it stays in part."""
    tables = node.tables
    cleared = -1
    for index, table in tables.scan(node.header.l1_table_offset):
        if index == first_table and first_index:
            tables.require_table(index, table)
            _clear_table(node, index, table, first_index)
        elif index >= kept and index // SLICE_ENTRIES != cleared:
            cleared = index // SLICE_ENTRIES
            first = max(kept - cleared * SLICE_ENTRIES, 0)
            tables.write_l1_entries(cleared, first, _unallocated(first))


def _clear_table(node: QedNode, l1_index: int, table: int, first_index: int) -> None:
    """Make everything from `first_index` of an L2 table on unallocated."""
    cleared = -1
    for index, _ in node.tables.scan(table):
        if index >= first_index and index // SLICE_ENTRIES != cleared:
            cleared = index // SLICE_ENTRIES
            number = l1_index * node.geometry.table_slices + cleared
            first = max(first_index - cleared * SLICE_ENTRIES, 0)
            node.tables.write_l2(l1_index, {number: _unallocated(first)}, {number: first})


def _unallocated(first: int) -> array[int]:
    """Entries for a slice from its entry `first` on."""
    return array("Q", [UNALLOCATED]) * (SLICE_ENTRIES - first)
