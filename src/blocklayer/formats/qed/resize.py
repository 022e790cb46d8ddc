# SPDX-License-Identifier: Apache-2.0
"""Growing and shrinking a QED disk so that no byte appears from nowhere.

New bytes read as zeroes, even where a longer backing file, or entries that an older shrink left
behind, would show something else. The size in the header changes in one sector: before (growing:
everything behind the old end is zero by then) or after (shrinking) the tables.
"""

from __future__ import annotations

from array import array

from blocklayer.base.buffers import zero_vector
from blocklayer.base.errors import IoError
from blocklayer.base.extent import ZERO
from blocklayer.core import io as core_io
from blocklayer.core.checking import Repair
from blocklayer.formats.qed.layout import SLICE_ENTRIES, UNALLOCATED, ZERO_CLUSTER

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.formats.qed.driver import QedNode


def grow(node: QedNode, size: int) -> None:
    """Make the disk longer; the new bytes read as zeroes."""
    old = node.size
    visible = node.backing.size if node.backing is not None else 0
    first = node.geometry.cluster_up(old)
    tail = min(first, size) - old
    if tail:
        _zero_tail(node, old, tail, visible)
    _clear_entries(node, first)
    if first < min(size, visible):
        end = min(size, node.geometry.cluster_up(visible))
        core_io.zero_clusters(node, first, end, 0)
    node.file.flush()
    node.set_image_size(size)


def _zero_tail(node: QedNode, old: int, length: int, visible: int) -> None:
    """Zero the rest of the cluster in which the disk has ended so far."""
    placed = node.place(old, length)
    if placed is not None:
        child, host, count = placed
        core_io.zero_range(child, host, count, 0)
    elif visible > old and node.map(old, 1)[0] != ZERO:
        node.writev(old, zero_vector(length))


def shrink(node: QedNode, size: int) -> None:
    """Make the disk shorter, and give the space of what is cut off back."""
    node.file.flush()
    node.set_image_size(size)
    end = node.geometry.cluster_up(size)
    if end > size:
        placed = node.place(size, end - size)
        if placed is not None:
            child, host, count = placed
            core_io.zero_range(child, host, count, 0)
    _clear_entries(node, end)
    node.file.flush()
    _give_space_back(node)


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
    """Make everything from guest offset `start` (a cluster's) on unallocated."""
    geometry = node.geometry
    first_table, first_index = geometry.l1_index(start), geometry.l2_index(start)
    for l1_index, table in list(node.tables.scan(node.header.l1_table_offset)):
        if l1_index > first_table or (l1_index == first_table and not first_index):
            node.tables.write_l1_entry(l1_index, UNALLOCATED)
        elif l1_index == first_table:
            node.tables.require_table(l1_index, table)
            for index, entry in list(node.tables.scan(table)):
                if index >= first_index and entry > ZERO_CLUSTER:
                    _clear_entry(node, l1_index, index)
    node.tables.forget()


def _clear_entry(node: QedNode, l1_index: int, index: int) -> None:
    number = l1_index * node.geometry.table_slices + index // SLICE_ENTRIES
    values = array("Q", [UNALLOCATED])
    node.tables.write_l2(l1_index, {number: values}, {number: index % SLICE_ENTRIES})
