# SPDX-License-Identifier: Apache-2.0
"""Copying inside the kernel, from any format to any other; and when it is not done."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.hooks import WriteHooks
from blocklayer.core.kernel_copy import AVAILABLE, copy_in_kernel
from blocklayer.protocols.file import FileNode
from blocklayer.protocols.memory import MemoryNode

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="there is no copy_file_range here")
SIZE = 2 * MiB
FORMATS = ["raw", "qed"]


@pytest.fixture(autouse=True)
def sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the file system could share blocks: what the kernel does is the same elsewhere."""
    monkeypatch.setattr(FileNode, "can_share", lambda self, descriptor: True)


def make(path: Path, format: str, data: bytes = b"") -> Disk:
    blocklayer.create(path, format=format, size=SIZE)
    disk = blocklayer.open(path, mode="r+", format=format)
    if data:
        disk.write(0, data)
    return disk


def content() -> bytes:
    return random.Random(3).randbytes(SIZE)


@pytest.mark.parametrize("target_format", FORMATS)
@pytest.mark.parametrize("source_format", FORMATS)
def test_from_any_format_to_any_other(
    tmp_path: Path, source_format: str, target_format: str
) -> None:
    data = content()
    with (
        make(tmp_path / "source", source_format, data) as source,
        make(tmp_path / "target", target_format) as target,
    ):
        position = 0
        while position < SIZE:
            count = copy_in_kernel(source.node, target, position, SIZE - position)
            assert count > 0
            position += count
        assert target.read(0, SIZE) == data
        # And once more, where the target has its clusters already, at an odd place.
        target.write(0, bytes(SIZE))
        assert copy_in_kernel(source.node, target, 512 * KiB + 5, 1000) == 1000
        expected = bytes(512 * KiB + 5) + data[512 * KiB + 5 : 512 * KiB + 1005]
        assert target.read(0, 513 * KiB) == expected + bytes(513 * KiB - len(expected))
    if target_format == "qed":
        result = blocklayer.check(tmp_path / "target")
        assert (result.corruptions, result.leaks) == (0, 0)


def test_where_blocks_cannot_be_shared_others_are_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileNode, "can_share", lambda self, descriptor: False)
    with (
        make(tmp_path / "source", "raw", content()) as source,
        make(tmp_path / "target", "raw") as target,
    ):
        assert copy_in_kernel(source.node, target, 0, SIZE) == 0


def test_parts_of_new_clusters_are_left_to_others(tmp_path: Path) -> None:
    with (
        make(tmp_path / "source", "raw", content()) as source,
        make(tmp_path / "target", "qed") as target,
    ):
        assert copy_in_kernel(source.node, target, 5, SIZE - 5) == 0
        assert copy_in_kernel(source.node, target, 0, 1000) == 0
        assert copy_in_kernel(source.node, target, 0, 100 * KiB) == 64 * KiB


def test_zeroes_are_to_be_looked_at(tmp_path: Path) -> None:
    data = bytearray(content())
    data[MiB : MiB + 64 * KiB] = bytes(64 * KiB)
    with (
        make(tmp_path / "source", "raw", bytes(data)) as source,
        make(tmp_path / "target", "raw") as target,
    ):
        assert copy_in_kernel(source.node, target, 0, SIZE) == 0
        assert copy_in_kernel(source.node, target, 0, MiB) == MiB


def test_who_wants_zeroes_detected_gets_no_copy(tmp_path: Path) -> None:
    path = tmp_path / "target"
    blocklayer.create(path, format="raw", size=SIZE)
    with (
        make(tmp_path / "source", "raw", content()) as source,
        blocklayer.open(path, mode="r+", format="raw", detect_zeroes="on") as target,
    ):
        assert copy_in_kernel(source.node, target, 0, SIZE) == 0


def test_what_is_no_file_is_left_to_others(tmp_path: Path) -> None:
    memory = Disk(MemoryNode(SIZE))
    memory.write(0, content())
    with make(tmp_path / "file", "raw", content()) as file:
        assert copy_in_kernel(memory.node, file, 0, SIZE) == 0
        assert copy_in_kernel(file.node, memory, 0, SIZE) == 0
    memory.close()


def test_dirty_bitmaps_see_it(tmp_path: Path) -> None:
    with (
        make(tmp_path / "source", "raw", content()) as source,
        make(tmp_path / "target", "raw") as target,
    ):
        bitmap = target.add_bitmap("b", 64 * KiB)
        assert copy_in_kernel(source.node, target, MiB, 64 * KiB) == 64 * KiB
        assert list(bitmap.runs()) == [(MiB, 64 * KiB)]


@pytest.mark.parametrize("target_format", FORMATS)
def test_a_watched_file_below_the_target_is_written_by_its_own_verbs(
    tmp_path: Path, target_format: str
) -> None:
    with (
        make(tmp_path / "source", "raw", content()) as source,
        make(tmp_path / "target", target_format) as target,
    ):
        below = target.node.children["file"]
        hooks = WriteHooks()
        bitmap = hooks.add_bitmap("b", below.size, 64 * KiB, enabled=True)
        below.set_hooks(hooks)
        size = below.size
        assert copy_in_kernel(source.node, target, 0, SIZE) == 0
        assert not list(bitmap.runs())
        assert below.size == size  # no cluster was given a place for nothing
        below.set_hooks(None)
        assert copy_in_kernel(source.node, target, 0, SIZE) > 0
