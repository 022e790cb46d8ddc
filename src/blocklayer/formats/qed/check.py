# SPDX-License-Identifier: Apache-2.0
"""Consistency check and repair (QED specification, "Consistency checking").

One scan over L1 and every L2 table marks the clusters that are referenced; if there is something to
mend, a second scan does it. What they can find:

    corruption  an entry that points where nothing can be, or to a cluster already referenced
    leak        a cluster nobody references, or one referenced from behind the end of the disk
    error       a table that could not be read

Repair clears impossible entries (they then read as the backing file, or zeroes), gives entries
that share a cluster a copy each, and gives leaks back by moving clusters from the end of the file.
It clears NEED_CHECK only if nothing wrong is left.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice

from blocklayer.base.errors import BlocklayerError, IoError, NotSupported
from blocklayer.base.units import MiB
from blocklayer.core.checking import PROBLEMS_KEPT, CheckResult, Problem, Repair
from blocklayer.core.node import Node
from blocklayer.formats.qed.driver import QedNode
from blocklayer.formats.qed.header import read_bytes
from blocklayer.formats.qed.layout import (
    ENTRY_SIZE,
    SLICE_BYTES,
    SLICE_ENTRIES,
    UNALLOCATED,
    ZERO_CLUSTER,
)
from blocklayer.formats.qed.tables import encode

COPY_PIECE = MiB

_PAGE = 4096
_PAGES_MAX = 65536


class ClusterMap:
    """Which clusters of the file are referenced: one byte each, in pages made on first use.

    Pages are limited, so that a hostile sparse file of absurd length cannot fill memory.
    """

    def __init__(self, clusters: int) -> None:
        self.clusters = clusters
        self.used = 0
        self._pages: dict[int, bytearray] = {}

    def mark(self, first: int, count: int = 1) -> int:
        """Mark clusters; how many of them were marked before."""
        already = 0
        for cluster in range(first, first + count):
            number, within = divmod(cluster, _PAGE)
            page = self._pages.get(number)
            if page is None:
                page = self._new_page(number)
            if page[within]:
                already += 1
            else:
                page[within] = 1
                self.used += 1
        return already

    def unmark(self, first: int, count: int = 1) -> None:
        """Nobody references these clusters any more."""
        for cluster in range(first, first + count):
            number, within = divmod(cluster, _PAGE)
            self._pages[number][within] = 0
            self.used -= 1

    def _new_page(self, number: int) -> bytearray:
        if len(self._pages) >= _PAGES_MAX:
            raise NotSupported(
                "The image's clusters are too scattered to be checked in bounded memory"
            )
        page = self._pages[number] = bytearray(_PAGE)
        return page

    def free_runs(self, end: int | None = None) -> Iterator[tuple[int, int]]:
        """Runs (first, count) of clusters below `end` that are not marked, in ascending order."""
        end = self.clusters if end is None else end
        position = 0
        while position < end:
            start = self._next(position, end, b"\0")
            if start >= end:
                return
            position = self._next(start, end, b"\1")
            yield start, position - start

    def _next(self, position: int, end: int, byte: bytes) -> int:
        """The first cluster from `position` whose mark is `byte`; `end` if there is none."""
        while position < end:
            number, within = divmod(position, _PAGE)
            page = self._pages.get(number)
            if page is None:
                if byte == b"\0":
                    return position
                position = self._next_page(number, end)
                continue
            found = page.find(byte, within)
            if found >= 0:
                return min(number * _PAGE + found, end)
            position = (number + 1) * _PAGE
        return end

    def _next_page(self, number: int, end: int) -> int:
        """Where the next existing page starts."""
        later = [page for page in self._pages if page > number]
        return min(min(later) * _PAGE, end) if later else end

    def last_used(self) -> int:
        """The highest marked cluster; -1 if there is none."""
        for number in sorted(self._pages, reverse=True):
            found = self._pages[number].rfind(b"\1")
            if found >= 0:
                return number * _PAGE + found
        return -1


class Checker:
    """One scan of one image."""

    def __init__(
        self,
        node: QedNode,
        repair: Repair,
        *,
        copy_shared: bool = True,
        contested: frozenset[int] = frozenset(),
    ) -> None:
        self.node = node
        self.repair = repair
        self.copy_shared = copy_shared
        self.geometry = node.geometry
        self.used = ClusterMap(node.file_end // node.cluster_size)
        self.result = CheckResult(node.filename, node.driver)
        self.result.total_clusters = self.geometry.clusters(node.size)
        self.contested = set(contested)
        """Offsets of tables of whose clusters others claim some, as far as is known."""
        self.beyond = False
        """There are entries behind the end of the disk."""
        self._tables_seen: set[int] = set()
        self._last_host = 0

    def scan(self) -> CheckResult:
        """Mark everything that is referenced and report what cannot be."""
        header = self.node.header
        self.used.mark(0, header.header_size)
        self.used.mark(self._cluster(header.l1_table_offset), self.geometry.table_size)
        for index, table in self._entries(header.l1_table_offset, "the L1 table"):
            if table:
                self._check_table(index, table)
        return self.result

    def _cluster(self, offset: int) -> int:
        return offset // self.node.cluster_size

    def _entries(self, place: int, what: str) -> Iterator[tuple[int, int]]:
        """Entries of a table that are not 0, as (index, value), as far as it can be read."""
        try:
            yield from self.node.tables.scan(place)
        except IoError as error:
            self.result.report(Problem("error", f"Cannot read {what}: {error}", offset=place))

    # --- tables ---------------------------------------------------------------------------------

    def _check_table(self, index: int, table: int) -> None:
        problem = self.node.table_problem(table)
        place = self.node.header.l1_table_offset + index * ENTRY_SIZE
        if problem is not None:
            if self.repair.errors:
                self.node.tables.write_l1_entry(index, UNALLOCATED)
            self._corruption(
                f"L1 entry {index}: the L2 table at {table:#x} {problem}",
                "clear the entry: what the table mapped reads as unallocated",
                place,
                fixed=self.repair.errors,
            )
            return
        first = self._cluster(table)
        clusters = range(first, first + self.geometry.table_size)
        alone = [cluster for cluster in clusters if not self.used.mark(cluster)]
        if table in self._tables_seen:
            self._shared_table(index, table, place)
        elif len(alone) < len(clusters) or table in self.contested:
            self._overlapping_table(index, table, place, alone)
        else:
            self._tables_seen.add(table)
            self._check_l2(index, table)

    def _shared_table(self, index: int, table: int, place: int) -> None:
        fixed = self.repair.errors and self.copy_shared
        if fixed:
            self._copy_table(index, table)
        self._corruption(
            f"L1 entry {index}: the L2 table at {table:#x} is referenced more than once",
            "give the entry a copy of the table and of its clusters",
            place,
            fixed=fixed,
        )

    def _overlapping_table(self, index: int, table: int, place: int, alone: list[int]) -> None:
        """Others claim clusters of the table, but nobody so far those in `alone`."""
        fixed = self.repair.errors and self.copy_shared
        self._corruption(
            f"L1 entry {index}: the L2 table at {table:#x} overlaps clusters in use",
            "give the entry a copy of the table",
            place,
            fixed=fixed,
        )
        repair = self.repair
        self.contested.add(table)
        for start in range(table, table + self.geometry.table_bytes, self.node.cluster_size):
            if self._cluster(start) not in alone:
                self._contest(start)
        if fixed:
            table = self._move_table(index, table)
            for cluster in alone:
                self.used.unmark(cluster)
        else:
            self.repair = Repair()  # whatever is mended here would damage somebody else's cluster
        self._check_l2(index, table)
        self.repair = repair

    def _move_table(self, l1_index: int, table: int) -> int:
        """Give an L1 entry a copy of its L2 table, which points to the same clusters."""
        copy = self._copy_bytes(table, self.geometry.table_bytes)
        self.node.file.flush()
        self.node.tables.write_l1_entry(l1_index, copy)
        self.node.tables.forget()
        self._tables_seen.add(copy)
        return copy

    def _check_l2(self, l1_index: int, table: int) -> None:
        self._last_host = 0
        cleared: list[int] = []
        for index, entry in self._entries(table, f"L2 table {l1_index}"):
            if entry != ZERO_CLUSTER and self._check_cluster(l1_index, index, entry, table):
                cleared.append(index)
        if cleared:
            self._clear(l1_index, cleared)

    def _clear(self, l1_index: int, indexes: list[int]) -> None:
        """Set entries of an L2 table to unallocated."""
        for index in indexes:
            number = l1_index * self.geometry.table_slices + index // SLICE_ENTRIES
            self.node.tables.write_l2(
                l1_index, {number: array("Q", [UNALLOCATED])}, {number: index % SLICE_ENTRIES}
            )

    # --- data clusters --------------------------------------------------------------------------

    def _check_cluster(self, l1_index: int, index: int, entry: int, table: int) -> bool:
        """Check one data cluster; whether its entry must be cleared."""
        result = self.result
        guest = self.geometry.guest_offset(l1_index, index)
        place = table + index * ENTRY_SIZE
        beyond = guest >= self.node.size
        if not beyond:
            result.allocated_clusters += 1
            if self._last_host and self._last_host + self.node.cluster_size != entry:
                result.fragmented_clusters += 1
            self._last_host = entry
        problem = self.node.cluster_problem(entry)
        what = f"L2 entry {index} of table {l1_index} (guest offset {guest:#x}): the cluster at"
        if problem is not None:
            self._corruption(
                f"{what} {entry:#x} {problem}",
                "clear the entry: the cluster reads as unallocated",
                place,
                fixed=self.repair.errors,
            )
            return self.repair.errors
        if beyond:
            return self._beyond_the_end(what, entry, place)
        if self.used.mark(self._cluster(entry)):
            self._contest(entry)
            fixed = self.repair.errors and self.copy_shared
            if fixed:
                self._copy_cluster(l1_index, index, entry)
            self._corruption(
                f"{what} {entry:#x} is referenced more than once",
                "give the entry a copy of the cluster",
                place,
                fixed=fixed,
            )
        return False

    def _contest(self, cluster: int) -> None:
        """Somebody claims a cluster that is in use, perhaps by a table."""
        size = self.node.cluster_size
        starts = range(cluster, cluster - self.geometry.table_bytes, -size)
        self.contested.update(self._tables_seen.intersection(starts))

    def _beyond_the_end(self, what: str, entry: int, place: int) -> bool:
        """A cluster that no guest can reach is wasted space; without the entry it is a leak."""
        self.beyond = True
        fix = self.repair.leaks
        if not fix:
            self.used.mark(self._cluster(entry))
        self.result.report(
            Problem(
                "leak",
                f"{what} {entry:#x} lies behind the end of the disk",
                "clear the entry and give the cluster back",
                fixed=fix,
                offset=place,
            )
        )
        return fix

    def _corruption(self, message: str, remedy: str, offset: int, *, fixed: bool) -> None:
        self.result.report(Problem("corruption", message, remedy, fixed, offset))

    # --- resolving double references --------------------------------------------------------------

    def _copy_cluster(self, l1_index: int, index: int, entry: int) -> None:
        """Give one L2 entry a copy of the cluster it shares."""
        copy = self._copy_bytes(entry, self.node.cluster_size)
        self.node.file.flush()
        number = l1_index * self.geometry.table_slices + index // SLICE_ENTRIES
        self.node.tables.write_l2(
            l1_index, {number: array("Q", [copy])}, {number: index % SLICE_ENTRIES}
        )

    def _copy_table(self, l1_index: int, table: int) -> None:
        """Give one L1 entry a copy of its L2 table, whose clusters are copied as well."""
        copy = self._copy_bytes(table, self.geometry.table_bytes)
        by_slice: dict[int, array[int]] = {}
        for index, entry in self._entries(table, f"L2 table {l1_index}"):
            number, within = divmod(index, SLICE_ENTRIES)
            values = by_slice.setdefault(number, array("Q", bytes(SLICE_BYTES)))
            values[within] = entry
            if entry != ZERO_CLUSTER:
                valid = self.node.cluster_problem(entry) is None
                values[within] = self._copy_bytes(entry, self.node.cluster_size) if valid else 0
                self.result.allocated_clusters += valid
        for number, values in by_slice.items():
            self.node.file.writev(copy + number * SLICE_BYTES, [memoryview(encode(values))])
        self.node.file.flush()
        self.node.tables.write_l1_entry(l1_index, copy)
        self.node.tables.forget()

    def _copy_bytes(self, source: int, length: int) -> int:
        """Copy `length` bytes to new space; where it is."""
        target = self.node.allocate_for_repair(length)
        copy_within(self.node.file, source, target, length)
        self.used.clusters = self.node.file_end // self.node.cluster_size
        self.used.mark(self._cluster(target), length // self.node.cluster_size)
        return target

    # --- leaks ----------------------------------------------------------------------------------

    def count_leaks(self) -> None:
        """Report clusters that nobody references."""
        leaked = self.used.clusters - self.used.used
        if not leaked:
            return
        described = 0
        for first, count in islice(self.used.free_runs(), PROBLEMS_KEPT):
            offset = first * self.node.cluster_size
            message = f"{count} leaked clusters at {offset:#x}: nothing references them"
            problem = Problem("leak", message, "give them back to the file system", offset=offset)
            self.result.report(problem, count)
            described += count
        self.result.leaks += leaked - described


def copy_within(file: Node, source: int, target: int, length: int) -> None:
    """Copy bytes inside a file, in bounded pieces."""
    for start in range(0, length, COPY_PIECE):
        size = min(COPY_PIECE, length - start)
        file.writev(target + start, [memoryview(read_bytes(file, source + start, size))])


def check(node: QedNode, repair: Repair, *, copy_shared: bool = True) -> CheckResult:
    """Check an image that nobody else uses; repair what `repair` says. Raises `IoError`."""
    node.tables.forget()
    checker = Checker(node, Repair())
    result = checker.scan()
    if (repair.errors and result.corruptions) or (repair.leaks and checker.beyond):
        # Who claims what must be known before anything is mended: a table may lie over data.
        contested = frozenset(checker.contested)
        checker = Checker(node, repair, copy_shared=copy_shared, contested=contested)
        result = checker.scan()
    if repair:
        node.file.flush()
    if not result.check_errors:
        checker.count_leaks()
        if repair.leaks and (result.leaks or result.leaks_fixed) and not result.corruptions:
            _give_leaks_back(node, checker)
    if repair and not node.read_only:
        _settle_need_check(node, result)
    return result


def _give_leaks_back(node: QedNode, checker: Checker) -> None:
    from blocklayer.formats.qed.compact import compact

    result = checker.result
    try:
        given_back = compact(node, checker.used)
    except BlocklayerError as error:
        result.report(Problem("error", f"Giving leaked clusters back failed: {error}"))
        return
    result.leaks -= given_back
    result.leaks_fixed += given_back
    if not result.leaks:
        result.problems = [
            Problem(p.kind, p.message, p.remedy, p.fixed or p.kind == "leak", p.offset)
            for p in result.problems
        ]


def _settle_need_check(node: QedNode, result: CheckResult) -> None:
    """NEED_CHECK says whether tables can be trusted; leaks do not matter for that."""
    if result.corruptions or result.check_errors:
        node.keep_need_check()
    else:
        node.mark_clean()
