# SPDX-License-Identifier: Apache-2.0
"""A first look at a whole image, a table at a time, that ends with the first doubt.

In nearly every image nothing is wrong. That can be seen without looking at entries one by one: if
there are as many references as clusters in the file, and as many different ones, then each cluster
is referenced exactly once. Whatever is not so is left to the careful check, which names it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from threading import Lock, Thread

from blocklayer.base.errors import CorruptImage
from blocklayer.base.progress import Reporter
from blocklayer.core.checking import CheckResult
from blocklayer.core.mapping import resolve
from blocklayer.formats.qed.header import read_bytes
from blocklayer.formats.qed.layout import ENTRY_SIZE
from blocklayer.formats.qed.tally import CLUSTERS_MAX, NONE, Doubt, make_tally

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.formats.qed.driver import QedNode


def look(node: QedNode) -> CheckResult | None:
    """The result for an image in which nothing is wrong; None if something may be.

    Raises `IoError` if a table cannot be read.
    """
    clusters = node.file_end // node.cluster_size
    if sys.byteorder == "big" or clusters > CLUSTERS_MAX:
        return None
    try:
        return _Look(node, clusters).whole()
    except (Doubt, CorruptImage):
        return None


class _Look:
    def __init__(self, node: QedNode, clusters: int) -> None:
        self._node = node
        self._clusters = clusters
        self._tally = make_tally(clusters, node.cluster_size)
        self._metadata = 0
        self._lock = Lock()
        self._failure: BaseException | None = None

    def whole(self) -> CheckResult:
        node, geometry, tally = self._node, self._node.geometry, self._tally
        l1 = node.header.l1_table_offset
        self._use(0, node.header.header_size)
        self._use(geometry.clusters(l1), geometry.table_size)
        reporter = node.reporter("check", node.size)
        tables = node.tables.scan(l1)
        helpers: list[Thread] = []
        try:
            self._start(helpers, tables)
            self._look_at_tables(tables, reporter)
        except BaseException as error:
            self._failure = self._failure or error  # helpers end with the table they have
            raise
        finally:
            for helper in helpers:
                helper.join()
        if self._failure is not None:
            raise self._failure
        if not self._metadata + tally.allocated == tally.distinct == self._clusters:
            raise Doubt
        reporter.finish()
        return CheckResult(
            node.filename,
            node.driver,
            total_clusters=geometry.clusters(node.size),
            allocated_clusters=tally.allocated,
            fragmented_clusters=tally.fragmented,
        )

    def _start(self, helpers: list[Thread], tables: Iterator[tuple[int, int]]) -> None:
        for _ in range(min(self._tally.threads_max, os.cpu_count() or 1) - 1):
            helper = Thread(target=self._help, args=(tables,), daemon=True)
            helper.start()
            helpers.append(helper)

    def _help(self, tables: Iterator[tuple[int, int]]) -> None:
        try:
            self._look_at_tables(tables, None)
        except BaseException as error:
            self._failure = self._failure or error

    def _look_at_tables(self, tables: Iterator[tuple[int, int]], reporter: Reporter | None) -> None:
        """Look at the tables that no other thread has taken yet."""
        node, geometry = self._node, self._node.geometry
        while (found := self._next(tables)) is not None:
            index, table = found
            self._table(table, node.size - geometry.guest_offset(index, 0))
            if reporter is not None:
                reporter.reach(min(geometry.guest_offset(index + 1, 0), node.size))

    def _next(self, tables: Iterator[tuple[int, int]]) -> tuple[int, int] | None:
        with self._lock:
            if self._failure is not None:
                return None
            found = next(tables, None)
            if found is not None:
                _, table = found
                if self._node.table_problem(table) is not None:
                    raise Doubt
                self._use(self._node.geometry.clusters(table), self._node.geometry.table_size)
            return found

    def _use(self, first: int, count: int) -> None:
        """Clusters of metadata. Tables that are used over and over are not looked at for ever."""
        self._tally.add_run(first, count)
        self._metadata += count
        if self._metadata + self._tally.allocated > self._clusters:
            raise Doubt

    def _table(self, table: int, visible: int) -> None:
        """Look at the entries of a table, of which `visible` bytes of the disk are left."""
        node = self._node
        end = node.geometry.table_bytes
        limit = node.geometry.clusters(max(visible, 0)) * ENTRY_SIZE
        position = 0
        last = NONE
        while position < end:
            if node.watch is not None:
                node.watch.check()
            size = min(self._tally.chunk_bytes, end - position)
            hole = resolve(node.file, table + position, end - position)
            if hole.zero and hole.length >= size:
                position += hole.length // size * size
                continue
            data = read_bytes(node.file, table + position, size)
            if position + size > limit and any(data[max(0, limit - position) :]):
                raise Doubt
            last = self._tally.add_entries(data, last)
            position += size
