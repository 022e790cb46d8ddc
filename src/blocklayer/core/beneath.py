# SPDX-License-Identifier: Apache-2.0
"""Opening a file that must lie in a folder, whoever moves and links things in there meanwhile.

Linux has openat2(RESOLVE_BENEATH) for this, Python does not. So each part of the name is opened
below the one before, and never through a link: links are read and their text is walked in the same
way. The descriptors of the directories passed are kept, and ``..`` goes back to the one before, so
that a directory which is moved away meanwhile leads nowhere else. What was found and what was then
opened must be the same file.
"""

from __future__ import annotations

import errno
import os
import stat

from blocklayer.base.errors import NotSupported

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Self

LINKS_MAX = 40
"""Symbolic links in one name, as in Linux."""

DIRECTORIES_MAX = 64
"""Directories in one another: each one has a descriptor."""

_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)


class NotBeneath(Exception):
    """The name leads out of the folder, or to no regular file; says how."""


class Located:
    """An open file that was found in the folder; the context closes it if nobody took it.

    Not a record, and nothing that a JSON document could make: it is an option of the file driver.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @property
    def identity(self) -> tuple[int, int]:
        """(device, inode)."""
        return _identity(os.fstat(self.descriptor))

    def take(self) -> int:
        """The descriptor, for whoever closes it from now on."""
        descriptor, self.descriptor = self.descriptor, -1
        return descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def locate(folder: str, parts: list[str], flags: int = 0) -> Located:
    """Open the file at `parts` below `folder` for reading. Raises `NotBeneath`, `OSError`."""
    if not _NO_LINK or os.open not in os.supports_dir_fd:
        raise NotSupported(
            "This system cannot open files safely below a folder, so backing files of images that"
            " are not trusted cannot be opened"
        )
    walk = _Walk(folder)
    try:
        return Located(walk.open(parts, flags))
    finally:
        walk.close()


class _Walk:
    """Directories from the folder to where the walk is."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._stack = [os.open(folder, os.O_RDONLY | _DIRECTORY)]
        self._links = 0

    def close(self) -> None:
        """Close them all."""
        for descriptor in self._stack:
            os.close(descriptor)

    def open(self, parts: list[str], flags: int) -> int:
        """Walk along `parts`; the descriptor of the file at their end."""
        pending = parts[::-1]
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                self._leave()
                continue
            found = os.stat(part, dir_fd=self._stack[-1], follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                pending += self._follow(part)[::-1]
            elif stat.S_ISDIR(found.st_mode):
                self._enter(part, found)
            elif pending:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            else:
                return self._open_file(part, found, flags)
        raise NotBeneath("it is a directory")

    def _leave(self) -> None:
        if len(self._stack) == 1:
            raise NotBeneath("a '..' in it, or in a link, leads out of the folder")
        os.close(self._stack.pop())

    def _enter(self, part: str, found: os.stat_result) -> None:
        if len(self._stack) > DIRECTORIES_MAX:
            raise NotBeneath(f"it lies deeper than {DIRECTORIES_MAX} directories")
        descriptor = os.open(part, os.O_RDONLY | _DIRECTORY | _NO_LINK, dir_fd=self._stack[-1])
        self._stack.append(descriptor)
        _require_same(descriptor, found)

    def _follow(self, part: str) -> list[str]:
        """What a link says, as parts from here; the walk is where they begin."""
        self._links += 1
        if self._links > LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(part, dir_fd=self._stack[-1])
        if not target.startswith("/"):
            return target.split("/")
        base = [name for name in self._folder.split("/") if name]
        names = [name for name in target.split("/") if name not in ("", ".")]
        if names[: len(base)] != base:
            raise NotBeneath(f"a link leads out of the folder, to {target!a}")
        while len(self._stack) > 1:
            os.close(self._stack.pop())
        return names[len(base) :]

    def _open_file(self, part: str, found: os.stat_result, flags: int) -> int:
        if not stat.S_ISREG(found.st_mode):
            raise NotBeneath("it is no regular file")
        # Should it be something else by now: no link is followed, and no FIFO waited for.
        mode = os.O_RDONLY | _NO_LINK | _NO_WAIT | flags
        descriptor = os.open(part, mode, dir_fd=self._stack[-1])
        try:
            _require_same(descriptor, found)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _require_same(descriptor: int, found: os.stat_result) -> None:
    if _identity(os.fstat(descriptor)) != _identity(found):
        raise NotBeneath("it was exchanged for another file while it was opened")
