# SPDX-License-Identifier: Apache-2.0
"""What a repair clears can be put back as long as nobody has given away what it mapped."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import OpenError, TooDamaged
from blocklayer.base.units import KiB, MiB
from blocklayer.cli.main import main

CLUSTER = 64 * KiB
SIZE = 64 * MiB
L1 = CLUSTER
L1_ENTRY_OF_NOTHING = 0xFFFFFFFFFF0000
NEED_CHECK = 2


def make(path: Path, **options: Any) -> Path:
    """An image of 300 random clusters."""
    blocklayer.create(path, format="qed", size=SIZE, **options)
    with blocklayer.open(path, mode="r+") as disk:
        for number in range(300):
            content = hashlib.sha256(str(number).encode()).digest() * (CLUSTER // 32)
            disk.write(number * 3 * CLUSTER % SIZE, content)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make(tmp_path / "disk.qed")


def poke(path: Path, offset: int, value: int) -> int:
    """Put a number into a file; what was there."""
    with path.open("r+b") as file:
        file.seek(offset)
        before = int.from_bytes(file.read(8), "little")
        file.seek(offset)
        file.write(value.to_bytes(8, "little"))
    return before


def guest(path: Path) -> str:
    return blocklayer.digest(path).digest


@pytest.mark.parametrize("entry", ["L1", "L2"])
def test_what_a_cleared_entry_mapped_is_kept(
    image: Path, entry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = guest(image)
    place = L1
    if entry == "L2":
        place = int.from_bytes(image.read_bytes()[L1 : L1 + 8], "little")
    was = poke(image, place, L1_ENTRY_OF_NOTHING if entry == "L1" else 0x12345)
    length = image.stat().st_size
    assert main(["check", "-r", "all", str(image)]) == 3
    assert "'check -r leaks' gives them back" in capsys.readouterr().err
    assert image.stat().st_size == length
    assert poke(image, place, was) == 0
    assert blocklayer.check(image).clean
    assert guest(image) == before


def test_leaks_are_given_back_afterwards(image: Path) -> None:
    poke(image, L1, L1_ENTRY_OF_NOTHING)
    assert blocklayer.check(image, repair="all").leaks > 300
    assert blocklayer.check(image, repair="leaks").clean
    assert image.stat().st_size < 10 * CLUSTER


def test_a_rehearsal_tells_that_leaks_are_kept(image: Path) -> None:
    poke(image, L1, L1_ENTRY_OF_NOTHING)
    result = blocklayer.check(image, repair="all", dry_run=True)
    assert result.plan is not None
    assert result.plan.size_after == result.plan.size
    assert result.plan.afterwards.leaks > 300
    remedies = [problem.remedy for problem in result.problems if problem.kind == "leak"]
    assert remedies
    assert all(remedy.startswith("keep them") for remedy in remedies)


def test_an_image_left_dirty_keeps_it_too(image: Path) -> None:
    before = guest(image)
    was = poke(image, L1, L1_ENTRY_OF_NOTHING)
    with image.open("r+b") as file:
        file.seek(16)
        file.write(NEED_CHECK.to_bytes(8, "little"))
    with blocklayer.open(image, mode="r+"):
        pass
    poke(image, L1, was)
    assert guest(image) == before


@pytest.fixture
def misled(tmp_path: Path) -> Path:
    """The header names an L2 table as L1 table, so guests' data are read as tables."""
    path = make(tmp_path / "misled.qed", cluster_size=4 * KiB, table_size=1)
    data = path.read_bytes()
    l1 = int.from_bytes(data[40:48], "little")
    poke(path, 40, int.from_bytes(data[l1 : l1 + 8], "little"))
    return path


def test_a_header_that_misleads(misled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = misled.read_bytes()
    for repair in ("all", "leaks"):
        main(["check", "-r", repair, str(misled)])
    assert misled.read_bytes() == before
    assert "Nothing was repaired" in capsys.readouterr().err
    with pytest.raises(TooDamaged, match="probably something else"):
        blocklayer.check(misled, repair="all")
    with pytest.raises(TooDamaged):
        blocklayer.check(misled, repair="all", dry_run=True)
    assert misled.read_bytes() == before


def test_a_header_that_misleads_an_image_left_dirty(misled: Path) -> None:
    with misled.open("r+b") as file:
        file.seek(16)
        file.write(NEED_CHECK.to_bytes(8, "little"))
    before = misled.read_bytes()
    with pytest.raises(OpenError, match="Nothing was repaired"):
        blocklayer.open(misled, mode="r+")
    assert misled.read_bytes() == before


def test_repair_by_force(misled: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.qed"
    shutil.copyfile(misled, copy)
    assert main(["check", "-r", "all", "--force", str(copy)]) in (0, 2, 3)
    assert copy.read_bytes() != misled.read_bytes()


def test_force_is_for_repairs(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--force", str(image)]) == 1
    assert "-r all" in capsys.readouterr().err


def test_a_format_without_a_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "disk.raw"
    blocklayer.create(path, size=MiB)
    assert main(["check", "-f", "raw", "-r", "all", str(path)]) == 63
    assert "so far stays" not in capsys.readouterr().err
