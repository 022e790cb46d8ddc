# SPDX-License-Identifier: Apache-2.0
"""Arguments and results of the commands about jobs."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from blocklayer.qmp.schema.nodes import NewImageMode
from blocklayer.qmp.types import Answer, Int, Members, UInt32

OnError: TypeAlias = Literal["report", "ignore", "enospc", "stop", "auto"]
CopyMode: TypeAlias = Literal["background", "write-blocking"]
Sync: TypeAlias = Literal["top", "full", "none", "incremental", "bitmap"]
BitmapMode: TypeAlias = Literal["on-success", "never", "always"]
JobType: TypeAlias = Literal["commit", "stream", "mirror", "backup", "create", "amend"]
Status: TypeAlias = Literal[
    "undefined",
    "created",
    "running",
    "paused",
    "ready",
    "standby",
    "waiting",
    "pending",
    "aborting",
    "concluded",
    "null",
]
IoStatus: TypeAlias = Literal["ok", "failed", "nospace"]


class BlockdevMirror(Members, kw_only=True):
    """A copy of a disk that is kept up to date until it takes the disk's place.

    job-id            name of the job (default: the device's)
    device            the node to copy
    target            the node to copy to
    replaces          the node that is replaced when the job completes (default: device)
    sync              what is copied: everything, the top layer, or only what is written from now on
    speed             bytes a second; 0: no limit
    granularity       unit of the dirty bitmap, bytes
    buf-size          bytes under way
    on-source-error   what to do when the source cannot be read
    on-target-error   what to do when the target cannot be written
    filter-node-name  name of the filter that watches the writes
    copy-mode         whether writes wait until they are on the target too
    target-is-zero    the target reads as zeroes: none need to be written
    auto-finalize     finalize it without being asked (default: true)
    auto-dismiss      forget it without being asked (default: true)
    """

    job_id: str | None = None
    device: str
    target: str
    replaces: str | None = None
    sync: Sync
    speed: Int | None = None
    granularity: UInt32 | None = None
    buf_size: Int | None = None
    on_source_error: OnError | None = None
    on_target_error: OnError | None = None
    filter_node_name: str | None = None
    copy_mode: CopyMode | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None
    target_is_zero: bool | None = None


class DriveMirror(Members, kw_only=True):
    """blockdev-mirror to an image that is named by its file.

    job-id           name of the job (default: the device's)
    device           the node to copy
    target           file name of the target
    format           its format (default: the source's)
    node-name        name for the target's node
    replaces         the node that is replaced when the job completes (default: device)
    sync             what is copied: everything, the top layer, or only what is written from now on
    mode             whether the target is made (default) or there already
    speed            bytes a second; 0: no limit
    granularity      unit of the dirty bitmap, bytes
    buf-size         bytes under way
    on-source-error  what to do when the source cannot be read
    on-target-error  what to do when the target cannot be written
    unmap            zeroes may become holes in the target (default: true)
    copy-mode        whether writes wait until they are on the target too
    auto-finalize    finalize it without being asked (default: true)
    auto-dismiss     forget it without being asked (default: true)
    """

    job_id: str | None = None
    device: str
    target: str
    format: str | None = None
    node_name: str | None = None
    replaces: str | None = None
    sync: Sync
    mode: NewImageMode | None = None
    speed: Int | None = None
    granularity: UInt32 | None = None
    buf_size: Int | None = None
    on_source_error: OnError | None = None
    on_target_error: OnError | None = None
    unmap: bool | None = None
    copy_mode: CopyMode | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None


class BackupPerformance(Members, kw_only=True):
    """How a backup copies.

    use-copy-range  let the host copy where it can
    max-workers     the most requests under way; there are never more than a few
    max-chunk       longest request, bytes; 0: no limit
    """

    use_copy_range: bool | None = None
    max_workers: Int | None = None
    max_chunk: Int | None = None


class Backup(Members, kw_only=True):
    """A copy of a disk as it is now.

    job-id            name of the job (default: the device's)
    device            the node to copy
    sync              what is copied
    speed             bytes a second; 0: no limit
    bitmap            for sync=incremental and bitmap: what is copied is marked there
    bitmap-mode       what becomes of the bitmap
    compress          write compressed clusters, where the target has them
    on-source-error   what to do when the source cannot be read
    on-target-error   what to do when the target cannot be written
    auto-finalize     finalize it without being asked (default: true)
    auto-dismiss      forget it without being asked (default: true)
    filter-node-name  name of the filter that copies before writes
    x-perf            how to copy
    """

    job_id: str | None = None
    device: str
    sync: Sync
    speed: Int | None = None
    bitmap: str | None = None
    bitmap_mode: BitmapMode | None = None
    compress: bool | None = None
    on_source_error: OnError | None = None
    on_target_error: OnError | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None
    filter_node_name: str | None = None
    x_perf: BackupPerformance | None = None


class BlockdevBackup(Backup, kw_only=True):
    """A copy of a disk as it is now, in a node.

    target  the node to copy to
    """

    target: str


class DriveBackup(Backup, kw_only=True):
    """A copy of a disk as it is now, in an image that is named by its file.

    target  file name of the target
    format  its format (default: the source's)
    mode    whether the target is made (default) or there already
    """

    target: str
    format: str | None = None
    mode: NewImageMode | None = None


class BlockCommit(Members, kw_only=True):
    """Write what layers hold into the one below them.

    job-id            name of the job (default: the device's)
    device            the node at the top of the chain
    base-node         the layer to write into (default: the lowest)
    base              the same by its file name
    top-node          the highest layer to write (default: device)
    top               the same by its file name
    backing-file      the name that the layer above top is to store
    speed             bytes a second; 0: no limit
    on-error          what to do when a request fails
    filter-node-name  name of the filter above top
    auto-finalize     finalize it without being asked (default: true)
    auto-dismiss      forget it without being asked (default: true)
    """

    FEATURES: ClassVar[dict[str, tuple[str, ...]]] = {
        "base": ("deprecated",),
        "top": ("deprecated",),
    }

    job_id: str | None = None
    device: str
    base_node: str | None = None
    base: str | None = None
    top_node: str | None = None
    top: str | None = None
    backing_file: str | None = None
    speed: Int | None = None
    on_error: OnError | None = None
    filter_node_name: str | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None


class BlockStream(Members, kw_only=True):
    """Copy what layers below hold into an image.

    job-id            name of the job (default: the device's)
    device            the node to copy into
    base              file name of the highest layer that stays below (default: none does)
    base-node         the same by its node's name
    backing-file      the name that the image is to store for what stays below
    bottom            the lowest layer that is copied
    speed             bytes a second; 0: no limit
    on-error          what to do when a request fails
    filter-node-name  name of the filter above device
    auto-finalize     finalize it without being asked (default: true)
    auto-dismiss      forget it without being asked (default: true)
    """

    job_id: str | None = None
    device: str
    base: str | None = None
    base_node: str | None = None
    backing_file: str | None = None
    bottom: str | None = None
    speed: Int | None = None
    on_error: OnError | None = None
    filter_node_name: str | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None


class OnJob(Members, kw_only=True):
    """Which job.

    id  its name
    """

    id: str


class OnBlockJob(Members, kw_only=True):
    """Which job.

    device  its name
    """

    device: str


class BlockJobCancel(OnBlockJob, kw_only=True):
    """How to end a job.

    device  its name
    force   do not wait for anything; a mirror that is ready gives up
    """

    force: bool | None = None


class SetSpeed(OnBlockJob, kw_only=True):
    """A limit.

    device  name of the job
    speed   bytes a second; 0: no limit
    """

    speed: Int


class ChangeJob(Members, kw_only=True, tag_field="type"):
    """Which job to change.

    id  its name
    """

    id: str


class ChangeMirror(ChangeJob, kw_only=True, tag="mirror"):
    """Change a mirror job.

    copy-mode  the mode from now on
    """

    copy_mode: CopyMode


class JobInfo(Answer, kw_only=True):
    """A job."""

    id: str
    type: JobType
    status: Status
    current_progress: Int
    total_progress: Int
    error: str | None = None


class BlockJobInfo(Answer, kw_only=True):
    """A job on nodes."""

    type: JobType
    device: str
    len: Int
    offset: Int
    busy: bool
    paused: bool
    speed: Int
    io_status: IoStatus
    ready: bool
    status: Status
    auto_finalize: bool
    auto_dismiss: bool
    error: str | None = None
