# SPDX-License-Identifier: Apache-2.0
"""Operations stopped at each of their steps: what is left is as good as before, and is told."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import blocklayer
from blocklayer import Cancelled, CancelToken

CLUSTER = 4096
SPAN = CLUSTER // 8 * CLUSTER
SIZE = 3 * SPAN


class Countdown(CancelToken):
    """Asked so many times, it says yes."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    @property
    def cancelled(self) -> bool:
        self.left -= 1
        return self.left < 0


def make(path: Path, rng: random.Random) -> None:
    """Three tables with holes between what they map; leaks, and entries that cannot be."""
    blocklayer.create(path, format="qed", size=SIZE, cluster_size=CLUSTER, table_size=1)
    with blocklayer.open(path, mode="r+") as disk:
        for start in (0, SPAN, 2 * SPAN):
            for cluster in rng.sample(range(60), 20):
                disk.write(start + cluster * CLUSTER, rng.randbytes(CLUSTER))


def damage(path: Path) -> None:
    """In the first table: an entry that cannot be, two that share a cluster, and leaks."""
    with path.open("r+b") as file:
        file.seek(CLUSTER)
        table = int.from_bytes(file.read(8), "little")
        file.seek(table)
        used = [index for index in range(60) if int.from_bytes(file.read(8), "little")]
        file.seek(table + 8 * used[0])
        entry = file.read(8)
        file.seek(table + 8 * used[1])
        file.write(entry)
        file.seek(table + 8 * used[2])
        file.write((7).to_bytes(8, "little"))
        for index in used[3:9]:
            file.seek(table + 8 * index)
            file.write(bytes(8))


def content(path: Path) -> bytes:
    with blocklayer.open(path) as disk:
        return disk.read(0, disk.size)


def stops(template: Path, path: Path, run: Callable[[CancelToken], object]) -> Iterator[Cancelled]:
    """Run on a fresh copy with one step more each time, until it is not stopped any more."""
    for steps in range(1000):
        shutil.copyfile(template, path)
        try:
            run(Countdown(steps))
        except Cancelled as error:
            yield error
            continue
        assert steps > 1
        return


@pytest.mark.parametrize("repair", ["leaks", "all"])
def test_repair(tmp_path: Path, rng: random.Random, repair: str) -> None:
    template, path = tmp_path / "template", tmp_path / "image"
    make(template, rng)
    damage(template)
    shutil.copyfile(template, path)
    found = blocklayer.check(path)
    blocklayer.check(path, repair="all")
    mended = content(path)
    for error in stops(
        template, path, lambda token: blocklayer.check(path, repair=repair, cancel=token)
    ):
        assert "can be started again" in error.__notes__[0]
        assert blocklayer.check(path).corruptions <= found.corruptions
        blocklayer.check(path, repair="all")
        assert not blocklayer.check(path).corruptions
        blocklayer.check(path, repair="leaks")
        assert blocklayer.check(path).clean
        assert content(path) == mended


def test_giving_space_back(tmp_path: Path, rng: random.Random) -> None:
    template, path = tmp_path / "template", tmp_path / "image"
    make(template, rng)
    with template.open("r+b") as file:  # the first table and all it maps are leaks
        file.seek(CLUSTER)
        file.write(bytes(8))
    before = content(template)
    for _ in stops(
        template, path, lambda token: blocklayer.check(path, repair="leaks", cancel=token)
    ):
        assert blocklayer.check(path).corruptions == 0
        assert content(path) == before


def test_a_dry_run(tmp_path: Path, rng: random.Random) -> None:
    template, path = tmp_path / "template", tmp_path / "image"
    make(template, rng)
    damage(template)
    for error in stops(
        template,
        path,
        lambda token: blocklayer.check(path, repair="all", dry_run=True, cancel=token),
    ):
        assert not getattr(error, "__notes__", None)
        assert path.read_bytes() == template.read_bytes()


def test_shrinking(tmp_path: Path, rng: random.Random) -> None:
    template, path = tmp_path / "template", tmp_path / "image"
    make(template, rng)
    before = content(template)
    size = SPAN + 7 * CLUSTER
    for error in stops(
        template, path, lambda token: blocklayer.resize(path, size, shrink=True, cancel=token)
    ):
        after = content(path)
        assert len(after) in (SIZE, size)
        assert after == before[: len(after)]
        notes = getattr(error, "__notes__", None)  # none, if nothing had begun
        assert notes is None or f"{len(after)} bytes" in notes[0]
        assert blocklayer.check(path).corruptions == 0
        blocklayer.check(path, repair="leaks")
        assert blocklayer.check(path).clean


def test_commit(tmp_path: Path, rng: random.Random) -> None:
    template, path, base = tmp_path / "template", tmp_path / "image", tmp_path / "base"
    make(base, rng)
    kept = base.read_bytes()
    blocklayer.create(template, format="qed", backing="base", backing_format="qed")
    with blocklayer.open(template, mode="r+") as disk:
        for cluster in rng.sample(range(60), 12):
            disk.write(SPAN + cluster * CLUSTER, rng.randbytes(CLUSTER))
    before = content(template)

    def run(token: CancelToken) -> None:
        base.write_bytes(kept)
        blocklayer.commit(path, cancel=token)

    told = set()
    for error in stops(template, path, run):
        assert content(path) == before
        assert blocklayer.check(path).corruptions == 0
        told.add(error.__notes__[0].replace(str(tmp_path), ""))
    assert len(told) == 2, "before and after the base holds everything"


@pytest.mark.parametrize("verb", ["check", "compare", "map", "measure"])
def test_what_changes_nothing(tmp_path: Path, rng: random.Random, verb: str) -> None:
    template, path = tmp_path / "template", tmp_path / "image"
    make(template, rng)
    damage(template)
    runs: dict[str, Callable[[CancelToken], object]] = {
        "check": lambda token: blocklayer.check(path, cancel=token),
        "compare": lambda token: blocklayer.compare(path, path, cancel=token),
        "measure": lambda token: blocklayer.measure(path, format="qed", cancel=token),
        "map": lambda token: walk(path, token),
    }
    with template.open("r+b") as file:  # entries that nobody could walk over
        file.seek(CLUSTER)
        table = int.from_bytes(file.read(8), "little")
        file.seek(table)
        if verb != "check":
            file.write(bytes(CLUSTER))
    for _ in stops(template, path, runs[verb]):
        assert path.read_bytes() == template.read_bytes()


def walk(path: Path, token: CancelToken) -> None:
    from blocklayer.ops.map import map_rows

    for _ in map_rows(str(path), cancel=token):
        pass
