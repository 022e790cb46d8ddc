# SPDX-License-Identifier: Apache-2.0
"""The same random requests to QEMU and to us, each on an image of its own: equal disks."""

import random
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.core.batch import Request
from tests.foreign import qemu, views
from tests.foreign.operations import Generator, Operation, commands
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-io")

SIZE = 6 * MiB + 512
GEOMETRIES = [(4 * KiB, 2), (16 * KiB, 4), (64 * KiB, 16), (1 * MiB, 2)]
COUNT = 250

Runner = Callable[[Path, str, list[Operation]], None]


def one_by_one(path: Path, format: str, requests: list[Operation]) -> None:
    with blocklayer.open(path, mode="r+", format=format) as disk:
        for request in requests:
            request.tell_disk(disk)


def in_batches(path: Path, format: str, requests: list[Operation]) -> None:
    with blocklayer.open(path, mode="r+", format=format) as disk:
        for start in range(0, len(requests), 30):
            batch = [as_batched(request) for request in requests[start : start + 30]]
            disk.submit(batch)
            assert [request.error for request in batch] == [None] * len(batch)


def as_batched(request: Operation) -> Request:
    place = request.offset, request.length
    if request.verb == "write":
        return Request.write(request.offset, bytes([request.value]) * request.length)
    if request.verb == "write_zeroes":
        return Request.write_zeroes(*place, unmap=request.unmap)
    return Request.read(*place) if request.verb == "read" else Request.flush()


def by_command(path: Path, format: str, requests: list[Operation]) -> None:
    words = [word for command in commands(requests) for word in ("-c", command)]
    done = qemu.run(sys.executable, "-m", "blocklayer", "io", "-f", format, *words, path)
    assert done.code == 0, done


RUNNERS = [
    one_by_one,
    in_batches,
    pytest.param(
        by_command,
        marks=pytest.mark.skipif(
            find_spec("blocklayer.cli") is None or find_spec("blocklayer.cli.io") is None,
            reason="there is no 'blk io'",
        ),
    ),
]


def both(
    directory: Path, requests: list[Operation], runner: Runner, *, format: str = "qed"
) -> None:
    """Two copies of the image "new": have both changed, and compare them."""
    ours, theirs = directory / "ours", directory / "theirs"
    start = (directory / "new").read_bytes()
    ours.write_bytes(start)
    theirs.write_bytes(start)
    runner(ours, format, requests)
    qemu.io(theirs, *commands(requests), format=format)
    qemu.compare(ours, theirs, formats=(format, format))
    for image in (ours, theirs):
        seen = views.assert_same(image, format=format)
        if format == "qed":
            views.assert_clean(image)
    assert blocklayer.compare(
        ours, theirs, first_format=format, second_format=format, strict=False
    ).identical
    model = bytearray(views.content(directory / "new", format=format))
    for request in requests:
        request.tell_bytes(model)
    assert seen == model


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(("cluster_size", "table_size"), GEOMETRIES)
def test_images(
    tmp_path: Path, rng: random.Random, runner: Runner, cluster_size: int, table_size: int
) -> None:
    qemu.create(tmp_path / "new", SIZE, cluster_size=cluster_size, table_size=table_size)
    both(tmp_path, Generator(rng, SIZE, cluster_size).many(COUNT), runner)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("base_format", ["qed", "raw"])
@pytest.mark.parametrize("base_size", [2 * MiB + 1536, SIZE, 9 * MiB])
def test_overlays(
    tmp_path: Path, rng: random.Random, runner: Runner, base_format: str, base_size: int
) -> None:
    base = tmp_path / "base"
    qemu.create(base, base_size, format=base_format)
    content = Generator(rng, base_size, 64 * KiB).many(60)
    qemu.io(base, *commands(content), format=base_format)
    cluster_size, table_size = rng.choice(GEOMETRIES)
    blocklayer.create(
        tmp_path / "new",
        format="qed",
        size=SIZE,
        backing="base",
        backing_format=base_format,
        cluster_size=cluster_size,
        table_size=table_size,
    )
    both(tmp_path, Generator(rng, SIZE, cluster_size, over_backing=True).many(COUNT), runner)


@pytest.mark.parametrize("runner", RUNNERS)
def test_raw(tmp_path: Path, rng: random.Random, runner: Runner) -> None:
    qemu.create(tmp_path / "new", SIZE, format="raw")
    both(tmp_path, Generator(rng, SIZE, 64 * KiB).many(COUNT), runner, format="raw")


def test_discards_of_raw_files(tmp_path: Path, rng: random.Random) -> None:
    """Holes in both: what is discarded reads as zeroes where the file system can punch."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path in (ours, theirs):
        path.write_bytes(b"\7" * (SIZE - 512) + b"\5" * 512)
    places = [(rng.randrange(SIZE // 512) * 512, rng.randrange(1, 1000) * 512) for _ in range(10)]
    places = [(offset, min(length, SIZE - offset)) for offset, length in places]
    with blocklayer.open(ours, mode="r+", format="raw", discard="unmap") as disk:
        for place in places:
            disk.discard(*place)
    told = [f"discard {offset} {length}" for offset, length in places]
    qemu.io(theirs, *told, format="raw", options=["-d", "unmap"])
    assert ours.read_bytes() == theirs.read_bytes()
    assert views.extents(ours, format="raw") == views.extents(theirs, format="raw")
    views.assert_same(ours, format="raw")


def test_discards_of_images_lose_nothing_else(tmp_path: Path, rng: random.Random) -> None:
    """QEMU's QED ignores discards; we give space back, and each cluster is as before or zero."""
    path = tmp_path / "image"
    qemu.create(path, SIZE)
    qemu.io(path, *commands(Generator(rng, SIZE, 64 * KiB).many(100)))
    before = views.assert_same(path)
    space = blocklayer.info(path).actual_size
    discarded: set[int] = set()
    told = []
    with blocklayer.open(path, mode="r+", discard="unmap") as disk:
        for _ in range(20):
            offset = rng.randrange(SIZE)
            length = rng.randrange(1, min(10 * 64 * KiB, SIZE - offset + 1))
            told.append(f"discard {offset} {length}")
            disk.discard(offset, length)
            discarded.update(range(-(-offset >> 16), (offset + length) >> 16))
            if offset + length == SIZE:
                discarded.add(SIZE >> 16)
    seen = views.assert_same(path)
    views.assert_clean(path)
    for cluster in range((SIZE >> 16) + 1):
        place = slice(cluster << 16, (cluster + 1) << 16)
        allowed = [before[place]]
        if cluster in discarded:
            allowed.append(bytes(len(before[place])))
        assert seen[place] in allowed
    found = blocklayer.info(path).actual_size
    assert found is not None
    assert space is not None
    assert found < space
    qemu.io(path, *told, options=["-d", "unmap"])
    views.assert_same(path, expected=seen)


@pytest.mark.long
@pytest.mark.parametrize("runner", RUNNERS)
def test_for_long(tmp_path: Path, rng: random.Random, runner: Runner) -> None:
    for turn in range(60):
        directory = tmp_path / str(turn)
        directory.mkdir()
        cluster_size, table_size = GEOMETRIES[turn % len(GEOMETRIES)]
        test_images(directory, rng, runner, cluster_size, table_size)
        overlay = directory / "overlay"
        overlay.mkdir()
        test_overlays(
            overlay, rng, runner, rng.choice(["qed", "raw"]), rng.randrange(1, 20000) * 512
        )
