# SPDX-License-Identifier: Apache-2.0
"""Whether two names, or a name and an open node, mean the same storage.

A file is its device and inode, under whatever names and links. A block device is its number, and a
loop device, or a partition of one, the file that it shows.
"""

from __future__ import annotations

import os
import stat

from blocklayer.core.node import Node

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Final, TypeAlias

    Identity: TypeAlias = "tuple[int, int]"

_NO_INODE: Final = -1


def is_same_file(one: str, two: str) -> bool:
    """Whether both names stand for one file, which exists."""
    identity = identity_of_name(one)
    return identity is not None and identity == identity_of_name(two)


def is_file_of(node: Node, name: str) -> bool:
    """Whether a name stands for the file that `node` has open."""
    identity = file_identity(node)
    return identity is not None and identity == identity_of_name(name)


def file_identity(node: Node) -> Identity | None:
    """Of the file at the bottom of a node's `file` edge; None if it is no file."""
    while "file" in node.children:
        node = node.children["file"]
    descriptor: int = getattr(node, "descriptor", -1)
    if descriptor >= 0:  # its name may mean another file by now
        return _identity(os.fstat(descriptor))
    return identity_of_name(node.filename)


def identity_of_name(filename: str) -> Identity | None:
    """Of a file that exists."""
    try:
        return _identity(os.stat(filename))
    except (OSError, ValueError):
        return None


def _identity(status: os.stat_result) -> Identity:
    if not stat.S_ISBLK(status.st_mode):
        return status.st_dev, status.st_ino
    try:
        shown = os.stat(_file_of_loop(status.st_rdev))
    except (OSError, ValueError):
        return status.st_rdev, _NO_INODE
    return shown.st_dev, shown.st_ino


def _file_of_loop(number: int) -> str:
    """Linux tells it; elsewhere, and of other devices, this raises `OSError`."""
    device = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    for folder in (device, f"{device}/.."):  # a partition lies in its disk's folder
        try:
            with open(f"{folder}/loop/backing_file", encoding="utf-8") as file:
                return file.read().removesuffix("\n")
        except OSError:
            continue
    raise FileNotFoundError(device)
