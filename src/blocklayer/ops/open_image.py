# SPDX-License-Identifier: Apache-2.0
"""Opening a disk by name."""

from __future__ import annotations

from collections.abc import Iterator

from blocklayer.base.errors import InvalidArgument
from blocklayer.core.disk import Disk
from blocklayer.core.names import FilenameLike
from blocklayer.core.node import Node
from blocklayer.core.opening import Opener, OpenFlags, cache_mode

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.trust import Trust


def open_disk(
    name: FilenameLike,
    *,
    mode: str = "r",
    format: str | None = None,
    cache: str = "writeback",
    discard: str = "ignore",
    detect_zeroes: str = "off",
    locking: str = "auto",
    force_share: bool = False,
    backing_chain: bool = True,
    stats: bool = False,
    trust: Trust | None = None,
) -> Disk:
    """Open a disk image and everything it is backed by.

    name           a path, a path-like, a ``file:`` or ``json:{…}`` name, or an option tree
    mode           ``r`` (default) or ``r+``
    format         the driver; found by its signature if not given. Give it for raw images whose
                   content others control: a guest could write another format's signature.
    cache          writeback, none, writethrough, directsync or unsafe, as ``qemu-img -t``
    discard        ``ignore`` (default) or ``unmap``
    detect_zeroes  ``off`` (default), ``on``, or ``unmap``: writes of zeroes store nothing;
                   options of the image (``discard``, ``detect-zeroes``) come before these two
    locking        auto, on or off: locks that QEMU understands
    force_share    read although somebody else writes (``-U``)
    backing_chain  open backing files too; without them, what they hold reads as zeroes
    stats          count requests, bytes and times: the disk is a `CountingDisk` with `stats`
    trust          a `Trust` for an image that somebody else made: what it may ask for

    Raises `OpenError`, `Refused`, `LockError`, `ChainError`, `InvalidArgument`.
    """
    if mode not in ("r", "r+"):
        raise InvalidArgument(f"Invalid mode {mode!r}: use 'r' or 'r+'")
    if force_share and mode != "r":
        raise InvalidArgument("force_share can only be used with read-only disks")
    modes = cache_mode(cache)
    flags = OpenFlags(
        read_only=mode == "r",
        cache=modes,
        locking=locking,
        force_share=force_share,
        backing_chain=backing_chain,
        trust=trust,
    )
    return open_with(
        name, flags, format=format, discard=discard, detect_zeroes=detect_zeroes, stats=stats
    )


def open_with(
    name: FilenameLike,
    flags: OpenFlags,
    *,
    format: str | None = None,
    discard: str = "ignore",
    detect_zeroes: str = "off",
    stats: bool = False,
) -> Disk:
    """Open with flags that are made already."""
    disk_class = Disk
    if stats:
        from blocklayer.core.stats import CountingDisk

        disk_class = CountingDisk
    opener = Opener(flags, discard=discard, detect_zeroes=detect_zeroes)
    node = opener.open_name(name, format)
    try:
        return disk_class(
            node,
            writethrough=flags.cache.writethrough,
            discard=opener.discard,
            detect_zeroes=opener.detect_zeroes,
        )
    except BaseException:
        node.close()
        raise


def leaves(top: Node) -> Iterator[Node]:
    """Nodes of a graph that stand on nothing else: files, mostly."""
    pending = [top]
    while pending:
        node = pending.pop()
        pending += node.children.values()
        if not node.children:
            yield node
