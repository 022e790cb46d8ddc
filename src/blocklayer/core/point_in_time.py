# SPDX-License-Identifier: Apache-2.0
"""What an overlay sees below it while its backing node changes, and earlier content is kept for it.

A job keeps the content of a node as it was at one moment: before something is changed, the job
copies it up to an overlay of that node. Whoever reads the overlay sees the moment:

    reader   the overlay has nothing here    reads below    is it still kept below?  then that is it
    guest                             copies up, changes                             no: it is above

A reader who has found nothing in the overlay may be overtaken by a guest; so the question comes
after the read. What was not copied up when the read has ended was not changed until then, either.
Nobody waits for anybody.

The node belongs to the overlay alone and has no name in a graph, as `Padded` has none. It tells
nobody where bytes are: who uses a place later, or lets the kernel send it, could meet new content.
"""

from __future__ import annotations

import errno

from blocklayer.base.buffers import Vector, slice_vector, vector_length
from blocklayer.base.errors import IoError
from blocklayer.base.extent import BACKING, OPAQUE, ZERO
from blocklayer.core.filter import FilterNode
from blocklayer.core.mapping import resolve
from blocklayer.core.node import FormatNode, Mapped, Node

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Protocol

    class Keeper(Protocol):
        """Who keeps the content."""

        def keeps(self, offset: int, length: int) -> bool:
            """Whether nothing of a range can have been changed until now."""
            ...

        def has_ended(self) -> bool:
            """Whether guests may change things that were not copied up."""
            ...

        def is_copying(self) -> bool:
            """Whether this thread copies up."""
            ...


class PointInTime(FilterNode):
    """Stands below an overlay, which gets what `keeper` copies up, on the node that changes.

    overlay  the top of the chain: layers between it and this node are possible
    """

    driver = "point-in-time"
    nameless = True

    def __init__(self, child: Node, overlay: FormatNode, keeper: Keeper) -> None:
        super().__init__(child, role="backing")
        self._overlay = overlay
        self._keeper: Keeper | None = keeper

    def lose(self) -> None:
        """The content is kept no more: reading what the overlay does not have is an error."""
        self._keeper = None

    def map(self, offset: int, length: int) -> Mapped:
        """Zeroes, if they are still those of the moment; of nothing else the place is told.

        Who copies up is told of no zeroes: they have to be written, since these here will change.
        """
        keeper = self._keeper
        if keeper is None or keeper.is_copying():
            return OPAQUE, length, None, offset
        found = resolve(self.child, offset, length)
        count = min(found.length, length)
        if found.zero and keeper.keeps(offset, count):
            return ZERO, count, None, 0
        return OPAQUE, count, None, offset

    def readv(self, offset: int, vector: Vector) -> None:
        """The bytes as they were at the moment."""
        keeper, length = self._keeper, vector_length(vector)
        if keeper is not None:
            self.child.readv(offset, vector)
            if keeper.keeps(offset, length):
                return
        self._read_above(offset, vector, length)

    def _read_above(self, offset: int, vector: Vector, length: int) -> None:
        """Not all is kept below: what was copied up is read there.

        What has not been copied up, and is not kept either, was never to be kept.
        """
        done = 0
        while done < length:
            start = offset + done
            kind, count, _, _ = self._overlay.map(start, length - done)
            count = min(count, length - done)
            if kind != BACKING:
                self._overlay.readv(start, slice_vector(vector, done, count))
            elif self._keeper is None or self._keeper.has_ended():
                reason = "The job that kept its earlier content has ended"
                raise IoError(reason, self.filename, errno.EIO, "read", start, count)
            done += count
