# SPDX-License-Identifier: Apache-2.0
"""Arguments of `transaction`."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from blocklayer.qmp.schema.bitmaps import BitmapAdd, BitmapMerge, BitmapOf
from blocklayer.qmp.schema.jobs import BlockdevBackup, DriveBackup
from blocklayer.qmp.schema.nodes import InternalSnapshot, Snapshot, SnapshotSync
from blocklayer.qmp.types import Members, Nothing


class Action(Members, kw_only=True, tag_field="type"):
    """A part of a transaction."""


class Abort(Action, kw_only=True, tag="abort"):
    """Fail, to test what becomes of the others.

    data  nothing
    """

    data: Nothing


class AddBitmap(Action, kw_only=True, tag="block-dirty-bitmap-add"):
    """block-dirty-bitmap-add.

    data  its arguments
    """

    data: BitmapAdd


class RemoveBitmap(Action, kw_only=True, tag="block-dirty-bitmap-remove"):
    """block-dirty-bitmap-remove.

    data  its arguments
    """

    data: BitmapOf


class ClearBitmap(Action, kw_only=True, tag="block-dirty-bitmap-clear"):
    """block-dirty-bitmap-clear.

    data  its arguments
    """

    data: BitmapOf


class EnableBitmap(Action, kw_only=True, tag="block-dirty-bitmap-enable"):
    """block-dirty-bitmap-enable.

    data  its arguments
    """

    data: BitmapOf


class DisableBitmap(Action, kw_only=True, tag="block-dirty-bitmap-disable"):
    """block-dirty-bitmap-disable.

    data  its arguments
    """

    data: BitmapOf


class MergeBitmaps(Action, kw_only=True, tag="block-dirty-bitmap-merge"):
    """block-dirty-bitmap-merge.

    data  its arguments
    """

    data: BitmapMerge


class Backup(Action, kw_only=True, tag="blockdev-backup"):
    """blockdev-backup.

    data  its arguments
    """

    data: BlockdevBackup


class BackupDrive(Action, kw_only=True, tag="drive-backup"):
    """drive-backup.

    data  its arguments
    """

    FEATURES: ClassVar[dict[str, tuple[str, ...]]] = {"type": ("deprecated",)}

    data: DriveBackup


class TakeSnapshot(Action, kw_only=True, tag="blockdev-snapshot"):
    """blockdev-snapshot.

    data  its arguments
    """

    data: Snapshot


class TakeSnapshotSync(Action, kw_only=True, tag="blockdev-snapshot-sync"):
    """blockdev-snapshot-sync.

    data  its arguments
    """

    data: SnapshotSync


class TakeInternalSnapshot(Action, kw_only=True, tag="blockdev-snapshot-internal-sync"):
    """blockdev-snapshot-internal-sync.

    data  its arguments
    """

    data: InternalSnapshot


Actions: TypeAlias = (
    Abort
    | AddBitmap
    | RemoveBitmap
    | ClearBitmap
    | EnableBitmap
    | DisableBitmap
    | MergeBitmaps
    | Backup
    | BackupDrive
    | TakeSnapshot
    | TakeSnapshotSync
    | TakeInternalSnapshot
)


class TransactionProperties(Members, kw_only=True):
    """How a transaction ends.

    completion-mode  individual: each job for itself; grouped: if one fails, all are cancelled
    """

    completion_mode: Literal["individual", "grouped"] | None = None


class Transaction(Members, kw_only=True):
    """All of these, or none.

    actions     in their order
    properties  how it ends
    """

    actions: list[Actions]
    properties: TransactionProperties | None = None
