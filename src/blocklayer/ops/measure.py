# SPDX-License-Identifier: Apache-2.0
"""How large an image would become."""

from __future__ import annotations

from collections.abc import Iterator

from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.base.progress import CancelToken, ProgressCallback, Reporter
from blocklayer.base.record import Record
from blocklayer.base.units import parse_size
from blocklayer.core.disk import Disk
from blocklayer.core.names import FilenameLike
from blocklayer.ops.create import find_driver, refuse_unknown
from blocklayer.ops.open_image import open_disk

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.core.trust import Trust


class Measurement(Record, frozen=True):
    """Bytes: what the data needs, and what a disk full of data would need."""

    required: int
    fully_allocated: int


def measure(
    name: FilenameLike | None = None,
    *,
    size: int | str | None = None,
    format: str = "raw",
    source_format: str | None = None,
    options: dict[str, Any] | None = None,
    force_share: bool = False,
    trust: Trust | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> Measurement:
    """File size of an image of `format` for an existing image's data, or for an empty `size`."""
    if (name is None) == (size is None):
        raise InvalidArgument(
            "Either --size N or one filename must be specified."
            if name is None
            else "--size N cannot be used together with a filename."
        )
    driver = find_driver(format)
    refuse_unknown(driver, options or {})
    if driver.measure is None or driver.resolve is None:
        raise NotSupported(f"Block driver '{format}' does not support size measurement")
    if name is None:
        assert size is not None
        resolved = driver.resolve({**(options or {}), "size": parse_size(size, "image size")})
        return Measurement(*driver.measure(resolved, iter(())))
    with open_disk(name, format=source_format, force_share=force_share, trust=trust) as disk:
        resolved = driver.resolve({**(options or {}), "size": disk.size})
        reporter = Reporter("measure", disk.size, progress, cancel)
        result = Measurement(*driver.measure(resolved, _data(disk, reporter)))
        reporter.finish()
        return result


def _data(disk: Disk, reporter: Reporter) -> Iterator[tuple[int, int]]:
    """Offsets and lengths of what is not known to be zeroes."""
    for extent in disk.extents():
        reporter.advance(extent.length, zero=extent.length if extent.zero else 0)
        if not extent.zero:
            yield extent.offset, extent.length
