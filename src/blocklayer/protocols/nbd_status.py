# SPDX-License-Identifier: Apache-2.0
"""Block status of an NBD export: one request answers many calls of `map`.

A reply is kept for the walk that asked for it, no longer, since others may write to the export:
until the walk turns back, pauses for `IDLE_SECONDS` or has lasted `AGE_SECONDS`, and until somebody
here changes a byte of it.
"""

from __future__ import annotations

import threading
import time

from blocklayer.base.align import align_down, align_up
from blocklayer.base.record import Record
from blocklayer.base.units import GiB, MiB
from blocklayer.nbd.client import Client
from blocklayer.nbd.client_command import Command, Extents
from blocklayer.nbd.client_handshake import EXTENDED
from blocklayer.nbd.wire import CMD_BLOCK_STATUS

IDLE_SECONDS = 1.0
AGE_SECONDS = 30.0

ASKED_MIN = MiB
"""Bytes to ask for at least: who looks at a little will look at what follows."""

ASKED_MAX = 2 * GiB
"""Most bytes of a request whose length has 32 bits."""
ASKED_MAX_EXTENDED = 64 * GiB
"""Most bytes otherwise: a server may look at all of them before it answers."""


class _Kept(Record):
    extents: Extents
    asked_at: float
    used_at: float
    walked: int
    """Where the walk has come to."""


class BlockStatus:
    """Answers where the export has data, holes and zeroes."""

    def __init__(self, client: Client, context: str) -> None:
        self._client = client
        self._context = context
        info = client.agreement.info
        self._size = info.size
        self._unit = info.block_minimum
        extended = client.agreement.mode == EXTENDED
        self._asked_max = ASKED_MAX_EXTENDED if extended else ASKED_MAX
        self._lock = threading.Lock()
        self._kept: _Kept | None = None
        self._changes = 0

    def find(self, offset: int, length: int) -> tuple[int, int, Command | None]:
        """(length, flags) of the first run; and the command if that has failed.

        Raises `RemoteError`, `ProtocolError`.
        """
        now = time.monotonic()
        with self._lock:
            kept = self._kept
            if kept is not None and _serves(kept, offset, now):
                end, flags = kept.extents.find(offset)
                kept.used_at, kept.walked = now, offset
                return min(end - offset, length), flags, None
            changes = self._changes
        command = self._ask(offset, length)
        if command.error:
            return 0, 0, command
        extents = command.extents[self._context]
        if offset >= extents.end:
            # It may be short, but not end inside of one of the server's own blocks.
            raise command.wrong(f"a block status that ends at {extents.end}")
        with self._lock:
            if changes == self._changes:
                self._kept = _Kept(extents, now, now, offset)
        end, flags = extents.find(offset)
        return min(end - offset, length), flags, None

    def _ask(self, offset: int, length: int) -> Command:
        start = align_down(offset, self._unit)
        end = min(align_up(offset + max(length, ASKED_MIN), self._unit), self._size)
        count = min(end - start, self._asked_max)
        command = Command(CMD_BLOCK_STATUS, start, count)
        self._client.run([command])
        return command

    def change(self, offset: int, length: int) -> None:
        """Bytes are about to change, or have just been changed: both have to be told."""
        with self._lock:
            self._changes += 1
            kept = self._kept
            if (
                kept is not None
                and offset < kept.extents.end
                and offset + length > kept.extents.start
            ):
                self._kept = None


def _serves(kept: _Kept, offset: int, now: float) -> bool:
    return (
        kept.walked <= offset < kept.extents.end
        and now - kept.used_at < IDLE_SECONDS
        and now - kept.asked_at < AGE_SECONDS
    )
