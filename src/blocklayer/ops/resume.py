# SPDX-License-Identifier: Apache-2.0
"""Conversions that go on where they were interrupted.

    TARGET.partial        what is copied so far: it gets the target's name when it is whole
    TARGET.partial.json   what was to be copied, and which parts are known to be on the storage

A part is copied, flushed, and then noted with the digest of the source's bytes. Whoever goes on
reads the parts that are noted and compares; from the first one that differs everything is copied
again. The note is replaced as a whole, and is there before the partial target: a partial target
without a note is nobody's.
"""

from __future__ import annotations

import contextlib
import os
import stat

from blocklayer.base.errors import (
    BlocklayerError,
    FormatError,
    InvalidArgument,
    IoError,
    NotSupported,
    OpenError,
)
from blocklayer.base.extent import Extent
from blocklayer.base.progress import Reporter
from blocklayer.base.units import SECTOR, MiB
from blocklayer.core.copy import CopyOptions, changing_ranges, copy
from blocklayer.core.copy_sources import Segment
from blocklayer.core.disk import Disk
from blocklayer.core.node import FormatNode, Node
from blocklayer.ops.create import create, remove
from blocklayer.ops.open_image import leaves, open_disk
from blocklayer.ops.resume_note import (
    WHOLE,
    Job,
    Note,
    as_stored,
    load,
    save,
    sync_folder,
)
from blocklayer.ops.verify import Part, cut, part_digest

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.ops.verify import Whole

NOTE_EVERY = 256 * MiB
"""Bytes of data, at most: what may have to be copied again. Each note costs a flush, and tells of
all parts: that of a large disk is long."""

NOTE_FIRST = 16 * MiB
"""Bytes of data at the start, and a quarter of what is there later on."""

SECONDS = 10
"""Of a copy at a limited rate between two notes."""


class Resumable:
    """One conversion into `target`, which need not exist."""

    def __init__(self, target: str, job: Job) -> None:
        self.target = os.path.abspath(target)
        self.partial = self.target + ".partial"
        self.note_path = self.partial + ".json"
        self.job = as_stored(job)
        self._goes_on = False
        """There is a note with something in it."""
        _refuse_odd_target(self.target)

    @property
    def hint(self) -> str:
        """What to say when it is interrupted."""
        if not self._goes_on:
            return (
                "What was copied is too little to go on with:"
                f" the same conversion begins again, and replaces '{self.partial}'."
            )
        return (
            f"What was copied is kept in '{self.partial}': the same conversion goes on with it"
            " if it is resumed."
        )

    def begin(self) -> Note:
        """The note of an earlier attempt, or a new one with a new partial target."""
        note = load(self.note_path, self.partial)
        _refuse_odd_target(self.partial)
        _refuse_used(self.target)  # not only when everything is copied
        if note is None and os.path.lexists(self.partial):
            raise InvalidArgument(
                f"'{self.partial}' is in the way, and '{self.note_path}' is not there to tell what"
                " it is: remove it if it is not needed"
            )
        if note is not None:
            self._require_same(note.job)
            if note.stage == WHOLE or (note.parts and self._is_sound()):
                self._goes_on = True
                return note
        note = Note(self.job)
        self.save(note)
        _make_like(self.partial, self.target)
        create(
            self.partial,
            format=self.job.format,
            size=self.job.size,
            **_create_options(self.job.options),
        )
        return note

    def _is_sound(self) -> bool:
        """Whether the partial target is there, and its tables are right.

        What it holds is compared, but a disk can read well and fall apart when it is written to.
        """
        if not os.path.exists(self.partial):
            return False
        from blocklayer.ops.check import check

        try:
            found = check(self.partial, format=self.job.format)
        except NotSupported:
            return True  # there are no tables
        except OpenError as error:
            if isinstance(error.__cause__, FormatError):
                return False
            raise
        except FormatError:
            return False
        return not (found.corruptions or found.check_errors)

    def save(self, note: Note) -> None:
        """Replace the note: after a crash there is the old one or this one."""
        save(note, self.note_path)
        self._goes_on = note.stage == WHOLE or bool(note.parts)

    def finish(self, note: Note) -> None:
        """Give the whole copy its name."""
        try:
            if note.stage != WHOLE:
                note.stage, note.inode = WHOLE, os.stat(self.partial).st_ino
                self.save(note)
            if os.path.lexists(self.partial):
                _refuse_used(self.target)
                os.replace(self.partial, self.target)
                sync_folder(self.target)
            elif _inode(self.target) != note.inode:
                raise InvalidArgument(
                    f"'{self.partial}' is gone: remove '{self.note_path}' to begin again"
                )
        except OSError as error:
            raise IoError.from_os(error, "rename", self.partial) from None
        remove(self.note_path)

    def discard(self) -> None:
        """Begin again next time."""
        remove(self.partial)
        remove(self.note_path)

    def _require_same(self, job: Job) -> None:
        """What was begun must be what is asked for, and the sources as they were."""
        for name, before in job.as_dict().items():
            now = getattr(self.job, name)
            if before == now:
                continue
            if name == "sources":
                what = _changed_source(before, now)
            else:
                what = f"it was begun with {name.replace('_', ' ')} {before!r}, not {now!r}"
            raise InvalidArgument(
                f"The conversion into '{self.target}' cannot go on: {what}. Remove"
                f" '{self.partial}' and '{self.note_path}' to begin again"
            )


def _changed_source(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    for old, new in zip(before, now, strict=False):
        for name, value in new.items():
            if old.get(name) != value:
                return f"its source '{new['path']}' has changed: its {name} was {old.get(name)!r}"
    return "it was begun with other sources"


def _refuse_odd_target(target: str) -> None:
    """Only a file can be replaced by another one; a link would be, instead of what it names."""
    if os.path.lexists(target) and not stat.S_ISREG(os.lstat(target).st_mode):
        raise NotSupported(
            f"A conversion into '{target}', which is no regular file, cannot be resumed"
        )


def _refuse_used(target: str) -> None:
    """An image that somebody uses stays: its user would go on with a file without a name."""
    if os.path.lexists(target):
        open_disk(target, mode="r+", format="raw").close()


def _make_like(path: str, model: str) -> None:
    """Make a file that is whose `model` is, and that no more may read: it is to replace that.

    Nothing is done if there is no `model`. Raises `IoError`, and `NotSupported` for the owner.
    """
    if not os.path.lexists(model):
        return
    wanted = os.lstat(model)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
        try:
            found = os.fstat(descriptor)
            if (found.st_uid, found.st_gid) != (wanted.st_uid, wanted.st_gid):
                os.fchmod(descriptor, 0o600)
                os.fchown(descriptor, wanted.st_uid, wanted.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(wanted.st_mode))
            if hasattr(os, "listxattr"):
                _copy_attributes(model, descriptor)
        finally:
            os.close(descriptor)
    except PermissionError:
        raise NotSupported(
            f"'{model}' has another owner, whom a new file cannot be given: a conversion into it"
            " cannot be resumed"
        ) from None
    except OSError as error:
        raise IoError.from_os(error, "create", path) from None


def _copy_attributes(model: str, descriptor: int) -> None:
    """Labels and lists of who may read, as far as the system lets us."""
    for name in os.listxattr(model):
        with contextlib.suppress(OSError):
            os.setxattr(descriptor, name, os.getxattr(model, name))


def _create_options(options: dict[str, Any]) -> dict[str, Any]:
    names = {"backing_file": "backing", "backing_fmt": "backing_format"}
    return {names.get(name, name): value for name, value in options.items() if name != "size"}


def _inode(path: str) -> int:
    """The number of a device may be another one after the next start of the system."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


# --- sources --------------------------------------------------------------------------------------


def stamps(disks: list[Disk]) -> list[dict[str, Any]]:
    """What tells whether `disks` are the same and unchanged, layer by layer."""
    found = []
    for number, disk in enumerate(disks):
        layer: Node | None = disk.node
        while layer is not None:
            found.append({"source": number, **_stamp(layer)})
            layer = layer.backing if isinstance(layer, FormatNode) else None
    return found


def _stamp(layer: Node) -> dict[str, Any]:
    node = layer
    while "file" in node.children:
        node = node.children["file"]
    descriptor: int = getattr(node, "descriptor", -1)
    if descriptor < 0:
        raise NotSupported(f"'{node.filename}' is no file: a copy of it cannot be resumed")
    status = os.fstat(descriptor)
    return {
        "path": os.path.abspath(node.filename),
        "inode": status.st_ino,
        # One file can be opened as disks of several formats, and as many windows.
        "format": layer.driver,
        "disk_size": layer.size,
        "start": _start(layer),
        "size": node.size,
        "mtime_ns": status.st_mtime_ns,
        # The time of the last change is what nobody can set, as tools that restore files do.
        "ctime_ns": status.st_ctime_ns,
    }


def has_times(disks: list[Disk]) -> bool:
    """Whether the times of what `disks` are on tell that something was changed.

    Those of a block device do not: file systems on it, and other names of it, leave them alone.
    """
    return all(_is_regular_file(node) for disk in disks for node in leaves(disk.node))


def _is_regular_file(node: Node) -> bool:
    descriptor: int = getattr(node, "descriptor", -1)
    return descriptor >= 0 and stat.S_ISREG(os.fstat(descriptor).st_mode)


def _start(layer: Node) -> int:
    """Where in its file the disk begins, if that can be told: a raw disk may be a window."""
    if not layer.size:
        return 0
    _, _, child, host = layer.map(0, min(layer.size, SECTOR))
    return host if child is not None else 0


# --- copying --------------------------------------------------------------------------------------


def check_parts(
    source: Whole,
    disks: list[Disk],
    disk: Disk,
    note: Note,
    options: CopyOptions,
    reporter: Reporter,
    quiet: Reporter,
) -> int:
    """How far the partial target is right; what lies behind it is made ready to be copied again."""
    position = 0
    sides = [disk] if has_times(disks) else [disk, source]
    for index, (end, digest, _, _) in enumerate(note.parts):
        if any(part_digest(Part(side, position, end), quiet).hex() != digest for side in sides):
            del note.parts[index:]
            break
        reporter.advance(end - position, skipped=end - position)
        position = end
    if options.target_is_zero:
        # The copy leaves zeroes out, and an interrupted one has left data here.
        for start, length in changing_ranges(disk, position, disk.size, reporter, _is_data):
            disk.write_zeroes(start, length, unmap=True)
    return position


def _is_data(extent: Extent) -> bool:
    return not extent.zero


def copy_parts(
    source: Whole,
    disks: list[Disk],
    disk: Disk,
    job: Resumable,
    note: Note,
    options: CopyOptions,
    reporter: Reporter,
    quiet: Reporter,
) -> None:
    """Copy everything behind the parts that are there, and note each part but the last one.

    When that is done the copy is whole: its digest would be made only to be thrown away.
    """

    def amount() -> int:
        most = min(NOTE_EVERY, max(NOTE_FIRST, note.data // 4))
        return min(most, options.rate_limit * SECONDS) if options.rate_limit else most

    position = note.parts[-1][0] if note.parts else 0
    for start, end in cut(source, position, amount, quiet):
        result = copy(Segment(source, start, end), disk, options, reporter)
        disk.flush()
        last = end == source.size
        digest = "" if last else part_digest(Part(source, start, end), quiet).hex()
        if stamps(disks) != job.job.sources:
            raise InvalidArgument(
                _changed_source(job.job.sources, stamps(disks)) + " while it was copied"
            )
        note.parts.append((end, digest, result.data, result.zero))
        if not last:
            job.save(note)


def kept(error: BlocklayerError, job: Resumable) -> None:
    """Tell what is not lost."""
    if os.path.exists(job.note_path):
        error.add_note(job.hint)
