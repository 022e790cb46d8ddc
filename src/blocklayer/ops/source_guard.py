# SPDX-License-Identifier: Apache-2.0
"""A copy must not be written over what it is made of."""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument
from blocklayer.core.disk import Disk
from blocklayer.core.identity import file_identity, is_file_of
from blocklayer.core.names import FilenameLike, path_of
from blocklayer.core.node import Node
from blocklayer.ops.open_image import leaves


def refuse_same_file(disks: list[Disk], target: FilenameLike) -> None:
    """Creating the target would empty a source before it is read; writing would change it."""
    for disk in disks:
        refuse_part_of(disk.node, target)


def refuse_part_of(source: Node, target: FilenameLike) -> None:
    """The same for one source, as a node. Raises `InvalidArgument`."""
    if isinstance(target, dict):
        return
    name = path_of(target)
    for node in leaves(source):
        # The file that is open is meant: its name may be another one's by now.
        if is_file_of(node, name):
            raise _is_source(name)


def refuse_same_storage(disks: list[Disk], target: Disk) -> None:
    """Whatever the target was called: it must not be stored where a source is."""
    stored = file_identity(target.node)
    exports = {node.filename for node in leaves(target.node) if node.driver == "nbd"}
    for disk in disks:
        for node in leaves(disk.node):
            if stored is not None and file_identity(node) == stored:
                raise _is_source(target.filename)
            if node.driver == "nbd" and node.filename in exports:
                raise _is_source(target.filename)


def _is_source(name: str) -> InvalidArgument:
    return InvalidArgument(f"'{name}' is part of the source and cannot be the target")
