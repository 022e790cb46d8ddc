# SPDX-License-Identifier: Apache-2.0
"""`transaction`: several actions at one moment, and all of them or none.

While they are carried out no request runs on the nodes they are about, so that a bitmap which is
cleared and a backup which is begun mean the same content.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from blocklayer.jobs.transaction import JobTransaction
from blocklayer.qmp.commands import bitmaps, blockjobs, internal_snapshots, nodes
from blocklayer.qmp.schema import transactions as schema
from blocklayer.qmp.types import Family, QmpError, Undo

if TYPE_CHECKING:
    from blocklayer.core.node import Node
    from blocklayer.jobs.job import Job
    from blocklayer.qmp.context import Context

FAMILY = Family("Transactions")


def _abort(context: Context, arguments: Any) -> Undo:
    raise QmpError("Transaction aborted using Abort action")


_ACTIONS: dict[type, Callable[[Context, Any], Undo]] = {
    schema.Abort: _abort,
    schema.AddBitmap: bitmaps.add,
    schema.RemoveBitmap: bitmaps.remove,
    schema.ClearBitmap: bitmaps.clear,
    schema.EnableBitmap: bitmaps.enable,
    schema.DisableBitmap: bitmaps.disable,
    schema.MergeBitmaps: bitmaps.merge,
    schema.TakeSnapshot: nodes.take_snapshot,
    schema.TakeSnapshotSync: nodes.take_snapshot_sync,
    schema.TakeInternalSnapshot: internal_snapshots.take,
}

_KNOW_GROUPS = (schema.Backup, schema.BackupDrive, schema.Abort)
"""Actions that know of grouped completion: they begin jobs, or nothing."""


@FAMILY.command("transaction", schema.Transaction)
def transaction(context: Context, arguments: schema.Transaction) -> None:
    """Carry out several actions at one moment. If one fails, those before it are undone."""
    properties = arguments.properties
    grouped = properties is not None and properties.completion_mode == "grouped"
    for action in arguments.actions:
        if grouped and not isinstance(action, _KNOW_GROUPS):
            raise QmpError(
                f"Action '{action.__struct_config__.tag}' does not support Transaction property"
                " completion-mode = grouped"
            )
    changed = _nodes(context, arguments.actions)
    try:
        with ExitStack() as drained:
            drained.enter_context(context.graph.drained(*changed))
            for node in changed:
                # This thread's own requests do not wait for the drain that it has begun.
                drained.enter_context(node.tracker.calling_out())
            _carry_out(context, arguments.actions, JobTransaction() if grouped else None)
    finally:
        nodes.disown_made(context)


def _carry_out(context: Context, actions: list[Any], group: JobTransaction | None) -> None:
    """Do all, or nothing.

    Jobs begin in their places, and so are taken back in theirs: a later action may build on what
    an earlier one has made. They go when nothing can fail any more.
    """
    jobs: list[Job] = []
    done: list[Undo] = []
    try:
        for action in actions:
            # A group of its own, if not all together: so it does not start by itself.
            if isinstance(action, schema.Backup):
                job = blockjobs.begin_backup(context, action.data, group or JobTransaction())
                undoes: list[Undo] = [job.take_back]
                jobs.append(job)
            elif isinstance(action, schema.BackupDrive):
                job, forget = blockjobs.begin_drive_backup(
                    context, action.data, group or JobTransaction()
                )
                undoes = [forget, job.take_back]
                jobs.append(job)
            else:
                undoes = [_ACTIONS[type(action)](context, action.data)]
            done += undoes
    except BaseException as error:
        for undo in reversed(done):
            try:
                undo()
            except Exception as failure:  # the others are to be undone all the same
                error.add_note(f"undoing an action failed as well: {failure}")
        raise
    for job in jobs:
        job.go()


def _nodes(context: Context, actions: list[Any]) -> list[Node]:
    """The nodes that the actions are about, each once."""
    named = {}
    for action in actions:
        for member in ("node", "node_name", "device"):
            name = getattr(action.data, member, None)
            if name is not None and name in context.graph:
                named[name] = context.graph.find(name)
    return list(named.values())
