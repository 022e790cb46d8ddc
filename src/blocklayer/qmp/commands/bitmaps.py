# SPDX-License-Identifier: Apache-2.0
"""Commands about dirty bitmaps, and their undoing for transactions."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from blocklayer.base.align import is_power_of_two
from blocklayer.core.bitmap import (
    GRANULARITY_DEFAULT,
    GRANULARITY_MAX,
    GRANULARITY_MIN,
    NAME_MAX,
    Bitmap,
    DirtyBitmap,
)
from blocklayer.qmp.schema import bitmaps as schema
from blocklayer.qmp.types import Family, QmpError, Undo

if TYPE_CHECKING:
    from blocklayer.core.graph import Graph
    from blocklayer.core.node import Node
    from blocklayer.qmp.context import Context

FAMILY = Family("Dirty bitmaps")


def find_bitmap(graph: Graph, node_name: str, name: str) -> tuple[Node, DirtyBitmap]:
    """A bitmap and its node, in the words of the commands about bitmaps that are there."""
    if node_name not in graph:
        raise QmpError(f"Node '{node_name}' not found")
    node = graph.find(node_name)
    if node.hooks is None or name not in node.hooks.bitmaps:
        raise QmpError(f"Dirty bitmap '{name}' not found")
    return node, node.hooks.bitmaps[name]


def _free(context: Context, node_name: str, name: str) -> DirtyBitmap:
    """A bitmap that nobody else uses."""
    _, bitmap = find_bitmap(context.graph, node_name, name)
    bitmap.require_free()
    return bitmap


def _restore(bitmap: Bitmap, copy: Bitmap) -> None:
    bitmap.clear()
    bitmap.merge(copy)


# --- what transactions are made of: each returns its undoing ------------------------------------


def add(context: Context, arguments: schema.BitmapAdd) -> Undo:
    """Add a bitmap."""
    node = context.graph.find(arguments.node)
    _check_new(node, arguments)
    granularity = arguments.granularity or GRANULARITY_DEFAULT
    with context.graph.recording_changes(node) as disk:
        disk.add_bitmap(arguments.name, granularity, enabled=not arguments.disabled)

    def undo() -> None:
        with context.graph.recording_changes(node) as disk:
            disk.remove_bitmap(arguments.name)

    return undo


def _check_new(node: Node, arguments: schema.BitmapAdd) -> None:
    name, granularity = arguments.name, arguments.granularity
    if not name:
        raise QmpError("Bitmap name cannot be empty")
    if len(name.encode(errors="surrogateescape")) > NAME_MAX:
        raise QmpError(f"Bitmap name too long: {name}")
    if granularity is not None and (
        granularity < GRANULARITY_MIN or not is_power_of_two(granularity)
    ):
        raise QmpError(f"Granularity must be power of 2 and at least {GRANULARITY_MIN}")
    if granularity is not None and granularity > GRANULARITY_MAX:
        raise QmpError(f"Granularity must be at most {GRANULARITY_MAX}")
    if node.hooks is not None and name in node.hooks.bitmaps:
        raise QmpError(f"Bitmap already exists: {name}")
    if arguments.persistent:
        raise QmpError(
            f"Can't store persistent bitmaps to {arguments.node}: Operation not supported"
        )


def remove(context: Context, arguments: schema.BitmapOf) -> Undo:
    """Remove a bitmap."""
    node, bitmap = find_bitmap(context.graph, arguments.node, arguments.name)
    bitmap.require_free()
    with context.graph.recording_changes(node) as disk:
        before = disk.bitmaps
        disk.remove_bitmap(arguments.name)

    def undo() -> None:
        # The same one in its place: what was done with it before is undone next.
        with context.graph.recording_changes(node) as disk:
            disk.restore_bitmaps(before)

    return undo


def clear(context: Context, arguments: schema.BitmapOf) -> Undo:
    """Clear a bitmap."""
    bitmap = _free(context, arguments.node, arguments.name)
    copy = bitmap.copy()
    bitmap.clear()
    return lambda: bitmap.merge(copy)


def _switch(context: Context, arguments: schema.BitmapOf, enabled: bool) -> Undo:
    bitmap = _free(context, arguments.node, arguments.name)
    before, bitmap.enabled = bitmap.enabled, enabled

    def undo() -> None:
        bitmap.enabled = before

    return undo


def enable(context: Context, arguments: schema.BitmapOf) -> Undo:
    """Record from now on."""
    return _switch(context, arguments, enabled=True)


def disable(context: Context, arguments: schema.BitmapOf) -> Undo:
    """Do not record any more."""
    return _switch(context, arguments, enabled=False)


def merge(context: Context, arguments: schema.BitmapMerge) -> Undo:
    """Merge bitmaps into another: all of them, or none."""
    target = _free(context, arguments.node, arguments.target)
    merged = Bitmap(target.size, target.granularity)
    for each in arguments.bitmaps:
        if isinstance(each, str):
            merged.merge(_free(context, arguments.node, each))
        else:
            merged.merge(_free(context, each.node, each.name))
    copy = target.copy()
    target.merge(merged)
    return lambda: _restore(target, copy)


# --- commands -----------------------------------------------------------------------------------


@FAMILY.command("block-dirty-bitmap-add", schema.BitmapAdd)
def block_dirty_bitmap_add(context: Context, arguments: schema.BitmapAdd) -> None:
    """Record which parts of a node are written from now on."""
    add(context, arguments)


@FAMILY.command("block-dirty-bitmap-remove", schema.BitmapOf)
def block_dirty_bitmap_remove(context: Context, arguments: schema.BitmapOf) -> None:
    """Stop recording, and forget."""
    remove(context, arguments)


@FAMILY.command("block-dirty-bitmap-clear", schema.BitmapOf)
def block_dirty_bitmap_clear(context: Context, arguments: schema.BitmapOf) -> None:
    """Forget what was recorded."""
    clear(context, arguments)


@FAMILY.command("block-dirty-bitmap-enable", schema.BitmapOf)
def block_dirty_bitmap_enable(context: Context, arguments: schema.BitmapOf) -> None:
    """Record from now on."""
    enable(context, arguments)


@FAMILY.command("block-dirty-bitmap-disable", schema.BitmapOf)
def block_dirty_bitmap_disable(context: Context, arguments: schema.BitmapOf) -> None:
    """Keep what was recorded, and record no more."""
    disable(context, arguments)


@FAMILY.command("block-dirty-bitmap-merge", schema.BitmapMerge)
def block_dirty_bitmap_merge(context: Context, arguments: schema.BitmapMerge) -> None:
    """Mark in a bitmap what others mark."""
    merge(context, arguments)


@FAMILY.command(
    "x-debug-block-dirty-bitmap-sha256",
    schema.BitmapOf,
    schema.BitmapDigest,
    features=("unstable",),
)
def bitmap_sha256(context: Context, arguments: schema.BitmapOf) -> schema.BitmapDigest:
    """A hash of a bitmap: equal for bitmaps that mark the same. The numbers are not QEMU's."""
    _, bitmap = find_bitmap(context.graph, arguments.node, arguments.name)
    digest = hashlib.sha256(f"{bitmap.size} {bitmap.granularity}".encode())
    for offset, length in bitmap.runs():
        digest.update(f" {offset}+{length}".encode())
    return schema.BitmapDigest(sha256=digest.hexdigest())
