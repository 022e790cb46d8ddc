# SPDX-License-Identifier: Apache-2.0
"""Copying a part of a disk, counted in blocks, as dd(1) does it."""

from __future__ import annotations

import os

from blocklayer.base.align import align_up
from blocklayer.base.errors import CreateError, InvalidArgument
from blocklayer.base.progress import CancelToken, ProgressCallback, Reporter
from blocklayer.base.record import Record
from blocklayer.base.units import SECTOR
from blocklayer.core.copy import CopyOptions, copy
from blocklayer.core.copy_sources import Window
from blocklayer.core.names import FilenameLike, is_export, path_of
from blocklayer.ops.convert import is_zero_when_new
from blocklayer.ops.create import create, find_driver, refuse_on_export, remove
from blocklayer.ops.open_image import open_disk
from blocklayer.ops.source_guard import refuse_same_file, refuse_same_storage
from blocklayer.ops.told import tell_of_target

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.trust import Trust

BLOCK_SIZE = 512


class DdResult(Record, frozen=True):
    """Bytes copied, and whether there was anything behind what was skipped."""

    size: int
    skipped_all: bool = False


def dd(
    source: FilenameLike,
    target: str | os.PathLike[str],
    *,
    source_format: str | None = None,
    format: str = "raw",
    block_size: int = BLOCK_SIZE,
    count: int | None = None,
    skip: int = 0,
    force_share: bool = False,
    trust: Trust | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> DdResult:
    """Copy `count` blocks of a disk, after `skip` others, into a new image, or onto an export.

    count   blocks of `block_size` bytes; everything to the end if not given
    skip    blocks at the start that are left out; where they are more than there are, the new
            image is empty

    trust   for a source that somebody else made: what it may ask for

    Zeroes are not stored. Raises `OpenError`, `CreateError`, `IoError`, `Cancelled` and others;
    then a target that was created is removed again.
    """
    if block_size < 1 or skip < 0 or (count is not None and count < 0):
        raise InvalidArgument("Blocks have at least one byte, and are not counted below zero")
    with open_disk(source, format=source_format, force_share=force_share, trust=trust) as disk:
        find_driver(format)
        start = min(skip * block_size, disk.size)
        size = disk.size - start
        if count is not None:
            size = min(size, count * block_size)
        made = begun = False
        if is_export(target):
            refuse_on_export(str(target), format)
        else:
            refuse_same_file([disk], target)
            create(target, format=format, size=align_up(size, SECTOR))
            made = True
        try:
            with open_disk(target, mode="r+", format=format, discard="unmap") as into:
                refuse_same_storage([disk], into)
                if into.size < size:
                    raise CreateError("Cannot grow NBD nodes", str(target))
                begun = True
                reporter = Reporter("dd", size, progress, cancel)
                options = CopyOptions(target_is_zero=made and is_zero_when_new(into))
                copy(Window(disk, start, size), into, options, reporter)
                reporter.finish()
        except BaseException as error:
            if made:
                remove(path_of(target))
            if made or begun:
                tell_of_target(error, path_of(target) if made else target, made=made)
            raise
        return DdResult(size, skipped_all=skip * block_size > disk.size)
