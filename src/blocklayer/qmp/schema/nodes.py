# SPDX-License-Identifier: Apache-2.0
"""Arguments and results of the commands about nodes."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import field

from blocklayer.qmp.schema.blockdev import BlockdevRef, Blockdevs
from blocklayer.qmp.types import Answer, Int, Members, Size, UInt64

Preallocation: TypeAlias = Literal["off", "metadata", "falloc", "full"]
Permission: TypeAlias = Literal["consistent-read", "write", "write-unchanged", "resize"]
NewImageMode: TypeAlias = Literal["existing", "absolute-paths"]


class BlockdevDel(Members, kw_only=True):
    """Which node to delete.

    node-name  a node that blockdev-add made, and nobody uses
    """

    node_name: str


class BlockdevReopen(Members, kw_only=True):
    """How nodes are to be open from now on.

    options  for each node all of its options, as blockdev-add takes them
    """

    options: list[Blockdevs]


class CreateFile(Members, kw_only=True, tag_field="driver", tag="file"):
    """A file of the host.

    filename          its path
    size              bytes
    preallocation     what is to be allocated at once
    nocow             no copy-on-write, where the file system has it
    extent-size-hint  allocation unit, where the file system has it
    """

    filename: str
    size: Size
    preallocation: Preallocation | None = None
    nocow: bool | None = None
    extent_size_hint: Size | None = None


class CreateQed(Members, kw_only=True, tag_field="driver", tag="qed"):
    """A QED image, in an existing node.

    file          the node to write the image to
    size          of the disk, bytes
    backing-file  a name to store as the backing file's
    backing-fmt   its format
    cluster-size  bytes
    table-size    clusters of a table
    """

    file: BlockdevRef
    size: Size
    backing_file: str | None = None
    backing_fmt: str | None = None
    cluster_size: Size | None = None
    table_size: Int | None = None


class CreateRaw(Members, kw_only=True, tag_field="driver", tag="raw"):
    """Always refused: there is nothing to write into a raw image."""


class CreateNull(Members, kw_only=True, tag_field="driver", tag="null-co"):
    """Always refused."""


class BlockdevCreate(Members, kw_only=True):
    """A job that makes an image.

    job-id   name of the job
    options  what to make
    """

    job_id: str
    options: CreateFile | CreateNull | CreateQed | CreateRaw


class InternalSnapshot(Members, kw_only=True):
    """A snapshot inside an image.

    device  the node
    name    of the snapshot
    """

    device: str
    name: str


class DeleteInternalSnapshot(Members, kw_only=True):
    """Which snapshot inside an image to delete.

    device  the node
    id      of the snapshot
    name    of the snapshot
    """

    device: str
    id: str | None = None
    name: str | None = None


class AmendOptions(Members, kw_only=True):
    """What would be changed.

    driver  the format of the node
    """

    driver: Literal[
        "blkdebug", "blklogwrites", "blkverify", "copy-on-read", "file", "host_device", "nbd",
        "null-aio", "null-co", "qed", "raw", "throttle",
    ]  # fmt: skip


class BlockdevAmend(Members, kw_only=True):
    """A job that changes options of an image; no format here has any that can be changed so.

    job-id     name of the job
    node-name  the image
    options    what to change
    force      change also what may lose data
    """

    job_id: str
    node_name: str
    options: AmendOptions
    force: bool | None = None


class BlockResize(Members, kw_only=True):
    """A new size.

    device     name of a device; there are none here, but a node's name is not taken for one
    node-name  the node
    size       bytes
    """

    device: str | None = None
    node_name: str | None = None
    size: Int


class WriteThreshold(Members, kw_only=True):
    """A mark that a node's writes are watched for.

    node-name        the node
    write-threshold  bytes; 0: no mark
    """

    node_name: str
    write_threshold: UInt64


class Snapshot(Members, kw_only=True):
    """An overlay for a node.

    node     what is to lie below from now on
    overlay  what goes on top: a node without a backing file
    """

    node: str
    overlay: str


class SnapshotSync(Members, kw_only=True):
    """An overlay that is made on the way.

    device              name of a device; there are none here, but see node-name
    node-name           what is to lie below from now on
    snapshot-file       path of the overlay
    snapshot-node-name  name for its node
    format              its format (default: qed)
    mode                whether to make it
    """

    device: str | None = None
    node_name: str | None = None
    snapshot_file: str
    snapshot_node_name: str | None = None
    format: str | None = None
    mode: NewImageMode | None = None


class ChangeBackingFile(Members, kw_only=True):
    """Another name to store in an image; what is open does not change.

    device           a node of the chain: its top
    image-node-name  the image whose header is changed
    backing-file     the name to store
    """

    device: str
    image_node_name: str
    backing_file: str


class QueryNodes(Members, kw_only=True):
    """What to tell.

    flat  leave out images below images
    """

    flat: bool | None = None


class QueryStats(Members, kw_only=True):
    """What to tell.

    query-nodes  tell of nodes, and not of devices
    """

    query_nodes: bool | None = None


class ImageInfo(Answer, kw_only=True):
    """What an image is."""

    filename: str
    format: str
    dirty_flag: bool | None = None
    actual_size: Int | None = None
    virtual_size: Int
    cluster_size: Int | None = None
    backing_filename: str | None = None
    full_backing_filename: str | None = None
    backing_filename_format: str | None = None
    backing_image: ImageInfo | None = None


class CacheInfo(Answer, kw_only=True, omit_defaults=False):
    """How writes reach the disk."""

    writeback: bool
    direct: bool
    no_flush: bool


class BitmapInfo(Answer, kw_only=True, omit_defaults=False):
    """A dirty bitmap; `count` is bytes."""

    name: str
    count: Int
    granularity: Int
    recording: bool
    busy: bool
    persistent: bool


class NodeInfo(Answer, kw_only=True, rename=None):
    """A node. The limits of requests are those of devices, and always 0 here."""

    file: str
    node_name: str = field(name="node-name")
    ro: bool
    drv: str
    backing_file: str | None = None
    backing_file_depth: Int
    encrypted: bool
    detect_zeroes: str
    bps: Int
    bps_rd: Int
    bps_wr: Int
    iops: Int
    iops_rd: Int
    iops_wr: Int
    image: ImageInfo
    cache: CacheInfo
    write_threshold: Int
    dirty_bitmaps: list[BitmapInfo] | None = field(name="dirty-bitmaps", default=None)


class NodeStats(Answer, kw_only=True, rename=None, omit_defaults=False):
    """What was done on a node so far. Times are nanoseconds."""

    rd_bytes: Int = 0
    wr_bytes: Int = 0
    unmap_bytes: Int = 0
    rd_operations: Int = 0
    wr_operations: Int = 0
    flush_operations: Int = 0
    unmap_operations: Int = 0
    rd_total_time_ns: Int = 0
    wr_total_time_ns: Int = 0
    flush_total_time_ns: Int = 0
    unmap_total_time_ns: Int = 0
    wr_highest_offset: Int = 0
    rd_merged: Int = 0
    wr_merged: Int = 0
    unmap_merged: Int = 0
    failed_rd_operations: Int = 0
    failed_wr_operations: Int = 0
    failed_flush_operations: Int = 0
    failed_unmap_operations: Int = 0
    invalid_rd_operations: Int = 0
    invalid_wr_operations: Int = 0
    invalid_flush_operations: Int = 0
    invalid_unmap_operations: Int = 0
    account_invalid: bool = False
    account_failed: bool = False
    timed_stats: list[Any] = field(default_factory=list)


class NodeWithStats(Answer, kw_only=True):
    """Statistics of a node, of what stores its bytes, and of what lies below it."""

    node_name: str
    stats: NodeStats
    parent: NodeWithStats | None = None
    backing: NodeWithStats | None = None


class DeviceInfo(Answer, kw_only=True):
    """A device of a virtual machine: a daemon has none."""

    device: str
    type: str
    removable: bool
    locked: bool


class GraphNode(Answer, kw_only=True, omit_defaults=False):
    """A vertex of the graph."""

    id: Int
    type: str
    name: str


class GraphEdge(Answer, kw_only=True, omit_defaults=False):
    """Who uses whom, and as what; what it does there, and what others may do meanwhile."""

    parent: Int
    child: Int
    name: str
    perm: list[Permission]
    shared_perm: list[Permission]


class GraphInfo(Answer, kw_only=True, omit_defaults=False):
    """The graph of all nodes."""

    nodes: list[GraphNode]
    edges: list[GraphEdge]
