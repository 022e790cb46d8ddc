# SPDX-License-Identifier: Apache-2.0
"""Checking and repairing an image."""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.core.checking import CheckResult, Repair
from blocklayer.core.node import FormatNode
from blocklayer.core.opening import FilenameLike, Opener, OpenFlags, cache_mode

REPAIRS = {
    "none": Repair(),
    "leaks": Repair(leaks=True),
    "all": Repair(leaks=True, errors=True),
}


def check(
    name: FilenameLike,
    *,
    format: str | None = None,
    repair: str = "none",
    force_share: bool = False,
    cache: str = "writeback",
    locking: str = "auto",
) -> CheckResult:
    """Check an image's tables; the image itself only, not what it is backed by.

    repair   ``none`` opens read-only and changes nothing, ``leaks`` gives unused clusters back,
             ``all`` also mends wrong entries

    Raises `OpenError`, `NotSupported` for formats without a check, `IoError`.
    """
    if repair not in REPAIRS:
        raise InvalidArgument(f"Invalid repair mode '{repair}': use none, leaks or all")
    wanted = REPAIRS[repair]
    if force_share and wanted:
        raise InvalidArgument("force_share can only be used without repair")
    flags = OpenFlags(
        read_only=not wanted,
        check=True,
        backing_chain=False,
        force_share=force_share,
        cache=cache_mode(cache),
        locking=locking,
    )
    node = Opener(flags).open_name(name, format)
    try:
        if not isinstance(node, FormatNode):
            raise NotSupported("This image format does not support checks")
        return node.check(wanted)
    finally:
        node.close()
