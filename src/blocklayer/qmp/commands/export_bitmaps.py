# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps that an export shows: those of its node, of what lies below it, or of any node.

An export has its bitmaps for itself: nobody clears, removes or uses them for a backup meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blocklayer.core.bitmap import DirtyBitmap
from blocklayer.core.filter import FilterNode
from blocklayer.core.graph_edges import backing_of
from blocklayer.qmp.commands.bitmaps import find_bitmap
from blocklayer.qmp.types import QmpError

if TYPE_CHECKING:
    from blocklayer.core.graph import Graph
    from blocklayer.core.node import Node
    from blocklayer.qmp.schema.bitmaps import BitmapOf


def take_bitmaps(
    graph: Graph, node: Node, wanted: Sequence[str | BitmapOf], *, writable: bool
) -> list[DirtyBitmap]:
    """The bitmaps that an export of `node` is to show, each once; nobody else may use them."""
    found: dict[int, DirtyBitmap] = {}
    for each in wanted:
        if isinstance(each, str):
            owner, bitmap = _in_chain(node, each)
        else:
            owner, bitmap = find_bitmap(graph, each.node, each.name)
        bitmap.require_free()
        if bitmap.enabled and not writable and not owner.read_only:
            raise QmpError(f"Enabled bitmap '{bitmap.name}' incompatible with readonly export")
        found[id(bitmap)] = bitmap
    for bitmap in found.values():
        bitmap.busy = True
    return list(found.values())


def give_back(bitmaps: Sequence[DirtyBitmap]) -> None:
    """The export is gone."""
    for bitmap in bitmaps:
        bitmap.busy = False


def _in_chain(node: Node, name: str) -> tuple[Node, DirtyBitmap]:
    layer: Node | None = node
    while layer is not None:
        if layer.hooks is not None and name in layer.hooks.bitmaps:
            return layer, layer.hooks.bitmaps[name]
        layer = layer.child if isinstance(layer, FilterNode) else backing_of(layer)
    raise QmpError(f"Bitmap '{name}' is not found")
