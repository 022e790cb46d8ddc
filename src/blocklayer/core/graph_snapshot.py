# SPDX-License-Identifier: Apache-2.0
"""External snapshots: an overlay takes the place of a node, which from then on is only read."""

from __future__ import annotations

from collections.abc import Callable

from blocklayer.base.errors import InvalidArgument
from blocklayer.core import graph_edges as edges
from blocklayer.core.node import FormatNode, Node
from blocklayer.core.permissions import WRITE

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.graph import Graph


def snapshot(graph: Graph, node: Node, overlay: Node) -> Callable[[], None]:
    """From now on whoever stands on `node` writes to `overlay`, and `node` is below it.

    Returns what undoes it, as long as nothing else was done with them.
    """
    with graph.drained(node, overlay):
        require_snapshots(graph, node)
        entry = graph.entry(overlay)
        if not isinstance(overlay, FormatNode) or not edges.supports_backing(overlay):
            raise InvalidArgument("The overlay does not support backing images")
        if entry.disks or graph.parents(overlay):
            raise InvalidArgument("The overlay is already in use")
        if overlay.backing is not None:
            raise InvalidArgument("The overlay already has a backing image")
        if overlay is node or graph.is_below(node, overlay):
            raise InvalidArgument(f"Making '{entry.name}' a backing child of itself")
        if not node.read_only:
            node.flush()
        graph.replace(node, overlay)
        graph.set_backing(overlay, node)
        only_read_now = not node.read_only and _is_only_read(graph, node)
        if only_read_now:
            _set_read_only(graph, node, True)

    def undo() -> None:
        with graph.drained(node, overlay):
            if only_read_now:
                _set_read_only(graph, node, False)
            graph.replace(overlay, node)
            graph.set_backing(overlay, None)

    return undo


def require_snapshots(graph: Graph, node: Node) -> None:
    """Raise `InvalidArgument` unless an overlay may take the node's place now.

    Images over a node belong to its content: they would lie over what is written from now on.
    """
    graph.require_unblocked(node)
    graph.require_no_overlay(node)


def _is_only_read(graph: Graph, node: Node) -> bool:
    """Whether nobody writes to a node, and what it is stored in is its own."""
    return not any(WRITE in use.needs for use in graph.uses(node)) and _owns_storage(graph, node)


def _owns_storage(graph: Graph, node: Node) -> bool:
    stored = [edge.child for edge in graph.children(node) if edge.role != "backing"]
    return all(
        len(graph.parents(each)) == 1 and not graph.entry(each).disks and _owns_storage(graph, each)
        for each in stored
    )


def _set_read_only(graph: Graph, node: Node, read_only: bool) -> None:
    graph.set_read_only(node, read_only)
    entry = graph.entry(node)
    entry.settings = entry.settings.replace(read_only=read_only)
