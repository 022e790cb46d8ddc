# SPDX-License-Identifier: Apache-2.0
"""The extents of an image."""

from __future__ import annotations

from collections.abc import Iterator

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.extent import Extent
from blocklayer.core.opening import FilenameLike
from blocklayer.ops.open_image import open_disk


def map(
    name: FilenameLike,
    *,
    format: str | None = None,
    offset: int = 0,
    length: int | None = None,
    force_share: bool = False,
) -> Iterator[Extent]:
    """Walk an image's extents: data, zeroes or nothing, in which layer of the chain, and where."""
    with open_disk(name, format=format, force_share=force_share) as disk:
        if offset < 0 or (length is not None and length < 0):
            raise InvalidArgument("The start and the length of a map cannot be negative")
        start = min(offset, disk.size)
        end = disk.size if length is None else min(disk.size, offset + length)
        current = None
        for extent in disk.extents(start, max(0, end - start)):
            if current is not None and extent.follows(current):
                current = current.joined(extent)
                continue
            if current is not None:
                yield current
            current = extent
        if current is not None:
            yield current
