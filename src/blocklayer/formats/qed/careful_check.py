# SPDX-License-Identifier: Apache-2.0
"""Looking at every entry, and repairing what is wrong (QED specification, "Consistency checking").

A scan over L1 and every L2 table marks the clusters that are referenced. With a repair it mends
what it meets: it clears impossible entries (they then read as the backing file, or zeroes), and
gives entries that share a cluster a copy each.

What all this costs is bounded by the size of the file, whatever its tables say: entries in a
cluster that several tables share are looked at once, and no more is copied than is in use.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from itertools import groupby, islice

from blocklayer.base.errors import IoError, TooDamaged
from blocklayer.base.units import MiB
from blocklayer.core.checking import CheckResult, Problem, Repair
from blocklayer.formats.qed.cluster_map import ClusterMap
from blocklayer.formats.qed.copy_within import copy_within
from blocklayer.formats.qed.layout import (
    ENTRY_SIZE,
    SLICE_BYTES,
    SLICE_ENTRIES,
    UNALLOCATED,
    ZERO_CLUSTER,
)
from blocklayer.formats.qed.tables import encode

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.formats.qed.driver import QedNode

COPIES_MIN = 16 * MiB
"""Bytes of shared clusters that repair copies in any case; otherwise as many as are in use."""


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
        self.result = CheckResult(node.filename, node.driver, problems_max=node.problems_max)
        self.result.total_clusters = self.geometry.clusters(node.size)
        self.contested = set(contested)
        """Offsets of tables of whose clusters others claim some, as far as is known."""
        self.wrong_max: int | None = None
        """Wrong entries after which nobody needs to know how many there are."""
        self.cleared = False
        """Entries were cleared: what is leaked may be what they mapped."""
        self.beyond = False
        """There are entries behind the end of the disk."""
        self._tables_seen: set[int] = set()
        self._scanned = ClusterMap(self.used.clusters)
        """Clusters of L2 tables whose entries have been looked at."""
        self._end = node.file_end
        """Repair makes the file longer; what pointed behind its end must stay invalid."""
        self._copied = 0
        self._too_large_to_copy: set[int] = set()
        """Offsets of shared tables."""
        self._last_host = 0

    def scan(self) -> CheckResult:
        """Mark everything that is referenced and report what cannot be."""
        header = self.node.header
        self.used.mark(0, header.header_size)
        self.used.mark(self._cluster(header.l1_table_offset), self.geometry.table_size)
        cleared: list[int] = []
        reporter = self.node.reporter("repair" if self.repair else "check", self.node.size)
        for index, table in self._entries(header.l1_table_offset, "the L1 table"):
            reporter.reach(min(self.geometry.guest_offset(index, 0), self.node.size))
            if not self._check_table(index, table):
                continue
            if cleared and cleared[-1] // SLICE_ENTRIES != index // SLICE_ENTRIES:
                self._clear_l1(cleared)
                cleared = []
            cleared.append(index)
        if cleared:
            self._clear_l1(cleared)
        reporter.finish()
        return self.result

    def _clear_l1(self, indexes: list[int]) -> None:
        """Set entries of one slice of the L1 table to unallocated."""
        number = indexes[0] // SLICE_ENTRIES
        values = _without(self.node.tables.l1_slice(number), indexes)
        self.node.tables.write_l1_entries(number, indexes[0] % SLICE_ENTRIES, values)

    def _cluster(self, offset: int) -> int:
        return offset // self.node.cluster_size

    def _entries(
        self, place: int, what: str, start: int = 0, length: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Entries of a table that are not 0, as (index, value), as far as it can be read."""
        try:
            yield from self.node.tables.scan(place, start, length)
        except IoError as error:
            self.result.report(Problem("error", f"Cannot read {what}: {error}", offset=place))

    # --- tables ---------------------------------------------------------------------------------

    def _check_table(self, index: int, table: int) -> bool:
        """Check an L2 table; whether the L1 entry that points to it must be cleared."""
        problem = self.node.table_problem(table) or self._behind(table, self.geometry.table_bytes)
        if problem is not None:
            remedy = "clear the entry: what the table mapped reads as unallocated"
            self._wrong_table(index, table, problem, remedy, fixed=self.repair.errors)
            return self._clears()
        if table in self._tables_seen:
            self._shared_table(index, table)
            return False
        first, count = self._cluster(table), self.geometry.table_size
        alone = self.used.free(first, count)
        self.used.mark(first, count)
        if len(alone) < count or table in self.contested:
            self._overlapping_table(index, table, alone)
        else:
            self._tables_seen.add(table)
            self._scanned.mark(first, count)
            self._check_l2(index, table)
        return False

    def _wrong_table(self, index: int, table: int, what: str, remedy: str, *, fixed: bool) -> None:
        self._found(
            "corruption",
            lambda: Problem(
                "corruption",
                f"L1 entry {index}: the L2 table at {table:#x} {what}",
                remedy,
                fixed,
                self.node.header.l1_table_offset + index * ENTRY_SIZE,
                l1_index=index,
                guest_offset=self.geometry.guest_offset(index, 0),
                cluster=table,
            ),
            fixed=fixed,
        )

    def _shared_table(self, index: int, table: int) -> None:
        fixed = self.repair.errors and self.copy_shared and self._copy_table(index, table)
        remedy = "give the entry a copy of the table and of its clusters"
        self._wrong_table(index, table, "is referenced more than once", remedy, fixed=fixed)

    def _overlapping_table(self, index: int, table: int, alone: list[int]) -> None:
        """Others claim clusters of the table, but nobody so far those in `alone`."""
        fixed = self.repair.errors and self.copy_shared and self._may_copy(self.geometry.table_size)
        remedy = "give the entry a copy of the table"
        self._wrong_table(index, table, "overlaps clusters in use", remedy, fixed=fixed)
        repair = self.repair
        self.contested.add(table)
        for start in range(table, table + self.geometry.table_bytes, self.node.cluster_size):
            if self._cluster(start) not in alone:
                self._contest(start)
        if fixed:
            table = self._move_table(index, table)
            for cluster in alone:
                self.used.unmark(cluster)
            self._check_l2(index, table)
            return
        self._tables_seen.add(table)
        self.repair = Repair()  # whatever is mended here would damage somebody else's cluster
        size = self.node.cluster_size
        for start in range(0, self.geometry.table_bytes, size):
            if not self._scanned.mark(self._cluster(table + start)):
                self._check_l2(index, table, start, size)
        self.repair = repair

    def _move_table(self, l1_index: int, table: int) -> int:
        """Give an L1 entry a copy of its L2 table, which points to the same clusters."""
        copy = self._copy_bytes(table, self.geometry.table_bytes)
        self.node.file.flush()
        self.node.tables.write_l1_entry(l1_index, copy)
        self.node.tables.forget()
        self._tables_seen.add(copy)
        self._scanned.mark(self._cluster(copy), self.geometry.table_size)
        return copy

    def _check_l2(
        self, l1_index: int, table: int, start: int = 0, length: int | None = None
    ) -> None:
        """Check the entries of a table, or of a part of it in bytes; clear bad ones by slices."""
        self._last_host = 0
        cleared: list[int] = []
        for index, entry in self._entries(table, f"L2 table {l1_index}", start, length):
            if entry == ZERO_CLUSTER or not self._check_cluster(l1_index, index, entry, table):
                continue
            if cleared and cleared[-1] // SLICE_ENTRIES != index // SLICE_ENTRIES:
                self._clear(l1_index, cleared)
                cleared = []
            cleared.append(index)
        if cleared:
            self._clear(l1_index, cleared)

    def _clear(self, l1_index: int, indexes: list[int]) -> None:
        """Set entries of one slice of an L2 table to unallocated."""
        number = l1_index * self.geometry.table_slices + indexes[0] // SLICE_ENTRIES
        entries = self.node.tables.l2_slice(number)
        assert entries is not None
        first = {number: indexes[0] % SLICE_ENTRIES}
        self.node.tables.write_l2(l1_index, {number: _without(entries, indexes)}, first)

    def _behind(self, place: int, length: int) -> str | None:
        """A problem, if something does not lie in the file as it was when the check began."""
        if place + length <= self._end:
            return None
        return f"lies behind the end of the file ({self._end:#x})"

    # --- data clusters --------------------------------------------------------------------------

    def _check_cluster(self, l1_index: int, index: int, entry: int, table: int) -> bool:
        """Check one data cluster; whether its entry must be cleared."""
        result = self.result
        guest = self.geometry.guest_offset(l1_index, index)
        beyond = guest >= self.node.size
        if not beyond:
            result.allocated_clusters += 1
            if self._last_host and self._last_host + self.node.cluster_size != entry:
                result.fragmented_clusters += 1
            self._last_host = entry
        problem = self.node.cluster_problem(entry) or self._behind(entry, self.node.cluster_size)
        if problem is None and not beyond and not self.used.mark(self._cluster(entry)):
            return False
        return self._wrong_cluster(l1_index, index, entry, table, problem)

    def _wrong_cluster(
        self, l1_index: int, index: int, entry: int, table: int, problem: str | None
    ) -> bool:
        """Report and mend what an entry points to; whether the entry must be cleared."""
        guest = self.geometry.guest_offset(l1_index, index)
        kind, clear = "corruption", False
        if problem is not None:
            what, remedy = problem, "clear the entry: the cluster reads as unallocated"
            fixed = clear = self._clears()
        elif guest >= self.node.size:
            # A cluster that no guest can reach is wasted space; without the entry it is a leak.
            kind, what = "leak", "lies behind the end of the disk"
            remedy = "clear the entry and give the cluster back"
            self.beyond = True
            fixed = clear = self.repair.leaks
            if not clear:
                self.used.mark(self._cluster(entry))
        else:
            what, remedy = "is referenced more than once", "give the entry a copy of the cluster"
            fixed = self._resolve_shared(l1_index, index, entry)
        self._found(
            kind,
            lambda: Problem(
                kind,
                f"L2 entry {index} of table {l1_index} (guest offset {guest:#x}): the cluster at"
                f" {entry:#x} {what}",
                remedy,
                fixed,
                table + index * ENTRY_SIZE,
                l1_index=l1_index,
                l2_index=index,
                guest_offset=guest,
                cluster=entry,
            ),
            fixed=fixed,
        )
        return clear

    def _resolve_shared(self, l1_index: int, index: int, entry: int) -> bool:
        """Give an entry that shares its cluster one of its own; whether that was done."""
        self._contest(entry)
        fixed = self.repair.errors and self.copy_shared and self._may_copy(1)
        if fixed:
            self._copy_cluster(l1_index, index, entry)
        return fixed

    def _contest(self, cluster: int) -> None:
        """Somebody claims a cluster that is in use, perhaps by a table."""
        if not self._scanned.has(self._cluster(cluster)):
            return
        size = self.node.cluster_size
        starts = range(cluster, cluster - self.geometry.table_bytes, -size)
        self.contested.update(self._tables_seen.intersection(starts))

    def _clears(self) -> bool:
        """Whether an entry that points nowhere is cleared."""
        self.cleared = self.cleared or self.repair.errors
        return self.repair.errors

    def _found(self, kind: str, describe: Callable[[], Problem], *, fixed: bool) -> None:
        """Count a problem; describe it while there is room, since there may be millions."""
        if self.result.full:
            self.result.count(kind, fixed=fixed)
        else:
            self.result.report(describe())
        if self.wrong_max is not None and self.result.corruptions > self.wrong_max:
            raise self.too_damaged()

    def too_damaged(self) -> TooDamaged:
        """Why nothing is repaired."""
        return TooDamaged(
            f"At least {self.result.corruptions} entries are wrong, far more than can be right in"
            f" {self.used.clusters} clusters: what is read as tables is probably something else"
            f" (the header has the L1 table at {self.node.header.l1_table_offset:#x}). Nothing was"
            " repaired",
            self.node.filename,
        )

    # --- resolving double references --------------------------------------------------------------

    def _may_copy(self, clusters: int) -> bool:
        """Whether so many copies more are in proportion to the image.

        A file of a few clusters can ask for copies of exbibytes, by naming them again and again.
        """
        limit = max(self.used.used - self._copied, COPIES_MIN // self.node.cluster_size)
        return self._copied + clusters <= limit

    def _copy_cluster(self, l1_index: int, index: int, entry: int) -> None:
        """Give one L2 entry a copy of the cluster it shares."""
        copy = self._copy_bytes(entry, self.node.cluster_size)
        self.node.file.flush()
        number = l1_index * self.geometry.table_slices + index // SLICE_ENTRIES
        self.node.tables.write_l2(
            l1_index, {number: array("Q", [copy])}, {number: index % SLICE_ENTRIES}
        )

    def _copy_table(self, l1_index: int, table: int) -> bool:
        """Give one L1 entry a copy of its L2 table, whose clusters are copied as well.

        False, and nothing is done, if that would be too many.
        """
        clusters = self.geometry.table_size
        if not self._may_copy(clusters):
            return False
        if table in self._too_large_to_copy:
            return False
        clusters += sum(
            self._is_worth_a_copy(l1_index, index, entry)
            for index, entry in self._entries(table, f"L2 table {l1_index}")
        )
        if not self._may_copy(clusters):
            # Counting again for each L1 entry that names it could take for ever.
            self._too_large_to_copy.add(table)
            return False
        copy = self._copy_bytes(table, self.geometry.table_bytes)
        entries = self._entries(table, f"L2 table {l1_index}")
        for number, group in groupby(entries, key=lambda pair: pair[0] // SLICE_ENTRIES):
            values = array("Q", bytes(SLICE_BYTES))
            for index, entry in group:
                if entry == ZERO_CLUSTER:
                    values[index % SLICE_ENTRIES] = entry
                elif self._is_worth_a_copy(l1_index, index, entry):
                    cluster = self._copy_bytes(entry, self.node.cluster_size)
                    values[index % SLICE_ENTRIES] = cluster
                    self.result.allocated_clusters += 1
            self.node.file.writev(copy + number * SLICE_BYTES, [memoryview(encode(values))])
        self.node.file.flush()
        self.node.tables.write_l1_entry(l1_index, copy)
        self.node.tables.forget()
        return True

    def _is_worth_a_copy(self, l1_index: int, index: int, entry: int) -> bool:
        """Whether an entry points to a cluster that exists and that a guest can reach."""
        if entry == ZERO_CLUSTER or self.node.cluster_problem(entry) is not None:
            return False
        return self.geometry.guest_offset(l1_index, index) < self.node.size

    def _copy_bytes(self, source: int, length: int) -> int:
        """Copy `length` bytes to new space; where it is."""
        target = self.node.allocate_for_repair(length)
        copy_within(self.node.file, source, target, length)
        self.used.clusters = self.node.file_end // self.node.cluster_size
        clusters = length // self.node.cluster_size
        self.used.mark(self._cluster(target), clusters)
        self._copied += clusters
        return target

    # --- leaks ----------------------------------------------------------------------------------

    def count_leaks(self) -> None:
        """Report clusters that nobody references."""
        leaked = self.used.clusters - self.used.used
        if not leaked:
            return
        described = 0
        size = self.node.cluster_size
        remedy = "give them back to the file system"
        if self.cleared:
            remedy = "keep them: entries were cleared, and these may be what they mapped"
        for first, count in islice(self.used.free_runs(), self.result.problems_max):
            offset = first * size
            problem = Problem(
                "leak",
                f"{count} leaked clusters at {offset:#x}: nothing references them",
                remedy,
                offset=offset,
                cluster=offset,
                length=count * size,
            )
            self.result.report(problem, count)
            described += count
        self.result.leaks += leaked - described
        self.result.more = self.result.more or described < leaked


def _without(entries: array[int], indexes: list[int]) -> array[int]:
    """The entries of a slice from the first to the last of `indexes`, with these cleared."""
    first = indexes[0] % SLICE_ENTRIES
    values = entries[first : indexes[-1] % SLICE_ENTRIES + 1]
    for index in indexes:
        values[index - indexes[0]] = UNALLOCATED
    return values
