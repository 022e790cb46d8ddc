# SPDX-License-Identifier: Apache-2.0
"""The `null` protocol: reads as zeroes (or leaves buffers alone), forgets what is written."""

from __future__ import annotations

import time

from blocklayer.base.buffers import Vector, fill_zero
from blocklayer.base.errors import InvalidArgument
from blocklayer.base.extent import DATA, ZERO
from blocklayer.base.options import OptionTree, parse_bool, parse_number
from blocklayer.base.units import GiB, parse_size
from blocklayer.core.drivers import PROTOCOL, Driver
from blocklayer.core.node import Mapped, Node
from blocklayer.core.opening import Opener

LATENCY_MAX = 3600 * 10**9
"""Nanoseconds that a request takes at most: an hour is as long as anybody waits."""


class NullNode(Node):
    """No storage at all: for measuring everything above it."""

    driver = "null-co"

    def __init__(
        self,
        size: int,
        *,
        read_zeroes: bool = True,
        read_only: bool = False,
        latency: int = 0,
    ) -> None:
        super().__init__("null-co://", read_only=read_only)
        self.size = size
        self._read_zeroes = read_zeroes
        self._seconds = min(latency, LATENCY_MAX) / 1e9

    def _wait(self) -> None:
        if self._seconds:
            time.sleep(self._seconds)

    def readv(self, offset: int, vector: Vector) -> None:
        """Zeroes, or whatever the buffers held."""
        self._wait()
        if self._read_zeroes:
            fill_zero(vector)

    def writev(self, offset: int, vector: Vector) -> None:
        """Forgotten."""
        self._wait()

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Nothing to do."""
        self._wait()

    def flush(self) -> None:
        """Nothing to do."""
        self._wait()

    def info(self) -> dict[str, object]:
        """It takes no space."""
        return {"actual-size": 0}

    def map(self, offset: int, length: int) -> Mapped:
        """Zero where it reads as such."""
        return (ZERO if self._read_zeroes else DATA), length, None, offset


def _open(opener: Opener, options: OptionTree) -> Node:
    size = parse_size(options.pop("size", GiB))
    read_zeroes = parse_bool(options.pop("read-zeroes", True), "read-zeroes")
    latency = parse_number(options.pop("latency-ns", 0), "latency-ns")
    if not 0 <= latency < 1 << 63:  # QMP hands over the bits of a negative number
        raise InvalidArgument("latency-ns is invalid")
    read_only = opener.flags.read_only
    return NullNode(size, read_zeroes=read_zeroes, read_only=read_only, latency=latency)


DRIVER = Driver(name="null", kind=PROTOCOL, open=_open)
