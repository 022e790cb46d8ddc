# SPDX-License-Identifier: Apache-2.0
"""Layers of a chain: found by node name or file name; and what a header says lies below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blocklayer.base.errors import InvalidArgument
from blocklayer.core.opening import backing_path, is_same_file

if TYPE_CHECKING:
    from blocklayer.core.graph import Graph
    from blocklayer.core.node import FormatNode, Node


def index(chain: list[Node], node: Node) -> int:
    """Where a layer is in its chain."""
    return next(number for number, each in enumerate(chain) if each is node)


def find(
    graph: Graph,
    chain: list[Node],
    node_name: str | None,
    filename: str | None,
    what: str,
    default: Node,
) -> Node:
    """The layer of that node name or file name. Raises `InvalidArgument`."""
    if node_name is not None:
        node = graph.find_node(node_name)
        for layer in chain:
            if node is layer:
                return layer
        top = graph.name_of(chain[0])
        raise InvalidArgument(f"Node '{node_name}' is not a backing image of '{top}'")
    if filename is not None:
        for number, layer in enumerate(chain):
            above = chain[number - 1].filename if number else ""
            names = {filename, backing_path(above, filename)} if above else {filename}
            if layer.filename in names or any(is_same_file(n, layer.filename) for n in names):
                return layer
        raise InvalidArgument(f"{what.capitalize()} '{filename}' not found")
    return default


def store_backing(overlay: FormatNode, backing: Node | None, name: str | None = None) -> None:
    """Write into a header what lies below it from now on; the image may be read-only."""
    was_read_only = overlay.read_only
    if was_read_only:
        overlay.reopen(read_only=False)
    try:
        stored = name
        if stored is None and backing is not None:
            stored = backing.filename
        overlay.change_backing(stored, None if backing is None else backing.driver)
        overlay.flush()
    finally:
        if was_read_only:
            overlay.reopen(read_only=True)
