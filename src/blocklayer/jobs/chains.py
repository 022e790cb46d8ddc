# SPDX-License-Identifier: Apache-2.0
"""Layers of a chain: found by node name or file name; and what a header says lies below it."""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument
from blocklayer.core.identity import is_same_file
from blocklayer.core.names import backing_path
from blocklayer.core.permissions import READING

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from collections.abc import Iterable

    from blocklayer.core.graph import Graph
    from blocklayer.core.graph_disk import GraphDisk
    from blocklayer.core.node import FormatNode, Node


def index(chain: list[Node], node: Node) -> int:
    """Where a layer is in its chain."""
    return next(number for number, each in enumerate(chain) if each is node)


def find_node(graph: Graph, chain: list[Node], name: str, elsewhere: str) -> Node:
    """The layer of that node name. Raises `InvalidArgument`, with `elsewhere` for other nodes."""
    if name not in graph:
        raise InvalidArgument(f"Cannot find device='' nor node-name='{name}'")
    node = graph.find(name)
    if not any(node is layer for layer in chain):
        raise InvalidArgument(elsewhere)
    return node


def find_file(chain: list[Node], name: str) -> Node | None:
    """The layer whose file a name stands for, as seen from here or from the layer above it."""
    for number, layer in enumerate(chain):
        above = chain[number - 1].filename if number else ""
        names = {name, backing_path(above, name)} if above else {name}
        if layer.filename in names or any(is_same_file(each, layer.filename) for each in names):
            return layer
    return None


def hold(
    graph: Graph,
    layers: Iterable[Node],
    user: str,
    held: list[GraphDisk],
    shares: frozenset[str] = READING,
) -> None:
    """Nobody writes to the layers until what was added to `held` is closed.

    Raises `InvalidArgument` if somebody does, or does what else is not shared.
    """
    for layer in layers:
        held.append(
            graph.open_disk(
                layer,
                user=user,
                role="intermediate node",
                shares=shares,
                follows=False,
            )
        )


def store_backing(
    graph: Graph, overlay: FormatNode, backing: Node | None, name: str | None = None
) -> None:
    """Write into a header what lies below it from now on; the image may be read-only."""
    with graph.made_writable(overlay):
        stored = name
        if stored is None and backing is not None:
            stored = backing.filename
        overlay.change_backing(stored, None if backing is None else backing.driver)
        overlay.flush()


def only_read_again(graph: Graph, node: Node) -> None:
    """A job has opened a layer for writing, and does not need it so any more."""
    if not node.read_only:
        with graph.drained(node):
            node.flush()
            graph.set_read_only(node, True)
