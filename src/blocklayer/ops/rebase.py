# SPDX-License-Identifier: Apache-2.0
"""Giving an overlay another backing file without changing what it reads as."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from blocklayer.base.align import align_down, align_up
from blocklayer.base.buffers import is_zero
from blocklayer.base.errors import ChainError, NotSupported
from blocklayer.base.extent import Extent
from blocklayer.base.progress import CancelToken, ProgressCallback, Reporter
from blocklayer.base.units import MiB
from blocklayer.core.disk import Disk
from blocklayer.core.identity import file_identity
from blocklayer.core.names import FilenameLike, backing_path
from blocklayer.core.node import FormatNode
from blocklayer.ops.compare_contents import zip_extents
from blocklayer.ops.open_image import leaves, open_disk
from blocklayer.ops.told import told

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.trust import Trust

PIECE = 2 * MiB


def rebase(
    name: FilenameLike,
    backing: str | os.PathLike[str] | None,
    *,
    format: str | None = None,
    backing_format: str | None = None,
    unsafe: bool = False,
    cache: str = "writeback",
    source_cache: str = "writeback",
    force_share: bool = False,
    trust: Trust | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Change the backing file of an image; None or ``""`` removes it.

    Clusters in which the old and the new backing file differ are copied into the image first, and
    are durable before the name changes. `unsafe` only changes the name: right if the backing file
    was renamed or moved, and wrong otherwise. `force_share` reads the new backing file although
    somebody else writes to it. `trust` is for an image that somebody else made: what
    it may ask for now; the new backing file is the caller's own.
    """
    wanted = os.fspath(backing) if backing else None
    with open_disk(
        name, mode="r+", format=format, cache=cache, backing_chain=not unsafe, trust=trust
    ) as disk:
        node = disk.node
        if not isinstance(node, FormatNode):
            raise NotSupported("Only images of a format with backing files can be rebased")
        with contextlib.ExitStack() as stack:
            below = None
            if wanted is not None and not unsafe:
                path = backing_path(node.filename, wanted)
                below = stack.enter_context(
                    open_disk(
                        path, format=backing_format, cache=source_cache, force_share=force_share
                    )
                )
                backing_format = backing_format or below.format
                _refuse_loop(node, below, path)
            if not unsafe:
                with told(
                    f"'{node.filename}' has the backing file it had, and shows the same:"
                    " what was copied into it so far does no harm"
                ):
                    _copy_differences(disk, below, Reporter("rebase", disk.size, progress, cancel))
                    disk.flush()
        node.change_backing(wanted, backing_format)


def _refuse_loop(top: FormatNode, below: Disk, name: str) -> None:
    """An image cannot lie below itself. Its lock tells, but not with `force_share`."""
    own = file_identity(top)
    if own is not None and any(file_identity(leaf) == own for leaf in leaves(below.node)):
        raise ChainError(f"Backing file '{name}' creates an infinite loop.", name)


def _copy_differences(disk: Disk, below: Disk | None, reporter: Reporter) -> None:
    """Store in the overlay what the new backing file would show differently.

    The overlay can hide whole clusters only, whatever the granularity of the old backing file.
    """
    unit = disk.node.limits.opt_transfer or 1
    places = _Places(disk, below)
    done = 0  # whole clusters
    for old, new in zip_extents(disk, _Padded(below), disk.size):
        is_last = old.end == disk.size
        if (old.present and old.depth == 0) or places.show_the_same(old, new):
            # In the cluster in which they end, what follows may differ.
            end = old.end if is_last else align_down(old.end, unit)
            same = max(0, end - done)
            reporter.advance(same, skipped=same)
            done += same
            continue
        end = disk.size if is_last else min(align_up(old.end, unit), disk.size)
        while done < end:
            stop = min(end, align_down(done, PIECE) + PIECE)
            copied, zero = _copy_range(disk, below, done, stop)
            reporter.advance(stop - done, zero=zero, skipped=stop - done - copied - zero)
            done = stop
    reporter.finish()


class _Padded:
    """The new backing file, followed by the zeroes that are seen behind its end."""

    def __init__(self, disk: Disk | None) -> None:
        self._disk = disk

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """As of a disk that is long enough."""
        end = offset + length
        inside = 0 if self._disk is None else max(0, min(length, self._disk.size - offset))
        if self._disk is not None and inside:
            yield from self._disk.extents(offset, inside)
            offset += inside
        if offset < end:
            yield Extent(offset, end - offset, False, True, False, 0)


class _Places:
    """Knows of bytes that they are the same without reading them."""

    def __init__(self, disk: Disk, below: Disk | None) -> None:
        self._ours = _files_of(disk)
        self._theirs = {} if below is None else _files_of(below)

    def show_the_same(self, old: Extent, new: Extent) -> bool:
        """Whether both are zeroes, or lie at one place of one file: chains have a common end."""
        if old.zero or new.zero:
            return old.zero and new.zero
        if old.host_offset is None or old.host_offset != new.host_offset:
            return False
        file = self._ours.get(old.filename)
        return file is not None and file == self._theirs.get(new.filename)


def _files_of(disk: Disk) -> dict[str | None, tuple[int, int] | None]:
    """The files that a disk is in by the names in its extents; None where a name means several."""
    found: dict[str | None, tuple[int, int] | None] = {}
    for node in leaves(disk.node):
        descriptor: int = getattr(node, "descriptor", -1)
        identity = None
        if descriptor >= 0:
            status = os.fstat(descriptor)
            identity = status.st_dev, status.st_ino
        known = found.setdefault(node.filename, identity)
        if known != identity:
            found[node.filename] = None
    return found


def _copy_range(disk: Disk, below: Disk | None, start: int, end: int) -> tuple[int, int]:
    """Bytes stored in the overlay, as data and as zeroes."""
    unit = disk.node.limits.opt_transfer or 1
    shown = disk.read(start, end - start)
    future = read_short(below, start, end - start)
    if shown == future:
        return 0, 0
    writes = []
    zero = 0
    position = start
    while position < end:
        stop = min(align_down(position, unit) + unit, end)
        old = shown[position - start : stop - start]
        if old != future[position - start : stop - start]:
            whole = position % unit == 0 and (stop % unit == 0 or stop == disk.size)
            # A part of a cluster reads as zeroes already, by the backing file that is to go.
            if whole and is_zero(old):
                disk.write_zeroes(position, stop - position)
                zero += stop - position
            else:
                writes.append((position, old))
        position = stop
    disk.write_many(writes)
    return sum(len(data) for _, data in writes), zero


def read_short(disk: Disk | None, offset: int, length: int) -> bytes:
    """Bytes of a disk that may end earlier, or not be there: zeroes where it is not."""
    inside = 0 if disk is None else max(0, min(length, disk.size - offset))
    data = disk.read(offset, inside) if disk is not None and inside else b""
    return data + bytes(length - inside)
