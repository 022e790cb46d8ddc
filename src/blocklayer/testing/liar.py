# SPDX-License-Identifier: Apache-2.0
"""A child that keeps within the contract of nodes and is otherwise as unpleasant as possible.

What it finds are drivers that rely on more than they were promised: that `map` answers for a whole
run, that storage can zero, that new space is zero, that requests may have any alignment. It also
asserts what nodes promise to their children: no empty requests, whole blocks, writable buffers.

A liar with `alignment` is to be opened below a `Padded`: `storage(liar)` sees to that.
"""

from __future__ import annotations

import random
import threading
import time

from blocklayer.base.buffers import Vector, vector_length
from blocklayer.base.errors import NotSupported
from blocklayer.base.extent import DATA
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import Mapped, Node
from blocklayer.core.padding import Padded

POISON = 0xA5
"""What buffers hold before they are read into, and discarded storage afterwards."""

GARBAGE = bytes([POISON]) * 65536


class Liar(FilterNode):
    """Unpleasant in the ways that are asked for.

    granularity   `map` never answers for more than up to the next multiple of so many bytes
    knows_holes   else everything is said to be data
    zeroes        how often `zero` works rather than raising `NotSupported`: 0.0 never, 1.0 always
    fixed         a device: it cannot grow, does not shrink, and was not zero when it was new
    alignment     requests must be whole blocks of so many bytes
    garbles       discarded bytes become garbage, as the contract allows
    delay         longest pause before a request, in seconds: shakes the order of threads
    """

    driver = "liar"

    def __init__(
        self,
        child: Node,
        *,
        rng: random.Random | None = None,
        granularity: int = 4096,
        knows_holes: bool = True,
        zeroes: float = 0.5,
        fixed: bool = False,
        alignment: int = 1,
        garbles: bool = True,
        delay: float = 0.0,
    ) -> None:
        super().__init__(child)
        self._rng = rng or random.Random(0)
        self._rng_lock = threading.Lock()
        self._granularity = granularity
        self._knows_holes = knows_holes
        self._zeroes = zeroes
        self._fixed = fixed
        self._garbles = garbles
        self._delay = delay
        self.limits.request_alignment = alignment

    def _random(self) -> float:
        with self._rng_lock:
            return self._rng.random()

    def _begin(self, offset: int, length: int) -> None:
        """Assert what every request has to keep."""
        block = self.limits.request_alignment
        assert offset >= 0, f"a request at {offset}"
        assert length > 0, f"an empty request at {offset}"
        assert not offset % block, f"a request at {offset} of blocks of {block}"
        assert not length % block, f"{length} bytes of blocks of {block}"
        if self._delay:
            time.sleep(self._random() * self._delay)

    @staticmethod
    def _check_vector(vector: Vector) -> None:
        assert all(len(view) for view in vector), "a vector holds an empty view"
        assert all(view.format == "B" and view.ndim == 1 for view in vector)

    @property
    def grows_zeroed(self) -> bool:
        """Not a device's space."""
        return not self._fixed and super().grows_zeroed

    def map(self, offset: int, length: int) -> Mapped:
        """The shortest answer that is true."""
        assert length > 0, f"an empty request for the status at {offset}"
        kind, count, child, below = self.child.map(offset, length)
        assert 0 < count <= length
        count = min(count, self._granularity - offset % self._granularity)
        return (kind, count, child, below) if self._knows_holes else (DATA, count, None, offset)

    def readv(self, offset: int, vector: Vector) -> None:
        """Read into poisoned buffers."""
        self._begin(offset, vector_length(vector))
        self._check_vector(vector)
        for view in vector:
            view[:] = (GARBAGE * (len(view) // len(GARBAGE) + 1))[: len(view)]
        super().readv(offset, vector)

    def writev(self, offset: int, vector: Vector) -> None:
        """Write."""
        length = vector_length(vector)
        self._begin(offset, length)
        self._check_vector(vector)
        assert not self._fixed or offset + length <= self.size, "a device does not grow"
        super().writev(offset, vector)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Zero, or not."""
        self._begin(offset, length)
        if self._random() >= self._zeroes:
            raise NotSupported("This storage cannot zero without writing, today")
        super().zero(offset, length, flags)

    def discard(self, offset: int, length: int) -> None:
        """Discard, and leave garbage."""
        self._begin(offset, length)
        if not self._garbles:
            super().discard(offset, length)
            return
        end = min(offset + length, self.size)
        while offset < end:
            piece = memoryview(GARBAGE)[: end - offset]
            super().writev(offset, [piece])
            offset += len(piece)

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Resize, if it is no device."""
        if self._fixed:
            if size > self.size:
                raise NotSupported("Cannot grow device files")
            return
        super().truncate(size, preallocation)


def storage(node: Node) -> Node:
    """A node as the parents of this package get it: padded, if it needs aligned requests."""
    limits = node.limits
    return Padded(node) if limits.request_alignment > 1 or limits.max_transfer else node
