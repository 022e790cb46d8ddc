# SPDX-License-Identifier: Apache-2.0
"""The `verify` filter (QEMU's name: blkverify): compares a node with a raw reference.

    write, zero, truncate, flush    both children
    read                            both children, compared
    discard                         neither: afterwards the two could differ and both be right

Ranges are locked meanwhile, so that a read never meets one child before and the other after a
write. A request that fails on one child alone leaves a difference, which the next read reports: to
the log in QEMU's words, as guests and clients get an error number only, and to the caller.
"""

from __future__ import annotations

import errno

from blocklayer.base.buffers import Vector, vector_length
from blocklayer.base.errors import InvalidArgument, IoError
from blocklayer.base.options import OptionTree
from blocklayer.core import zeroing
from blocklayer.core.drivers import FILTER, Driver
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import NO_FALLBACK, Node
from blocklayer.core.opening import Opener


class VerifyNode(FilterNode):
    """Shows `test`, as long as `raw` agrees with it."""

    driver = "verify"

    def __init__(self, test: Node, raw: Node) -> None:
        super().__init__(test, role="test")
        if raw.size < test.size:
            raise InvalidArgument(
                f"The reference '{raw.filename}' has {raw.size} bytes,"
                f" fewer than the {test.size} of '{test.filename}'"
            )
        self.raw = raw
        self.attach(raw=raw)

    @property
    def grows_zeroed(self) -> bool:
        """If both do."""
        return self.child.grows_zeroed and self.raw.grows_zeroed

    def readv(self, offset: int, vector: Vector) -> None:
        """Read both, and raise `IoError` at the first byte in which they differ."""
        length = vector_length(vector)
        reference = bytearray(length)

        def read() -> None:
            self.raw.readv(offset, [memoryview(reference)])
            self.child.readv(offset, vector)

        self.ranges.run([(offset, offset + length)], read)
        self._compare(offset, vector, reference)

    def _compare(self, offset: int, vector: Vector, reference: bytearray) -> None:
        position = 0
        for view in vector:
            expected = reference[position : position + len(view)]
            if bytes(view) != expected:
                first = next(i for i, byte in enumerate(expected) if byte != view[i])
                where = f"contents mismatch at offset {offset + position + first}"
                _log(f"blkverify: read offset={offset} bytes={len(reference)} {where}")
                raise IoError(
                    f"{where}:"
                    f" the reference has {expected[first]:#04x}, the image {view[first]:#04x}",
                    self.filename,
                    errno.EIO,
                    "verify",
                    offset,
                    len(reference),
                )
            position += len(view)

    def writev(self, offset: int, vector: Vector) -> None:
        """Write both."""

        def write() -> None:
            self.child.writev(offset, vector)
            self.raw.writev(offset, vector)

        self.ranges.run([(offset, offset + vector_length(vector))], write)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Zero both; what the image cannot, the reference does not get either."""

        def zero() -> None:
            self.child.zero(offset, length, flags)
            zeroing.zero_range(self.raw, offset, length, flags & ~NO_FALLBACK)

        self.ranges.run([(offset, offset + length)], zero)

    def discard(self, offset: int, length: int) -> None:
        """Nothing is discarded."""

    def flush(self) -> None:
        """Flush both."""
        self.child.flush()
        self.raw.flush()

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Resize both."""
        self.child.truncate(size, preallocation)
        self.raw.truncate(size)


def _log(message: str) -> None:
    import logging  # seldom needed, and costs start-up time

    logging.getLogger("blocklayer").error(message)


def _open(opener: Opener, options: OptionTree) -> Node:
    raw = opener.open_child(options, "raw")
    try:
        test = opener.open_child(options, "test")
    except BaseException:
        raw.close()
        raise
    try:
        return VerifyNode(test, raw)
    except BaseException:
        test.close()
        raw.close()
        raise


DRIVER = Driver(name="verify", kind=FILTER, open=_open)
