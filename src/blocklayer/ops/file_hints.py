# SPDX-License-Identifier: Apache-2.0
"""Create options of files, whatever they hold: wishes that the file system may fulfil.

A file system that does not know them is no error: the image is the same image.
"""

from __future__ import annotations

import contextlib
import os

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.options import parse_bool
from blocklayer.base.units import parse_size
from blocklayer.core.drivers import CreateOption

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

FILE_OPTIONS = (
    CreateOption("extent_size_hint", "size", "Extent size hint for the image file, 0 to disable"),
    CreateOption("nocow", "bool", "Turn off copy-on-write (valid only on btrfs)"),
)

# linux/fs.h
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_NOCOW_FL = 0x00800000
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_XFLAG_EXTSIZE = 0x00000800
FSXATTR_SIZE = 28
UINT32_MAX = 2**32 - 1


def take_hints(options: dict[str, Any]) -> dict[str, Any]:
    """Take what concerns the file alone out of create options. Raises `InvalidArgument`."""
    hints: dict[str, Any] = {}
    for option in FILE_OPTIONS:
        if option.name in options:
            value = options.pop(option.name)
            if option.kind == "bool":
                # As text, like every option that can be given again.
                hints[option.name] = "on" if parse_bool(value, option.name) else "off"
            else:
                hints[option.name] = parse_size(value, option.name)
    if hints.get("extent_size_hint", 0) > UINT32_MAX:
        raise InvalidArgument("The extent size hint is too large")
    return hints


def apply_hints(path: str, hints: dict[str, Any]) -> None:
    """Tell the file system, before there is anything in the file."""
    if not hints:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            if hints.get("nocow") == "on":
                _set_nocow(descriptor)
        with contextlib.suppress(OSError):
            if hints.get("extent_size_hint"):
                _set_extent_size(descriptor, hints["extent_size_hint"])
    finally:
        os.close(descriptor)


def _set_nocow(descriptor: int) -> None:
    import fcntl
    import sys

    flags = fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, bytes(8))
    value = int.from_bytes(flags[:4], sys.byteorder) | FS_NOCOW_FL
    fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, value.to_bytes(8, sys.byteorder))


def _set_extent_size(descriptor: int, size: int) -> None:
    import fcntl
    import sys

    attributes = bytearray(fcntl.ioctl(descriptor, FS_IOC_FSGETXATTR, bytes(FSXATTR_SIZE)))
    flags = int.from_bytes(attributes[:4], sys.byteorder) | FS_XFLAG_EXTSIZE
    attributes[:4] = flags.to_bytes(4, sys.byteorder)
    attributes[4:8] = size.to_bytes(4, sys.byteorder)
    fcntl.ioctl(descriptor, FS_IOC_FSSETXATTR, bytes(attributes))
