# SPDX-License-Identifier: Apache-2.0
"""How large an image would become."""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.base.record import Record
from blocklayer.base.units import parse_size
from blocklayer.core.opening import FilenameLike
from blocklayer.ops.create import find_driver, refuse_unknown
from blocklayer.ops.open_image import open_disk

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any


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
    with open_disk(name, format=source_format, force_share=force_share) as disk:
        resolved = driver.resolve({**(options or {}), "size": disk.size})
        data = ((e.offset, e.length) for e in disk.extents() if not e.zero)
        return Measurement(*driver.measure(resolved, data))
