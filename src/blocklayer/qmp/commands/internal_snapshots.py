# SPDX-License-Identifier: Apache-2.0
"""Commands about snapshots inside an image: no format here has them, and that is what is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blocklayer.qmp.commands.nodes import FAMILY
from blocklayer.qmp.schema import nodes as schema
from blocklayer.qmp.types import QmpError

if TYPE_CHECKING:
    from blocklayer.qmp.context import Context


def take(context: Context, arguments: schema.InternalSnapshot) -> Any:
    """Refuse."""
    node = context.graph.find(arguments.device)
    if node.read_only:
        raise QmpError(f"Device '{arguments.device}' is read only")
    raise QmpError(
        f"Block format '{node.driver}' used by device '{arguments.device}'"
        " does not support internal snapshots"
    )


@FAMILY.command("blockdev-snapshot-internal-sync", schema.InternalSnapshot)
def blockdev_snapshot_internal_sync(context: Context, arguments: schema.InternalSnapshot) -> None:
    """Keep what an image holds inside it. Always refused: no format here can."""
    take(context, arguments)


@FAMILY.command("blockdev-snapshot-delete-internal-sync", schema.DeleteInternalSnapshot)
def blockdev_snapshot_delete_internal_sync(
    context: Context, arguments: schema.DeleteInternalSnapshot
) -> None:
    """Delete such a snapshot. Always refused: there are none."""
    context.graph.find(arguments.device)
    if arguments.id is None and arguments.name is None:
        raise QmpError("Name or id must be provided")
    raise QmpError("Failed to get a snapshot list: Operation not supported")
