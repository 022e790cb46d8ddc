# SPDX-License-Identifier: Apache-2.0
"""Who uses a node of a graph, and whether one more user gets along with the others.

What a user of a node needs and leaves to others goes on to what lies below: filters pass it on as
it is, an overlay only reads what it lies over, and minds changes of it as much as its users do.
What lies over a node for the sake of a job that vouches for it minds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from blocklayer.base.errors import ReadOnly
from blocklayer.core import graph_edges as edges
from blocklayer.core.node import Node
from blocklayer.core.permissions import ALL, WRITE, Use, require_compatible

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.graph import Graph
    from blocklayer.core.graph_edges import Edge


def uses_of(graph: Graph, node: Node) -> list[Use]:
    """Who uses a node, and how: disks on it and parents."""
    uses = [disk.use for disk in graph.entry(node).disks]
    for edge in graph.parents(node):
        uses.append(_use_of(graph, edge, uses_of(graph, edge.parent)))
    return uses


def _use_of(graph: Graph, edge: Edge, above: Sequence[Use]) -> Use:
    who = _who(graph, edge.parent)
    if edge.role == "backing" and graph.entry(edge.parent).vouched_by:
        return Use(who, edge.role, frozenset(), ALL)
    return edges.use_of(edge, who, above)


def require_use(graph: Graph, node: Node, new: Use) -> None:
    """Raise `InvalidArgument` unless the new user gets along with those here and further down."""
    uses = uses_of(graph, node)
    require_compatible(graph.name_of(node), uses, new)
    _require_below(graph, node, uses, [*uses, new])


def _require_below(graph: Graph, node: Node, before: Sequence[Use], after: Sequence[Use]) -> None:
    """The same for the children of a node, whose users were and are going to be."""
    who = _who(graph, node)
    for edge in graph.children(node):
        known, new = _use_of(graph, edge, before), _use_of(graph, edge, after)
        if new == known:
            continue
        uses = uses_of(graph, edge.child)
        others = [use for use in uses if use.who != who]
        _require_possible(graph, edge.child, others, new)
        _require_below(graph, edge.child, uses, [*others, new])


def _require_possible(graph: Graph, node: Node, others: list[Use], new: Use) -> None:
    if node.read_only and WRITE in new.needs:
        raise ReadOnly("Block node is read-only")
    require_compatible(graph.name_of(node), others, new)


def require_edges(graph: Graph, node: Node) -> None:
    """Raise `InvalidArgument` unless a new node, which is going to be read, gets along with others.

    A filter is not asked for: what will be above it may not be read.
    """
    who = _who(graph, node)
    for edge in graph.children(node):
        others = [use for use in uses_of(graph, edge.child) if use.who != who]
        new = _use_of(graph, edge, [Use(who, "root")] if edge.role == "backing" else [])
        _require_possible(graph, edge.child, others, new)
        _require_below(graph, edge.child, others, [*others, new])


def require_peace(graph: Graph, node: Node) -> None:
    """Raise `InvalidArgument` unless all users of a node, and of what is below, get along."""
    uses = uses_of(graph, node)
    for number, use in enumerate(uses):
        _require_possible(graph, node, uses[:number], use)
    for edge in graph.children(node):
        require_peace(graph, edge.child)


def _who(graph: Graph, node: Node) -> str:
    return f"node '{graph.name_of(node)}'"
