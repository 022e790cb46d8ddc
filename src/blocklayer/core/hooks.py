# SPDX-License-Identifier: Apache-2.0
"""What jobs hang on a node's writes: dirty bitmaps, and callbacks before a write.

They belong to the node, not to one disk on it: whoever writes, through whichever disk, is seen, and
so is who writes through a node above (`watch`). While a node has any, writes do not take the inline
path; a node without any pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import get_ident

from blocklayer.base.buffers import Vector, vector_length
from blocklayer.base.errors import BlocklayerError, InvalidArgument
from blocklayer.core.bitmap import GRANULARITY_DEFAULT, DirtyBitmap

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeVar

    from blocklayer.core.node import Node, Span

    T = TypeVar("T")

BeforeWrite = Callable[[int, int], None]
"""(offset, length), called inside the request before anything is written; raising refuses it."""


class WriteHooks:
    """The hooks of one node. Changed only while the node is drained."""

    def __init__(self) -> None:
        self.before: list[BeforeWrite] = []
        self.bitmaps: dict[str, DirtyBitmap] = {}
        self._announced: dict[int, int] = {}
        """Writes that threads have announced, and are at: what reaches the node is part of them."""

    def __bool__(self) -> bool:
        return bool(self.before or self.bitmaps)

    def begin(self, offset: int, length: int) -> None:
        """A write is about to happen."""
        for callback in self.before:
            callback(offset, length)
        thread = get_ident()
        self._announced[thread] = self._announced.get(thread, 0) + 1

    def is_announced(self) -> bool:
        """Whether this thread is at a write that it has announced."""
        return get_ident() in self._announced

    def end(self, offset: int, length: int) -> None:
        """A write has happened, wholly or in part: also a failed one may have changed bytes."""
        thread = get_ident()
        left = self._announced.get(thread, 0) - 1
        if left > 0:
            self._announced[thread] = left
        else:
            self._announced.pop(thread, None)
        self.record(offset, length)

    def record(self, offset: int, length: int) -> None:
        """Bytes may have changed."""
        for bitmap in self.bitmaps.values():
            bitmap.record(offset, length)

    def add_bitmap(
        self, name: str, size: int, granularity: int = GRANULARITY_DEFAULT, *, enabled: bool = True
    ) -> DirtyBitmap:
        """Start recording under a new name."""
        if name in self.bitmaps:
            raise InvalidArgument(f"Bitmap already exists: {name}")
        bitmap = self.bitmaps[name] = DirtyBitmap(name, size, granularity, enabled=enabled)
        return bitmap

    def bitmap(self, name: str) -> DirtyBitmap:
        """The bitmap of that name."""
        found = self.bitmaps.get(name)
        if found is None:
            raise InvalidArgument(f"Dirty bitmap '{name}' not found")
        return found

    def follow(self, size: int) -> None:
        """The disk may have another size: resized, or grown by a write of a node above."""
        for bitmap in self.bitmaps.values():
            if bitmap.size != size:
                bitmap.resize(size)


# --- writes of those above ------------------------------------------------------------------------


class _Watch:
    """A node's own verbs, with its hooks around them: parents call them, as disks do not."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._writev = node.writev
        self._write_each = node.write_each
        self._zero = node.zero
        self._discard = node.discard
        self._share = node.share

    def _around(self, spans: Sequence[tuple[int, int]], action: Callable[[], T]) -> T:
        """Run an action that changes `spans`, unless a disk on this node has told of them."""
        hooks = self._node.hooks
        if hooks is None or hooks.is_announced():
            return self._recorded(hooks, spans, action)
        begun: list[tuple[int, int]] = []
        try:
            if hooks.before:
                with self._node.tracker.calling_out():
                    for span in spans:
                        hooks.begin(*span)
                        begun.append(span)
            return self._recorded(hooks, spans, action)
        finally:
            for span in begun:
                hooks.end(*span)

    def _recorded(
        self, hooks: WriteHooks | None, spans: Sequence[tuple[int, int]], action: Callable[[], T]
    ) -> T:
        try:
            return action()
        finally:
            if hooks is not None:
                hooks.follow(self._node.size)
                for span in spans:
                    hooks.record(*span)

    def writev(self, offset: int, vector: Vector) -> None:
        self._around([(offset, vector_length(vector))], lambda: self._writev(offset, vector))

    def write_each(self, requests: Sequence[Span]) -> list[BlocklayerError | None]:
        spans = [(offset, vector_length(vector)) for offset, vector in requests]
        return self._around(spans, lambda: self._write_each(requests))

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        self._around([(offset, length)], lambda: self._zero(offset, length, flags))

    def discard(self, offset: int, length: int) -> None:
        self._around([(offset, length)], lambda: self._discard(offset, length))

    def share(self, descriptor: int, source_offset: int, offset: int, length: int) -> None:
        span = (offset, length)
        self._around([span], lambda: self._share(descriptor, source_offset, *span))


_VERBS = ("writev", "write_each", "zero", "discard", "share")


def watch(node: Node) -> None:
    """From now on, the node's hooks see what is written through nodes above it, too.

    What disks on the node write is recorded twice, which does no harm, and announced once.
    """
    if "writev" not in vars(node):
        watching = _Watch(node)
        for verb in _VERBS:
            setattr(node, verb, getattr(watching, verb))


def unwatch(node: Node) -> None:
    """Undo `watch`."""
    for verb in _VERBS:
        vars(node).pop(verb, None)
