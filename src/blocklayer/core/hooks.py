# SPDX-License-Identifier: Apache-2.0
"""What jobs hang on a node's writes: dirty bitmaps, and callbacks before a write.

They belong to the node, not to one disk on it: whoever writes, through whichever disk, is seen.
While a node has any, writes do not take the inline path; a node without any pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from blocklayer.base.errors import InvalidArgument
from blocklayer.core.bitmap import GRANULARITY_DEFAULT, DirtyBitmap

BeforeWrite = Callable[[int, int], None]
"""(offset, length), called inside the request before anything is written; raising refuses it."""


class WriteHooks:
    """The hooks of one node. Changed only while the node is drained."""

    def __init__(self) -> None:
        self.before: list[BeforeWrite] = []
        self.bitmaps: dict[str, DirtyBitmap] = {}

    def __bool__(self) -> bool:
        return bool(self.before or self.bitmaps)

    def begin(self, offset: int, length: int) -> None:
        """A write is about to happen."""
        for callback in self.before:
            callback(offset, length)

    def end(self, offset: int, length: int) -> None:
        """A write has happened, wholly or in part: also a failed one may have changed bytes."""
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

    def resize(self, size: int) -> None:
        """The disk has another size."""
        for bitmap in self.bitmaps.values():
            bitmap.resize(size)
