# SPDX-License-Identifier: Apache-2.0
"""Another size: no byte appears from nowhere, and no space is lost."""

from __future__ import annotations

import random

import pytest

from blocklayer.base.errors import Closed, InvalidArgument, NotSupported, ReadOnly
from blocklayer.base.units import SECTOR, MiB
from blocklayer.formats.qed.layout import Geometry
from blocklayer.testing.recorder import Recorder
from tests.support.graphs import LEAKS, memory, open_disk, tree
from tests.support.qed_image import CLUSTER, QedImage, qed

SPAN = 2 * MiB


def filled(size: int, byte: bytes = b"\xbb") -> QedImage:
    image = QedImage(size, name="base")
    with image.open() as disk:
        disk.write(0, byte * size)
    return image


# --- growing ---


def test_growing_changes_the_header_and_nothing_else() -> None:
    image = QedImage(MiB)
    recorder = Recorder(image.node)
    with open_disk(recorder) as disk:
        disk.write(0, b"x")
        recorder.take()
        disk.resize(64 * MiB)
        assert recorder.take("write", "zero", "truncate") == [("write", 0, 512)]
        assert disk.size == 64 * MiB
        assert disk.read(MiB - 5, MiB) == bytes(MiB)
        disk.write(64 * MiB - 5, b"the e")
    assert image.check().clean


@pytest.mark.parametrize("old", [CLUSTER, 3 * CLUSTER + SECTOR, SPAN, SPAN + SECTOR])
@pytest.mark.parametrize("grown", [SECTOR, CLUSTER, SPAN, 3 * SPAN + SECTOR])
@pytest.mark.parametrize("written", [False, True])
def test_a_longer_backing_file_does_not_show(old: int, grown: int, written: bool) -> None:
    base = filled(2 * SPAN + 3 * CLUSTER)
    image = QedImage(old, backing_file="base", backing_fmt="qed")
    with image.open(base.tree()) as disk:
        if written:
            disk.write(old - 1, b"!")
        before = disk.read(0, old)
        assert before[:-1] == b"\xbb" * (old - 1)
        disk.resize(old + grown)
        assert disk.read(0, old) == before
        assert disk.read(old, grown) == bytes(grown)
        disk.write(old + grown - 1, b"?")
        assert disk.read(old, grown) == bytes(grown - 1) + b"?"
    with image.open(base.tree(), read_only=True) as disk:
        assert disk.read(0, old + grown) == before + bytes(grown - 1) + b"?"
    assert image.check().clean


def test_an_overlay_does_not_grow_without_its_backing_file() -> None:
    """Nobody knows what there is to be hidden."""
    image = QedImage(CLUSTER, backing_file="base", backing_fmt="qed")
    before = image.content
    with image.open(backing_chain=False) as disk:
        with pytest.raises(NotSupported, match="without its backing file"):
            disk.resize(MiB)
        assert disk.size == CLUSTER
    assert image.content == before


def test_entries_behind_the_end_do_not_show_when_the_disk_grows() -> None:
    """Another program may shrink by changing the header alone."""
    image = filled(SPAN + MiB)
    image.set_header(image_size=5 * CLUSTER + SECTOR)
    with image.open() as disk:
        disk.resize(SPAN + MiB)
        kept = 5 * CLUSTER + SECTOR
        assert disk.read(0, kept) == b"\xbb" * kept
        assert disk.read(kept, disk.size - kept) == bytes(disk.size - kept)
    assert not image.check().corruptions


@pytest.mark.parametrize("preallocation", ["falloc", "full", "metadata", "nonsense"])
def test_preallocation_is_refused(preallocation: str) -> None:
    image = QedImage(MiB)
    before = image.content
    with image.open() as disk:
        with pytest.raises(NotSupported, match="Unsupported preallocation mode"):
            disk.resize(2 * MiB, preallocation=preallocation)
        assert disk.size == MiB
    assert image.content == before


@pytest.mark.parametrize("size", [MiB + 1, -512, Geometry(CLUSTER, 1).image_size_max + SECTOR])
def test_sizes_that_cannot_be(size: int) -> None:
    image = QedImage(MiB)
    before = image.content
    with image.open() as disk, pytest.raises(InvalidArgument):
        disk.resize(size)
    assert image.content == before


def test_who_may_not_resize() -> None:
    image = QedImage(MiB)
    with image.open(read_only=True) as disk, pytest.raises(ReadOnly):
        disk.resize(2 * MiB)
    disk = image.open()
    disk.close()
    with pytest.raises(Closed):
        disk.resize(2 * MiB)
    assert image.header.image_size == MiB


# --- shrinking ---


@pytest.mark.parametrize("size", [0, SECTOR, CLUSTER, 7 * CLUSTER + SECTOR, SPAN, SPAN + CLUSTER])
def test_what_is_cut_off_is_given_back_and_is_zero_when_it_comes_back(size: int) -> None:
    whole = 2 * SPAN + 5 * CLUSTER
    image = filled(whole)
    with image.open() as disk:
        disk.resize(size)
        tables = -(-size // SPAN)
        clusters = -(-size // CLUSTER)
        assert image.node.size == (2 + tables + clusters) * CLUSTER
        assert image.check().clean
        disk.resize(whole)
        assert disk.read(0, whole) == b"\xbb" * size + bytes(whole - size)
    assert image.check().clean


def test_shrinking_over_a_backing_file() -> None:
    base = filled(SPAN)
    image = QedImage(SPAN, backing_file="base", backing_fmt="qed")
    with image.open(base.tree()) as disk:
        disk.write(0, b"x" * MiB)
        disk.write_zeroes(MiB, CLUSTER)
        disk.resize(5 * CLUSTER + SECTOR)
        disk.resize(SPAN)
        assert disk.read(0, 5 * CLUSTER + SECTOR) == b"x" * (5 * CLUSTER + SECTOR)
        rest = SPAN - 5 * CLUSTER - SECTOR
        assert disk.read(5 * CLUSTER + SECTOR, rest) == bytes(rest)
    assert image.check().clean


def test_emptying_an_overlay() -> None:
    base = filled(SPAN)
    image = QedImage(SPAN, backing_file="base", backing_fmt="qed")
    empty = image.node.size
    with image.open(base.tree()) as disk:
        disk.write(CLUSTER, b"x" * MiB)
        disk.write_zeroes(0, 100)
        qed(disk).make_empty()
        assert disk.read(0, SPAN) == b"\xbb" * SPAN
        disk.write(5, b"again")
        assert disk.read(0, 11) == b"\xbb" * 5 + b"again" + b"\xbb"
    assert image.check().clean
    assert image.node.size == empty + 2 * CLUSTER


# --- giving leaks back ---


def scatter(image: QedImage, rng: random.Random, clusters: int) -> dict[int, bytes]:
    """Write clusters in any order over several tables; what is where."""
    content = {
        offset * CLUSTER: rng.randbytes(16) * (CLUSTER // 16)
        for offset in rng.sample(range(image.header.image_size // CLUSTER), clusters)
    }
    with image.open() as disk:
        for offset, data in content.items():
            disk.write(offset, data)
    return content


@pytest.mark.parametrize("table_size", [1, 2, 4])
@pytest.mark.parametrize("clusters", [0, 1, 3, 30])
@pytest.mark.parametrize("turn", range(4))
def test_leaks_are_given_back_wherever_they_are(
    rng: random.Random, table_size: int, clusters: int, turn: int
) -> None:
    """Afterwards the file has exactly the clusters in use, and reads as before."""
    image = QedImage(6 * table_size * SPAN, table_size=table_size)
    content = scatter(image, rng, clusters + 4)
    for offset in rng.sample(list(content), 3):
        image.set_l2(offset, rng.choice([0, 1]))
        content[offset] = bytes(CLUSTER)
    if turn % 2 and clusters:
        # A whole table and all its clusters.
        lost = image.geometry.l1_index(next(iter(content)))
        image.set_l1(next(iter(content)), 0)
        for offset in content:
            if image.geometry.l1_index(offset) == lost:
                content[offset] = bytes(CLUSTER)
    image.node.truncate(image.node.size + rng.randrange(3) * CLUSTER)
    leaks = image.check().leaks
    assert leaks > 0
    size = image.node.size
    result = image.check(LEAKS)
    assert (result.leaks, result.leaks_fixed) == (0, leaks)
    assert image.node.size == size - leaks * CLUSTER
    assert image.check().clean
    with image.open() as disk:
        for offset, data in content.items():
            assert disk.read(offset, CLUSTER) == data


def test_leaks_in_an_image_of_tables_alone(rng: random.Random) -> None:
    """No hole takes a table and no data can get out of the way: the tables slide."""
    image = QedImage(20 * SPAN * 4, table_size=2)
    with image.open() as disk:
        disk.write(0, b"makes a hole later")
        for table in range(1, 8):
            disk.write_zeroes(table * 4 * SPAN, CLUSTER)
    image.set_l2(0, 0)
    assert image.check().leaks == 1
    result = image.check(LEAKS)
    assert (result.leaks, result.leaks_fixed) == (0, 1)
    assert image.check().clean
    with image.open() as disk:
        assert disk.read(0, disk.size // 8) == bytes(disk.size // 8)
        assert [image.l2(table * 4 * SPAN) for table in range(8)] == [0] + [1] * 7


def test_storage_that_cannot_shrink_keeps_its_leaks() -> None:
    from blocklayer.testing.liar import Liar

    image = QedImage(SPAN)
    with image.open() as disk:
        disk.write(0, b"x")
        disk.write(CLUSTER, b"y")
    image.set_l2(0, 0)
    before = image.content
    with open_disk(Liar(image.node, fixed=True, zeroes=1.0)) as disk:
        result = qed(disk).check(LEAKS)
    assert (result.leaks, result.leaks_fixed) == (1, 0)
    assert image.content == before


def test_an_overlay_of_a_raw_file_that_ends_inside_a_cluster() -> None:
    base = memory("base", 3 * CLUSTER + 100)
    base.writev(0, [memoryview(b"\xbb" * base.size)])
    image = QedImage(2 * CLUSTER, backing_file="base", backing_fmt="raw")
    with image.open(tree(base, "raw")) as disk:
        disk.resize(MiB)
        assert disk.read(0, MiB) == b"\xbb" * 2 * CLUSTER + bytes(MiB - 2 * CLUSTER)
        disk.write(3 * CLUSTER + 50, b"x")
        assert disk.read(3 * CLUSTER, CLUSTER) == bytes(50) + b"x" + bytes(CLUSTER - 51)
