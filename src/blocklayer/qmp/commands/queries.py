# SPDX-License-Identifier: Apache-2.0
"""Commands that tell about nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blocklayer.base.errors import OpenError
from blocklayer.core.graph_edges import backing_of
from blocklayer.core.names import backing_path
from blocklayer.core.node import FormatNode, Node
from blocklayer.core.permissions import READ, RESIZE, WRITE
from blocklayer.ops.info import dirty_flag
from blocklayer.qmp.schema import nodes as schema
from blocklayer.qmp.types import Family, Nothing

if TYPE_CHECKING:
    from blocklayer.core.graph import Entry, Graph
    from blocklayer.core.permissions import Use
    from blocklayer.qmp.context import Context

FAMILY = Family("What nodes are")


@FAMILY.command("query-named-block-nodes", schema.QueryNodes, list[schema.NodeInfo])
def query_named_block_nodes(context: Context, arguments: schema.QueryNodes) -> Any:
    """List the nodes, the newest first."""
    with context.graph.looking():
        entries = reversed(context.graph.named())
        return [_node_info(context, entry, flat=bool(arguments.flat)) for entry in entries]


def _node_info(context: Context, entry: Entry, *, flat: bool) -> schema.NodeInfo:
    node, settings = entry.node, entry.settings
    below = backing_of(node)
    cache = settings.cache
    return schema.NodeInfo(
        file=node.filename,
        node_name=entry.name,
        ro=node.read_only,
        drv=node.driver,
        backing_file=below.filename if below is not None else None,
        backing_file_depth=0 if flat else len(context.graph.backing_chain(node)) - 1,
        encrypted=False,
        detect_zeroes=settings.detect_zeroes,
        bps=0,
        bps_rd=0,
        bps_wr=0,
        iops=0,
        iops_rd=0,
        iops_wr=0,
        image=_image_info(node, flat=flat),
        cache=schema.CacheInfo(
            writeback=not cache.writethrough, direct=cache.direct, no_flush=cache.no_flush
        ),
        write_threshold=_signed(context.write_thresholds.get(node, 0)),
        dirty_bitmaps=_bitmaps(node),
    )


def _image_info(node: Node, *, flat: bool) -> schema.ImageInfo:
    specific = node.info()
    stored = node.backing_filename if isinstance(node, FormatNode) else None
    full = None
    if stored:
        try:
            full = backing_path(node.filename, stored)
        except OpenError:
            full = None  # it cannot be told from here
    below = backing_of(node)
    return schema.ImageInfo(
        filename=node.filename,
        format=node.driver,
        dirty_flag=dirty_flag(node, specific),
        actual_size=_actual_size(node),
        virtual_size=node.size,
        cluster_size=specific.get("cluster-size"),
        backing_filename=stored or None,
        full_backing_filename=full,
        backing_filename_format=node.backing_format if isinstance(node, FormatNode) else None,
        backing_image=None if flat or below is None else _image_info(below, flat=False),
    )


def _storage(node: Node) -> Node:
    while "file" in node.children:
        node = node.children["file"]
    return node


def _actual_size(node: Node) -> int | None:
    size = _storage(node).info().get("actual-size", 0)
    return size if isinstance(size, int) else None


def _signed(number: int) -> int:
    """64 bits as the interface has them, which takes them without a sign and answers with one."""
    return number - 2**64 if number >= 2**63 else number


def _bitmaps(node: Node) -> list[schema.BitmapInfo] | None:
    if node.hooks is None or not node.hooks.bitmaps:
        return None
    return [
        schema.BitmapInfo(
            name=bitmap.name,
            count=bitmap.count,
            granularity=bitmap.granularity,
            recording=bitmap.enabled,
            busy=bool(getattr(bitmap, "busy", False)),
            persistent=False,
        )
        for bitmap in reversed(node.hooks.bitmaps.values())
    ]


# --- statistics ---------------------------------------------------------------------------------


@FAMILY.command("query-blockstats", schema.QueryStats, list[schema.NodeWithStats])
def query_blockstats(context: Context, arguments: schema.QueryStats) -> Any:
    """Tell what was done on nodes: what clients of exports have asked for."""
    if not arguments.query_nodes:
        return []
    with context.graph.looking():
        entries = reversed(context.graph.named())
        return [_with_stats(context, entry.node) for entry in entries]


def _with_stats(context: Context, node: Node) -> schema.NodeWithStats:
    graph = context.graph
    below = backing_of(node)
    stored = [edge.child for edge in graph.children(node) if edge.role == "file"]
    return schema.NodeWithStats(
        node_name=graph.name_of(node),
        stats=context.exports.stats_of(node),
        parent=_with_stats(context, stored[0]) if stored else None,
        backing=_with_stats(context, below) if below is not None else None,
    )


@FAMILY.command("x-debug-query-block-graph", Nothing, schema.GraphInfo, features=("unstable",))
def query_block_graph(context: Context, arguments: Nothing) -> schema.GraphInfo:
    """Tell the nodes and disks there are, and who uses whom."""
    with context.graph.looking():
        return _graph_info(context.graph)


def _graph_info(graph: Graph) -> schema.GraphInfo:
    numbers = {id(entry.node): number for number, entry in enumerate(graph.named(), 1)}
    nodes = [
        schema.GraphNode(id=numbers[id(entry.node)], type="block-driver", name=entry.name)
        for entry in graph.named()
    ]
    edges = []
    for entry in graph.named():
        for edge in graph.children(entry.node):
            who = f"node '{entry.name}'"
            use = next(
                use for use in graph.uses(edge.child) if (use.who, use.role) == (who, edge.role)
            )
            edges.append(_edge(numbers[id(edge.parent)], numbers[id(edge.child)], use))
        for disk in entry.disks:
            number = len(nodes) + 1
            kind = "block-job" if "job" in disk.use.who else "block-backend"
            nodes.append(schema.GraphNode(id=number, type=kind, name=disk.use.who))
            edges.append(_edge(number, numbers[id(entry.node)], disk.use))
    return schema.GraphInfo(nodes=nodes, edges=edges)


def _edge(parent: int, child: int, use: Use) -> schema.GraphEdge:
    shares = _permissions(use.shares)
    if READ in use.shares:  # and then nobody has anything against writes that change nothing
        shares.append("write-unchanged")
    return schema.GraphEdge(
        parent=parent,
        child=child,
        name=use.role,
        perm=_permissions(use.needs),
        shared_perm=shares,
    )


def _permissions(some: frozenset[str]) -> list[schema.Permission]:
    words: dict[str, schema.Permission] = {
        READ: "consistent-read",
        WRITE: "write",
        RESIZE: "resize",
    }
    return [word for permission, word in words.items() if permission in some]
