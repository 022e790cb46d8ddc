# SPDX-License-Identifier: Apache-2.0
"""Changing the options of an image: none of the formats that there are can."""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.core import drivers
from blocklayer.core.names import FilenameLike
from blocklayer.ops.open_image import open_disk

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.core.trust import Trust


def amend(
    name: FilenameLike,
    options: dict[str, Any],
    *,
    format: str | None = None,
    cache: str = "writeback",
    trust: Trust | None = None,
) -> None:
    """Give an image other create options. Raises `OpenError`, `NotSupported`."""
    with open_disk(name, mode="r+", format=format, cache=cache, trust=trust) as disk:
        amendable_options(disk.format)


def amendable_options(format_name: str) -> tuple[drivers.CreateOption, ...]:
    """The options of a format that can be changed. Raises `InvalidArgument`, `NotSupported`."""
    if not drivers.is_known(format_name):
        raise InvalidArgument(f"Unknown file format '{format_name}'")
    raise NotSupported(f"Format driver '{format_name}' does not support option amendment")
