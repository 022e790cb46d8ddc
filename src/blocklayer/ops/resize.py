# SPDX-License-Identifier: Apache-2.0
"""Changing the size of a disk."""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.units import parse_size
from blocklayer.core.opening import FilenameLike
from blocklayer.ops.open_image import open_disk


def resize(
    name: FilenameLike,
    size: int | str,
    *,
    format: str | None = None,
    shrink: bool = False,
    preallocation: str = "off",
) -> int:
    """Give an image another size; returns the size it has then, in bytes.

    New bytes read as zeroes. Making a disk smaller loses what is cut off, and needs `shrink`.
    """
    wanted = parse_size(size, "image size")
    with open_disk(name, mode="r+", format=format) as disk:
        if wanted < disk.size and not shrink:
            raise InvalidArgument(
                "Use the --shrink option to perform a shrink operation.\n"
                "Shrinking an image will delete all data beyond the shrunken image's end."
                " Before performing such an operation, make sure there is no important data there."
            )
        if wanted != disk.size:
            disk.resize(wanted, preallocation=preallocation)
        return disk.size
