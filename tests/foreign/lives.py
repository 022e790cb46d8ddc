# SPDX-License-Identifier: Apache-2.0
"""The life of an image in our hands: whatever can be done to it, in random order.

A plain array of bytes lives the same life, and QEMU is asked for its opinion on the way.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import blocklayer
from blocklayer.base.align import align_down, align_up
from blocklayer.base.units import KiB, MiB
from blocklayer.core.batch import Request
from tests.foreign import qemu, views

SIZE_MAX = 8 * MiB
VALUES = range(1, 256)


class Life:
    """An image, open to us but for the moments in which something is done to the closed file."""

    def __init__(
        self,
        directory: Path,
        rng: random.Random,
        *,
        cluster_size: int,
        table_size: int,
        over_backing: bool,
    ) -> None:
        self._directory = directory
        self._rng = rng
        self._cluster = cluster_size
        self._names = 0
        self.path = directory / "image"
        self.backing = backing = self._new_base() if over_backing else None
        size = rng.randrange(1, SIZE_MAX // 512) * 512
        blocklayer.create(
            self.path,
            format="qed",
            size=size,
            backing=None if backing is None else backing.name,
            cluster_size=cluster_size,
            table_size=table_size,
        )
        below = views.content(backing, format="raw") if backing is not None else b""
        self.model = bytearray(below[:size].ljust(size, b"\0"))
        self.disk = self._opened()

    def _opened(self) -> blocklayer.Disk:
        return blocklayer.open(
            self.path,
            mode="r+",
            discard="unmap",
            detect_zeroes=self._rng.choice(["off", "on", "unmap"]),
            cache=self._rng.choice(["writeback", "writeback", "none", "unsafe"]),
        )

    def _new_base(self) -> Path:
        """Another raw base, made by QEMU."""
        self._names += 1
        path = self._directory / f"base{self._names}"
        size = self._rng.randrange(1, SIZE_MAX // 512) * 512
        qemu.create(path, size, format="raw")
        told = [f"write -q -P {self._value()} {self._place(size, 64 * KiB)}" for _ in range(8)]
        qemu.io(path, *told, format="raw")
        return path

    # --- choices --------------------------------------------------------------------------------

    def _value(self) -> int:
        return self._rng.choice(VALUES)

    def _place(self, size: int, longest: int) -> str:
        offset, length = self._range(size, longest)
        return f"{offset} {length}"

    def _range(self, size: int, longest: int) -> tuple[int, int]:
        alignment = self._rng.choice((1, 512, self._cluster))
        start = align_down(self._rng.randrange(size), alignment)
        length = align_up(self._rng.randint(1, longest), alignment)
        return start, min(length, size - start)

    def _some(self) -> tuple[int, int]:
        longest = self._rng.choice((1, 3, 20)) * self._cluster
        return self._range(len(self.model), min(longest, MiB))

    # --- what can be done while it is open --------------------------------------------------------

    def write(self) -> None:
        offset, length = self._some()
        data = bytes([self._value()]) * length
        self.disk.write(offset, data, fua=self._rng.random() < 0.1)
        self.model[offset : offset + length] = data

    def write_many(self) -> None:
        requests = []
        for _ in range(self._rng.randrange(1, 12)):
            offset, length = self._some()
            requests.append((offset, bytes([self._value()]) * length))
        self.disk.write_many(requests)
        for offset, data in requests:
            self.model[offset : offset + len(data)] = data

    def submit(self) -> None:
        batch = []
        for _ in range(self._rng.randrange(1, 12)):
            offset, length = self._some()
            kind = self._rng.choice(("write", "write_zeroes", "read", "flush"))
            if kind == "write":
                data = bytes([self._value()]) * length
                batch.append(Request.write(offset, data))
                self.model[offset : offset + length] = data
            elif kind == "write_zeroes":
                batch.append(Request.write_zeroes(offset, length, unmap=self._rng.random() < 0.5))
                self.model[offset : offset + length] = bytes(length)
            elif kind == "read":
                batch.append(Request.read(offset, length))
            else:
                batch.append(Request.flush())
        self.disk.submit(batch)
        assert [request.error for request in batch] == [None] * len(batch)

    def write_zeroes(self) -> None:
        offset, length = self._some()
        flag = self._rng.choice(("none", "unmap", "allocate", "no_fallback"))
        fua = self._rng.random() < 0.1
        if flag == "no_fallback":
            self._zero_if_cheap(offset, length)
            return
        self.disk.write_zeroes(
            offset, length, unmap=flag == "unmap", allocate=flag == "allocate", fua=fua
        )
        self.model[offset : offset + length] = bytes(length)
        if flag == "allocate":
            found = list(self.disk.extents(offset, length))
            assert all(extent.depth == 0 and extent.host_offset is not None for extent in found)

    def _zero_if_cheap(self, offset: int, length: int) -> None:
        try:
            self.disk.write_zeroes(offset, length, no_fallback=True)
            self.model[offset : offset + length] = bytes(length)
        except blocklayer.NotSupported:
            self._may_be_zero(offset, length)

    def discard(self) -> None:
        offset, length = self._some()
        self.disk.discard(offset, length)
        self._may_be_zero(offset, length)

    def _may_be_zero(self, offset: int, length: int) -> None:
        """Each cluster's part of the range is as it was, or zero."""
        end = offset + length
        while offset < end:
            stop = min(end, align_down(offset, self._cluster) + self._cluster)
            shown = self.disk.read(offset, stop - offset)
            assert shown in (self.model[offset:stop], bytes(stop - offset))
            self.model[offset:stop] = shown
            offset = stop

    def grow(self) -> None:
        size = min(len(self.model) + self._rng.randrange(1, 2000) * 512, SIZE_MAX)
        if size > len(self.model):
            self.disk.resize(size)
            self.model.extend(bytes(size - len(self.model)))

    def shrink(self) -> None:
        size = max(len(self.model) - self._rng.randrange(1, 2000) * 512, 64 * KiB)
        if size < len(self.model):
            self.disk.resize(size)
            del self.model[size:]

    def reopen(self) -> None:
        self.disk.reopen("r")
        views.assert_clean(self.path)
        self.disk.reopen("r+")

    # --- what is done to the closed file ----------------------------------------------------------

    def _while_closed(self, action: Callable[[], object]) -> None:
        self.disk.close()
        try:
            action()
        finally:
            self.disk = self._opened()

    def close(self) -> None:
        """Close it and open it again: to everybody it must be whole."""
        self._while_closed(self.look_closely)

    def rebase(self) -> None:
        new = self._rng.choice((None, self._new_base()))
        self._while_closed(lambda: blocklayer.rebase(self.path, None if new is None else new.name))
        self.backing = new

    def rename_base(self) -> None:
        """An unsafe rebase, to a file of the same content."""
        if self.backing is None:
            return
        self._names += 1
        moved = self._directory / f"base{self._names}"
        shutil.copy(self.backing, moved)
        self._while_closed(
            lambda: blocklayer.rebase(self.path, moved.name, backing_format="raw", unsafe=True)
        )
        self.backing = moved

    def commit(self) -> None:
        if self.backing is None:
            return
        keep = self._rng.random() < 0.3
        self._while_closed(lambda: blocklayer.commit(self.path, keep=keep))
        base = qemu.content(self.backing, format="raw")
        assert base[: len(self.model)] == self.model

    def check(self) -> None:
        def repair() -> None:
            assert blocklayer.check(self.path, repair="all").clean

        self._while_closed(repair)

    # --- opinions ---------------------------------------------------------------------------------

    def look_closely(self) -> None:
        """The image is closed: everything about it must be to QEMU as it is to us."""
        views.assert_same(self.path, expected=bytes(self.model))
        views.assert_clean(self.path)

    def look(self) -> None:
        """The image is open to us: what is on disk must be whole to QEMU."""
        self.disk.flush()
        found = qemu.check(self.path, force_share=True)
        assert found.clean
        assert found == views.check(self.path, force_share=True)
        assert qemu.content(self.path, force_share=True) == self.model
        assert self.disk.read(0, self.disk.size) == self.model

    def live(self, steps: int, *, look_every: int) -> None:
        """Do random things, and ask for opinions now and then."""
        often = [self.write, self.write_many, self.submit, self.write_zeroes, self.discard]
        seldom = [self.grow, self.shrink, self.reopen, self.close, self.check]
        seldom += [self.rebase, self.rename_base, self.commit]
        for step in range(1, steps + 1):
            self._rng.choice(seldom if self._rng.random() < 0.12 else often)()
            if step % look_every == 0:
                self.look()
        self.disk.close()
        self.look_closely()
