# SPDX-License-Identifier: Apache-2.0
"""Giving leaked clusters back: move what stands behind into the holes, then cut the file.

    before   | H | L1 | a |  leak  | b | leak | c | d |
    after    | H | L1 | a | c  d   | b |                    the file ends here

If U clusters are in use, everything at or behind cluster U has to move, and there are exactly as
many holes below U. Each move is: copy, flush, entry, flush; a crash leaves either place valid, and
leaks at worst. Tables need several neighbouring clusters; where no such hole exists, data clusters
are moved out of the way first.
"""

from __future__ import annotations

from array import array

from blocklayer.formats.qed.layout import SLICE_ENTRIES, ZERO_CLUSTER

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.formats.qed.check import ClusterMap
    from blocklayer.formats.qed.driver import QedNode

MOVES_PER_FLUSH = 1024
"""Clusters copied between two flushes."""


def last_used_end(node: QedNode) -> int:
    """The file offset behind the last cluster that anything references."""
    owners = _Owners(node, 0)
    end = node.header.l1_table_offset + node.geometry.table_bytes
    if owners.tables:
        end = max(end, max(owners.tables) + node.geometry.table_bytes)
    if owners.clusters:
        end = max(end, max(owners.clusters) + node.cluster_size)
    return max(end, node.header.header_size * node.cluster_size)


class _Owners:
    """Who references the clusters at or behind a file offset."""

    def __init__(self, node: QedNode, start: int) -> None:
        self.tables: dict[int, int] = {}
        """L1 index by table offset, for tables that reach behind `start`."""
        self.clusters: dict[int, tuple[int, int]] = {}
        """(L1 index, L2 index) by cluster offset."""
        for l1_index, table in node.tables.scan(node.header.l1_table_offset):
            if node.table_problem(table) is not None:
                continue
            if table + node.geometry.table_bytes > start:
                self.tables[table] = l1_index
            for index, entry in node.tables.scan(table):
                if entry > ZERO_CLUSTER and entry >= start:
                    self.clusters[entry] = (l1_index, index)


def compact(node: QedNode, used: ClusterMap) -> int:
    """Move clusters into the holes and cut the file; clusters given back."""
    before = node.file_end
    if not node.file.grows_zeroed:
        return 0
    while used.clusters > used.used:
        goal = used.used * node.cluster_size
        mover = _Mover(node, used, goal)
        if not mover.move_all():
            break
    end = (used.last_used() + 1) * node.cluster_size
    node.file.flush()
    node.file.truncate(end)
    node.file_end = end
    used.clusters = end // node.cluster_size
    return (before - end) // node.cluster_size


class _Mover:
    """Moves what stands at or behind `goal` below it."""

    def __init__(self, node: QedNode, used: ClusterMap, goal: int) -> None:
        self._node = node
        self._used = used
        self._goal = goal
        self._owners = _Owners(node, goal)
        self._moved = 0

    def move_all(self) -> bool:
        """Move tables, then data. Whether another round could do more."""
        evicted = False
        for table in sorted(self._owners.tables, reverse=True):
            if table + self._node.geometry.table_bytes > self._goal:
                evicted |= self._move_table(table)
        if evicted:
            return True
        pending: list[tuple[int, int]] = []
        for source in sorted(self._owners.clusters, reverse=True):
            target = self._hole(1)
            if target is None or target >= source:
                break
            self._copy(source, target, 1)
            pending.append((source, target))
            if len(pending) >= MOVES_PER_FLUSH:
                self._repoint(pending)
                pending = []
        self._repoint(pending)
        self._used.clusters = self._used.last_used() + 1
        return False

    def _hole(self, clusters: int) -> int | None:
        """The offset of the first hole of so many clusters below the goal."""
        size = self._node.cluster_size
        for first, count in self._used.free_runs(1 << 30, self._goal // size):
            if count >= clusters:
                return first * size
        return None

    def _copy(self, source: int, target: int, clusters: int) -> None:
        from blocklayer.formats.qed.check import copy_within

        size = self._node.cluster_size
        copy_within(self._node.file, source, target, clusters * size)
        self._used.mark(target // size, clusters)

    def _free(self, source: int, clusters: int) -> None:
        self._used.unmark(source // self._node.cluster_size, clusters)

    def _move_table(self, table: int) -> bool:
        """Move one table into a hole; True if clusters were moved out of its way instead."""
        clusters = self._node.geometry.table_size
        target = self._hole(clusters)
        if target is None:
            return self._make_room(clusters)
        self._copy(table, target, clusters)
        self._node.file.flush()
        self._node.tables.write_l1_entry(self._owners.tables[table], target)
        self._node.file.flush()
        self._node.tables.forget()
        self._free(table, clusters)
        return False

    def _make_room(self, clusters: int) -> bool:
        """Move data clusters to the end of the file so that a hole for a table appears."""
        size = self._node.cluster_size
        owners = _Owners(self._node, 0)
        data = {offset // size for offset in owners.clusters}
        holes = {
            first + step
            for first, count in self._used.free_runs(1 << 30, self._goal // size)
            for step in range(count)
        }
        window = _best_window(holes, data, clusters, self._goal // size)
        if window is None:
            return False
        pending = []
        self._owners = owners
        for cluster in range(window, window + clusters):
            if cluster in data:
                target = self._node.allocate_for_repair(size)
                self._used.clusters = self._node.file_end // size
                self._copy(cluster * size, target, 1)
                pending.append((cluster * size, target))
        self._repoint(pending)
        return True

    def _repoint(self, moves: list[tuple[int, int]]) -> None:
        """Make the copies the ones in use."""
        if not moves:
            return
        node = self._node
        node.file.flush()
        for source, target in moves:
            l1_index, index = self._owners.clusters[source]
            number = l1_index * node.geometry.table_slices + index // SLICE_ENTRIES
            first = {number: index % SLICE_ENTRIES}
            node.tables.write_l2(l1_index, {number: array("Q", [target])}, first)
        node.file.flush()
        for source, _ in moves:
            self._free(source, 1)


def _best_window(holes: set[int], data: set[int], clusters: int, end: int) -> int | None:
    """The run of `clusters` below `end`, of holes and data alone, with the most holes."""
    best, best_holes = None, 0
    for first in sorted({hole - step for hole in holes for step in range(clusters)}):
        window = range(first, first + clusters)
        if first < 0 or first + clusters > end:
            continue
        if all(cluster in holes or cluster in data for cluster in window):
            count = sum(cluster in holes for cluster in window)
            if count > best_holes:
                best, best_holes = first, count
    return best
