# SPDX-License-Identifier: Apache-2.0
"""Edges of the graph: from a node to a child, through nodes that belong to the parent alone.

`Padded` nodes are such: they stand before storage that needs alignment, and nobody names them; and
so are those of `point_in_time`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from blocklayer.base.record import Record
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import FormatNode, Node
from blocklayer.core.padding import Padded
from blocklayer.core.permissions import ALL, READ, READING, RESIZE, WRITE, Use


class Edge(Record, frozen=True):
    """`parent` uses `child` as its `role`; `holder` is the node that has it as a child."""

    parent: Node
    role: str
    child: Node
    holder: Node


def edges_of(node: Node, known: Mapping[int, object]) -> list[Edge]:
    """The edges from a node to other nodes that are `known` by their identity."""
    return list(_edges(node, node, known))


def _edges(parent: Node, holder: Node, known: Mapping[int, object]) -> Iterator[Edge]:
    for role, child in list(holder.children.items()):
        if id(child) in known:
            yield Edge(parent, role, child, holder)
        else:
            yield from _edges(parent, child, known)


def public_children(node: Node) -> list[Node]:
    """Children that can have a name: not what stands directly below a `Padded`."""
    found: list[Node] = []
    for child in node.children.values():
        hidden = isinstance(node, Padded) or _is_nameless(child)
        found += public_children(child) if hidden else [child]
    return found


def backing_of(node: Node) -> Node | None:
    """What an overlay lies over, of what can have a name."""
    below = node.backing if isinstance(node, FormatNode) else None
    while isinstance(below, FilterNode) and below.nameless:
        below = below.child
    return below


def _is_nameless(node: Node) -> bool:
    return isinstance(node, FilterNode) and node.nameless


def turn(edge: Edge, new: Node) -> None:
    """Let an edge lead to another node; whoever stands above is drained."""
    holder = edge.holder
    _rename(holder, edge.child, new)
    for part in list(vars(holder).values()):
        if getattr(type(part), "__module__", "").startswith("blocklayer.formats."):
            _rename(part, edge.child, new)  # a driver's tables know the storage as well
    holder.attach(**{edge.role: new})


def _rename(owner: object, old: Node, new: Node) -> None:
    for name, value in list(getattr(owner, "__dict__", {}).items()):
        if value is old:
            setattr(owner, name, new)


def detach(node: Node, kept: Sequence[Node]) -> None:
    """Make closing `node` leave some of what is below it open."""
    for role, child in list(node.children.items()):
        if any(child is each for each in kept):
            del node.children[role]
        else:
            detach(child, kept)


def skip_filters(node: Node) -> Node:
    """The node that a stack of filters stands on."""
    while isinstance(node, FilterNode):
        node = node.child
    return node


def supports_backing(node: FormatNode) -> bool:
    """Whether images of this format can lie over others."""
    from blocklayer.core import drivers

    options = drivers.load(node.driver).create_options
    return any(option.name == "backing_file" for option in options)


def passes_on(edge: Edge) -> bool:
    """Whether who uses the parent thereby uses the child in the same way: filters, and raw."""
    if edge.role not in ("file", "image"):
        return False
    return isinstance(edge.parent, FilterNode) or edge.parent.driver == "raw"


def use_of(edge: Edge, who: str, above: Sequence[Use]) -> Use:
    """How an edge uses its child, given how its parent is used."""
    if passes_on(edge):
        needs = frozenset[str]().union(*(use.needs for use in above))
        shares = ALL.intersection(*(use.shares for use in above))
        if isinstance(edge.parent, FilterNode):
            needs |= {READ} if edge.parent.reads_itself else frozenset()
            shares -= {WRITE, RESIZE} if edge.parent.sees_every_write else frozenset()
        return Use(who, edge.role, needs, shares)
    if edge.role == "target":  # what a job's filter has for its job, which has a disk there
        return Use(who, edge.role, frozenset(), ALL)
    if edge.role == "backing":
        is_read = any(READ in use.needs for use in above)
        may_change = all(WRITE in use.shares for use in above)
        return Use(
            who, edge.role, READING if is_read else frozenset(), ALL if may_change else READING
        )
    if edge.parent.read_only:
        return Use(who, edge.role, frozenset({READ}), READING)
    return Use(who, edge.role, frozenset({READ, WRITE, RESIZE}), READING)
