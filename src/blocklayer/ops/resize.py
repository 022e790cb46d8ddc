# SPDX-License-Identifier: Apache-2.0
"""Changing the size of a disk."""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.progress import CancelToken, ProgressCallback, Reporter, Watch
from blocklayer.base.units import parse_size
from blocklayer.core.disk import Disk
from blocklayer.core.names import FilenameLike
from blocklayer.ops.open_image import open_disk
from blocklayer.ops.told import told

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.trust import Trust


def resize(
    name: FilenameLike,
    size: int | str,
    *,
    format: str | None = None,
    shrink: bool = False,
    preallocation: str = "off",
    trust: Trust | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> int:
    """Give an image another size; returns the size it has then, in bytes.

    New bytes read as zeroes. Making a disk smaller loses what is cut off, and needs `shrink`.
    What may take long, and can be stopped, is giving space back. `trust` is for an image that
    somebody else made: what it may ask for.
    """
    wanted = parse_size(size, "image size")
    with open_disk(name, mode="r+", format=format, trust=trust) as disk:
        if wanted <= disk.size and preallocation != "off":
            raise InvalidArgument("Preallocation can only be used for growing images")
        if wanted < disk.size and not shrink:
            raise InvalidArgument(
                "Use the --shrink option to perform a shrink operation.\n"
                "Shrinking an image will delete all data beyond the shrunken image's end."
                " Before performing such an operation, make sure there is no important data there."
            )
        reporter = Reporter("resize", abs(wanted - disk.size), progress, cancel)
        if wanted < disk.size:
            # Formats that give space back tell of that, as stages of their own.
            disk.node.watch = Watch(progress, cancel)
        if wanted != disk.size:
            before = disk.size
            with told(lambda: _state(disk, before)):
                disk.resize(wanted, preallocation=preallocation)
            if wanted > before:
                reporter.finish()
        return disk.size


def _state(disk: Disk, before: int) -> str:
    """What has become of an image whose size was to change."""
    size = disk.node.size
    if size == before:
        return f"'{disk.filename}' has the size it had, {size} bytes"
    return (
        f"'{disk.filename}' has {size} bytes now, but space may be left in its file that nothing"
        " uses: 'blk check -r leaks' gives it back"
    )
