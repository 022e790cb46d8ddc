# SPDX-License-Identifier: Apache-2.0
"""What an interrupted conversion knows of itself: a JSON file beside the partial target.

It is replaced as a whole: after a crash there is the old one or the new one. What it says is
looked at like anything that was read from a disk.
"""

from __future__ import annotations

import contextlib
import os

from blocklayer.base.errors import InvalidArgument, IoError
from blocklayer.base.json_text import json_text
from blocklayer.base.record import Record, fresh

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

VERSION = 3
COPYING, WHOLE = "copying", "whole"

SHORT = 16
"""Parts of a note that is written without `json`, whose import takes longer than to write them."""


class Job(Record, frozen=True):
    """What is to be copied: must be the same when it goes on."""

    format: str
    options: dict[str, Any]
    sparse_size: int
    size: int
    sources: list[dict[str, Any]]


class Note(Record):
    """The state on disk. `parts` are in ascending order."""

    job: Job
    stage: str = COPYING
    parts: list[tuple[int, str, int, int]] = fresh(factory=list)
    """(end, digest, bytes of data, bytes of zeroes): what goes on begins at an end."""
    inode: int = 0
    """Of the partial target that is about to get its name."""

    @property
    def data(self) -> int:
        """Bytes that were copied."""
        return sum(data for _, _, data, _ in self.parts)

    @property
    def zero(self) -> int:
        """Bytes of zeroes that were not."""
        return sum(zero for _, _, _, zero in self.parts)


def as_stored(job: Job) -> Job:
    """The job as it will be read back. Raises `InvalidArgument` for options that cannot be kept."""
    if _is_plain(job):
        return job
    import json

    try:
        return Job(**json.loads(json.dumps(job.as_dict())))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"Options of a conversion that can be resumed must be texts and numbers: {error}"
        ) from None


def _is_plain(job: Job) -> bool:
    """Whether it is read back as it is: texts and whole numbers."""
    values = [job.format, job.sparse_size, job.size]
    for members in (job.options, *job.sources):
        values += [*members, *members.values()]
    return all(type(value) in (str, int) for value in values)


def load(path: str, partial: str) -> Note | None:
    """The note at `path`; None if there is none. Raises `InvalidArgument` for what is no note."""
    try:
        with open(path, encoding="utf-8") as file:
            import json

            return _parse(json.load(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise InvalidArgument(
            f"'{path}' cannot be used to go on: {reason}; remove it and '{partial}' to begin again"
        ) from None


def save(note: Note, path: str) -> None:
    """Replace the note at `path`, durably. Raises `IoError`."""
    text = _text(note)
    new = path + ".new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(os.open(new, flags, 0o644), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        sync_folder(new)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise IoError.from_os(error, "write", path) from None


def _text(note: Note) -> str:
    fields = {"version": VERSION, **note.as_dict(), "job": note.job.as_dict()}
    if len(note.parts) <= SHORT:
        return json_text(fields)
    import json

    return json.dumps(fields)


def sync_folder(path: str) -> None:
    """Make new names of files survive a power failure, where directories can be flushed.

    Some file systems have no way to, and some directories may not be opened. A name that is lost
    with the power costs the work that is behind it: nothing is taken for what it is not.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- what was read --------------------------------------------------------------------------------


def _parse(fields: Any) -> Note:
    _require(isinstance(fields, dict), "it is no note of a conversion")
    _require(fields.pop("version") == VERSION, "another version of this program wrote it")
    note = Note(job=_job(fields.pop("job")), **fields)
    _require(_is_count(note.inode), "it has wrong numbers")
    _require(note.stage in (COPYING, WHOLE), f"there is no stage {note.stage!r}")
    note.parts = _parts(note.parts, note.job.size)
    return note


def _job(fields: Any) -> Job:
    _require(
        isinstance(fields["format"], str)
        and isinstance(fields["options"], dict)
        and _is_count(fields["sparse_size"])
        and _is_count(fields["size"])
        and isinstance(fields["sources"], list)
        and all(isinstance(source, dict) for source in fields["sources"]),
        "it does not tell what is to be copied",
    )
    return Job(**fields)


def _parts(parts: Any, size: int) -> list[tuple[int, str, int, int]]:
    _require(isinstance(parts, list), "it has no parts")
    found: list[tuple[int, str, int, int]] = []
    last = 0
    for end, digest, data, zero in parts:
        right = _is_count(end) and last < end <= size and isinstance(digest, str)
        _require(right, "its parts do not follow each other")
        _require(_is_count(data) and _is_count(zero), "it has wrong numbers")
        found.append((end, digest, data, zero))
        last = end
    return found


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)
