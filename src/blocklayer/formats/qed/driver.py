# SPDX-License-Identifier: Apache-2.0
"""The QED node: where guest bytes may go, and in which order tables change.

Order of an allocating write (QED specification, and the integrity argument of its authors):

    no backing file   NEED_CHECK set and flushed, data, L2 entry. A crash may leave entries that
                      point past the end of the file, or leaks; the check at the next opening
                      clears the former, which then read as zeroes as before the write.
    backing file      data, flush, L2 entry. The tables are consistent at every moment.
    new L2 table      data, table, flush, L1 entry.

Space is given out at the end of the file only, so it reads as zeroes until it is written, and the
file always reaches to the end of the last cluster that was given out.
"""

from __future__ import annotations

import threading
import time
import weakref
from array import array
from collections.abc import Sequence

from blocklayer.base.errors import (
    BlocklayerError,
    InvalidArgument,
    IoError,
    NotSupported,
    OutOfRange,
)
from blocklayer.base.extent import BACKING, DATA, ZERO
from blocklayer.base.options import OptionTree
from blocklayer.base.units import INT64_MAX, SECTOR
from blocklayer.core.checking import CheckResult, Repair
from blocklayer.core.drivers import FORMAT, Driver
from blocklayer.core.node import Node, WritePlan
from blocklayer.core.opening import Opener, OpenFlags
from blocklayer.formats.qed import create as qed_create
from blocklayer.formats.qed.header import write_header
from blocklayer.formats.qed.layout import F_NEED_CHECK, SLICE_ENTRIES, ZERO_CLUSTER, Header
from blocklayer.formats.qed.mapping import QedMapping

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

NEED_CHECK_IDLE_SECONDS = 5.0
"""Time after the last allocating write until the image is marked clean again."""

NEW_SLICES_MAX = 2048
"""Slices of new tables (4 KiB each) that wait in memory for the flush that they share."""


class QedNode(QedMapping):
    """An open QED image."""

    def __init__(self, file: Node, flags: OpenFlags) -> None:
        super().__init__(file, read_only=flags.read_only)
        self._flags = flags
        self._lock = threading.Lock()
        self._trimmed = False
        self._cut = False
        """Bytes behind `file_end` were cut off, but a power failure may still bring them back."""
        self._uncommitted = 0
        self._keep_need_check = False
        """Something may be wrong with the tables: the next opening has to look."""
        self._marked_by_us = False
        self._last_allocation = 0.0
        self._idle_timer: threading.Timer | None = None

    # --- opening --------------------------------------------------------------------------------

    def activate(self) -> None:
        """Read-write opening: forget unknown autoclear features, check an image left dirty."""
        if self.read_only:
            return
        if self.header.autoclear_features:
            self._update_header(autoclear_features=0)
            self.file.flush()
        if self.needs_check and not self._flags.check:
            self._check_left_dirty()

    def _check_left_dirty(self) -> None:
        from blocklayer.formats.qed.check import check

        result = check(self, Repair(errors=True), copy_shared=False)
        if result.failure is not None:
            # An entry that was not seen may point to space that is given out next.
            raise IoError(
                f"The image was not closed cleanly, and checking it failed: {result.failure}",
                self.filename,
                operation="open",
            )
        if not result.corruptions:
            if not result.corruptions_fixed:  # else it may be what a cleared entry has mapped
                self._cut_trailing_leaks()
            self.mark_clean()
            return
        self._keep_need_check = True
        import logging

        logging.getLogger("blocklayer").warning(
            "'%s' is damaged: %d corruptions remain after the check on opening;"
            " run 'blk check' on it",
            self.filename,
            result.corruptions,
        )

    def _cut_trailing_leaks(self) -> None:
        """Give back what a crash left behind the last cluster in use."""
        from blocklayer.formats.qed.compact import last_used_end

        end = last_used_end(self)
        if end < self.file_end and self.file.grows_zeroed:
            self.file.truncate(end)
            self.file_end = end

    def reopen(self, read_only: bool) -> None:
        """Change the mode; going read-only marks the image clean first."""
        was_read_only = self.read_only
        if read_only and not was_read_only:
            self._settle()
        super().reopen(read_only)
        if not read_only:
            try:
                self.activate()
            except BaseException:
                if was_read_only:  # an image that may not be opened for writing stays as it was
                    super().reopen(True)
                raise

    # --- where bytes may go ---------------------------------------------------------------------

    def place(self, offset: int, length: int) -> tuple[Node, int, int] | None:
        """Data clusters are written in place."""
        kind, count, _, host = self.map(offset, length)
        return (self.file, host, count) if kind == DATA else None

    def plan_write(self, offset: int, length: int) -> WritePlan:
        """New clusters for the run of clusters without a place that starts at `offset`."""
        geometry = self.geometry
        start = geometry.cluster_start(offset)
        first_kind, _, _, _ = self.map(offset, 1)
        count = self._placeless_clusters(start, offset + length)
        end = min(start + count * self.cluster_size, geometry.cluster_up(offset + length))
        stop = min(end, offset + length)
        plan = WritePlan(start, end - start, 0, head=offset - start, tail=end - stop)
        below = self.backing is not None
        plan.copy_head = below and plan.head > 0 and first_kind == BACKING
        if plan.tail and below:
            plan.copy_tail = self.map(stop - 1, 1)[0] == BACKING
        self._begin_allocation()
        try:
            with self._lock:
                partial = plan.head > 0 or plan.tail > 0
                plan.host, plan.fresh = self._allocate(plan.length, extend=partial)
        except BaseException:
            self._end_allocation([plan])
            raise
        return plan

    def can_merge(self, offset: int, length: int) -> bool:
        """A gap in a cluster that is unallocated over nothing, or a zero cluster."""
        within = self.geometry.in_cluster(offset)
        if within + length > self.cluster_size or not within:
            return False
        kind = self.map(offset, 1)[0]
        return kind == ZERO or (kind == BACKING and self.backing is None)

    def plan_zero(self, offset: int, length: int) -> WritePlan | None:
        """Clusters without a place become zero clusters."""
        if self.map(offset, 1)[0] == DATA:
            return None
        count = self._placeless_clusters(offset, offset + length)
        self._begin_allocation()
        return WritePlan(offset, count * self.cluster_size, 0, zero=True)

    def _placeless_clusters(self, start: int, end: int) -> int:
        """Clusters from `start` that have no place, within one L2 table."""
        geometry = self.geometry
        end = min(end, start + geometry.to_table_end(start))
        position = start
        while position < end:
            kind, count, _, _ = self.map(position, end - position)
            if kind == DATA:
                break
            position += count
        return geometry.clusters(position - start)

    def _allocate(self, length: int, *, extend: bool) -> tuple[int, bool]:
        """`length` bytes at the end of the file; whether they read as zeroes. Holds the lock.

        With `extend` the file is made to hold them; otherwise they are about to be written whole.
        """
        host = self.file_end
        end = host + length
        if end > INT64_MAX:
            raise OutOfRange(f"'{self.filename}' cannot grow beyond {INT64_MAX} bytes")
        fresh = self.file.grows_zeroed
        if fresh and not self._trimmed:
            if self.file.size > host:
                self.file.truncate(host)  # a partial cluster that belongs to nobody
                self._cut = True
            self._trimmed = True
        if self._cut:
            self.file.flush()
            self._cut = False
        if not fresh and end > self.file.size:
            raise OutOfRange(
                f"No space left for '{self.filename}': its device has {self.file.size} bytes"
            )
        if fresh and extend:
            self.file.truncate(end)
        self.file_end = end
        return host, fresh

    def allocate_table(self) -> int:
        """Space for a table that the caller, who holds the lock, is about to write whole."""
        return self._allocate(self.geometry.table_bytes, extend=False)[0]

    def allocate_for_repair(self, length: int) -> int:
        """New space for a repair, which has the image to itself; zeroed or not."""
        with self._lock:
            return self._allocate(length, extend=True)[0]

    def _begin_allocation(self) -> None:
        """Before the first byte of an allocating write: mark the image."""
        with self._lock:
            if not self.has_backing and not self.needs_check:
                self._announce("need_check_set")
                header = self.header.replace(features=self.header.features | F_NEED_CHECK)
                write_header(self.file, header)
                self.file.flush()
                # Only now: if it is not on disk for certain, the next write has to try again.
                self.header = header
                self._marked_by_us = True
                self._arm_idle_timer(NEED_CHECK_IDLE_SECONDS)
            self._uncommitted += 1

    def _end_allocation(self, plans: Sequence[WritePlan]) -> None:
        """They are committed or abandoned; or both, if an interrupt comes between."""
        with self._lock:
            for plan in plans:
                if not plan.ended:
                    plan.ended = True
                    self._uncommitted -= 1
            self._last_allocation = time.monotonic()

    def abandon_writes(self, plans: Sequence[WritePlan]) -> None:
        """Take space back that is still the last of the file; leak it otherwise."""
        with self._lock:
            for plan in reversed(plans):
                if plan.zero or plan.may_be_visible or plan.host + plan.length != self.file_end:
                    continue
                try:
                    if self.file.grows_zeroed:
                        self._cut = True
                        self.file.truncate(plan.host)
                        self.file_end = plan.host
                except BlocklayerError:
                    continue  # it stays leaked; the failure that led here is being reported
        self._end_allocation(plans)

    # --- making it visible ----------------------------------------------------------------------

    def commit_writes(self, plans: Sequence[WritePlan]) -> None:
        """Point L2 entries to the plans' clusters, one update a table."""
        by_table: dict[int, list[WritePlan]] = {}
        for plan in plans:
            by_table.setdefault(self.geometry.l1_index(plan.start), []).append(plan)
        must_flush = self.has_backing and not all(plan.zero for plan in plans)
        if must_flush and all(self.tables.l1_entry(index) for index in by_table):
            self.file.flush()  # here and not below, where others would wait for it
            must_flush = False
        # From here on they may be in use, however this ends: by an error, or by an interrupt after
        # all is done. Space that may be in use is never handed out again.
        for plan in plans:
            plan.may_be_visible = True
        with self._lock:
            try:
                new = {
                    index: group
                    for index, group in by_table.items()
                    if not self.tables.l1_entry(index)
                }
                if new:
                    self._commit_new_tables(new)
                elif must_flush:  # another writer made the tables meanwhile
                    self.file.flush()
                for index, group in by_table.items():
                    if index not in new:
                        self._commit_to_table(index, group)
            except BaseException:
                self._keep_need_check = True  # what reached the disk is not known
                raise
        self._end_allocation(plans)

    def _commit_to_table(self, l1_index: int, plans: list[WritePlan]) -> None:
        """A slice is written once, from its first to its last change."""
        updates: dict[int, array[int]] = {}
        firsts: dict[int, int] = {}
        for plan in plans:
            for number, first, values in self._plan_entries(plan):
                if number not in updates:
                    updates[number], firsts[number] = values, first
                    continue
                known = self.tables.l2_slice(number)
                assert known is not None
                behind = firsts[number] + len(updates[number])
                updates[number] = updates[number] + known[behind:first] + values
        self.tables.write_l2(l1_index, updates, firsts)

    def _plan_entries(self, plan: WritePlan) -> list[tuple[int, int, array[int]]]:
        """(slice number, first index in it, entries) of a plan, cut at slice boundaries."""
        geometry = self.geometry
        cluster = self.cluster_size
        pieces = []
        done = 0
        while done < plan.length:
            position = plan.start + done
            size = min(plan.length - done, geometry.to_slice_end(position))
            count = size // cluster
            if plan.zero:
                values = array("Q", [ZERO_CLUSTER]) * count
            else:
                host = plan.host + done
                values = array("Q", range(host, host + size, cluster))
            pieces.append((geometry.slice_number(position), geometry.slice_index(position), values))
            done += size
        return pieces

    def _commit_new_tables(self, groups: dict[int, list[WritePlan]]) -> None:
        """Tables, one flush (which also covers the data), L1 entries; many tables in bounded steps.

        `groups` are plans by L1 index.
        """
        written: list[tuple[int, int, dict[int, array[int]]]] = []
        waiting = 0
        for index, plans in groups.items():
            table, slices = self._write_new_table(plans)
            written.append((index, table, slices))
            waiting += len(slices)
            if waiting >= NEW_SLICES_MAX:
                self._connect_tables(written)
                written, waiting = [], 0
        if written:
            self._connect_tables(written)

    def _connect_tables(self, written: list[tuple[int, int, dict[int, array[int]]]]) -> None:
        """Make new tables (L1 index, offset, slices) reachable."""
        self.flush()
        for index, table, slices in written:
            self.tables.write_l1_entry(index, table)
            self.tables.adopt(slices)

    def _write_new_table(self, plans: list[WritePlan]) -> tuple[int, dict[int, array[int]]]:
        """A table for plans in new space, not reachable yet; its offset and slices."""
        slices: dict[int, array[int]] = {}
        for plan in plans:
            for number, first, values in self._plan_entries(plan):
                entries = slices.setdefault(number, array("Q", bytes(SLICE_ENTRIES * 8)))
                entries[first : first + len(values)] = values
        table, fresh = self._allocate(self.geometry.table_bytes, extend=True)
        if not fresh:
            from blocklayer.core.zeroing import zero_range

            zero_range(self.file, table, self.geometry.table_bytes, 0)
        self.tables.write_new_table(table, slices)
        return table, slices

    # --- NEED_CHECK -----------------------------------------------------------------------------

    def _update_header(self, **fields: int) -> None:
        """Change header fields on disk, then in memory."""
        header = self.header.replace(**fields)
        write_header(self.file, header)
        self.header = header

    def _announce(self, event: str) -> None:
        if self.sink is not None:
            self.sink(self, event, {})

    def _arm_idle_timer(self, seconds: float) -> None:
        """The timer holds no reference to the node: a forgotten disk can still be collected."""
        reference = weakref.ref(self)

        def fire() -> None:
            node = reference()
            if node is not None:
                node._idle()

        timer = threading.Timer(seconds, fire)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # the system has no more threads: then the bit stays till the end
            return
        self._idle_timer = timer

    def _idle(self) -> None:
        """The timer fired: mark the image clean if nobody has allocated for a while."""
        with self._lock:
            self._idle_timer = None
            if self.tracker.closed or self.read_only or self._keep_need_check:
                return
            if not self.needs_check:  # somebody was faster: reopening, a new backing file
                return
            idle = time.monotonic() - self._last_allocation
            if self._uncommitted or idle < NEED_CHECK_IDLE_SECONDS:
                self._arm_idle_timer(max(NEED_CHECK_IDLE_SECONDS - idle, 0.1))
                return
            try:
                self._clear_need_check()
            except BlocklayerError:
                self._keep_need_check = True  # the bit stays; the next flush reports the failure

    def _clear_need_check(self) -> None:
        """Flush, clear the bit, flush. Holds the lock, or is alone."""
        self.file.flush()
        self._announce("need_check_clear")
        # Before it is on disk: if writing fails, the next allocation has to set the bit again.
        self.header = self.header.replace(features=self.header.features & ~F_NEED_CHECK)
        self._marked_by_us = False
        write_header(self.file, self.header)
        self.file.flush()

    def mark_clean(self) -> None:
        """The tables are known to be consistent: clear NEED_CHECK."""
        with self._lock:
            self._keep_need_check = False
            if self.needs_check:
                self._clear_need_check()

    def keep_need_check(self) -> None:
        """The tables are known to be damaged: the bit is not to be cleared by closing."""
        self._keep_need_check = True

    def _settle(self) -> None:
        """No allocating write is in flight any more: mark clean what this node has marked."""
        with self._lock:
            if self._idle_timer is not None:
                self._idle_timer.cancel()
                self._idle_timer = None
            if self.read_only:
                return
            if self.needs_check and self._marked_by_us and not self._keep_need_check:
                self._clear_need_check()
            elif self._trimmed:
                self.file.flush()

    def close(self) -> None:
        """Flush and mark clean, then close the children."""
        self.tracker.close()
        failure: BlocklayerError | None = None
        try:
            self._settle()
        except BlocklayerError as error:
            failure = error
        super().close()
        if failure is not None:
            raise failure

    # --- other operations -----------------------------------------------------------------------

    def check(self, repair: Repair) -> CheckResult:
        """Consistency check; the caller has the image to itself."""
        from blocklayer.formats.qed.check import check

        return check(self, repair)

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Grow or shrink the disk; no request is in flight."""
        if preallocation != "off":
            raise NotSupported(f"Unsupported preallocation mode '{preallocation}'")
        if size % SECTOR or size > self.geometry.image_size_max:
            raise InvalidArgument(
                f"Invalid image size specified: {size} is not a multiple of {SECTOR} up to"
                f" {self.geometry.image_size_max}"
            )
        from blocklayer.formats.qed import resize

        if size > self.size:
            resize.grow(self, size)
        elif size < self.size:
            resize.shrink(self, size)

    def make_empty(self) -> None:
        """Forget every cluster: the disk reads as what is below; no request is in flight."""
        from blocklayer.formats.qed import resize

        resize.make_empty(self)

    def set_image_size(self, size: int) -> None:
        """Write the disk's size into the header, and make it last."""
        with self._lock:
            before = self.header
            try:
                self._update_header(image_size=size)
            except BlocklayerError:
                self.put_back(before)
                raise
            self.size = size
            self.file.flush()

    def put_back(self, header: Header) -> None:
        """A header write that failed may have happened: undo it, what comes relies on that."""
        try:
            write_header(self.file, header)
        except BlocklayerError:
            return  # the storage is gone; the first failure is being reported

    def change_backing(self, name: str | None, format_name: str | None) -> None:
        """Rewrite the backing file's name; the caller knows that the content fits it."""
        if self.header.compat_features and name is not None:
            raise NotSupported(
                "Operation not supported: the image has unknown compatible features"
                f" ({self.header.compat_features:x}), whose data a new name could overwrite"
            )
        from blocklayer.formats.qed.backing import store_backing

        with self._lock:
            if self.needs_check and self._marked_by_us and not self._keep_need_check:
                self._clear_need_check()
            store_backing(self, name, format_name)
        self.backing_filename = name
        self.backing_format = "raw" if name and format_name == "raw" else None

    def info(self) -> dict[str, Any]:
        """Cluster and table sizes, and whether the image was left dirty."""
        return {
            "cluster-size": self.cluster_size,
            "table-size": self.geometry.table_size,
            "dirty-flag": self.needs_check,
        }


def _open(opener: Opener, options: OptionTree) -> Node:
    file = opener.open_child(options, "file")
    try:
        return QedNode(file, opener.flags)
    except BaseException:
        file.close()
        raise


DRIVER = Driver(
    name="qed",
    kind=FORMAT,
    open=_open,
    create=qed_create.create,
    resolve=qed_create.resolve,
    measure=qed_create.measure,
    create_options=qed_create.OPTIONS,
)
