# SPDX-License-Identifier: Apache-2.0
"""The reading half of the QED node: what the header says, and where guest bytes live.

Entries are looked at before they are believed: what points into the header, into the L1 table or
behind the end of the file is damage, and is reported as such.
"""

from __future__ import annotations

from array import array

from blocklayer.base.errors import CorruptImage, TruncatedImage
from blocklayer.base.extent import BACKING, DATA, ZERO
from blocklayer.base.units import MiB
from blocklayer.core.mapping import resolve
from blocklayer.core.node import FormatNode, Inline, Mapped, Node
from blocklayer.formats.qed.header import read_backing_name, read_header
from blocklayer.formats.qed.layout import (
    ENTRY_SIZE,
    F_BACKING_FILE,
    F_NEED_CHECK,
    SLICE_BYTES,
    SLICE_ENTRIES,
    UNALLOCATED,
    ZERO_CLUSTER,
)
from blocklayer.formats.qed.tables import Tables

INLINE_RUN_MAX = 2 * MiB
"""Bytes of a request over clusters in a row that takes the inline path: bounds the look at them."""

_NO_ENTRY = -1

_ALIKE = {
    entry: array("Q", [entry] * SLICE_ENTRIES).tobytes() for entry in (UNALLOCATED, ZERO_CLUSTER)
}
"""Slices whose entries are all the same."""

_EMPTY_SLICE = bytes(SLICE_BYTES)


class QedMapping(FormatNode):
    """An open QED image, as far as reading goes."""

    driver = "qed"

    def __init__(self, file: Node, *, read_only: bool) -> None:
        super().__init__(file, read_only=read_only)
        self.header, self.geometry = read_header(file)
        self.cluster_size = self.geometry.cluster_size
        self.table_bytes = self.geometry.table_bytes
        self.limits.zero_alignment = self.limits.opt_transfer = self.cluster_size
        self.size = self.header.image_size
        self.backing_filename, self.backing_format = read_backing_name(file, self.header)
        self.file_end = self.geometry.cluster_start(file.size)
        """Where the next cluster is allocated; what lies behind it belongs to nobody."""
        self.tables = Tables(self)

    @property
    def header_end(self) -> int:
        """The file offset behind the header clusters."""
        return self.header.header_size * self.cluster_size

    @property
    def l1_end(self) -> int:
        """The file offset behind the L1 table."""
        return self.header.l1_table_offset + self.geometry.table_bytes

    @property
    def has_backing(self) -> bool:
        """The header names a backing file, whether it is open or not."""
        return bool(self.header.features & F_BACKING_FILE)

    @property
    def needs_check(self) -> bool:
        """The image is marked as possibly inconsistent."""
        return bool(self.header.features & F_NEED_CHECK)

    # --- where bytes live -----------------------------------------------------------------------

    def map(self, offset: int, length: int) -> Mapped:
        """The first run: clusters that are contiguous in the file, or all without a place."""
        geometry = self.geometry
        entries = self.tables.l2_slices.get(geometry.slice_number(offset))
        if entries is None:
            entries = self.tables.l2_slice(geometry.slice_number(offset))
            if entries is None:
                return BACKING, self._unmapped_run(offset, length), None, 0
        index = geometry.slice_index(offset)
        entry = entries[index]
        within = geometry.in_cluster(offset)
        count = _run(entries, index, entry, geometry.clusters(within + length), self.cluster_size)
        wanted, length = length, min(length, count * self.cluster_size - within)
        if entry == UNALLOCATED:
            if length < wanted:
                length = self._unallocated_run(offset, length, wanted)
            return BACKING, length, None, 0
        if entry == ZERO_CLUSTER:
            return ZERO, length, None, 0
        self._require_clusters(entry, count, offset)
        return DATA, length, self.file, entry + within

    def map_many(self, offset: int, length: int) -> list[Mapped]:
        """The runs of one slice of a table."""
        geometry = self.geometry
        number = geometry.slice_number(offset)
        entries = self.tables.l2_slices.get(number) or self.tables.l2_slice(number)
        within = geometry.in_cluster(offset)
        index = geometry.slice_index(offset)
        stop = min(SLICE_ENTRIES, index + geometry.clusters(within + length))
        if entries is None or stop - index < 2 or _all_alike(entries, index, stop):
            return [self.map(offset, length)]
        runs = self._runs(entries[index:stop])
        if len(runs) < 2:  # none that is valid, or one that may go on behind the slice
            return [self.map(offset, length)]
        if within:
            kind, count, child, host = runs[0]
            runs[0] = (kind, count - within, child, host + within if child else 0)
        over = (stop - index) * self.cluster_size - within - length
        if over > 0 and sum(run[1] for run in runs) > length:
            kind, count, child, host = runs[-1]
            runs[-1] = (kind, count - over, child, host)
        return runs

    def _runs(self, entries: array[int]) -> list[Mapped]:
        """Runs of table entries up to the first that cannot be."""
        cluster, mask, file = self.cluster_size, self.geometry.cluster_mask, self.file
        first, end = max(self.header_end, self.l1_end), self.file_end
        runs: list[Mapped] = []
        start, expected, length = entries[0], entries[0], 0
        for entry in (*entries, _NO_ENTRY):
            if entry == expected:
                length += cluster
                if entry > ZERO_CLUSTER:
                    expected += cluster
                continue
            if start > ZERO_CLUSTER:
                if not first <= start <= end - length or start & mask:
                    break
                runs.append((DATA, length, file, start))
            else:
                runs.append((ZERO if start else BACKING, length, None, 0))
            start, length = entry, cluster
            expected = entry + cluster if entry > ZERO_CLUSTER else entry
        return runs

    def _unallocated_run(self, offset: int, run: int, wanted: int) -> int:
        """A run of unallocated clusters, longer by what a hole in the file says of its table."""
        geometry = self.geometry
        number = geometry.slice_number(offset + run)
        if geometry.to_slice_end(offset) != run or not geometry.slice_in_table(number):
            return run
        table = self.tables.l1_entry(geometry.l1_index(offset))
        start = geometry.slice_in_table(number) * SLICE_BYTES
        extent = resolve(self.file, table + start, geometry.table_bytes - start)
        slices = extent.length // SLICE_BYTES if extent.zero else 0
        return min(run + slices * geometry.slice_span, wanted)

    def _unmapped_run(self, offset: int, length: int) -> int:
        """Bytes from `offset` for which there are no L2 tables."""
        geometry = self.geometry
        run = geometry.to_table_end(offset)
        while run < length:
            number, index = divmod(geometry.l1_index(offset + run), SLICE_ENTRIES)
            entries = self.tables.l1_slice(number)
            if not index and entries.tobytes() == _EMPTY_SLICE:
                run += geometry.table_span * SLICE_ENTRIES
            elif entries[index]:
                break
            else:
                run += geometry.table_span
        return min(run, length)

    def _require_clusters(self, entry: int, count: int, offset: int) -> None:
        """Raise unless `count` data clusters can stand at `entry`."""
        last = entry + (count - 1) * self.cluster_size
        problem = self.cluster_problem(entry) or self.cluster_problem(last)
        if problem is None and entry < self.header.l1_table_offset < last:
            problem = "belongs to a run over the L1 table"
        if problem is not None:
            kind = TruncatedImage if "end of the file" in problem else CorruptImage
            raise kind(
                f"The data cluster of guest offset {offset:#x} at {entry:#x} {problem};"
                f" run 'blk check' on '{self.filename}'",
                self.filename,
            )

    def cluster_problem(self, entry: int) -> str | None:
        """Why no cluster can stand at `entry`; None if one can."""
        if self.geometry.in_cluster(entry):
            return "is not aligned to clusters"
        if entry < self.header_end:
            return "lies in the header"
        if entry >= self.file_end:
            return f"lies behind the end of the file ({self.file_end:#x})"
        if self.header.l1_table_offset <= entry < self.l1_end:
            return "lies in the L1 table"
        return None

    def table_problem(self, table: int) -> str | None:
        """Why no L2 table can stand at `table`; None if one can."""
        problem = self.cluster_problem(table)
        if problem is not None:
            return problem
        end = table + self.geometry.table_bytes
        if end > self.file_end:
            return f"reaches behind the end of the file ({self.file_end:#x})"
        if table < self.header.l1_table_offset < end:
            return "overlaps the L1 table"
        return None

    def inline(self) -> Inline | None:
        """The inline path: one slice in the cache, one cluster, one descriptor."""
        descriptor = self.file.inline_descriptor
        if descriptor is None:
            return None
        get_slice = self.tables.l2_slices.get
        slice_shift = self.geometry.slice_shift
        slice_mask = self.geometry.slice_mask
        cluster_bits = self.geometry.cluster_bits
        cluster_mask = self.geometry.cluster_mask
        cluster_size = self.cluster_size
        # Entries below are looked at closely by the slow path.
        first = max(self.header_end, self.l1_end)

        def lookup(offset: int, length: int) -> int:
            entries = get_slice(offset >> slice_shift)
            if entries is not None and offset + length <= self.size:
                within = offset & cluster_mask
                if within + length <= cluster_size:
                    entry = entries[(offset >> cluster_bits) & slice_mask]
                    if first <= entry < self.file_end and not entry & cluster_mask:
                        return entry + within
                elif length <= INLINE_RUN_MAX:
                    index = (offset >> cluster_bits) & slice_mask
                    run = entries[index : index + ((within + length - 1) >> cluster_bits) + 1]
                    entry = run[0]
                    end = entry + len(run) * cluster_size
                    if (
                        within + length <= end - entry  # the run does not leave the slice
                        and first <= entry
                        and end <= self.file_end
                        and not entry & cluster_mask
                        and run == array("Q", range(entry, end, cluster_size))
                    ):
                        return entry + within
            return -1

        return Inline(lookup, lookup, descriptor)


def _all_alike(entries: array[int], start: int, end: int) -> bool:
    """Whether some entries are all unallocated, or all zero clusters."""
    alike = _ALIKE.get(entries[start])
    return alike is not None and entries[start:end].tobytes() == alike[: (end - start) * ENTRY_SIZE]


def _run(entries: array[int], index: int, entry: int, limit: int, cluster: int) -> int:
    """Entries from `index` on that continue `entry`, at most `limit`, within the slice."""
    end = min(index + limit, SLICE_ENTRIES)
    position = index + 1
    if entry <= ZERO_CLUSTER:
        if _all_alike(entries, index, end):
            return end - index
        while position < end and entries[position] == entry:
            position += 1
    else:
        expected = entry + cluster
        while position < end and entries[position] == expected:
            expected += cluster
            position += 1
    return position - index
