# SPDX-License-Identifier: Apache-2.0
"""What monitors are told without having asked."""

from __future__ import annotations

from typing import Literal

from blocklayer.qmp.schema.jobs import JobType, Status
from blocklayer.qmp.types import Event, Int


class JobStatusChange(Event, kw_only=True):
    """A job is in another state."""

    id: str
    status: Status


class _BlockJobEvent(Event, kw_only=True):
    type: JobType
    device: str
    len: Int
    offset: Int
    speed: Int


class BlockJobReady(_BlockJobEvent, kw_only=True):
    """A mirror has caught up with its source."""


class BlockJobCompleted(_BlockJobEvent, kw_only=True):
    """A job has ended; with an error, it has failed."""

    error: str | None = None


class BlockJobCancelled(_BlockJobEvent, kw_only=True):
    """A job was cancelled."""


class BlockJobError(Event, kw_only=True):
    """A request of a job has failed, and what was done about it."""

    device: str
    operation: Literal["read", "write"]
    action: Literal["ignore", "report", "stop"]


class BlockJobPending(Event, kw_only=True):
    """A job waits to be finalized."""

    type: JobType
    id: str


class BlockExportDeleted(Event, kw_only=True):
    """An export is gone, and its node may be used for other things."""

    id: str


class BlockWriteThreshold(Event, kw_only=True):
    """A write went beyond the mark of a node. The mark is gone."""

    node_name: str
    amount_exceeded: Int
    write_threshold: Int


class Shutdown(Event, kw_only=True, omit_defaults=False):
    """The daemon ends."""

    guest: bool
    reason: Literal["host-qmp-quit", "host-signal"]


EVENTS: dict[str, type[Event]] = {
    "BLOCK_EXPORT_DELETED": BlockExportDeleted,
    "BLOCK_JOB_CANCELLED": BlockJobCancelled,
    "BLOCK_JOB_COMPLETED": BlockJobCompleted,
    "BLOCK_JOB_ERROR": BlockJobError,
    "BLOCK_JOB_PENDING": BlockJobPending,
    "BLOCK_JOB_READY": BlockJobReady,
    "BLOCK_WRITE_THRESHOLD": BlockWriteThreshold,
    "JOB_STATUS_CHANGE": JobStatusChange,
    "SHUTDOWN": Shutdown,
}
"""The name of each on the wire."""
