# SPDX-License-Identifier: Apache-2.0
"""Copying inside an image's file: what repair gives entries that share a cluster, and moves."""

from __future__ import annotations

from blocklayer.base.units import MiB
from blocklayer.core.node import UNMAP, Node
from blocklayer.core.rehearsal import Rehearsal
from blocklayer.core.zeroing import data_runs, zero_range
from blocklayer.formats.qed.header import read_bytes

COPY_PIECE = MiB
"""Bytes in memory at once."""


def copy_within(file: Node, source: int, target: int, length: int) -> None:
    """Copy bytes inside a file, in bounded pieces; holes stay holes."""
    if isinstance(file, Rehearsal):
        file.copy_within(source, target, length)
        return
    done = 0
    for start, count in data_runs(file, source, length):
        if start - source > done:
            zero_range(file, target + done, start - source - done, UNMAP)
        done = start - source
        end = done + count
        while done < end:
            size = min(COPY_PIECE, end - done)
            file.writev(target + done, [memoryview(read_bytes(file, source + done, size))])
            done += size
    if done < length:
        zero_range(file, target + done, length - done, UNMAP)
