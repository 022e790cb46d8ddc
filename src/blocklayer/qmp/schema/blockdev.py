# SPDX-License-Identifier: Apache-2.0
"""The options of nodes: what blockdev-add takes, and `--blockdev`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, UnsetType

from blocklayer.qmp.schema.sockets import SocketAddress
from blocklayer.qmp.types import Int, Members, UInt32, UInt64

DetectZeroes: TypeAlias = Literal["off", "on", "unmap"]
Discard: TypeAlias = Literal["ignore", "unmap"]
OnOffAuto: TypeAlias = Literal["auto", "on", "off"]


class CacheOptions(Members, kw_only=True):
    """How a node's writes reach the disk.

    direct    bypass the host's page cache
    no-flush  ignore flushes: unsafe
    """

    direct: bool | None = None
    no_flush: bool | None = None


class Blockdev(Members, kw_only=True, tag_field="driver"):
    """What every node has.

    node-name       its name; every node that is to be named later needs one
    discard         whether discards are passed on
    cache           caching
    read-only       refuse writes
    auto-read-only  become read-only if the image cannot be opened for writing
    force-share     open although other processes write to the image; only with read-only
    detect-zeroes   turn writes of zeroes into zeroing, or unmapping
    """

    node_name: str | None = None
    discard: Discard | None = None
    cache: CacheOptions | None = None
    read_only: bool | None = None
    auto_read_only: bool | None = None
    force_share: bool | None = None
    detect_zeroes: DetectZeroes | None = None


class File(Blockdev, kw_only=True, tag="file"):
    """A file of the host.

    filename               its path
    locking                hold QEMU's locks on it
    aio                    accepted; requests are made by threads
    aio-max-batch          accepted, likewise
    drop-cache             accepted: there are no migrations
    x-check-cache-dropped  accepted, likewise
    """

    filename: str
    locking: OnOffAuto | None = None
    aio: Literal["threads", "native", "io_uring"] | None = None
    aio_max_batch: Int | None = None
    drop_cache: bool | None = None
    x_check_cache_dropped: bool | None = None


class HostDevice(File, kw_only=True, tag="host_device"):
    """A block device of the host."""


class Null(Blockdev, kw_only=True, tag="null-co"):
    """Reads as zeroes, or as anything; forgets what is written.

    size         bytes (default: 1 GiB)
    latency-ns   how long a request takes at least, nanoseconds
    read-zeroes  reads give zeroes (default), and not just anything
    """

    size: Int | None = None
    latency_ns: UInt64 | None = None
    read_zeroes: bool | None = None


class NullAio(Null, kw_only=True, tag="null-aio"):
    """The same as null-co."""


class NullShort(Null, kw_only=True, tag="null"):
    """The same as null-co."""


class Memory(Blockdev, kw_only=True, tag="memory"):
    """A disk in memory, which is gone with the node.

    size  bytes
    """

    size: Int


class Raw(Blockdev, kw_only=True, tag="raw"):
    """The bytes as they are.

    file    where they are
    offset  where the disk begins
    size    its length
    """

    file: BlockdevRef
    offset: Int | None = None
    size: Int | None = None


class Qed(Blockdev, kw_only=True, tag="qed"):
    """A QED image.

    file     the image file
    backing  what lies below, in place of what the image names; null: nothing
    """

    file: BlockdevRef
    backing: Annotated[Blockdevs | str | None, Meta(title="BlockdevRefOrNull")] | UnsetType = UNSET


class InjectError(Members, kw_only=True):
    """Make requests fail.

    event        only when the driver above announces this
    state        only in this state (0: any)
    iotype       only requests of this kind
    errno        the error's number
    sector       only requests that cover this sector of 512 bytes
    once         only once
    immediately  fail when the event is announced
    """

    event: str | None = None
    state: Int | None = None
    iotype: Literal["read", "write", "write-zeroes", "discard", "flush", "block-status"] | None = (
        None
    )
    errno: Int | None = None
    sector: Int | None = None
    once: bool | None = None
    immediately: bool | None = None


class SetState(Members, kw_only=True, rename=None):
    """Change the state of the rules.

    event      when the driver above announces this
    state      only in this state (0: any)
    new_state  the state to go to
    """

    event: str
    state: Int | None = None
    new_state: Int


class Blkdebug(Blockdev, kw_only=True, tag="blkdebug"):
    """A filter that makes requests fail by rules.

    image           what requests are passed on to
    config          a file of rules
    align           requests must be aligned to this
    max-transfer    the longest request
    opt-write-zero  accepted: zeroing is passed on as it comes
    max-write-zero  accepted, likewise
    opt-discard     accepted, likewise
    max-discard     accepted, likewise
    inject-error    rules that make requests fail
    set-state       rules that change the state
    """

    image: BlockdevRef
    config: str | None = None
    align: Int | None = None
    max_transfer: UInt32 | None = None
    opt_write_zero: UInt32 | None = None
    max_write_zero: UInt32 | None = None
    opt_discard: UInt32 | None = None
    max_discard: UInt32 | None = None
    inject_error: list[InjectError] | None = None
    set_state: list[SetState] | None = None


class Fault(Blkdebug, kw_only=True, tag="fault"):
    """The same as blkdebug."""


class Blkverify(Blockdev, kw_only=True, tag="blkverify"):
    """A filter that compares what two nodes read.

    test  the one under test
    raw   the one that is right
    """

    test: BlockdevRef
    raw: BlockdevRef


class Verify(Blkverify, kw_only=True, tag="verify"):
    """The same as blkverify."""


class CopyOnRead(Blockdev, kw_only=True, tag="copy-on-read"):
    """A filter that stores in an image what is read from below it.

    file  the image
    """

    file: BlockdevRef


class CopyOnReadOther(CopyOnRead, kw_only=True, tag="copy_on_read"):
    """The same as copy-on-read."""


class Nbd(Blockdev, kw_only=True, tag="nbd"):
    """An export of an NBD server.

    server           where it is
    export           the export's name
    tls-creds        object with the credentials for TLS
    tls-hostname     whose certificate to expect
    x-dirty-bitmap   what block status asks of
    reconnect-delay  for how many seconds requests wait for a new connection when it is lost
    open-timeout     for how many seconds to try to connect at first
    connections      how many to use, where the server allows several
    request-timeout  seconds of silence after which the server is taken for dead; 0: never
    """

    server: SocketAddress
    export: str | None = None
    tls_creds: str | None = None
    tls_hostname: str | None = None
    x_dirty_bitmap: str | None = None
    reconnect_delay: UInt32 | None = None
    open_timeout: UInt32 | None = None
    connections: UInt32 | None = None
    request_timeout: UInt32 | None = None


class ThrottleFilter(Blockdev, kw_only=True, tag="throttle"):
    """A filter that holds requests to limits.

    throttle-group  the object that has the limits
    file            what requests are passed on to
    """

    throttle_group: str
    file: BlockdevRef


class Blklogwrites(Blockdev, kw_only=True, tag="blklogwrites"):
    """A filter that logs writes in the form of dm-log-writes.

    file                       what requests are passed on to
    log                        where to log them
    log-sector-size            unit of the log
    log-append                 go on with a log
    log-super-update-interval  writes between two updates of the log's head
    """

    file: BlockdevRef
    log: BlockdevRef
    log_sector_size: UInt32 | None = None
    log_append: bool | None = None
    log_super_update_interval: Int | None = None


class WriteLog(Blklogwrites, kw_only=True, tag="write_log"):
    """The same as blklogwrites."""


Blockdevs: TypeAlias = (
    Blkdebug
    | Blklogwrites
    | Blkverify
    | CopyOnRead
    | CopyOnReadOther
    | Fault
    | File
    | HostDevice
    | Memory
    | Nbd
    | Null
    | NullAio
    | NullShort
    | Qed
    | Raw
    | ThrottleFilter
    | Verify
    | WriteLog
)
BlockdevRef: TypeAlias = Annotated[Blockdevs | str, Meta(title="BlockdevRef")]
"""A node by its options, or by its name."""
