# SPDX-License-Identifier: Apache-2.0
"""The user of a disk that may crash, who remembers what was promised.

`Guest` has the verbs of `Disk`. It notes when each request began and when it was acknowledged,
counted in operations of the `CrashDisk` below, so that for every moment it can say which contents
a crash may leave, sector by sector:

    requests          A begun   A done   FLUSH   B begun   B done   C begun
    killed at the end                                      B must be there, C may be
    power lost there                     A must be there,  B and C may be

Requests that run at the same time must not share a sector.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from blocklayer.base.buffers import Buffer
from blocklayer.base.units import SECTOR
from blocklayer.core.batch import DISCARD, FLUSH, WRITE, WRITE_ZEROES, Request
from blocklayer.core.disk import Disk
from blocklayer.core.node import FormatNode, Node
from blocklayer.testing.crash import ZERO_SECTOR, CrashDisk
from blocklayer.testing.crash_content import Content, Header, read_content

Values = tuple[bytes, ...]
"""What a sector may hold."""

NEVER = 1 << 62


def stamp(tag: str, offset: int, length: int) -> bytes:
    """Bytes that say in every 32 of them who wrote them, and where; never zero."""
    first = offset // 32
    count = (offset + length - 1) // 32 - first + 1
    lines = (f"{tag[:16]:.<16}{(first + number) * 32:#016x}" for number in range(count))
    within = offset % 32
    return "".join(lines).encode()[within : within + length]


@dataclass(slots=True, eq=False)
class _Request:
    """begun and done: moments of the storage; place: among all beginnings and endings."""

    what: str
    begun: int
    done: int = NEVER
    done_place: int = NEVER
    durable: int = NEVER


@dataclass(frozen=True, slots=True)
class _Step:
    """What one request makes of one sector.

    replaces   once the request is certain, older values are gone (not so for a discard)
    epoch      how many changes of the header came before
    switch     comes with the header: as soon as the header is seen, this is true too
    """

    request: _Request
    values: Values
    epoch: int
    replaces: bool = True
    switch: bool = False


@dataclass(slots=True, eq=False)
class View:
    """What may be there after a crash at one moment."""

    certain: frozenset[_Request]
    begun: frozenset[_Request]
    killed: bool
    headers: dict[Header, list[int]]
    allowed: dict[int, dict[int, Values]] = field(default_factory=dict)
    """By epoch and sector."""


class Guest:
    """Uses a disk and knows what may be on it after a crash. Thread-safe, as the disk is."""

    def __init__(self, disk: Disk, storage: CrashDisk, start: Node | None = None) -> None:
        """`start` is the image as it was before the recording, if opening has changed it."""
        self.disk = disk
        self._storage = storage
        self._lock = threading.Lock()
        self._place = 0
        self._requests: list[_Request] = []
        self._flushed: list[int] = []
        self._start = read_content(disk.node if start is None else start)
        self._headers: list[tuple[Header, _Request | None]] = [(self._start.header, None)]
        self._steps: dict[int, list[_Step]] = {}
        self._views: dict[tuple[bool, frozenset[_Request], frozenset[_Request]], View] = {}

    # --- verbs ----------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """As `Disk.write`."""
        with self._request(f"write {len(data):#x} at {offset:#x}", durable=fua) as request:
            self._patch(request, offset, bytes(data))
            self.disk.write(offset, data, fua=fua)

    def write_many(self, requests: Sequence[tuple[int, bytes]]) -> None:
        """As `Disk.write_many`."""
        with self._request(f"write {len(requests)} requests") as request:
            for offset, data in requests:
                self._patch(request, offset, data)
            self.disk.write_many(requests)

    def submit(self, requests: Sequence[Request]) -> None:
        """As `Disk.submit`, of requests that do not overlap and of which none fails."""
        with contextlib.ExitStack() as stack:
            for part in requests:
                if part.kind == FLUSH:
                    continue
                what = f"{part.kind} {part.length:#x} at {part.offset:#x}"
                request = stack.enter_context(self._request(what, durable=part.fua))
                if part.kind == WRITE:
                    assert part.view is not None
                    self._patch(request, part.offset, bytes(part.view))
                elif part.kind == WRITE_ZEROES:
                    self._patch(request, part.offset, bytes(part.length))
                elif part.kind == DISCARD:
                    self._discard(request, part.offset, part.length)
            self.disk.submit(requests)
            failed = [part.error for part in requests if part.error is not None]
            if failed:
                raise failed[0]

    def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, allocate: bool = False
    ) -> None:
        """As `Disk.write_zeroes`."""
        with self._request(f"zero {length:#x} at {offset:#x}") as request:
            self._patch(request, offset, bytes(length))
            self.disk.write_zeroes(offset, length, unmap=unmap, allocate=allocate)

    def discard(self, offset: int, length: int) -> None:
        """As `Disk.discard`, whole sectors: they keep their bytes or become zero."""
        with self._request(f"discard {length:#x} at {offset:#x}") as request:
            self._discard(request, offset, length)
            self.disk.discard(offset, length)

    def _discard(self, request: _Request, offset: int, length: int) -> None:
        for sector in range(offset // SECTOR, (offset + length) // SECTOR):
            values = tuple(dict.fromkeys((*self._newest(sector), ZERO_SECTOR)))
            self._add(request, sector, values, replaces=False)

    def flush(self) -> None:
        """As `Disk.flush`."""
        with self._flushing():
            self.disk.flush()

    def resize(self, size: int) -> None:
        """As `Disk.resize`."""
        with self._request(f"resize to {size:#x}") as request:
            for sector in dict.fromkeys([*self._start.sectors, *self._steps]):
                if sector * SECTOR >= min(size, self.disk.size):
                    self._add(request, sector, (ZERO_SECTOR,), switch=True)
            self._headers.append(((size, self._headers[-1][0][1]), request))
            self.disk.resize(size)

    def change_backing(
        self,
        name: str | None,
        format_name: str | None = None,
        content: Mapping[int, bytes] | None = None,
    ) -> None:
        """Store another backing file; `content` has the sectors that read differently with it."""
        node = self.disk.node
        assert isinstance(node, FormatNode)
        with self._request(f"change the backing file to {name}") as request:
            for sector, value in (content or {}).items():
                self._add(request, sector, (value,), switch=True)
            self._headers.append(((self._headers[-1][0][0], name), request))
            node.change_backing(name, format_name)

    def change(self, content: Mapping[int, bytes], verb: Callable[[], None]) -> None:
        """Any other operation, after which `content` is what these sectors hold."""
        with self._request("change") as request:
            for sector, value in content.items():
                self._add(request, sector, (value,))
            verb()

    def close(self) -> None:
        """As `Disk.close`, which flushes."""
        with self._flushing():
            self.disk.close()

    # --- noting ---------------------------------------------------------------------------------

    @contextmanager
    def _request(self, what: str, *, durable: bool = False) -> Iterator[_Request]:
        with self._lock:
            self._place += 1
            request = _Request(what, self._storage.moment)
            self._requests.append(request)
        yield request
        with self._lock:
            self._place += 1
            request.done, request.done_place = self._storage.moment, self._place
            if durable:
                request.durable = request.done
                self._flushed.append(request.done)

    @contextmanager
    def _flushing(self) -> Iterator[None]:
        with self._lock:
            self._place += 1
            begun = self._place
        yield
        with self._lock:
            moment = self._storage.moment
            self._flushed.append(moment)
            for request in self._requests:
                if request.done_place < begun:
                    request.durable = min(request.durable, moment)

    def _patch(self, request: _Request, offset: int, data: bytes) -> None:
        """Note that `data` is about to be at `offset`."""
        done = 0
        while done < len(data):
            sector, within = divmod(offset + done, SECTOR)
            piece = data[done : done + SECTOR - within]
            end = within + len(piece)
            older = self._newest(sector) if len(piece) < SECTOR else (ZERO_SECTOR,)
            values = (value[:within] + piece + value[end:] for value in older)
            self._add(request, sector, tuple(dict.fromkeys(values)))
            done += len(piece)

    def _newest(self, sector: int) -> Values:
        """What a sector may hold if nothing crashes: one value, or two after a failed request."""
        values: Values = (self._start.sectors.get(sector, ZERO_SECTOR),)
        for step in self._steps.get(sector, ()):
            if step.request.done < NEVER and step.replaces:
                values = step.values
            else:
                values = (*values, *step.values)
        return values

    def _add(
        self,
        request: _Request,
        sector: int,
        values: Values,
        *,
        replaces: bool = True,
        switch: bool = False,
    ) -> None:
        epoch = len(self._headers) if switch else len(self._headers) - 1
        with self._lock:
            steps = self._steps.setdefault(sector, [])
            steps.append(_Step(request, values, epoch, replaces, switch))

    # --- answering ------------------------------------------------------------------------------

    def views(self, first: int, last: int, killed: bool) -> list[View]:
        """What may be there after a crash at a moment from `first` to `last`.

        Between two moments more requests begin, which allows more, and more is flushed, which
        allows less: only the first moment and those of flushes matter.
        """
        moments = {first}
        if not killed:
            moments.update(moment for moment in self._flushed if first < moment <= last)
        return [self._view(moment, killed) for moment in sorted(moments)]

    def _view(self, moment: int, killed: bool) -> View:
        certain = frozenset(
            request
            for request in self._requests
            if (request.done if killed else request.durable) <= moment
        )
        begun = certain | {request for request in self._requests if request.begun < moment}
        key = (killed, certain, begun)
        if key not in self._views:
            self._views[key] = View(certain, begun, killed, self._headers_in(certain, begun))
        return self._views[key]

    def _headers_in(
        self, certain: frozenset[_Request], begun: frozenset[_Request]
    ) -> dict[Header, list[int]]:
        """The headers that may be seen, each with its epochs."""
        found: dict[Header, list[int]] = {}
        for epoch, (header, request) in enumerate(self._headers):
            if request is None or request in certain:
                found = {}
            if request is None or request in begun:
                found.setdefault(header, []).append(epoch)
        return found

    def judge(self, view: View, content: Content) -> str | None:
        """Why a crash may not leave `content`; None if it may."""
        epochs = view.headers.get(content.header)
        if epochs is None:
            return f"size and backing file are {content.header}, not one of {list(view.headers)}"
        problem = None
        for epoch in epochs:
            problem = self._compare(view, epoch, content)
            if problem is None:
                return None
        return problem

    def _compare(self, view: View, epoch: int, content: Content) -> str | None:
        allowed = view.allowed.get(epoch)
        if allowed is None:
            allowed = view.allowed[epoch] = self._allowed(view, epoch)
        for start, end in content.unreadable:
            if not self._is_pending(view, start, end):
                return f"guest offset {start:#x} cannot be read, and nothing was being written"
        hidden = {
            sector
            for start, end in content.unreadable
            for sector in range(start // SECTOR, end // SECTOR)
        }
        end_sector = content.header[0] // SECTOR
        get = content.sectors.get
        for sector, values in allowed.items():
            found = get(sector, ZERO_SECTOR)
            if found not in values and sector < end_sector and sector not in hidden:
                return _wrong(sector, found, values)
        for sector in content.sectors.keys() - allowed.keys():
            return _wrong(sector, content.sectors[sector], (ZERO_SECTOR,))
        return None

    def _allowed(self, view: View, epoch: int) -> dict[int, Values]:
        sectors = dict.fromkeys([*self._start.sectors, *self._steps])
        return {sector: self._values(view, epoch, sector) for sector in sectors}

    def _values(self, view: View, epoch: int, sector: int) -> Values:
        values: Values = (self._start.sectors.get(sector, ZERO_SECTOR),)
        for step in self._steps.get(sector, ()):
            if step.epoch > epoch:
                break
            if step.switch or (step.replaces and step.request in view.certain):
                values = step.values
            elif step.request in view.begun:
                values = (*values, *step.values)
        return tuple(dict.fromkeys(values))

    def _is_pending(self, view: View, start: int, end: int) -> bool:
        """Whether a request on the range may be half done, or it was never readable."""
        steps = [
            step.request
            for sector in range(start // SECTOR, end // SECTOR)
            for step in self._steps.get(sector, ())
        ]
        if any(request in view.begun and request not in view.certain for request in steps):
            return True
        damaged = any(low < end and start < high for low, high in self._start.unreadable)
        return damaged and not any(request in view.certain for request in steps)


def _wrong(sector: int, found: bytes, allowed: Values) -> str:
    names = " or ".join(_shown(value) for value in allowed)
    return f"guest sector {sector} (offset {sector * SECTOR:#x}) is {_shown(found)}, not {names}"


def _shown(content: bytes) -> str:
    """The interesting beginning and end of a sector."""
    if content == ZERO_SECTOR:
        return "zero"
    return f"{content[:32]!r}…{content[-8:]!r}"
