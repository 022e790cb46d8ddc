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
from collections.abc import Iterable

from blocklayer.formats.qed.copy_within import copy_within
from blocklayer.formats.qed.layout import SLICE_ENTRIES, ZERO_CLUSTER

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.base.progress import Reporter
    from blocklayer.formats.qed.cluster_map import ClusterMap
    from blocklayer.formats.qed.driver import QedNode

MOVES_PER_FLUSH = 1024
"""Clusters copied between two flushes."""


def last_used_end(node: QedNode) -> int:
    """The file offset behind the last cluster that anything references."""
    geometry = node.geometry
    end = node.header.l1_table_offset + geometry.table_bytes
    for _, table in node.tables.scan(node.header.l1_table_offset):
        if node.table_problem(table) is None:
            last = max((entry for _, entry in node.tables.scan(table)), default=0)
            end = max(end, table + geometry.table_bytes, last + node.cluster_size)
    return end


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
    size = node.cluster_size
    reporter = node.reporter("give space back", used.count(used.used) * size)
    while used.clusters > used.used:
        mover = _Mover(node, used, reporter)
        if not (mover.move_tables() or mover.make_room() or mover.slide_one()):
            mover.move_data()
            break
    end = (used.last_used() + 1) * size
    node.file.flush()
    node.file.truncate(end)
    node.file_end = end
    used.clusters = end // size
    reporter.finish()
    return (before - end) // size


class _Mover:
    """Moves what stands at or behind `goal` below it.

    Once the tables stand below the goal, there are exactly as many holes below it as there are data
    clusters behind it.
    """

    def __init__(self, node: QedNode, used: ClusterMap, reporter: Reporter) -> None:
        self._node = node
        self._reporter = reporter
        self._used = used
        self._size = node.cluster_size
        self._table_clusters = node.geometry.table_size
        self._goal = used.used
        self._owners = _Owners(node, self._goal * self._size)
        self._blocked = False
        """A table has to move and cannot."""

    def move_tables(self) -> bool:
        """Move tables while there are holes for them. Whether there was one."""
        moved = False
        for table in sorted(self._owners.tables, reverse=True):
            target = self._hole()
            if target is None:
                self._blocked = True
                break
            self._move_table(table, target)
            moved = True
        return moved

    def _hole(self) -> int | None:
        """The offset of the first hole below the goal that takes a table."""
        for first, count in self._used.free_runs(end=self._goal):
            if count >= self._table_clusters:
                return first * self._size
        return None

    def _move_table(self, table: int, target: int) -> None:
        node = self._node
        self._copy(table, target, self._table_clusters)
        node.file.flush()
        l1_index = self._owners.tables.pop(table)
        node.tables.write_l1_entry(l1_index, target)
        self._owners.tables[target] = l1_index
        node.file.flush()
        node.tables.forget()
        self._used.unmark(table // self._size, self._table_clusters)
        self._reporter.advance(self._table_clusters * self._size)

    def _copy(self, source: int, target: int, clusters: int) -> None:
        self._reporter.check()
        copy_within(self._node.file, source, target, clusters * self._size)
        self._used.mark(target // self._size, clusters)

    def _at_the_end(self, clusters: int) -> int:
        """New space behind everything else, for what has to get out of the way."""
        target = self._node.allocate_for_repair(clusters * self._size)
        self._used.clusters = self._node.file_end // self._size
        return target

    def make_room(self) -> bool:
        """Move data clusters to the end of the file so that a hole for a table appears."""
        if not self._blocked:
            return False
        self._owners = _Owners(self._node, 0)
        data = {offset // self._size for offset in self._owners.clusters}
        holes = {
            cluster
            for first, count in self._used.free_runs(end=self._goal)
            for cluster in range(first, first + count)
        }
        window = _best_window(holes, data, self._table_clusters, self._goal)
        if window is None:
            return False
        in_the_way = data.intersection(range(window, window + self._table_clusters))
        self._move_clusters(
            (cluster * self._size, self._at_the_end(1)) for cluster in sorted(in_the_way)
        )
        return True

    def slide_one(self) -> bool:
        """Close the first hole by what stands behind it, a table, by way of the end of the file.

        For images that hardly have data: where no run of holes and data takes a table.
        """
        if not self._blocked:
            return False
        for first, count in self._used.free_runs(end=self._goal):
            behind = (first + count) * self._size
            if behind in self._owners.tables:
                away = self._at_the_end(self._table_clusters)
                self._move_table(behind, away)
                self._move_table(away, first * self._size)
                return True
            if sources := [cluster for cluster in self._owners.clusters if cluster >= behind]:
                self._move_clusters([(max(sources), first * self._size)])
                return True
        return False

    def move_data(self) -> None:
        """Move every data cluster behind the goal into the holes below it."""
        limit = self._goal * self._size
        sources = sorted((c for c in self._owners.clusters if c >= limit), reverse=True)
        runs = list(self._used.free_runs(end=self._goal))
        targets = (first + step for first, count in runs for step in range(count))
        moves = zip(sources, (target * self._size for target in targets), strict=False)
        self._move_clusters(moves)
        self._used.clusters = self._used.last_used() + 1

    def _move_clusters(self, moves: Iterable[tuple[int, int]]) -> None:
        """Copy clusters and make the copies the ones in use, many with two flushes."""
        pending: list[tuple[int, int]] = []
        for source, target in moves:
            self._copy(source, target, 1)
            pending.append((source, target))
            if len(pending) >= MOVES_PER_FLUSH:
                self._repoint(pending)
                pending = []
        self._repoint(pending)

    def _repoint(self, moves: list[tuple[int, int]]) -> None:
        if not moves:
            return
        node = self._node
        node.file.flush()
        for source, target in moves:
            l1_index, index = self._owners.clusters.pop(source)
            self._owners.clusters[target] = (l1_index, index)
            number = l1_index * node.geometry.table_slices + index // SLICE_ENTRIES
            first = {number: index % SLICE_ENTRIES}
            node.tables.write_l2(l1_index, {number: array("Q", [target])}, first)
        node.file.flush()
        for source, _ in moves:
            self._used.unmark(source // self._size)
        self._reporter.advance(len(moves) * self._size)


def _best_window(holes: set[int], data: set[int], clusters: int, end: int) -> int | None:
    """The run of `clusters` below `end`, of holes and data alone, with the most holes.

    Windows beside a hole come first; one of data alone does as well.
    """
    beside = {hole - step for hole in holes for step in range(clusters)}
    best = _most_holes(beside, holes, data, clusters, end)
    return _most_holes(data, holes, data, clusters, end) if best is None else best


def _most_holes(
    firsts: set[int], holes: set[int], data: set[int], clusters: int, end: int
) -> int | None:
    best, best_holes = None, -1
    for first in sorted(firsts):
        window = range(first, first + clusters)
        if first < 0 or first + clusters > end:
            continue
        if all(cluster in holes or cluster in data for cluster in window):
            count = sum(cluster in holes for cluster in window)
            if count > best_holes:
                best, best_holes = first, count
    return best
