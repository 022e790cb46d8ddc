# SPDX-License-Identifier: Apache-2.0
"""The same questions to QEMU and to us: the answers must be the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import blocklayer
from blocklayer.base.extent import Extent
from tests.foreign import qemu


def content(path: Path, *, format: str = "qed", force_share: bool = False) -> bytes:
    """The whole disk as we read it."""
    with blocklayer.open(path, format=format, force_share=force_share) as disk:
        return disk.read(0, disk.size)


def as_qemu_maps(extent: Extent) -> dict[str, Any]:
    """An extent in QEMU's words."""
    words: dict[str, Any] = {
        "start": extent.offset,
        "length": extent.length,
        "depth": extent.depth,
        "present": extent.present,
        "zero": extent.zero,
        "data": extent.data,
    }
    if extent.host_offset is not None:
        words["offset"] = extent.host_offset
    return words


def extents(path: Path, *, format: str = "qed", force_share: bool = False) -> list[dict[str, Any]]:
    """Our answer to `qemu-img map`."""
    found = blocklayer.map(path, format=format, force_share=force_share)
    return [as_qemu_maps(extent) for extent in found]


def check(path: Path, *, repair: str = "none", force_share: bool = False) -> qemu.Check:
    """Our answer to `qemu-img check`."""
    found = blocklayer.check(path, format="qed", repair=repair, force_share=force_share)
    return qemu.Check(
        errors=found.check_errors,
        corruptions=found.corruptions,
        leaks=found.leaks,
        allocated=found.allocated_clusters,
        fragmented=found.fragmented_clusters,
        total=found.total_clusters,
        corruptions_fixed=found.corruptions_fixed,
    )


def info(path: Path, *, format: str = "qed", force_share: bool = False) -> dict[str, Any]:
    """Our answer to `qemu-img info`."""
    return blocklayer.info(path, format=format, force_share=force_share).as_dict()


def assert_same(path: Path, *, format: str = "qed", expected: bytes | None = None) -> bytes:
    """QEMU and we see the same image: facts, extents, and every byte, which are returned."""
    # Blocks that the file system has not decided about yet would be counted differently.
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    theirs, ours = qemu.info(path, format=format), info(path, format=format)
    # DEFECT: QEMU's info forgets the mark of an unclean QED image before it shows it.
    assert theirs.pop("dirty-flag") is False
    del ours["dirty-flag"]
    assert ours == theirs
    assert extents(path, format=format) == [
        extent for extent in qemu.extents(path, format=format) if extent["length"]
    ]
    seen = content(path, format=format)
    assert seen == qemu.content(path, format=format)
    if expected is not None:
        assert seen == expected
    return seen


def assert_clean(path: Path) -> qemu.Check:
    """Nothing is wrong with a QED image, and both count the same."""
    ours = check(path)
    assert ours == qemu.check(path)
    assert ours.clean
    return ours
