# SPDX-License-Identifier: Apache-2.0
"""Backup to an overlay of the source: whoever reads the overlay sees the moment of the backup.

The overlay lies over the node that guests write to. What they are going to change is copied up to
it first (`backup`), and `core/point_in_time` closes the gap between looking and reading. So a
backup with ``sync=none`` moves only what guests overwrite, and clients pull the rest.
"""

from __future__ import annotations

from threading import get_ident

from blocklayer.base.errors import InvalidArgument
from blocklayer.core.filter import FilterNode
from blocklayer.core.graph_edges import backing_of, skip_filters
from blocklayer.core.node import FormatNode, Node
from blocklayer.core.point_in_time import PointInTime

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.graph import Graph
    from blocklayer.jobs.mirror_engine import Engine


class Fleecing:
    """What a backup does for those who read its target, which lies over its source."""

    def __init__(self, graph: Graph, engine: Engine, layer: FormatNode, target: FormatNode) -> None:
        self._graph = graph
        self._engine = engine
        self._layer = layer
        self._target = target
        self._copying: set[int] = set()
        self._node: PointInTime | None = None

    def begin(self) -> None:
        """The moment. Nobody reads or writes."""
        below = backing_of(self._layer)
        assert below is not None
        self._node = PointInTime(below, self._target, self)
        self._graph.set_backing(self._layer, self._node)

    def end(self, *, complete: bool) -> None:
        """Nothing is copied up any more.

        complete  all that was to be kept is in the overlay; else reading what is not there is an
                  error from now on: it would be newer than what was read before
        """
        node, self._node = self._node, None
        if node is None:
            return
        if not complete:
            node.lose()
        elif self._layer.backing is node:
            with self._graph.drained(self._layer):
                self._graph.set_backing(self._layer, node.child)

    # --- for the node -----------------------------------------------------------------------------

    def keeps(self, offset: int, length: int) -> bool:
        """Whether nothing of a range can have been changed until now."""
        return self._engine.dirty.all_set(offset, length) and not self._engine.stopped

    def has_ended(self) -> bool:
        """Whether guests may change things that were not copied up."""
        return self._engine.stopped

    def is_copying(self) -> bool:
        """Whether this thread copies up."""
        return get_ident() in self._copying

    def copying(self) -> _Copying:
        """In this context, this thread copies up."""
        return _Copying(self._copying)


class _Copying:
    def __init__(self, threads: set[int]) -> None:
        self._threads = threads

    def __enter__(self) -> None:
        self._threads.add(get_ident())

    def __exit__(self, *raised: object) -> None:
        self._threads.discard(get_ident())


def layer_over(graph: Graph, target: Node, source: Node) -> tuple[FormatNode, FormatNode] | None:
    """The layer of the target's chain that lies on the source, and the chain's top; None if none.

    Raises `InvalidArgument` if the target stands on the source in another way.
    """
    top = layer = skip_filters(target)
    while isinstance(layer, FormatNode) and layer.backing is not None:
        if _leads_to(layer.backing, source):
            assert isinstance(top, FormatNode)
            return layer, top
        layer = skip_filters(layer.backing)
    if graph.is_below(target, source):
        raise InvalidArgument(
            f"Node '{graph.name_of(target)}' cannot keep what '{graph.name_of(source)}' has now:"
            " it uses that node for more than as its backing image"
        )
    return None


def _leads_to(node: Node, source: Node) -> bool:
    """Whether a node shows the source's bytes at the source's offsets: filters, and whole raw."""
    while node is not source:
        if isinstance(node, FilterNode):
            node = node.child
        elif isinstance(node, FormatNode) and node.driver == "raw" and _is_whole(node):
            node = node.file
        else:
            return False
    return True


def _is_whole(node: FormatNode) -> bool:
    return node.size == node.file.size and node.map(0, 1)[3] == 0
