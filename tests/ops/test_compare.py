# SPDX-License-Identifier: Apache-2.0
"""Comparing: the verdict is that of the bytes, whatever the formats, chains and sizes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer import Cancelled, CancelToken, CompareResult, InvalidArgument, IoError, OpenError
from blocklayer.base.align import align_down
from blocklayer.base.units import KiB, MiB
from blocklayer.ops.compare import compare_disks
from blocklayer.ops.compare_contents import first_difference, zip_extents
from tests.ops.images import (
    CLUSTER,
    SMALL,
    Layer,
    Watcher,
    base,
    cancelled_everywhere,
    chain,
    faulty,
    make,
    overlay,
    unchanged,
)


def expected(one: Layer, two: Layer) -> CompareResult:
    """The verdict by looking at every byte."""
    ours, theirs = one.content, two.content
    differ = len(ours) != len(theirs)
    length = max(len(ours), len(theirs))
    ours, theirs = ours.ljust(length, b"\0"), theirs.ljust(length, b"\0")
    if ours == theirs:
        return CompareResult(True, sizes_differ=differ)
    first = next(index for index in range(length) if ours[index] != theirs[index])
    return CompareResult(False, align_down(first, 512), "content", differ)


def compare(one: Layer, two: Layer, **options: Any) -> CompareResult:
    return blocklayer.compare(
        one.path, two.path, first_format=one.format, second_format=two.format, **options
    )


def test_the_verdict_is_that_of_the_bytes(tmp_path: Path, rng: random.Random) -> None:
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        sizes = [rng.choice((0, 512, 30000, 70000, 150000)) for _ in range(3)]
        layers = chain(folder, rng, *sizes, bottom=rng.choice(("raw", "qed")))
        same = make(folder / "same", layers[-1].content, rng.choice(("raw", "qed")))
        longer = make(folder / "longer", layers[-1].content + bytes(5 * 512), "qed")
        other = bytearray(layers[-1].content + bytes(512))
        other[rng.randrange(len(other))] ^= 1
        layers += [same, longer, make(folder / "other", bytes(other), "raw")]
        with unchanged(folder):
            for one in layers:
                for two in layers:
                    assert compare(one, two) == expected(one, two)


@pytest.mark.parametrize("size", [512, 2 * MiB - 512, 2 * MiB, 2 * MiB + 512])
def test_many_small_extents(tmp_path: Path, size: int) -> None:
    """As many loads as there can be of what one thread reads, and of what two do."""
    small: dict[str, Any] = {"cluster_size": 4096, "table_size": 1}
    pair = [tmp_path / "one", tmp_path / "two"]
    for path in pair:
        blocklayer.create(path, format="qed", size=size, **small)
        with blocklayer.open(path, mode="r+") as disk:
            for offset in range(0, size, 8192):
                disk.write(offset, b"x" * min(4096, size - offset))
    assert blocklayer.compare(*pair).identical
    with blocklayer.open(pair[1], mode="r+") as disk:
        disk.write(size - 1, b"y")
    assert blocklayer.compare(*pair).offset == size - 512


def test_every_sector_of_a_difference(tmp_path: Path) -> None:
    """In two pieces of data, in data against zeroes, and behind the end of the shorter disk."""
    size = 4 * MiB + 2048
    data, zero = make(tmp_path / "data", b"x" * size), make(tmp_path / "zero", bytes(size), "qed")
    short = make(tmp_path / "short", bytes(0), "qed")
    for position in (0, 1, 511, 512, CLUSTER, 2 * MiB - 1, 2 * MiB, 4 * MiB + 513, size - 1):
        for other, content in ((data, b"x" * size), (zero, bytes(size)), (short, bytes(size))):
            changed = bytearray(content)
            changed[position] ^= 1
            one = make(tmp_path / "one", bytes(changed))
            for pair in ((one, other), (other, one)):
                result = compare(*pair)
                assert (result.identical, result.kind) == (False, "content")
                assert result.offset == align_down(position, 512)
                assert result.sizes_differ is (other is short)


@pytest.mark.parametrize("length", [1, 2, 511, 512, 513, 1024, 1025, 5000, 65536])
def test_the_first_difference(rng: random.Random, length: int) -> None:
    ours = rng.randbytes(length)
    for position in {0, length - 1, *(rng.randrange(length) for _ in range(50))}:
        theirs = bytearray(ours)
        for _ in range(rng.randint(0, 3)):
            theirs[rng.randrange(position, length)] ^= 1
        theirs[position] ^= 0x80
        assert first_difference(ours, bytes(theirs)) == align_down(position, 512)


def test_extents_in_pairs_cover_the_same_ranges(tmp_path: Path, rng: random.Random) -> None:
    layers = chain(tmp_path, rng, 100000, 100000, 100000)
    with (
        blocklayer.open(layers[1].path) as one,
        blocklayer.open(layers[2].path) as two,
    ):
        for length in (0, 1, 513, 50000, layers[0].model.size):
            position = 0
            for left, right in zip_extents(one, two, length):
                assert left.offset == right.offset == position
                assert left.length == right.length > 0
                position += left.length
            assert position == length


# --- strict ---


def test_strict_comparison(tmp_path: Path, rng: random.Random) -> None:
    size = 20 * CLUSTER
    one = base(tmp_path / "one", size, rng, "qed")
    copy = tmp_path / "copy"
    copy.write_bytes(one.path.read_bytes())
    same = Layer(copy, one.model, "qed")
    assert compare(one, same, strict=True) == CompareResult(True)
    longer = make(tmp_path / "longer", one.content + bytes(512), "qed")
    assert compare(one, longer) == CompareResult(True, sizes_differ=True)
    assert compare(one, longer, strict=True) == CompareResult(False, None, "size", True)
    data, hole, zero = (tmp_path / name for name in ("data", "hole", "zero"))
    for path in (data, hole, zero):
        blocklayer.create(path, format="qed", size=size, **SMALL)
    with blocklayer.open(data, mode="r+") as disk:
        disk.write(3 * CLUSTER, bytes(CLUSTER))
    with blocklayer.open(zero, mode="r+") as disk:
        disk.write_zeroes(3 * CLUSTER, CLUSTER)
    for first in (data, hole, zero):
        for second in (data, hole, zero):
            assert blocklayer.compare(first, second) == CompareResult(True)
            verdict = blocklayer.compare(first, second, strict=True)
            if first is second:
                assert verdict == CompareResult(True)
            else:
                assert verdict == CompareResult(False, 3 * CLUSTER, "status")


# --- progress and cancellation ---


def test_progress(tmp_path: Path, rng: random.Random) -> None:
    one = make(tmp_path / "one", rng.randbytes(5 * MiB), "qed")
    two = make(tmp_path / "two", one.content + bytes(3 * MiB), "raw")
    watch = Watcher("compare")
    assert blocklayer.compare(one.path, two.path, progress=watch).identical
    assert watch.finished
    assert watch.seen[0].done == 0
    assert watch.seen[-1].total == 8 * MiB
    assert len(watch.seen) > 4
    for step in cancelled_everywhere("compare", len(watch.seen)):
        with unchanged(tmp_path), pytest.raises(Cancelled, match="compare was cancelled"):
            blocklayer.compare(one.path, two.path, progress=step, cancel=step.token)
    with blocklayer.open(one.path, mode="r+"):
        pass  # nobody holds a lock any more


def test_nothing_is_compared_after_a_cancellation(tmp_path: Path) -> None:
    make(tmp_path / "one", b"x" * 512)
    token = CancelToken()
    assert not token.cancelled
    token.cancel()
    token.cancel()
    assert token.cancelled
    with pytest.raises(Cancelled):
        blocklayer.compare(tmp_path / "one", tmp_path / "one", cancel=token)


def test_empty_disks_are_done_at_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make(tmp_path / name, b"")
    watch = Watcher("compare")
    assert blocklayer.compare(tmp_path / "one", tmp_path / "two", progress=watch).identical
    assert watch.finished


# --- opening ---


def test_formats_locks_and_names(tmp_path: Path, rng: random.Random) -> None:
    layer = base(tmp_path / "image", MiB, rng, "qed")
    top = overlay(tmp_path / "top", layer, rng)
    raw = Layer(layer.path, layer.model, "raw")
    assert not compare(layer, raw).identical
    assert blocklayer.compare(str(top.path), {"driver": "qed", "file.filename": str(top.path)})
    assert blocklayer.compare(f"file:{top.path}", top.path).identical
    with blocklayer.open(layer.path, mode="r+"):
        with pytest.raises(OpenError, match="lock"):
            compare(layer, layer)
        assert compare(layer, layer, force_share=True).identical
    for cache in ("none", "unsafe"):
        assert blocklayer.compare(layer.path, layer.path, cache=cache).identical
    with pytest.raises(InvalidArgument, match="Invalid cache option"):
        blocklayer.compare(layer.path, layer.path, cache="hot")
    for pair in ((layer.path, tmp_path / "missing"), (tmp_path / "missing", layer.path)):
        with pytest.raises(OpenError, match="No such file"):
            blocklayer.compare(*pair)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    layer = make(tmp_path / "image", b"x" * (64 * KiB))
    bad = faulty(layer.path, "raw", {"iotype": "read", "sector": 70})
    for pair in ((layer.path, bad), (bad, layer.path)):
        with pytest.raises(IoError) as caught:
            blocklayer.compare(*pair, first_format="raw", second_format="raw")
        assert caught.value.operation == "read"


def test_disks_that_are_open(tmp_path: Path, rng: random.Random) -> None:
    layer = base(tmp_path / "image", MiB, rng, "qed")
    with blocklayer.open(layer.path) as one, blocklayer.open(layer.path) as two:
        assert compare_disks(one, two, strict=True) == CompareResult(True)
        assert not one.closed
        assert not two.closed
