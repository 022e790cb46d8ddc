# SPDX-License-Identifier: Apache-2.0
"""What an interrupted conversion finds when it goes on: its note, its sources, its storage."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer import Cancelled, InvalidArgument, IoError, Progress
from blocklayer.base.units import KiB, MiB
from blocklayer.cli.main import main
from blocklayer.core import copy
from blocklayer.core.names import FilenameLike
from blocklayer.ops import resume, resume_note, verify
from tests.ops.images import unchanged
from tests.ops.resuming import PART
from tests.support import needs_root


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "NOTE_EVERY", PART)
    monkeypatch.setattr(verify, "PIECE", 64 * KiB)


@pytest.fixture
def data(rng: random.Random) -> bytes:
    return rng.randbytes(2 * MiB)


def interrupt(source: FilenameLike, target: Path, at: float = 0.5, **options: Any) -> None:
    token = blocklayer.CancelToken()

    def stop(progress: Progress) -> None:
        if progress.fraction >= at:
            token.cancel()

    with pytest.raises(Cancelled):
        blocklayer.convert(source, target, resume=True, progress=stop, cancel=token, **options)


def window(path: Path, offset: int) -> dict[str, Any]:
    file = {"driver": "file", "filename": str(path)}
    return {"driver": "raw", "offset": offset, "size": MiB, "file": file}


# --- sources --------------------------------------------------------------------------------------


def test_another_window_of_the_same_file(memory_path: Path, data: bytes) -> None:
    source, target = memory_path / "source", memory_path / "target"
    source.write_bytes(data)
    interrupt(window(source, 0), target)
    with unchanged(memory_path), pytest.raises(InvalidArgument, match="its start was 0"):
        blocklayer.convert(window(source, MiB), target, resume=True)
    blocklayer.convert(window(source, 0), target, resume=True)
    assert target.read_bytes() == data[:MiB]


def test_the_same_file_in_another_format(memory_path: Path, data: bytes) -> None:
    source, target = memory_path / "source", memory_path / "target"
    blocklayer.create(source, format="qed", size=2 * MiB)
    with blocklayer.open(source, mode="r+") as disk:
        disk.write(0, data)
    size = {"size": "8M"}
    interrupt(source, target, 0.8, source_format="raw", options=size)
    with unchanged(memory_path), pytest.raises(InvalidArgument, match="its format was 'raw'"):
        blocklayer.convert(source, target, resume=True, options=size)


def test_a_source_that_was_changed_and_given_its_old_time(memory_path: Path, data: bytes) -> None:
    """As tools do that restore files, or bring them up to date in place."""
    source, target = memory_path / "source", memory_path / "target"
    source.write_bytes(data)
    interrupt(source, target, source_format="raw")
    before = source.stat()
    with open(source, "r+b") as file:
        file.write(data[MiB:])
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    with unchanged(memory_path), pytest.raises(InvalidArgument, match="its ctime_ns was"):
        blocklayer.convert(source, target, source_format="raw", resume=True)


def test_the_layers_of_one_source_as_two(memory_path: Path, data: bytes) -> None:
    base, top, target = (memory_path / name for name in ("base", "top", "target"))
    blocklayer.create(base, format="qed", size=MiB)
    blocklayer.create(top, format="qed", backing=base, backing_format="qed")
    with blocklayer.open(top, mode="r+") as disk:
        disk.write(0, data[:MiB])
    alone = {
        "driver": "qed",
        "file": {"driver": "file", "filename": str(top)},
        "backing": None,
    }
    interrupt(top, target, 0.3, options={"size": "2M"})
    with pytest.raises(InvalidArgument, match="its source was 0"):
        blocklayer.convert([alone, base], target, resume=True, options={"size": "2M"})


@needs_root()
@pytest.mark.skipif(not shutil.which("losetup"), reason="there is no losetup")
def test_a_device_whose_file_was_changed_below_it(tmp_path: Path, data: bytes) -> None:
    """A device's times are those of its name: what is on it may be changed by other names."""
    below, target = tmp_path / "below", tmp_path / "target"
    below.write_bytes(data)
    done = subprocess.run(
        ["losetup", "--find", "--show", str(below)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"there are no loop devices here: {done.stderr.decode().strip()}")
    device = done.stdout.decode().strip()
    try:
        interrupt(device, target, 0.9, source_format="raw")
        changed = data[:300_000] + bytes(reversed(data[300_000:]))
        below.write_bytes(changed)
        os.sync()
        subprocess.run(["blockdev", "--flushbufs", device], check=True)
        result = blocklayer.convert(device, target, source_format="raw", resume=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert target.read_bytes() == changed
    assert result.resumed <= 300_000


# --- notes ----------------------------------------------------------------------------------------


CHANGES: dict[str, dict[str, Any]] = {
    "data": {"parts": [[4096, "aa", "x", 0]]},
    "negative": {"parts": [[4096, "aa", 0, -1]]},
    "sums": {"data": 4096},
    "stage": {"stage": "ready"},
    "inode": {"inode": [1, 2]},
    "parts are none": {"parts": 5},
    "a part is none": {"parts": [5]},
    "beyond": {"parts": [[1 << 40, "aa", 0, 0]]},
    "before": {"parts": [[-5, "aa", 0, 0]]},
    "not a number": {"parts": [[1.5, "aa", 0, 0]]},
    "descending": {"parts": [[8192, "aa", 0, 0], [4096, "bb", 0, 0]]},
    "member": {"more": 1},
    "job": {"job": {}},
    "version": {"version": 2},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_note_that_is_wrong(memory_path: Path, data: bytes, change: dict[str, Any]) -> None:
    source, target = memory_path / "source", memory_path / "target"
    source.write_bytes(data)
    interrupt(source, target, source_format="raw")
    path = memory_path / "target.partial.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with unchanged(memory_path), pytest.raises(InvalidArgument, match="cannot be used") as caught:
        blocklayer.convert(source, target, source_format="raw", resume=True)
    assert not hasattr(caught.value, "__notes__")  # it does not say that one could go on


JOBS: dict[str, dict[str, Any]] = {
    "sources": {"sources": 5},
    "a source is none": {"sources": [5]},
    "options": {"options": 7},
    "size": {"size": "1M"},
}


@pytest.mark.parametrize("change", JOBS.values(), ids=list(JOBS))
def test_a_job_that_is_wrong(memory_path: Path, data: bytes, change: dict[str, Any]) -> None:
    source, target = memory_path / "source", memory_path / "target"
    source.write_bytes(data)
    interrupt(source, target, source_format="raw")
    path = memory_path / "target.partial.json"
    note = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**note, "job": {**note["job"], **change}}), "utf-8")
    with unchanged(memory_path), pytest.raises(InvalidArgument, match="cannot be used"):
        blocklayer.convert(source, target, source_format="raw", resume=True)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"version": 2, "job": {"size": Infinity}}'])
def test_a_note_that_is_a_trap(
    memory_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = memory_path / "source", memory_path / "target"
    source.write_bytes(bytes(4096))
    (memory_path / "target.partial.json").write_text(text, "utf-8")
    assert main(["convert", "-f", "raw", "--resume", str(source), str(target)]) == 1
    assert "cannot be used to go on" in capsys.readouterr().err


def test_a_note_that_cannot_be_read(memory_path: Path) -> None:
    source, target = memory_path / "source", memory_path / "target"
    source.write_bytes(bytes(4096))
    (memory_path / "target.partial.json").mkdir()
    with pytest.raises(InvalidArgument, match="Is a directory"):
        blocklayer.convert(source, target, source_format="raw", resume=True)


def test_a_note_that_cannot_be_written(memory_path: Path, data: bytes) -> None:
    """Nor is a link of somebody else followed to write it."""
    source, target = memory_path / "source", memory_path / "target"
    source.write_bytes(data)
    other = memory_path / "other"
    other.write_bytes(b"mine")
    (memory_path / "target.partial.json.new").symlink_to("other")
    with pytest.raises(IoError, match=r"write failed on .*partial\.json"):
        blocklayer.convert(source, target, source_format="raw", resume=True)
    assert other.read_bytes() == b"mine"
    assert not target.exists()


def test_a_partial_target_that_is_a_link(memory_path: Path, data: bytes) -> None:
    source, target, other = (memory_path / name for name in ("source", "target", "other"))
    source.write_bytes(data)
    interrupt(source, target, source_format="raw")
    other.write_bytes(bytes(2 * MiB))
    partial = memory_path / "target.partial"
    partial.unlink()
    partial.symlink_to("other")
    with unchanged(memory_path), pytest.raises(blocklayer.NotSupported, match="no regular file"):
        blocklayer.convert(source, target, source_format="raw", resume=True)


def test_directories_that_cannot_be_flushed(
    memory_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CIFS, and on some file systems in user space."""
    source, target = memory_path / "source", memory_path / "target"
    source.write_bytes(data)
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    interrupt(source, target, source_format="raw")
    assert blocklayer.convert(source, target, source_format="raw", resume=True).resumed
    assert target.read_bytes() == data


@pytest.mark.parametrize("damage", ["entry", "header", "length"])
def test_a_partial_target_whose_tables_are_damaged(
    memory_path: Path, data: bytes, damage: str
) -> None:
    """It may still read as it should, and is no image that one would want."""
    source, target = memory_path / "source", memory_path / "target"
    source.write_bytes(data)
    interrupt(source, target, source_format="raw", format="qed")
    partial = memory_path / "target.partial"
    content = bytearray(partial.read_bytes())
    if damage == "entry":  # a cluster that nothing has been written to yet refers to another's
        table = int.from_bytes(content[64 * KiB : 64 * KiB + 8], "little")
        content[table + 8 * 31 : table + 8 * 32] = content[table : table + 8]
    elif damage == "header":
        content[:4] = b"none"
    else:
        del content[128 * KiB :]
    partial.write_bytes(content)
    result = blocklayer.convert(source, target, source_format="raw", format="qed", resume=True)
    assert result.resumed == 0
    assert blocklayer.check(target).clean
    assert blocklayer.compare(source, target, first_format="raw").identical


def test_options_that_cannot_be_noted(memory_path: Path) -> None:
    source, target = memory_path / "source", memory_path / "target"
    source.write_bytes(bytes(4096))
    with unchanged(memory_path), pytest.raises(InvalidArgument, match="texts and numbers"):
        blocklayer.convert(
            source,
            target,
            source_format="raw",
            format="qed",
            resume=True,
            options={"cluster_size": object()},
        )


def test_two_that_begin_at_once(memory_path: Path, data: bytes) -> None:
    source, target = memory_path / "source", memory_path / "target"
    source.write_bytes(data)
    interrupt(source, target, 0.0, source_format="raw")
    with blocklayer.open(memory_path / "target.partial", format="raw", mode="r+") as disk:
        disk.write(0, b"others")
        with pytest.raises(blocklayer.LockError):
            blocklayer.convert(source, target, source_format="raw", resume=True)
    assert (memory_path / "target.partial").read_bytes()[:6] == b"others"


# --- many extents ---------------------------------------------------------------------------------


def test_a_whole_disk_is_allocated_in_steps_that_can_be_stopped(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``-S 0`` of a hole: all that there is to do comes after the copy."""
    monkeypatch.setattr("blocklayer.ops.convert.ALLOCATED_AT_ONCE", 64 * KiB)
    source, target = memory_path / "source", memory_path / "target"
    blocklayer.create(source, size=4 * MiB)
    token = blocklayer.CancelToken()
    written = []
    real = blocklayer.Disk.write_zeroes

    def spy(disk: blocklayer.Disk, offset: int, length: int, **flags: Any) -> None:
        written.append(length)
        token.cancel()
        real(disk, offset, length, **flags)

    monkeypatch.setattr(blocklayer.Disk, "write_zeroes", spy)
    with pytest.raises(Cancelled):
        blocklayer.convert(
            source, target, source_format="raw", format="qed", sparse_size=0, cancel=token
        )
    assert written == [64 * KiB]
    assert not target.exists()


def test_ranges_of_a_disk_that_changes_meanwhile(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy, "EXTENTS_AT_ONCE", 3)
    path = memory_path / "disk"
    blocklayer.create(path, format="qed", size=4 * MiB)
    with blocklayer.open(path, mode="r+") as disk:
        for offset in range(0, 4 * MiB, 128 * KiB):
            disk.write(offset, b"x" * 4096)
        quiet = blocklayer.base.progress.Reporter("test", 0)
        found = []
        for offset, length in copy.changing_ranges(
            disk, 0, disk.size, quiet, lambda extent: not extent.zero
        ):
            found.append((offset, length))
            disk.write_zeroes(offset, length)
        assert found == [(offset, 64 * KiB) for offset in range(0, 4 * MiB, 128 * KiB)]
        assert not any(disk.read(0, disk.size))


def test_version() -> None:
    """Notes of other versions are refused, so what they hold must not change under one number."""
    assert resume_note.VERSION == 3
    assert list(resume_note.Note(_JOB).as_dict()) == ["job", "stage", "parts", "inode"]


_JOB = resume_note.Job("raw", {}, 4096, 512, [])
