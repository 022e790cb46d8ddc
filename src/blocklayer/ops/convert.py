# SPDX-License-Identifier: Apache-2.0
"""Copying images into other formats. What fails or is cancelled leaves no target behind."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.base.progress import CancelToken, ProgressCallback, Reporter
from blocklayer.base.record import Record
from blocklayer.base.units import SECTOR, MiB
from blocklayer.core.copy import ZERO_GRANULARITY, Concatenation, CopyOptions, CopyResult, copy
from blocklayer.core.disk import Disk
from blocklayer.core.node import FormatNode
from blocklayer.core.opening import FilenameLike, is_same_file, path_of
from blocklayer.ops.create import create as create_image
from blocklayer.ops.create import find_driver
from blocklayer.ops.open_image import open_disk

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

SPARSE_SIZE_MAX = 16 * MiB


class ConvertResult(Record, frozen=True):
    """What was done, in bytes: the disk's size, data written, zeroes; and what was unreadable."""

    size: int
    data: int
    zero: int
    salvaged: tuple[tuple[int, int], ...] = ()


def convert(
    source: FilenameLike | Sequence[FilenameLike],
    target: FilenameLike,
    *,
    source_format: str | None = None,
    format: str | None = "raw",
    options: dict[str, Any] | None = None,
    create: bool = True,
    target_is_zero: bool = False,
    sparse_size: int = ZERO_GRANULARITY,
    cache: str = "unsafe",
    source_cache: str = "writeback",
    force_share: bool = False,
    rate_limit: int = 0,
    salvage: bool = False,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> ConvertResult:
    """Copy one image, or several one after the other, into a new image.

    format          of the target; None for what an existing target is
    options         create options of the target format, with ``backing_file`` and ``backing_fmt``:
                    over a backing file only what differs from it is written
    create          False writes into an image that exists and is large enough
    target_is_zero  an existing target reads as zeroes everywhere: zeroes need not be written
    sparse_size     granularity in bytes of looking for zeroes; 0 stores zeroes as data
    cache           of the target; the default does not flush
    rate_limit      bytes per second; 0 is no limit
    salvage         unreadable sectors of the source become zeroes

    Raises `OpenError`, `CreateError`, `IoError`, `Cancelled` and others; then a target that was
    created is removed again.
    """
    _check_options(format, sparse_size, create, target_is_zero)
    names: list[FilenameLike]
    if isinstance(source, (str, os.PathLike, dict)):
        names = [source]
    else:
        names = list(source)
    with contextlib.ExitStack() as stack:
        disks = [
            stack.enter_context(
                open_disk(name, format=source_format, cache=source_cache, force_share=force_share)
            )
            for name in names
        ]
        if not disks:
            raise InvalidArgument("There is no source image")
        whole = disks[0] if len(disks) == 1 else Concatenation(disks)
        wanted = dict(options or {})
        made = None
        if create:
            _refuse_same_file(disks, target)
            made = _create_target(target, format or "raw", wanted, whole.size)
        try:
            with open_disk(target, mode="r+", format=format, cache=cache, discard="unmap") as disk:
                if disk.size < whole.size:
                    raise InvalidArgument("output file is smaller than input file")
                result = _copy_into(
                    whole,
                    disk,
                    CopyOptions(
                        target_is_zero=target_is_zero or (create and _is_zero_when_new(disk)),
                        sparse_size=sparse_size,
                        only_differences=disk.backing is not None and not target_is_zero,
                        salvage=salvage,
                        rate_limit=rate_limit,
                    ),
                    Reporter("convert", whole.size, progress, cancel),
                    new=create,
                )
        except BaseException:
            if made is not None:
                _remove(made)
            raise
    return ConvertResult(whole.size, result.data, result.zero, tuple(result.salvaged))


def _is_zero_when_new(disk: Disk) -> bool:
    node = disk.node
    return isinstance(node, FormatNode) and node.backing is None and node.zero_when_new


def _copy_into(
    source: Disk | Concatenation,
    disk: Disk,
    options: CopyOptions,
    reporter: Reporter,
    *,
    new: bool,
) -> CopyResult:
    result = copy(source, disk, options, reporter)
    rest = disk.size - source.size
    if rest and new and options.only_differences:
        # A new target longer than the source shows zeroes there, not its backing file.
        disk.write_zeroes(source.size, rest)
    if options.target_is_zero and not options.sparse_size:
        _allocate_zeroes(source, disk)
    reporter.finish()
    return result


def _allocate_zeroes(source: Disk | Concatenation, disk: Disk) -> None:
    """``-S 0``: everything is allocated in the target."""
    for extent in list(disk.extents(0, source.size)):
        if extent.zero or not extent.present:
            disk.write_zeroes(extent.offset, extent.length, allocate=True)


def _check_options(
    format_name: str | None, sparse_size: int, create: bool, target_is_zero: bool
) -> None:
    if create:
        find_driver(format_name or "raw")
    if sparse_size % SECTOR or not 0 <= sparse_size <= SPARSE_SIZE_MAX:
        raise InvalidArgument(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of"
            f" {SECTOR} up to {SPARSE_SIZE_MAX}. Select 0 to disable sparse detection"
            " (fully allocates output)."
        )
    if target_is_zero and create:
        raise InvalidArgument("--target-is-zero requires use of -n flag")


def _create_target(
    target: FilenameLike, format_name: str, options: dict[str, Any], size: int
) -> str:
    if isinstance(target, dict):
        raise NotSupported("A target that is described by options must exist (create=False)")
    backing = options.pop("backing_file", None)
    backing_format = options.pop("backing_fmt", None)
    create_image(
        target,
        format=format_name,
        size=options.pop("size", size),
        backing=backing,
        backing_format=backing_format,
        **options,
    )
    return path_of(target)


def _refuse_same_file(disks: list[Disk], target: FilenameLike) -> None:
    """Creating the target would empty a source before it is read."""
    if isinstance(target, dict):
        return
    name = path_of(target)
    for disk in disks:
        node: Disk | None = disk
        while node is not None:
            if is_same_file(node.filename, name):
                raise InvalidArgument(f"'{name}' is part of the source and cannot be the target")
            node = node.backing


def _remove(filename: str) -> None:
    with contextlib.suppress(OSError):
        if os.path.isfile(filename):
            os.unlink(filename)
