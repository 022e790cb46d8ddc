# SPDX-License-Identifier: Apache-2.0
"""Copies that share blocks, on file systems that can; and that are copies where nothing can."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import IoError, NotSupported
from blocklayer.base.units import KiB, MiB
from blocklayer.jobs.images import mirror_images
from blocklayer.protocols import file_share
from tests.foreign import qemu
from tests.support import needs
from tests.support.filesystems import mounted, on

__all__ = ["mounted"]

SIZE = 40 * MiB
shareable = pytest.mark.parametrize("mounted", [on("xfs"), on("btrfs")], indirect=True)


def used(directory: Path) -> int:
    """Bytes that are taken on the file system."""
    os.sync()
    status = os.statvfs(directory)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def full(path: Path, size: int = SIZE) -> bytes:
    content = random.Random(size).randbytes(size)
    path.write_bytes(content)
    return content


def read_all(path: Path, format: str) -> bytes:
    with blocklayer.open(path, format=format) as disk:
        return disk.read(0, disk.size)


@pytest.mark.parametrize("mounted", [on("xfs"), on("btrfs"), on("ext2")], indirect=True)
def test_file_systems_tell_whether_they_can(mounted: Path, request: pytest.FixtureRequest) -> None:
    expected = request.node.callspec.params["mounted"] != "ext2"
    contents = []
    for name in ("one", "two"):
        contents.append(full(mounted / name, 2 * MiB))
    with (
        blocklayer.open(mounted / "one", format="raw") as one,
        blocklayer.open(mounted / "two", format="raw", mode="r+") as two,
    ):
        storage = two.node.children["file"]
        assert storage.can_share(one.node.children["file"].inline_descriptor or -1) == expected
    assert [read_all(mounted / name, "raw") for name in ("one", "two")] == contents


@shareable
@pytest.mark.parametrize("source_format", ["raw", "qed"])
@pytest.mark.parametrize("target_format", ["raw", "qed"])
def test_a_copy_takes_no_space(mounted: Path, source_format: str, target_format: str) -> None:
    raw, source, target = mounted / "raw", mounted / "source", mounted / "target"
    content = full(raw)
    blocklayer.convert(raw, source, source_format="raw", format=source_format)
    before = used(mounted)
    result = blocklayer.convert(source, target, source_format=source_format, format=target_format)
    assert used(mounted) - before < MiB
    assert result.data == SIZE
    assert read_all(target, target_format) == content
    # They are two images nonetheless.
    with blocklayer.open(target, format=target_format, mode="r+") as disk:
        disk.write(12345, b"changed")
    assert read_all(source, source_format) == content
    if target_format == "qed":
        assert blocklayer.check(target).clean
    for path in (raw, source, target):
        path.unlink()


@shareable
@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_space_that_is_set_aside_is_used(mounted: Path, mode: str) -> None:
    """Shared blocks need new space when they are written to; that was asked for now."""
    source, target = mounted / "source", mounted / "target"
    content = full(source)
    before = used(mounted)
    blocklayer.convert(
        source, target, source_format="raw", format="raw", options={"preallocation": mode}
    )
    assert used(mounted) - before >= SIZE
    assert target.read_bytes() == content
    # In a file that was there, too.
    target.write_bytes(bytes(SIZE))
    before = used(mounted)
    blocklayer.convert(source, target, source_format="raw", format="raw", create=False)
    assert abs(used(mounted) - before) < MiB
    assert target.read_bytes() == content
    for path in (source, target):
        path.unlink()


@shareable
@needs("qemu-img", "qemu-io")
def test_images_of_every_shape(mounted: Path, rng: random.Random) -> None:
    """Chains, holes, zero clusters, odd ends, other clusters: the witness is qemu-img."""
    for turn in range(12):
        base, overlay, target = (mounted / name for name in ("base", "overlay", "target"))
        size = rng.randrange(1, 40_000) * 512
        below = rng.randrange(1, size + MiB)
        with base.open("wb") as file:
            file.truncate(below)
            for _ in range(rng.randrange(1, 6)):
                file.seek(rng.randrange(below))
                file.write(rng.randbytes(rng.randrange(1, 3 * MiB)))
            file.truncate(below)
        cluster = rng.choice([4 * KiB, 64 * KiB, MiB])
        blocklayer.create(
            overlay,
            format="qed",
            size=size,
            backing="base",
            backing_format="raw",
            cluster_size=cluster,
        )
        with blocklayer.open(overlay, mode="r+") as disk:
            for _ in range(rng.randrange(0, 6)):
                offset = rng.randrange(size)
                length = min(rng.randrange(1, 3 * MiB), size - offset)
                if rng.random() < 0.3:
                    disk.write_zeroes(offset, length)
                else:
                    disk.write(offset, rng.randbytes(length))
        format = rng.choice(["raw", "qed"])
        options = {"cluster_size": rng.choice([4 * KiB, 64 * KiB])} if format == "qed" else {}
        blocklayer.convert(overlay, target, format=format, options=options)
        qemu.compare(overlay, target, formats=("qed", format))
        if format == "qed":
            assert blocklayer.check(target).clean, turn
        for path in (base, overlay, target):
            path.unlink()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the file system is asked to share, in bytes; it cannot."""
    lengths: list[int] = []

    def refuse(*arguments: object) -> None:
        lengths.append(int(str(arguments[-1])))
        raise NotSupported("cannot share")

    monkeypatch.setattr(file_share, "share", refuse)
    return lengths


def test_where_nothing_can_be_shared_everything_is_copied(tmp_path: Path, asked: list[int]) -> None:
    source, target, back = tmp_path / "source", tmp_path / "target", tmp_path / "back"
    content = full(source, 5 * MiB)
    blocklayer.convert(source, target, source_format="raw", format="qed")
    assert len(asked) == 1  # it is not asked again
    blocklayer.convert(target, back)
    assert len(asked) == 2
    assert back.read_bytes() == content
    assert blocklayer.check(target).clean
    assert target.stat().st_size < 6 * MiB  # nothing has leaked


def test_files_that_can_share_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems share the same block a limited number of times."""
    left = [2]

    def share(
        descriptor: int, filename: str, offset: int, source: int, source_offset: int, length: int
    ) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise NotSupported("no more")
        os.pwrite(descriptor, os.pread(source, length, source_offset), offset)

    monkeypatch.setattr(file_share, "share", share)
    monkeypatch.setattr("blocklayer.core.share.ALLOCATION_MAX", MiB)
    source, target = tmp_path / "source", tmp_path / "target"
    content = full(source, 5 * MiB)
    blocklayer.convert(source, target, source_format="raw", format="qed")
    assert left[0] < 0
    assert read_all(target, "qed") == content
    assert blocklayer.check(target).clean


def test_a_disk_that_is_full_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def share(*arguments: object) -> None:
        raise IoError("No space left on device", "target", errno.ENOSPC, "share blocks")

    monkeypatch.setattr(file_share, "share", share)
    source, target = tmp_path / "source", tmp_path / "target"
    full(source, 5 * MiB)
    with pytest.raises(IoError, match="No space left"):
        blocklayer.convert(source, target, source_format="raw", format="qed")
    assert not target.exists()


@pytest.mark.parametrize(
    "options", [{"sparse_size": 0}, {"rate_limit": 1 << 40}, {"salvage": True}]
)
def test_who_wants_the_bytes_seen_gets_a_copy(
    tmp_path: Path, asked: list[int], options: dict[str, int]
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    content = full(source, 5 * MiB)
    blocklayer.convert(source, target, source_format="raw", **options)  # type: ignore[arg-type]
    assert not asked
    assert target.read_bytes() == content


@shareable
def test_a_mirror_of_short_runs_takes_no_space(mounted: Path) -> None:
    source, target = mounted / "runs", mounted / "mirror"
    content = bytearray(SIZE)
    for start in range(0, SIZE, 512 * KiB):
        content[start : start + 256 * KiB] = random.Random(start).randbytes(256 * KiB)
    with source.open("wb") as file:
        for start in range(0, SIZE, 512 * KiB):
            file.seek(start)
            file.write(content[start : start + 256 * KiB])
        file.truncate(SIZE)
    before = used(mounted)
    mirror_images(str(source), str(target), source_format="raw", format="raw")
    assert used(mounted) - before < MiB
    assert read_all(target, "raw") == content
    source.unlink()
    target.unlink()
