# SPDX-License-Identifier: Apache-2.0
"""Commands that change nodes."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from blocklayer.core.graph_snapshot import require_snapshots
from blocklayer.core.node import FormatNode, Node
from blocklayer.qmp.schema import nodes as schema
from blocklayer.qmp.schema.blockdev import Blockdevs
from blocklayer.qmp.types import Family, Nothing, QmpError, Undo

if TYPE_CHECKING:
    from blocklayer.core.graph import Graph
    from blocklayer.qmp.context import Context

FAMILY = Family("Nodes")


def find_by_name(graph: Graph, name: str) -> Node:
    """A node, in the words of commands that tell a device's name from a node's."""
    if name not in graph:
        raise QmpError(f"Cannot find device='' nor node-name='{name}'")
    return graph.find(name)


def add_node(context: Context, declared: Any) -> Node:
    """blockdev-add with declared options."""
    options = msgspec.to_builtins(declared)
    if declared.node_name is None:
        raise QmpError("'node-name' must be specified for the root node")
    return context.graph.add(options)


@FAMILY.command("blockdev-add", Blockdevs)
def blockdev_add(context: Context, arguments: Any) -> None:
    """Open a node, with its children where they are described inline."""
    add_node(context, arguments)


@FAMILY.command("blockdev-del", schema.BlockdevDel)
def blockdev_del(context: Context, arguments: schema.BlockdevDel) -> None:
    """Close a node that blockdev-add has opened. Refused while somebody uses it."""
    context.graph.remove(arguments.node_name)


@FAMILY.command("blockdev-reopen", schema.BlockdevReopen)
def blockdev_reopen(context: Context, arguments: schema.BlockdevReopen) -> None:
    """Give nodes other options; all of them, or none. Options that are left out are defaults."""
    context.graph.reopen([msgspec.to_builtins(each) for each in arguments.options])


@FAMILY.command("blockdev-create", schema.BlockdevCreate)
def blockdev_create(context: Context, arguments: schema.BlockdevCreate) -> None:
    """Make an image: a job of type create, which is to be dismissed."""
    from blocklayer.jobs import create

    if isinstance(arguments.options, schema.CreateRaw | schema.CreateNull):
        raise QmpError("Driver does not support blockdev-create")
    options = msgspec.to_builtins(arguments.options)
    create.start(context.graph, context.jobs, job_id=arguments.job_id, options=options)


@FAMILY.command("x-blockdev-amend", schema.BlockdevAmend, features=("unstable",))
def blockdev_amend(context: Context, arguments: schema.BlockdevAmend) -> None:
    """Change options of an image. Always refused: QED and raw have none that could be changed."""
    node = find_by_name(context.graph, arguments.node_name)
    if node.driver != arguments.options.driver:
        raise QmpError("x-blockdev-amend doesn't support changing the block driver")
    raise QmpError("Driver does not support x-blockdev-amend")


@FAMILY.command("block_resize", schema.BlockResize)
def block_resize(context: Context, arguments: schema.BlockResize) -> None:
    """Change the size of a disk. New bytes read as zeroes."""
    graph = context.graph
    device, name = arguments.device or "", arguments.node_name or ""
    if device or name not in graph:
        raise QmpError(f"Cannot find device='{device}' nor node-name='{name}'")
    if arguments.size < 0:
        raise QmpError("Parameter 'size' expects a >0 size")
    node = graph.find(name)
    if node.read_only:
        raise QmpError("Image is read-only")
    for each in graph.resized_together(node):
        graph.require_unblocked(each)
        graph.require_no_overlay(each)  # what is cut off, or appears, would be seen through it
    with graph.open_disk(node, writable=True, resizes=True) as disk:
        disk.resize(arguments.size)


# --- snapshots ----------------------------------------------------------------------------------


def take_snapshot(context: Context, arguments: schema.Snapshot) -> Undo:
    """Put an overlay on a node; returns what undoes it."""
    graph = context.graph
    node, overlay = graph.find(arguments.node), graph.find(arguments.overlay)
    return graph.snapshot(node, overlay)


def take_snapshot_sync(context: Context, arguments: schema.SnapshotSync) -> Undo:
    """Make an overlay and put it on a node; returns what undoes it."""
    graph = context.graph
    device, name = arguments.device or "", arguments.node_name or ""
    if device or name not in graph:
        raise QmpError(f"Cannot find device='{device}' nor node-name='{name}'")
    node = graph.find(name)
    require_snapshots(graph, node)
    if arguments.snapshot_node_name is not None and arguments.snapshot_node_name in graph:
        raise QmpError("New overlay node-name already in use")
    made = arguments.mode != "existing"
    format_name = arguments.format or "qed"
    if made:
        _make_overlay(node, arguments.snapshot_file, format_name)
    try:
        overlay = _open_overlay(graph, arguments, format_name)
        try:
            undo_snapshot = graph.snapshot(node, overlay)
        except BaseException:
            graph.remove(graph.name_of(overlay))
            raise
        context.made.append(overlay)
    except BaseException:
        if made:
            os.unlink(arguments.snapshot_file)
        raise

    def undo() -> None:
        context.made.remove(overlay)
        undo_snapshot()
        graph.remove(graph.name_of(overlay))
        if made:
            os.unlink(arguments.snapshot_file)

    return undo


def disown_made(context: Context) -> None:
    """The daemon holds nodes of blockdev-add; others live as long as somebody uses them."""
    made, context.made = context.made, []
    for node in made:
        context.graph.disown(node)


def _make_overlay(node: Node, path: str, format_name: str) -> None:
    from blocklayer.ops.create import create

    create(
        path,
        format=format_name,
        size=node.size,
        backing=os.path.abspath(node.filename),
        backing_format=node.driver,
        check_backing=False,
    )


def _open_overlay(graph: Graph, arguments: schema.SnapshotSync, format_name: str) -> Node:
    options: dict[str, Any] = {
        "driver": format_name,
        "file": {"driver": "file", "filename": arguments.snapshot_file},
        "backing": None,
    }
    if arguments.snapshot_node_name is not None:
        options["node-name"] = arguments.snapshot_node_name
    return graph.add(options)


@FAMILY.command("blockdev-snapshot", schema.Snapshot)
def blockdev_snapshot(context: Context, arguments: schema.Snapshot) -> None:
    """Put an overlay on a node: from now on its users write to the overlay."""
    take_snapshot(context, arguments)


@FAMILY.command("blockdev-snapshot-sync", schema.SnapshotSync)
def blockdev_snapshot_sync(context: Context, arguments: schema.SnapshotSync) -> None:
    """The same with an overlay that is made on the way; it is closed when nobody uses it."""
    take_snapshot_sync(context, arguments)
    disown_made(context)


@FAMILY.command("change-backing-file", schema.ChangeBackingFile)
def change_backing_file(context: Context, arguments: schema.ChangeBackingFile) -> None:
    """Store another backing file's name in an image. What is open below it stays."""
    with context.graph.drained():  # of nothing yet: no job ends, and closes the image, meanwhile
        image = _layer(context.graph, arguments)
        with context.graph.drained(image), context.graph.made_writable(image):
            image.change_backing(arguments.backing_file, image.backing_format)


def _layer(graph: Graph, arguments: schema.ChangeBackingFile) -> FormatNode:
    """The image whose header is to be changed."""
    top = graph.find(arguments.device)
    image = find_by_name(graph, arguments.image_node_name)
    if not isinstance(image, FormatNode) or image.backing is None:
        raise QmpError("not allowing backing file change on an image without a backing file")
    if image not in graph.backing_chain(top):
        raise QmpError(f"'{arguments.device}' and image file are not in the same chain")
    graph.require_unblocked(image)
    return image


# --- write thresholds ---------------------------------------------------------------------------


@FAMILY.command("block-set-write-threshold", schema.WriteThreshold)
def block_set_write_threshold(context: Context, arguments: schema.WriteThreshold) -> None:
    """Send one event BLOCK_WRITE_THRESHOLD when a write goes beyond an offset."""
    graph, name = context.graph, arguments.node_name
    if name not in graph:
        raise QmpError(f"Device '{name}' not found")
    node = graph.find(name)
    thresholds = context.write_thresholds
    if node in thresholds:
        thresholds[node] = arguments.write_threshold
        return
    if not arguments.write_threshold:
        return
    thresholds[node] = arguments.write_threshold
    once = threading.Lock()

    def before_write(offset: int, length: int) -> None:
        with once:
            threshold = thresholds.get(node, 0)
            if not threshold or offset + length <= threshold:
                return
            thresholds[node] = 0
        data = {
            "node-name": name,
            "amount-exceeded": offset + length - threshold,
            "write-threshold": threshold,
        }
        context.events.emit("BLOCK_WRITE_THRESHOLD", data)

    with graph.recording_changes(node) as disk:
        disk.add_before_write(before_write)


@FAMILY.command("query-block", Nothing, list[schema.DeviceInfo])
def query_block(context: Context, arguments: Nothing) -> Any:
    """List devices of the virtual machine. A daemon has none: see query-named-block-nodes."""
    return []
