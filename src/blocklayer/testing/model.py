# SPDX-License-Identifier: Apache-2.0
"""A disk as a byte array, with the verbs of `Disk`: what every driver is compared with.

Two things a byte array cannot say are kept beside it. *Alternatives*: a sector whose write has
failed, or that was discarded, may hold one of several contents. *Own* bytes: those that were
written as data to this layer, and must be found there, whatever lies below.

    content         [ a a a b b b 0 0 0 0 ]
    own             [ 0 1 1 1 0 0 0 0 0 0 ]      a byte of 1 for each
    alternatives    { sector: {contents} }       content is one of them
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from blocklayer.base.align import align_up
from blocklayer.base.buffers import Buffer, byte_view, is_zero
from blocklayer.base.errors import OutOfRange
from blocklayer.base.extent import Extent
from blocklayer.base.units import SECTOR, MiB

COMPARE_PIECE = 4 * MiB
"""Bytes read at once when a whole disk is compared."""

ALTERNATIVES_MAX = 64
"""Contents that one sector may have; a test that needs more should compare more often."""


class Readable(Protocol):
    """What can be compared with a model."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """As `Disk.read`."""
        ...

    def extents(self, offset: int = 0, length: int | None = None) -> Iterable[Extent]:
        """As `Disk.extents`."""
        ...


class Mismatch(AssertionError):
    """A disk is not what its model says."""


class ModelDisk:
    """What a disk has to be. Not thread-safe."""

    def __init__(self, size: int, *, backing: ModelDisk | None = None) -> None:
        self.content = bytearray(size)
        self.own = bytearray(size)
        self.expects_merged = True
        """Extents that one could describe are an error; untrue of maps with very many answers."""
        self._alternatives: dict[int, set[bytes]] = {}
        if backing is not None:
            # What lies below does not change as long as something lies above it.
            inside = min(size, backing.size)
            self.content[:inside] = backing.content[:inside]
            self._alternatives = {
                sector: {each[: size - sector * SECTOR] for each in contents}
                for sector, contents in backing._alternatives.items()
                if sector * SECTOR < size
            }

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content)

    # --- the verbs of a disk --------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """One of the contents that the range may have."""
        self._check_range(offset, length)
        return bytes(self.content[offset : offset + length])

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """As `read`."""
        view = byte_view(buffer)
        view[:] = self.read(offset, len(view))
        return len(view)

    def read_many(self, requests: Iterable[tuple[int, int]]) -> list[bytes]:
        """As `read`."""
        return [self.read(offset, length) for offset, length in requests]

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """The range has this content and no other."""
        self._change(offset, bytes(byte_view(data)))
        self.own[offset : offset + len(data)] = b"\1" * len(data)

    def write_many(self, requests: Sequence[tuple[int, Buffer]], *, fua: bool = False) -> None:
        """The later one wins."""
        for offset, data in requests:
            self.write(offset, data)

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        unmap: bool = False,
        fua: bool = False,
        no_fallback: bool = False,
        allocate: bool = False,
    ) -> None:
        """The range is zero; in which layer is not said."""
        self._change(offset, bytes(length))
        self.own[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        """Nothing is ever lost here."""

    def resize(self, size: int, *, preallocation: str = "off") -> None:
        """New bytes are zero."""
        if size < self.size:
            del self.content[size:], self.own[size:]
            kept = {sector for sector in self._alternatives if (sector + 1) * SECTOR <= size}
            self._alternatives = {sector: self._alternatives[sector] for sector in kept}
        else:
            grown = size - self.size
            self.content += bytes(grown)
            self.own += bytes(grown)

    def close(self) -> None:
        """Nothing to release."""

    def overlay(self, size: int | None = None) -> ModelDisk:
        """A new layer over this one."""
        return ModelDisk(self.size if size is None else size, backing=self)

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfRange(f"{length} bytes at {offset} of a model of {self.size} bytes")

    def _change(self, offset: int, data: bytes) -> None:
        self._check_range(offset, len(data))
        for sector in self._uncertain(offset, len(data)):
            patched = {self._patch(sector, old, offset, data) for old in self._alternatives[sector]}
            if len(patched) > 1:
                self._alternatives[sector] = patched
            else:
                del self._alternatives[sector]
        self.content[offset : offset + len(data)] = data

    # --- what is not certain --------------------------------------------------------------------

    def maybe_write(self, offset: int, data: Buffer) -> None:
        """A write has failed: each sector is as before, or has the new content."""
        self._check_range(offset, len(data))
        self._maybe(offset, bytes(byte_view(data)))
        self.own[offset : offset + len(data)] = bytes(len(data))

    def maybe_zero(self, offset: int, length: int) -> None:
        """Zeroing has failed, or a discard has not."""
        self.maybe_write(offset, bytes(length))

    def settle(self, offset: int, data: bytes) -> None:
        """The range was undefined, and turned out to be this."""
        self._change(offset, data)
        self.own[offset : offset + len(data)] = bytes(len(data))

    def _maybe(self, offset: int, data: bytes) -> None:
        for sector in range(offset // SECTOR, align_up(offset + len(data), SECTOR) // SECTOR):
            start = sector * SECTOR
            known = self._alternatives.get(sector) or {bytes(self.content[start : start + SECTOR])}
            changed = known | {self._patch(sector, old, offset, data) for old in known}
            assert len(changed) <= ALTERNATIVES_MAX, f"sector {sector} may be too many things"
            if len(changed) > 1:
                self._alternatives[sector] = changed

    @staticmethod
    def _patch(sector: int, old: bytes, offset: int, data: bytes) -> bytes:
        """The part of `data` that lies in a sector, put over its old content."""
        start = sector * SECTOR
        first = max(offset - start, 0)
        part = data[max(start - offset, 0) : start + len(old) - offset]
        return old[:first] + part + old[first + len(part) :]

    def _uncertain(self, offset: int, length: int) -> list[int]:
        """Sectors of a range that may be several things."""
        if not self._alternatives or not length:
            return []
        first, last = offset // SECTOR, (offset + length - 1) // SECTOR
        if last - first < len(self._alternatives):
            return [sector for sector in range(first, last + 1) if sector in self._alternatives]
        return sorted(sector for sector in self._alternatives if first <= sector <= last)

    # --- comparing ------------------------------------------------------------------------------

    def difference(self, offset: int, data: bytes) -> int | None:
        """The offset of the first byte of `data` that cannot be there; None if all can."""
        if offset + len(data) <= self.size and self.content.startswith(data, offset):
            return None
        uncertain = set(self._uncertain(offset, len(data)))
        position = offset
        while position < offset + len(data):
            sector = position // SECTOR
            end = min((sector + 1) * SECTOR, offset + len(data))
            found = data[position - offset : end - offset]
            if sector in uncertain:
                start = position - sector * SECTOR
                known = self._alternatives[sector]
                if not any(each[start : start + len(found)] == found for each in known):
                    return position
            elif (wrong := _first_difference(found, self.content[position:end])) is not None:
                return position + wrong
            position = end
        return None

    def require(self, offset: int, data: bytes) -> None:
        """Raise `Mismatch` unless the range may hold `data`."""
        wrong = self.difference(offset, data)
        if wrong is not None:
            raise Mismatch(
                f"byte {wrong} is {data[wrong - offset]:#04x}, not {self.content[wrong]:#04x}"
                f" (read {len(data)} bytes at {offset})"
            )

    def check(self, disk: Readable) -> None:
        """Compare everything: size, bytes, and what the extents say."""
        if disk.size != self.size:
            raise Mismatch(f"the disk has {disk.size} bytes, its model {self.size}")
        for offset in range(0, self.size, COMPARE_PIECE):
            self.require(offset, disk.read(offset, min(COMPARE_PIECE, self.size - offset)))
        self.check_extents(disk)

    def check_extents(self, disk: Readable) -> list[Extent]:
        """The extents, if they are true: in order, without gaps, merged, zero where they say so."""
        position = 0
        found: list[Extent] = []
        for extent in disk.extents():
            if extent.offset != position or extent.length <= 0:
                raise Mismatch(f"{extent} should start at {position}")
            if self.expects_merged and found and extent.follows(found[-1]):
                raise Mismatch(f"{extent} could have been one with {found[-1]}")
            self._check_extent(extent)
            position = extent.end
            found.append(extent)
        if position != self.size:
            raise Mismatch(f"the extents end at {position} of {self.size} bytes")
        return found

    def _check_extent(self, extent: Extent) -> None:
        if extent.data == extent.zero:
            raise Mismatch(f"{extent} must be either data or zero")
        if not extent.present and extent.data:
            raise Mismatch(f"{extent} is nowhere and yet data")
        if extent.zero and not self._may_be_zero(extent.offset, extent.length):
            raise Mismatch(f"{extent} is not zero")
        if extent.depth or not extent.present:
            own = self.own.find(1, extent.offset, extent.end)
            if own >= 0:
                raise Mismatch(f"byte {own} was written to the disk itself, but {extent} has it")

    def _may_be_zero(self, offset: int, length: int) -> bool:
        if is_zero(self.content, offset, length):
            return True
        return all(
            self.difference(start, bytes(min(MiB, offset + length - start))) is None
            for start in range(offset, offset + length, MiB)
        )


def _first_difference(one: bytes, other: bytes | bytearray) -> int | None:
    if one == other:
        return None
    return next(index for index, byte in enumerate(one) if byte != other[index])
