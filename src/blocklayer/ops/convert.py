# SPDX-License-Identifier: Apache-2.0
"""Copying images into other formats. What fails or is cancelled leaves no target behind."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from blocklayer.base.errors import BlocklayerError, InvalidArgument, IoError, NotSupported
from blocklayer.base.extent import Extent
from blocklayer.base.progress import CancelToken, ProgressCallback, Reporter
from blocklayer.base.record import Record
from blocklayer.base.units import SECTOR, MiB, parse_size
from blocklayer.core.copy import CopyOptions, changing_ranges, copy
from blocklayer.core.copy_loads import ZERO_GRANULARITY
from blocklayer.core.copy_sources import Concatenation
from blocklayer.core.disk import Disk
from blocklayer.core.names import FilenameLike, is_export, path_of
from blocklayer.core.node import FormatNode
from blocklayer.ops.create import create as create_image
from blocklayer.ops.create import find_driver, remove
from blocklayer.ops.open_image import open_disk
from blocklayer.ops.source_guard import refuse_same_file, refuse_same_storage
from blocklayer.ops.told import tell_of_target

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.core.trust import Trust
    from blocklayer.ops.resume import Resumable

SPARSE_SIZE_MAX = 16 * MiB

ALLOCATED_AT_ONCE = 64 * MiB
"""Bytes between two looks whether to stop: where storage cannot allocate, they are written."""


class ConvertResult(Record, frozen=True):
    """What was done, in bytes: the disk's size, data written, zeroes; and what was unreadable.

    resumed   bytes that an interrupted conversion had copied already
    """

    size: int
    data: int
    zero: int
    salvaged: tuple[tuple[int, int], ...] = ()
    resumed: int = 0


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
    verify: bool = False,
    resume: bool = False,
    trust: Trust | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> ConvertResult:
    """Copy one image, or several one after the other, into a new image.

    format          of the target; None for what an existing target is
    options         create options of the target format, with ``backing_file`` and ``backing_fmt``:
                    over a backing file only what differs from it is written
    create          False writes into an image that exists and is large enough; everything, unless
                    ``backing_file`` says that its backing file may be relied on
    target_is_zero  an existing target reads as zeroes everywhere: zeroes need not be written
    sparse_size     granularity in bytes of looking for zeroes; 0 stores zeroes as data
    cache           of the target; the default does not flush
    rate_limit      bytes per second; 0 is no limit
    salvage         unreadable sectors of the source become zeroes
    verify          read back what was written, and compare: a difference is an `IoError`
    resume          keep what is copied if the conversion is interrupted, and go on with what an
                    earlier one has left; ``docs/library.md`` tells how
    trust           for sources that somebody else made: what they may ask for

    Raises `OpenError`, `CreateError`, `IoError`, `Cancelled` and others; then a target that was
    created is removed again, or with `resume` does not have its name yet.
    """
    _check_options(format, sparse_size, create, target_is_zero)
    if create and is_export(target):
        # As on a device, the image is as large as what it is on.
        if format not in (None, "raw") or options or resume:
            raise InvalidArgument(f"Nothing but raw images can be made on '{target}'")
        create = False
    if verify and salvage:
        raise InvalidArgument("What is salvaged differs from its source and cannot be verified")
    if resume and (salvage or not create):
        raise InvalidArgument("Only conversions into new images, not salvaging, can be resumed")
    names: list[FilenameLike]
    if isinstance(source, (str, os.PathLike, dict)):
        names = [source]
    else:
        names = list(source)
    with contextlib.ExitStack() as stack:
        disks = [
            stack.enter_context(
                open_disk(
                    name,
                    format=source_format,
                    cache=source_cache,
                    force_share=force_share,
                    trust=trust,
                )
            )
            for name in names
        ]
        if not disks:
            raise InvalidArgument("There is no source image")
        whole = disks[0] if len(disks) == 1 else Concatenation(disks)
        if create or (force_share and _is_path(target)):  # else the source's lock is in the way
            refuse_same_file(disks, target)
        plan = _Plan(
            whole,
            disks,
            target,
            format=format,
            options=dict(options or {}),
            cache=cache,
            copying=CopyOptions(
                target_is_zero=target_is_zero,
                sparse_size=sparse_size,
                salvage=salvage,
                rate_limit=rate_limit,
                # Shared blocks need new space when they are written to: that was to be there now.
                share=create and (options or {}).get("preallocation", "off") == "off",
            ),
            create=create,
            verify=verify,
            progress=progress,
            cancel=cancel,
        )
        return _convert_resumably(plan) if resume else _convert_at_once(plan)


class _Plan(Record, frozen=True):
    """A conversion whose sources are open."""

    whole: Disk | Concatenation
    disks: list[Disk]
    target: FilenameLike
    format: str | None
    options: dict[str, Any]
    cache: str
    copying: CopyOptions
    create: bool
    verify: bool
    progress: ProgressCallback | None
    cancel: CancelToken | None

    def reporter(self) -> Reporter:
        """Counts what is copied, and then what is read back."""
        total = self.whole.size * (2 if self.verify else 1)
        return Reporter("convert", total, self.progress, self.cancel)

    @property
    def quiet(self) -> Reporter:
        """Only knows whether to go on."""
        return Reporter("convert", 0, None, self.cancel)

    def open_target(self, target: FilenameLike, mode: str = "r+") -> Disk:
        """The target, for writing or for being read back."""
        disk = open_disk(
            target,
            mode=mode,
            format=self.format,
            cache=self.cache,
            discard="unmap" if mode == "r+" else "ignore",
        )
        try:
            refuse_same_storage(self.disks, disk)
        except BaseException:
            disk.close()
            raise
        return disk

    def require_room(self, size: int) -> None:
        """Found out before a file that is there is given up."""
        try:
            available = parse_size(self.options.get("size", size))
        except InvalidArgument:
            return  # who creates the target says what is wrong
        if available < size:
            raise InvalidArgument("output file is smaller than input file")

    def copying_into(self, disk: Disk) -> CopyOptions:
        """How to copy, now that the target is there."""
        if disk.size < self.whole.size:
            raise InvalidArgument("output file is smaller than input file")
        known = self.copying.target_is_zero
        return self.copying.replace(
            target_is_zero=known or (self.create and is_zero_when_new(disk)),
            only_differences=self.is_over_backing(disk) and not known,
        )

    def is_over_backing(self, disk: Disk) -> bool:
        """Whether what the target shows already may stay where it is right.

        An overlay that exists gets everything, since it may be moved to another backing file.
        """
        return disk.backing is not None and (self.create or bool(self.options.get("backing_file")))

    def read_back(self, target: FilenameLike, reporter: Reporter) -> None:
        """Raise `IoError` for what is not as it should be."""
        from blocklayer.ops.verify import forget_cached, verify

        if _is_path(target):
            forget_cached(path_of(target))
        with self.open_target(target, "r") as disk:
            # A device keeps what was on it behind the copy, as an image that exists does.
            new = self.create and isinstance(disk.node, FormatNode) and disk.node.zero_when_new
            verify(self.whole, disk, new=new, reporter=reporter, quiet=self.quiet)


def _convert_at_once(plan: _Plan) -> ConvertResult:
    made = reporter = None
    if plan.create:
        plan.require_room(plan.whole.size)
        made = _create_target(
            plan.target, plan.format or "raw", dict(plan.options), plan.whole.size
        )
    try:
        with plan.open_target(plan.target) as disk:
            copying = plan.copying_into(disk)
            reporter = plan.reporter()
            result = copy(plan.whole, disk, copying, reporter)
            _complete(plan.whole, disk, copying, plan.quiet, new=plan.create)
        if plan.verify:
            plan.read_back(plan.target, reporter)
        reporter.finish()
    except BaseException as error:
        if made is not None:
            remove(made)
        if reporter is not None:
            tell_of_target(error, made or plan.target, made=made is not None)
        raise
    return ConvertResult(plan.whole.size, result.data, result.zero, tuple(result.salvaged))


def _convert_resumably(plan: _Plan) -> ConvertResult:
    from blocklayer.ops import resume
    from blocklayer.ops.resume_note import COPYING, Job

    if isinstance(plan.target, dict):
        raise NotSupported("A target that is described by options must exist (create=False)")
    if plan.cache == "unsafe":  # what is noted as copied must be on the storage
        plan = plan.replace(cache="writeback")
    options = {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value
        for name, value in plan.options.items()
    }
    job = Job(
        plan.format or "raw",
        options,
        plan.copying.sparse_size,
        parse_size(options.get("size", plan.whole.size)),
        resume.stamps(plan.disks),
    )
    work = resume.Resumable(path_of(plan.target), job)
    note = work.begin()
    there = 0
    try:
        reporter = plan.reporter()
        if note.stage == COPYING:
            with plan.open_target(work.partial) as disk:
                copying = plan.copying_into(disk)
                there = resume.check_parts(
                    plan.whole, plan.disks, disk, note, copying, reporter, plan.quiet
                )
                resume.copy_parts(
                    plan.whole,
                    disk=disk,
                    disks=plan.disks,
                    job=work,
                    note=note,
                    options=copying,
                    reporter=reporter,
                    quiet=plan.quiet,
                )
                _complete(plan.whole, disk, copying, plan.quiet, new=True)
            if plan.verify:
                _read_back_partial(plan, work, reporter)
        reporter.check()  # the last moment to stop
        work.finish(note)
    except BlocklayerError as error:
        if not isinstance(error, InvalidArgument):  # with these sources it does not go on
            resume.kept(error, work)
        raise
    reporter.finish()
    return ConvertResult(plan.whole.size, note.data, note.zero, resumed=there)


def _read_back_partial(plan: _Plan, work: Resumable, reporter: Reporter) -> None:
    try:
        plan.read_back(work.partial, reporter)
    except IoError as error:
        if error.operation == "verify":
            work.discard()
        raise


def is_zero_when_new(disk: Disk) -> bool:
    """Whether a disk that was made just now reads as zeroes everywhere."""
    node = disk.node
    return isinstance(node, FormatNode) and node.backing is None and node.zero_when_new


def _complete(
    source: Disk | Concatenation,
    disk: Disk,
    options: CopyOptions,
    quiet: Reporter,
    *,
    new: bool,
) -> None:
    """What is left to do when everything is copied."""
    rest = disk.size - source.size
    if rest and new and options.only_differences:
        # A new target longer than the source shows zeroes there, not its backing file.
        disk.write_zeroes(source.size, rest)
    if options.target_is_zero and not options.sparse_size:
        _allocate_zeroes(disk, source.size, quiet)


def _allocate_zeroes(disk: Disk, size: int, quiet: Reporter) -> None:
    """``-S 0``: everything is allocated in the target."""
    for offset, length in changing_ranges(disk, 0, size, quiet, _has_no_place):
        for start in range(offset, offset + length, ALLOCATED_AT_ONCE):
            quiet.check()
            count = min(ALLOCATED_AT_ONCE, offset + length - start)
            disk.write_zeroes(start, count, allocate=True)


def _has_no_place(extent: Extent) -> bool:
    return extent.zero or not extent.present


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


def _is_path(target: FilenameLike) -> bool:
    """Other targets are compared with the sources when they are open."""
    try:
        return not isinstance(target, dict) and bool(path_of(target))
    except BlocklayerError:
        return False
