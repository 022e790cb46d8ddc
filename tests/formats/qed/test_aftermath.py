# SPDX-License-Identifier: Apache-2.0
"""Operations that fail half way, on a disk that stays open: what it says afterwards is true."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import BlocklayerError, IoError
from blocklayer.base.units import KiB, MiB
from blocklayer.core.checking import Repair
from blocklayer.core.copy_loads import SALVAGE_STEP
from blocklayer.core.disk import Disk
from blocklayer.formats.qed.careful_check import Checker
from tests.support.graphs import memory, tree
from tests.support.qed_image import CLUSTER, QedImage, qed


def failing(disk: Disk, verb: str, number: int, patch: pytest.MonkeyPatch) -> None:
    """The `number`-th call of a verb of the image's storage fails, and happens not."""
    file = qed(disk).file
    original = getattr(file, verb)
    left = [number]

    def act(*arguments: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise IoError("injected", "storage", operation=verb)
        return original(*arguments)

    patch.setattr(file, verb, act)


def test_emptying_that_fails_after_the_first_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cleared on disk is not served from memory, nor written to."""
    span = 1024 * CLUSTER  # of a table of two clusters
    image = QedImage(600 * span, table_size=2, backing_file="below", backing_fmt="raw")
    backing = tree(memory("below"), "raw")
    with image.open(backing) as disk:
        disk.write(0, b"x" * CLUSTER)
        disk.write(599 * span, b"x" * CLUSTER)
        with monkeypatch.context() as patch:
            failing(disk, "writev", 2, patch)
            with disk.drain(), pytest.raises(IoError, match="injected"):
                qed(disk).make_empty()
        disk.write(0, b"new!")
        disk.flush()
    with image.open(backing) as disk:
        assert disk.read(0, 4) == b"new!"


def test_a_shrink_that_fails_at_last_resizes_bitmaps(monkeypatch: pytest.MonkeyPatch) -> None:
    with QedImage(4 * MiB).open() as disk:
        disk.write(0, b"x")
        bitmap = disk.add_bitmap("name")
        disk.write(3 * MiB, b"x" * CLUSTER)
        with monkeypatch.context() as patch:
            failing(disk, "truncate", 1, patch)
            with pytest.raises(BlocklayerError, match="injected"):
                disk.resize(MiB)
        assert disk.size == bitmap.size == MiB
        assert list(bitmap.runs()) == []


def test_a_new_backing_name_does_not_clear_doubts(monkeypatch: pytest.MonkeyPatch) -> None:
    image = QedImage(MiB)
    with image.open() as disk:
        disk.write(0, b"x")
        with monkeypatch.context() as patch:
            patch.setattr(qed(disk).tables, "write_l2", _refuse)
            with pytest.raises(IoError, match="injected"):
                disk.write(64 * KiB, b"x")
        assert qed(disk).needs_check
        qed(disk).change_backing("below", "raw")
        assert qed(disk).needs_check


def _refuse(*arguments: object) -> None:
    raise IoError("injected", "storage", operation="write")


def test_repair_forgets_unknown_autoclear_features() -> None:
    """It changes the image: whoever knows the feature must not trust what it says any more."""
    image = QedImage(MiB)
    with image.open() as disk:
        disk.write(0, b"x")
        disk.write(CLUSTER, b"x")
    image.set_l2(0, 0)
    image.set_header(autoclear_features=1 << 5)
    assert image.check().leaks == 1
    assert image.header.autoclear_features == 1 << 5
    assert image.check(Repair(leaks=True)).leaks_fixed == 1
    assert image.header.autoclear_features == 0


def test_of_two_flushes_at_once_neither_succeeds_over_lost_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells one of them only."""
    told = threading.Event()

    def fdatasync(descriptor: int) -> None:
        if threading.current_thread().name == "first":
            time.sleep(0.1)
            told.set()
            raise OSError(5, "lost")
        told.wait(0.05)

    path = tmp_path / "disk.raw"
    blocklayer.create(path, size=MiB)
    failed = []

    def flush(disk: Disk) -> None:
        disk.write(0, b"x")
        try:
            disk.flush()
        except IoError:
            failed.append(threading.current_thread().name)

    disk = blocklayer.open(path, mode="r+", format="raw")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fdatasync)
        first = threading.Thread(target=flush, args=(disk,), name="first")
        second = threading.Thread(target=flush, args=(disk,), name="second")
        first.start()
        time.sleep(0.02)
        second.start()
        first.join()
        second.join()
    assert sorted(failed) == ["first", "second"]
    with pytest.raises(IoError, match="earlier flush failed"):
        disk.close()


def test_shared_tables_are_counted_once_before_they_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A table that every L1 entry names is not read over and over to find it too large to copy."""
    entries, others = 512 * 16, 12
    looked_at = [0]
    original = Checker._is_worth_a_copy

    def counting(checker: Checker, l1_index: int, index: int, entry: int) -> bool:
        looked_at[0] += 1
        return original(checker, l1_index, index, entry)

    monkeypatch.setattr(Checker, "_is_worth_a_copy", counting)
    image = QedImage(13 * entries * CLUSTER, table_size=16)
    with image.open() as disk:
        disk.write(0, b"x")
    table = image.l1(0)
    end = len(image.content)
    image.put(end, bytes(entries * CLUSTER))
    numbers = (end + index * CLUSTER for index in range(entries))
    image.put(table, b"".join(number.to_bytes(8, "little") for number in numbers))
    for index in range(1, others + 1):
        image.set_l1(index * entries * CLUSTER, table)
    result = image.check(Repair(errors=True))
    assert result.corruptions + result.corruptions_fixed == others
    # For each copy that is made, for the one that is refused, and once while it is made.
    assert looked_at[0] <= (2 * result.corruptions_fixed + 1) * entries
    assert result.corruptions


def test_salvaging_goes_on_behind_a_table_that_tells_nonsense(tmp_path: Path) -> None:
    path, target = tmp_path / "image.qed", tmp_path / "saved.raw"
    blocklayer.create(path, format="qed", size=8 * MiB)
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(0, b"a" * 3 * 64 * KiB)
        place = qed(disk).tables.l1_entry(0)
    with path.open("r+b") as file:
        file.seek(place + 8)
        file.write((1 << 50).to_bytes(8, "little"))
    with pytest.raises(BlocklayerError, match="behind the end of the file"):
        blocklayer.convert(path, target)
    result = blocklayer.convert(path, target, salvage=True)
    assert result.salvaged == ((64 * KiB, SALVAGE_STEP),)
    saved = target.read_bytes()
    assert saved[: 64 * KiB] == saved[128 * KiB : 192 * KiB] == b"a" * 64 * KiB
    assert saved[64 * KiB : 128 * KiB] == bytes(64 * KiB)
