# SPDX-License-Identifier: Apache-2.0
"""A command in flight: what was asked for, and what has been answered so far.

The rules for content are checked here: each piece of a read lies inside the request, no two pieces
overlap, and in the end there is no byte without content.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from threading import Lock

from blocklayer.base.buffers import Vector, fill_zero, slice_vector
from blocklayer.nbd import wire
from blocklayer.nbd.client_options import wrong

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.base.errors import BlocklayerError, ProtocolError

GAPS_MAX = 65536
"""Pieces of a read that do not touch: a server could otherwise send single bytes far apart."""

ERRORS_MAX = 4096
"""Error chunks in one reply; one would do."""


class Extents:
    """A block status: runs of bytes from `start`, each with flags.

    ends    where each run ends, ascending; guest offsets
    flags   of each run
    """

    __slots__ = ("ends", "flags", "start")

    def __init__(self, start: int, ends: array[int], flags: array[int]) -> None:
        self.start = start
        self.ends = ends
        self.flags = flags

    @property
    def end(self) -> int:
        """Behind the last run."""
        return self.ends[-1]

    def find(self, offset: int) -> tuple[int, int]:
        """(end, flags) of the run that holds `offset`, together with those that continue it."""
        index = bisect_right(self.ends, offset)
        flags = self.flags[index]
        last = len(self.ends) - 1
        while index < last and self.flags[index + 1] == flags:
            index += 1
        return self.ends[index], flags


class Command:
    """One request. The connection fills it; `finished` is released when it has ended.

    vector   the payload of a write, or where the bytes of a read go; None drops them
    error    0, or the protocol's number; with what the server says about it in `message`
    lost     why no answer will ever come, if the connection broke
    losses   how often that was so
    started  when it was sent, on the clock of `time.monotonic`
    lane     which of several connections it uses
    extents  block status by the name of its metadata context
    """

    __slots__ = (
        "cookie",
        "error",
        "errors",
        "extents",
        "finished",
        "flags",
        "gaps",
        "kind",
        "lane",
        "length",
        "losses",
        "lost",
        "message",
        "offset",
        "received",
        "started",
        "vector",
    )

    def __init__(
        self,
        kind: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        vector: Vector | None = None,
    ) -> None:
        self.kind = kind
        self.offset = offset
        self.length = length
        self.flags = flags
        self.vector = vector
        self.finished = Lock()
        self.losses = 0
        self.lane = 0
        self.restart()

    def restart(self) -> None:
        """Forget all answers: the command is sent (again)."""
        self.cookie = 0
        self.started = 0.0
        self.error = 0
        self.errors = 0
        self.message = ""
        self.lost: BlocklayerError | None = None
        self.extents: dict[str, Extents] = {}
        self.received = 0
        self.gaps: list[tuple[int, int]] = []
        """Pieces behind the first `received` bytes, disjoint and ascending."""
        if not self.finished.locked():
            self.finished.acquire()

    def describe(self) -> str:
        """For errors: ``read of 4096 bytes at offset 0``."""
        name = wire.COMMAND_NAMES.get(self.kind, str(self.kind))
        if self.kind in (wire.CMD_FLUSH, wire.CMD_DISC):
            return name
        return f"{name} of {self.length} bytes at offset {self.offset}"

    def wrong(self, rule: str) -> ProtocolError:
        """The error for an answer that breaks a rule."""
        return wrong(f"{rule} (reply to {self.describe()})")

    # --- content of reads -----------------------------------------------------------------------

    def claim(self, offset: int, length: int) -> Vector | None:
        """Where the content of `length` bytes at the export's `offset` goes."""
        start = offset - self.offset
        if start < 0 or start + length > self.length:
            raise self.wrong(f"content of {length} bytes at {offset} is outside the request")
        if start == self.received and not self.gaps:
            self.received += length
        else:
            self._claim_apart(start, start + length)
        if self.vector is None:
            return None
        if length == self.length:
            return self.vector
        return slice_vector(self.vector, start, length)

    def _claim_apart(self, start: int, end: int) -> None:
        gaps = self.gaps
        index = bisect_right(gaps, (start, end))
        before = gaps[index - 1][1] if index else self.received
        after = gaps[index][0] if index < len(gaps) else self.length
        if start < before or end > after:
            raise self.wrong(
                f"content of {end - start} bytes at {self.offset + start} was sent before"
            )
        if index and before == start:
            index -= 1
            start = gaps.pop(index)[0]
        if index < len(gaps) and gaps[index][0] == end:
            end = gaps.pop(index)[1]
        if start == self.received:
            self.received = end
        elif len(gaps) >= GAPS_MAX:
            raise self.wrong(f"its content comes in more than {GAPS_MAX} pieces")
        else:
            gaps.insert(index, (start, end))

    def fill_hole(self, offset: int, length: int) -> None:
        """A piece of the content is zeroes."""
        vector = self.claim(offset, length)
        if vector is not None:
            fill_zero(vector)

    # --- other answers --------------------------------------------------------------------------

    def add_error(self, code: int, message: str) -> None:
        """Something has failed; the first reason is the one to tell."""
        self.errors += 1
        if self.errors > ERRORS_MAX:
            raise self.wrong(f"it tells more than {ERRORS_MAX} errors")
        if not self.error:
            self.error, self.message = code, message

    def add_extents(self, context: str, payload: memoryview, *, wide: bool) -> None:
        """A block status for one context: pairs of length and flags, of 32 or 64 bits."""
        if context in self.extents:
            raise self.wrong(f"the block status of {context} was sent before")
        numbers = array("Q" if wide else "I", bytes(payload))
        if sys.byteorder == "little":
            numbers.byteswap()
        lengths = numbers[0::2]
        if 0 in lengths:
            raise self.wrong("an extent has no length")
        if self.flags & wire.CMD_FLAG_REQ_ONE and len(lengths) != 1:
            raise self.wrong(f"one extent was asked for, and {len(lengths)} were sent")
        ends, position, limit = array("Q"), self.offset, self.offset + self.length
        for length in lengths:
            if position >= limit:
                raise self.wrong("extents go on behind the end of the request")
            position += length
            ends.append(min(position, (1 << 64) - 1))
        if self.flags & wire.CMD_FLAG_REQ_ONE and position > limit:
            raise self.wrong("an extent is longer than the request that wanted only one")
        self.extents[context] = Extents(self.offset, ends, numbers[1::2])

    def end(self, contexts: dict[int, str]) -> None:
        """The last of the reply has come: nothing may be missing."""
        if self.error:
            return
        if self.kind == wire.CMD_READ and self.received < self.length:
            missing = self.length - self.received - sum(end - start for start, end in self.gaps)
            raise self.wrong(f"{missing} bytes of content were never sent")
        missing_contexts = set(contexts.values()) - self.extents.keys()
        if self.kind == wire.CMD_BLOCK_STATUS and missing_contexts:
            raise self.wrong(f"the block status of {min(missing_contexts)} was never sent")
