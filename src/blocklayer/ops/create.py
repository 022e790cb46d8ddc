# SPDX-License-Identifier: Apache-2.0
"""Creating images. A failed creation leaves nothing that looks like an image."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable

from blocklayer.base.errors import (
    BlocklayerError,
    CreateError,
    InvalidArgument,
    IoError,
    NotSupported,
    OpenError,
    Refused,
)
from blocklayer.base.record import Record
from blocklayer.base.units import INT64_MAX, SECTOR, parse_size
from blocklayer.core import drivers
from blocklayer.core.identity import is_same_file
from blocklayer.core.names import backing_path, is_export, path_of
from blocklayer.core.node import Node
from blocklayer.core.opening import CacheMode, Opener, OpenFlags
from blocklayer.ops.file_hints import FILE_OPTIONS, apply_hints, take_hints

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.core.trust import Trust


def create(
    filename: str | os.PathLike[str],
    *,
    format: str = "raw",
    size: int | str | None = None,
    backing: str | os.PathLike[str] | None = None,
    backing_format: str | None = None,
    check_backing: bool = True,
    locking: str = "auto",
    trust: Trust | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Create an image; returns the options it was made with.

    size            bytes, or text like ``10G``; taken from the backing file if not given
    backing         name of the backing file, as it is to be stored (relative to the new image)
    backing_format  its format; probed if not given (raw is stored as "do not probe")
    check_backing   the backing file must exist and open; without it, `size` must be given
    options         what the format offers: ``cluster_size``, ``table_size``, ``preallocation`` …,
                    and what files offer: ``nocow``, ``extent_size_hint``
    trust           for a backing file that somebody else made: what it may ask for when it is
                    looked at

    Raises `CreateError`, `Refused`, and `LockError` if somebody uses the file.
    """
    path = os.fspath(filename)
    backing = None if backing is None else os.fspath(backing)
    wish = _Wish(format, size, backing, backing_format, check_backing, trust, options)
    try:
        if is_export(filename):
            return _create_on_export(path, wish)
        target = path_of(filename)
    except OpenError as error:
        raise CreateError(error.message, path, error.code) from error
    except BlocklayerError as error:
        raise CreateError(str(error), path, error.errno) from error
    try:
        hints = take_hints(options)
        resolved = _resolve(target, wish)
    except Refused:
        raise
    except BlocklayerError as error:
        raise CreateError(str(error), path, error.errno) from error
    driver = drivers.load(format)
    assert driver.create is not None
    _make(target, path, driver, resolved, locking, hints)
    return resolved | hints


class _Wish(Record, frozen=True):
    """What `create` is to make."""

    format: str
    size: int | str | None
    backing: str | None
    backing_format: str | None
    check_backing: bool
    trust: Trust | None
    options: dict[str, Any]


def refuse_on_export(name: str, format_name: str) -> None:
    """Other formats grow, and an export does not. Raises `InvalidArgument`."""
    if format_name != "raw":
        raise InvalidArgument(f"Nothing but raw images can be made on '{name}'")


def _create_on_export(name: str, wish: _Wish) -> dict[str, Any]:
    """The storage is there: it must be large enough, and not look like what was on it before."""
    from blocklayer.ops.open_image import open_disk

    find_driver(wish.format)
    refuse_on_export(name, wish.format)
    for hint in take_hints(wish.options):
        raise InvalidArgument(f"Invalid parameter '{hint}'")
    resolved = _resolve(name, wish.replace(check_backing=True, trust=None))
    if resolved["preallocation"] != "off":
        raise NotSupported(f"Unsupported preallocation mode '{resolved['preallocation']}'")
    with open_disk(name, mode="r+", format=wish.format) as disk:
        if disk.size < resolved["size"]:
            raise NotSupported("Cannot grow NBD nodes")
        disk.write_zeroes(0, min(SECTOR, disk.size))
    return resolved


def _resolve(target: str, wish: _Wish) -> dict[str, Any]:
    """Everything that can be wrong with the options is found here, before any file is touched."""
    driver = find_driver(wish.format)
    refuse_unknown(driver, wish.options, but=("backing_file", "backing_fmt", "size"))
    _refuse_unsupported_backing(driver, wish.backing, wish.backing_format)
    resolved = dict(wish.options)
    size = None if wish.size is None else parse_size(wish.size, "image size")
    if size is not None and size > INT64_MAX - SECTOR:
        raise _too_large(driver)  # it cannot even be rounded up to whole sectors
    if wish.backing:
        _refuse_itself(target, wish.backing)
        available, format_name = None, wish.backing_format
        if wish.check_backing:
            available, format_name = _look_at_backing(target, wish.backing, format_name, wish.trust)
        resolved["backing_file"], resolved["backing_fmt"] = wish.backing, format_name
        size = available if size is None else size
    if size is None:
        raise InvalidArgument("Image creation needs a size parameter")
    resolved["size"] = size
    assert driver.resolve is not None
    return driver.resolve(resolved)


def _too_large(driver: drivers.Driver) -> InvalidArgument:
    return InvalidArgument(f"The image size is too large for file format '{driver.name}'")


def _refuse_unsupported_backing(
    driver: drivers.Driver, backing: object, backing_format: str | None
) -> None:
    known = {option.name for option in driver.create_options}
    for value, name, what in (
        (backing, "backing_file", "Backing file"),
        (backing_format, "backing_fmt", "Backing file format"),
    ):
        if value and name not in known:
            raise NotSupported(f"{what} not supported for file format '{driver.name}'")


def find_driver(format_name: str) -> drivers.Driver:
    """The driver of a format that images can be created in. Raises `InvalidArgument`."""
    if not drivers.is_known(format_name) or drivers.load(format_name).create is None:
        raise InvalidArgument(f"Unknown file format '{format_name}'")
    return drivers.load(format_name)


def refuse_unknown(
    driver: drivers.Driver, options: Iterable[str], *, but: tuple[str, ...] = ()
) -> None:
    """Raises `InvalidArgument` for an option the format has not, or that is among `but`."""
    known = {option.name for option in (*driver.create_options, *FILE_OPTIONS)}
    known.add("preallocation")
    for name in options:
        if name not in known or name in but:
            raise InvalidArgument(f"Invalid parameter '{name}'")


def _refuse_itself(target: str, backing: str) -> None:
    """An image that exists would be emptied by becoming its own backing file."""
    if is_same_file(backing_path(target, backing), target):
        raise InvalidArgument(
            "Error: Trying to create an image with the same filename as the backing file"
        )


def _look_at_backing(
    target: str, backing: str, format_name: str | None, trust: Trust | None
) -> tuple[int, str]:
    """Size and format of the backing file."""
    name = backing_path(target, backing)
    try:
        flags = OpenFlags(backing_role=True, trust=trust)
        node = Opener(flags, stored=True).open_name(name, format_name)
    except Refused:
        raise
    except OpenError as error:
        raise OpenError(f"{error.message} (backing file)", name, error.code) from error
    try:
        return node.size, node.driver
    finally:
        node.close()


def _make(
    target: str,
    shown: str,
    driver: drivers.Driver,
    options: dict[str, Any],
    locking: str,
    hints: dict[str, Any],
) -> None:
    existed = os.path.exists(target)
    try:
        if not existed:
            place = os.path.realpath(target)  # a link may name what is not there yet
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except OSError as error:
        code = error.errno or errno.EIO
        raise CreateError(f"Could not create '{shown}': {error.strerror}", shown, code) from None
    spoilt = not existed
    try:
        storage = _open_storage(target, locking)
        try:
            if storage.grows_zeroed and storage.size:
                _require_room(target, driver, options)
                storage.truncate(0)
                # What was there must be gone for certain: after a power failure in the middle, an
                # old image's tables must not show up behind the new one's header.
                storage.flush()
            spoilt = True
            apply_hints(target, hints)
            assert driver.create is not None
            driver.create(storage, options)
        finally:
            storage.close()
    except BaseException as error:
        # A file that was there and could not even be opened or locked keeps its content.
        if spoilt:
            remove(target)
        if isinstance(error, IoError) and error.errno == errno.EFBIG:
            raise CreateError(str(_too_large(driver)), shown, error.errno) from error
        if isinstance(error, (IoError, OpenError)):
            raise CreateError(f"Could not create image: {error}", shown, error.errno) from error
        if isinstance(error, NotSupported):
            raise CreateError(str(error), shown, error.errno) from error
        raise


def _require_room(target: str, driver: drivers.Driver, options: dict[str, Any]) -> None:
    """A new image that cannot be made here must not cost the file that is there.

    Raises `IoError`.
    """
    assert driver.measure is not None
    length, _ = driver.measure(options, ())
    _try_length(os.path.dirname(os.path.realpath(target)), length)
    if options.get("preallocation", "off") == "off" or not hasattr(os, "statvfs"):
        return
    system = os.statvfs(target)
    if length > system.f_bavail * system.f_frsize + os.stat(target).st_blocks * 512:
        raise IoError(os.strerror(errno.ENOSPC), target, errno.ENOSPC, "preallocate", 0, length)


def _try_length(folder: str, length: int) -> None:
    """Raise `IoError` if no file of the folder can be so long; found with a file without a name."""
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except (AttributeError, OSError):
        return  # not here: the image's own file will show it
    try:
        os.ftruncate(descriptor, length)
    except OSError as error:
        raise IoError.from_os(error, "truncate", folder, length) from None
    finally:
        os.close(descriptor)


def _open_storage(target: str, locking: str) -> Node:
    flags = OpenFlags(read_only=False, cache=CacheMode(), locking=locking)
    return Opener(flags).open_options({"driver": "file", "filename": target})


def remove(target: str) -> None:
    """Take back a regular file, also one that a link leads to; the link and devices stay."""
    with contextlib.suppress(OSError):
        if os.path.isfile(target):
            os.unlink(os.path.realpath(target))
