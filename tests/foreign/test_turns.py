# SPDX-License-Identifier: Apache-2.0
"""One image, changed by QEMU and by us in turn: each must leave it whole for the other."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from tests.foreign import qemu, views
from tests.foreign.operations import Generator, Operation, commands
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-io")

SIZE = 4 * MiB + 512
CLUSTER = 16 * KiB


def we_change(path: Path, requests: list[Operation], format: str = "qed") -> None:
    with blocklayer.open(path, mode="r+", format=format) as disk:
        for request in requests:
            request.tell_disk(disk)


def qemu_changes(path: Path, requests: list[Operation], format: str = "qed") -> None:
    qemu.io(path, *commands(requests), format=format)


CHANGERS = [we_change, qemu_changes]


class Image:
    """An image, and what a plain array says it must show."""

    def __init__(
        self, path: Path, rng: random.Random, *, below: bytes | None = None, size: int = SIZE
    ) -> None:
        self.path = path
        self.model = bytearray((below or b"")[:size].ljust(size, b"\0"))
        self._generator = Generator(rng, size, CLUSTER, over_backing=below is not None)

    def change(self, changer: Callable[[Path, list[Operation]], None], count: int = 25) -> None:
        with blocklayer.open(self.path) as disk:
            self._generator.learn(disk)
        requests = self._generator.many(count)
        changer(self.path, requests)
        for request in requests:
            request.tell_bytes(self.model)

    def resized(self, size: int) -> None:
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))
        self._generator.resized(size)

    def look(self) -> None:
        views.assert_same(self.path, expected=bytes(self.model))
        views.assert_clean(self.path)


def create_by(
    rng: random.Random,
    path: Path,
    size: int,
    *,
    backing: Path | None = None,
    backing_format: str = "qed",
) -> None:
    """A new image by either of both."""
    if rng.random() < 0.5:
        qemu.create(
            path, size, backing=backing, backing_format=backing_format, cluster_size=CLUSTER
        )
        return
    blocklayer.create(
        path,
        format="qed",
        size=size,
        backing=backing,
        backing_format=None if backing is None else backing_format,
        cluster_size=CLUSTER,
    )


def test_an_image(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "image"
    create_by(rng, path, SIZE)
    image = Image(path, rng)
    for turn in range(30):
        image.change(CHANGERS[turn % 2])
        image.look()


def test_an_image_that_changes_its_size(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "image"
    create_by(rng, path, SIZE)
    image = Image(path, rng)
    for turn in range(20):
        image.change(CHANGERS[turn % 2])
        size = rng.randrange(2048, 16384) * 512
        if size > len(image.model) and rng.random() < 0.5:
            qemu.img("resize", "-q", "-f", "qed", path, size)
        else:
            blocklayer.resize(path, size, shrink=True)
        image.resized(size)
        image.look()
        image.change(CHANGERS[(turn + 1) % 2], 5)
        image.look()


@pytest.mark.parametrize("base_size", [1 * MiB + 512, SIZE, 6 * MiB])
@pytest.mark.parametrize("base_format", ["qed", "raw"])
def test_an_overlay(tmp_path: Path, rng: random.Random, base_size: int, base_format: str) -> None:
    base, path = tmp_path / "base", tmp_path / "image"
    below = make_base(base, rng, base_size, base_format)
    create_by(rng, path, SIZE, backing=base, backing_format=base_format)
    image = Image(path, rng, below=below)
    for turn in range(14):
        image.change(CHANGERS[turn % 2])
        image.look()
        if turn % 4 == 3:
            size = rng.randrange(2048, 16384) * 512
            if size > len(image.model) >= base_size and rng.random() < 0.5:
                qemu.img("resize", "-q", "-f", "qed", path, size)
            else:
                blocklayer.resize(path, size, shrink=True)
            image.resized(size)
            image.look()
    assert views.content(base, format=base_format) == below


def make_base(path: Path, rng: random.Random, size: int, format: str) -> bytes:
    """Something to stand on; its content."""
    qemu.create(path, size, format=format)
    changer = rng.choice(CHANGERS)
    changer(path, Generator(rng, size, 64 * KiB).many(30), format)
    return views.content(path, format=format)


def test_growing_over_a_longer_base(tmp_path: Path, rng: random.Random) -> None:
    """QEMU refuses where QED's driver would have to write zeroes; with us it just works."""
    base, path = tmp_path / "base", tmp_path / "image"
    below = make_base(base, rng, 6 * MiB, "raw")
    create_by(rng, path, MiB + 512, backing=base, backing_format="raw")
    image = Image(path, rng, below=below, size=MiB + 512)
    image.change(qemu_changes)
    refused = qemu.run("qemu-img", "resize", "-f", "qed", path, 2 * MiB)
    assert refused.code == 1
    image.look()
    for size in (MiB + 1024, 3 * MiB + 512, 7 * MiB):
        blocklayer.resize(path, size)
        image.resized(size)
        image.look()
        image.change(rng.choice(CHANGERS), 8)
        image.look()


# Layers that are committed and rebased by either side.


def commit_by_us(path: Path, base: Path | None) -> None:
    blocklayer.commit(path, base=base, keep=True)


def commit_and_empty(path: Path, base: Path | None) -> None:
    blocklayer.commit(path, base=base)


def commit_by_qemu(path: Path, base: Path | None) -> None:
    into: list[str | Path] = [] if base is None else ["-b", base]
    qemu.img("commit", "-q", "-d", "-f", "qed", *into, path)


COMMITS = [commit_by_us, commit_and_empty, commit_by_qemu]


@pytest.mark.parametrize("base_format", ["qed", "raw"])
@pytest.mark.parametrize("base_size", [2 * MiB, SIZE, 6 * MiB])
def test_commits(tmp_path: Path, rng: random.Random, base_format: str, base_size: int) -> None:
    """Layer by layer, and past a layer: what the top shows stays, and the base shows the same."""
    base, middle, top = (tmp_path / name for name in ("base", "middle", "top"))
    below = make_base(base, rng, base_size, base_format)
    create_by(rng, middle, SIZE, backing=base, backing_format=base_format)
    qemu_changes(middle, Generator(rng, SIZE, CLUSTER, over_backing=True).many(10))
    create_by(rng, top, SIZE, backing=middle)
    image = Image(top, rng, below=views.content(middle))
    for turn in range(8):
        image.change(CHANGERS[turn % 2], 8)
        image.look()
        past = turn % 4 == 3
        rng.choice(COMMITS)(top, base if past else None)
        image.look()
        changed, format = (base, base_format) if past else (middle, "qed")
        shown = views.assert_same(changed, format=format)
        assert shown[: len(image.model)] == image.model
        if not past:
            views.assert_clean(middle)
            rng.choice(COMMITS)(middle, None)
            image.look()
            views.assert_same(middle, expected=shown)
        expected = bytes(image.model) + below[SIZE:]
        assert views.assert_same(base, format=base_format) == expected
        # Whatever stands on the changed base from now on sees it.
        other = tmp_path / f"other{turn}"
        create_by(rng, other, len(expected), backing=base, backing_format=base_format)
        views.assert_same(other, expected=expected)


def test_only_we_empty_what_is_committed(tmp_path: Path, rng: random.Random) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    make_base(base, rng, SIZE, "qed")
    create_by(rng, top, SIZE, backing=base)
    image = Image(top, rng, below=views.content(base))
    image.change(qemu_changes)
    qemu.img("commit", "-f", "qed", top)
    image.look()
    assert views.assert_clean(top).allocated > 0
    assert views.assert_same(base) == image.model
    blocklayer.commit(top)
    image.look()
    assert views.assert_clean(top).allocated == 0
    assert top.stat().st_size == CLUSTER * 5


def rebase_by_us(path: Path, base: Path | None, format: str) -> None:
    blocklayer.rebase(path, base, backing_format=None if base is None else format)


def rebase_by_qemu(path: Path, base: Path | None, format: str) -> None:
    onto = ["-b", ""] if base is None else ["-b", base, "-F", format]
    qemu.img("rebase", "-q", "-f", "qed", *onto, path)


def test_rebases(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "image"
    base = tmp_path / "base"
    below = make_base(base, rng, 3 * MiB, "qed")
    create_by(rng, path, SIZE, backing=base)
    image = Image(path, rng, below=below)
    for turn in range(24):
        image.change(rng.choice(CHANGERS), 6)
        new = None if turn % 5 == 4 else tmp_path / f"base{turn}"
        format = rng.choice(["qed", "raw"])
        if new is not None:
            make_base(new, rng, rng.randrange(1, 14000) * 512, format)
        (rebase_by_qemu if turn % 2 else rebase_by_us)(path, new, format)
        image.look()
        shown = qemu.info(path)
        assert shown.get("backing-filename") == (None if new is None else str(new))


@pytest.mark.parametrize("rebase", [rebase_by_us, rebase_by_qemu])
@pytest.mark.parametrize("cluster_size", [64 * KiB, 4 * MiB])
def test_holes_of_the_old_base_stay_zero(
    tmp_path: Path, rebase: Callable[[Path, Path | None, str], None], cluster_size: int
) -> None:
    """Holes smaller than a cluster, and pieces of a cluster that read as zeroes."""
    old, new, path = tmp_path / "old", tmp_path / "new", tmp_path / "image"
    qemu.create(old, 12 * MiB, format="raw")
    qemu.io(old, "write -P 1 0 4k", "write -P 1 20k 4k", "write -P 1 7M 1", format="raw")
    qemu.create(new, 12 * MiB, format="raw")
    qemu.io(new, "write -P 1 0 64k", "write -P 2 4M 1M", "write -P 2 9M 2M", format="raw")
    qemu.create(path, backing=old, backing_format="raw", cluster_size=cluster_size, table_size=2)
    before = views.assert_same(path)
    rebase(path, new, "raw")
    views.assert_same(path, expected=before)
    views.assert_clean(path)
