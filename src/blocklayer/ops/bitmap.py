# SPDX-License-Identifier: Apache-2.0
"""Bitmaps that are stored in images: none of the formats that there are can hold one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.core.names import FilenameLike
from blocklayer.ops.open_image import open_disk

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.trust import Trust

GRANULARITY_MIN = 512
GRANULARITY_MAX = 2**31


def change_bitmap(
    name: FilenameLike,
    bitmap: str,
    actions: Sequence[str],
    *,
    format: str | None = None,
    granularity: int = 0,
    source: FilenameLike | None = None,
    source_format: str | None = None,
    trust: Trust | None = None,
) -> None:
    """Do `actions` with a bitmap of an image, in their order.

    actions      add, remove, clear, enable, disable, merge
    granularity  of a new bitmap, in bytes; 0 leaves the choice to the format
    source       the image whose bitmap is merged, if it is not this one
    trust        for images that somebody else made: what they may ask for

    Raises `OpenError`, `InvalidArgument`, `NotSupported`.
    """
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(open_disk(name, mode="r+", format=format, trust=trust))
        if source is not None:
            # Its own bitmaps count, not what it is backed by: that may be this very image.
            stack.enter_context(
                open_disk(source, format=source_format, backing_chain=False, trust=trust)
            )
        for action in actions:
            failed = f"Operation {action} on bitmap {bitmap} failed"
            if action != "add":
                raise InvalidArgument(f"{failed}: Dirty bitmap '{bitmap}' not found")
            if not bitmap:
                raise InvalidArgument(f"{failed}: Bitmap name cannot be empty")
            if granularity and not _is_granularity(granularity):
                raise InvalidArgument(
                    f"{failed}: Granularity must be power of 2 and at least {GRANULARITY_MIN}"
                )
            raise NotSupported(
                f"{failed}: Can't store persistent bitmaps to {disk.filename}:"
                " Operation not supported"
            )


def _is_granularity(value: int) -> bool:
    return GRANULARITY_MIN <= value <= GRANULARITY_MAX and not value & (value - 1)
