# SPDX-License-Identifier: Apache-2.0
"""Disks on nodes of a graph: with permissions, and taken along when their node is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blocklayer.base.errors import ReadOnly
from blocklayer.core.disk import Disk

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.graph import Entry, Graph
    from blocklayer.core.permissions import Use


class GraphDisk(Disk):
    """A disk that a graph has given out; closing it gives the permissions back.

    use      who it is for, and what it needs and shares
    follows  it goes along when its node is replaced
    """

    def __init__(
        self, graph: Graph, entry: Entry, use: Use, *, follows: bool, writethrough: bool | None
    ) -> None:
        self._graph = graph
        self._writable = "write" in use.needs
        self.use = use
        self.follows = follows
        cached = entry.settings.cache
        super().__init__(
            entry.node,
            writethrough=cached.writethrough if writethrough is None else writethrough,
            discard=entry.settings.discard,
            detect_zeroes=entry.settings.detect_zeroes,
            owns_node=False,
        )

    @property
    def read_only(self) -> bool:
        """Whether writes are refused: by the node, or for this user."""
        return self.node.read_only or not self._writable

    def check_write(self, verb: str, offset: int, length: int) -> None:
        """Raise `OutOfRange` or `ReadOnly` unless this may be written."""
        super().check_write(verb, offset, length)
        if not self._writable:
            raise ReadOnly(f"Cannot {verb} to '{self.filename}': it is open read-only")

    @contextmanager
    def _drained_section(self) -> Iterator[None]:
        """Nor is a request in flight on nodes above, whose users pass this disk's node."""
        with self._graph.drained(), self._graph.drained(self.node):  # it may be moved before
            yield

    def _follow_size(self) -> None:
        """So may those above."""
        self._graph.follow_size(self.node)

    def follow_tracker(self) -> None:
        """The node counts its requests elsewhere from now on."""
        self._tracker = self.node.tracker

    def close(self) -> None:
        """Give the permissions back; the node stays open as long as somebody else wants it."""
        if not self._open:
            return
        self._open = False
        try:
            if not self.read_only:
                self.node.flush()
        finally:
            self.node.users.discard(self)
            self._graph.forget_disk(self)
