# SPDX-License-Identifier: Apache-2.0
"""The `null` protocol: reads as zeroes (or leaves buffers alone), forgets what is written."""

from __future__ import annotations

from blocklayer.base.buffers import Vector, fill_zero
from blocklayer.base.extent import DATA, ZERO
from blocklayer.base.options import OptionTree, parse_bool
from blocklayer.base.units import GiB, parse_size
from blocklayer.core.drivers import PROTOCOL, Driver
from blocklayer.core.node import Mapped, Node
from blocklayer.core.opening import Opener


class NullNode(Node):
    """No storage at all: for measuring everything above it."""

    driver = "null-co"

    def __init__(self, size: int, *, read_zeroes: bool = True, read_only: bool = False) -> None:
        super().__init__("null-co://", read_only=read_only)
        self.size = size
        self._read_zeroes = read_zeroes

    def readv(self, offset: int, vector: Vector) -> None:
        """Zeroes, or whatever the buffers held."""
        if self._read_zeroes:
            fill_zero(vector)

    def writev(self, offset: int, vector: Vector) -> None:
        """Forgotten."""

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Nothing to do."""

    def flush(self) -> None:
        """Nothing to do."""

    def map(self, offset: int, length: int) -> Mapped:
        """Zero where it reads as such."""
        return (ZERO if self._read_zeroes else DATA), length, None, offset


def _open(opener: Opener, options: OptionTree) -> Node:
    size = parse_size(options.pop("size", GiB))
    read_zeroes = parse_bool(options.pop("read-zeroes", True), "read-zeroes")
    return NullNode(size, read_zeroes=read_zeroes, read_only=opener.flags.read_only)


DRIVER = Driver(name="null", kind=PROTOCOL, open=_open)
