# SPDX-License-Identifier: Apache-2.0
"""Extents: which layer has what, where it lies, and the ends of shorter layers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from blocklayer.base.extent import Extent
from blocklayer.base.options import OptionTree
from blocklayer.base.units import KiB, MiB
from blocklayer.core import mapping
from blocklayer.core.disk import Disk
from blocklayer.core.filter import FilterNode
from blocklayer.core.mapping import extents, reads_as_zero, resolve
from blocklayer.core.node import Node
from blocklayer.core.opening import Opener, OpenFlags
from blocklayer.core.padding import Padded
from blocklayer.testing.liar import Liar
from blocklayer.testing.model import ModelDisk
from tests.support.graphs import create, memory, open_disk, open_node, tree
from tests.support.qed_image import CLUSTER, QedImage


def summary(disk: Disk, offset: int = 0, length: int | None = None) -> list[tuple[str, int, int]]:
    """Status, depth and end of each extent, in clusters."""
    return [(e.status, e.depth, e.end // CLUSTER) for e in disk.extents(offset, length)]


@pytest.fixture
def chain() -> tuple[list[QedImage], OptionTree]:
    """Three layers of 8, 4 and 6 clusters, counted from the top."""
    images = [
        QedImage(8 * CLUSTER, name="top", backing_file="x"),
        QedImage(4 * CLUSTER, name="middle", backing_file="x"),
        QedImage(6 * CLUSTER, name="bottom"),
    ]
    below: OptionTree | None = None
    for image in reversed(images):
        below = image.tree(below)
    assert below is not None
    return images, below


def test_every_layer_shows_what_the_others_leave(
    chain: tuple[list[QedImage], OptionTree],
) -> None:
    images, options = chain
    with images[2].open() as disk:
        disk.write(0, b"c" * 6 * CLUSTER)
    with images[1].open(images[2].tree()) as disk:
        disk.write(CLUSTER, b"b" * CLUSTER)
        disk.write_zeroes(2 * CLUSTER, CLUSTER)
    with images[0].open(images[1].tree(images[2].tree())) as disk:
        disk.write(0, b"a" * CLUSTER)
        disk.write_zeroes(7 * CLUSTER, CLUSTER)
    disk = Disk(open_node(options, read_only=True))
    assert summary(disk) == [
        ("data", 0, 1),
        ("data", 1, 2),
        ("zero", 1, 3),
        ("data", 2, 4),
        # The bottom is longer than the middle, which is all that the top can see.
        ("hole", 0, 7),
        ("zero", 0, 8),
    ]
    names = [extent.filename for extent in disk.extents() if extent.data]
    assert names == ["top", "middle", "bottom"]
    for extent in disk.extents():
        if extent.host_offset is not None:
            image = next(image for image in images if image.node.filename == extent.filename)
            assert image.get(extent.host_offset, extent.length) == disk.read(
                extent.offset, extent.length
            )
    disk.close()


@pytest.mark.parametrize("offset", [0, 1, CLUSTER - 1, CLUSTER, 3 * CLUSTER + 5, 8 * CLUSTER - 1])
@pytest.mark.parametrize("length", [1, 100, CLUSTER, 3 * CLUSTER, 8 * CLUSTER])
def test_a_range_is_covered_and_no_more(
    chain: tuple[list[QedImage], OptionTree], offset: int, length: int
) -> None:
    images, options = chain
    with images[2].open() as disk:
        disk.write(CLUSTER, b"c" * 2 * CLUSTER)
    disk = Disk(open_node(options, read_only=True))
    length = min(length, disk.size - offset)
    position = offset
    for extent in disk.extents(offset, length):
        assert extent.offset == position
        assert extent.length > 0
        position = extent.end
    assert position == offset + length
    disk.close()


def test_one_answer_for_a_run_that_several_tables_and_slices_map() -> None:
    image = QedImage(64 * MiB)
    with image.open() as disk:
        assert len(list(disk.extents())) == 1
        disk.write_zeroes(0, disk.size)
        [extent] = disk.extents()
        assert (extent.status, extent.length) == ("zero", 64 * MiB)


def test_fragments_are_not_merged_where_their_places_are_apart() -> None:
    image = QedImage(MiB)
    with image.open() as disk:
        disk.write(CLUSTER, b"second" * 1000)
        disk.write(0, b"first" * 800)
        found = [e for e in disk.extents() if e.data]
        assert len(found) == 2
        assert found[0].host_offset is not None
        assert found[1].host_offset is not None
        assert found[0].host_offset > found[1].host_offset


def test_merging_ends_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever walks a hostile table can stop."""
    monkeypatch.setattr(mapping, "MERGED_MAX", 10)
    node = Liar(memory(size=64 * KiB), granularity=KiB)
    found = list(extents(node, 0, 64 * KiB))
    assert [extent.length for extent in found] == [11 * KiB] * 5 + [9 * KiB]


# --- storage ---


def test_holes_of_storage_show_through_raw(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.seek(64 * KiB)
        file.write(b"x" * 64 * KiB)
        file.truncate(MiB)
    node = Opener(OpenFlags()).open_options({"driver": "raw", "file": str(path)})
    with Disk(node) as disk:
        assert [(e.status, e.end) for e in disk.extents()] == [
            *(("zero", 64 * KiB), ("data", 128 * KiB), ("zero", MiB)),
        ]
        assert all(e.host_offset == e.offset and e.present for e in disk.extents())
        [whole] = extents(node, 0, MiB, holes=False)
        assert whole.status == "data"


def test_the_tail_of_an_odd_file_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 1000)
    node = Opener(OpenFlags()).open_options({"driver": "raw", "file": str(path)})
    with Disk(node) as disk:
        assert disk.size == 1024
        assert disk.read(990, 34) == b"x" * 10 + bytes(24)
        assert [(e.status, e.end) for e in disk.extents()] == [("data", 1000), ("zero", 1024)]


def test_filters_are_no_layers() -> None:
    """Neither above an image nor between it and its file, nor in a chain."""
    base, top = QedImage(MiB, name="base"), QedImage(MiB, name="top", backing_file="base")
    with base.open() as disk:
        disk.write(0, b"x" * CLUSTER)
    plain = Disk(open_node(top.tree(base.tree()), read_only=True))
    expected = list(plain.extents())
    filtered = open_node(
        tree(FilterNode(top.node), backing=tree(FilterNode(base.node))), read_only=True
    )
    over = Disk(FilterNode(FilterNode(filtered)))
    assert list(over.extents()) == expected
    assert expected[0].depth == 1
    over.close()
    plain.close()


def test_a_format_in_a_format() -> None:
    """QED whose file is the content of a raw window of a disk that is QED itself."""
    outer = QedImage(4 * MiB, name="outer")
    with outer.open() as disk:
        disk.write(0, b"in front" * 512)
    window = open_node(
        {"driver": "raw", "file": open_node(outer.tree()), "offset": 64 * KiB, "size": 2 * MiB}
    )
    inner = memory(size=0)
    create(inner, size=MiB, cluster_size=CLUSTER, table_size=1)
    content = bytearray(inner.size)
    inner.readv(0, [memoryview(content)])
    window.writev(0, [memoryview(content)])
    assert window.size == 2 * MiB
    with open_disk(window, read_only=True) as disk:
        assert [e.status for e in disk.extents()] == ["hole"]
        assert disk.read(0, MiB) == bytes(MiB)


def test_padding_and_granularity_do_not_matter() -> None:
    node = memory(size=MiB)
    node.writev(64 * KiB, [memoryview(b"x" * 64 * KiB)])
    expected = list(extents(node, 0, MiB))
    assert len(expected) == 3
    for over in (
        Liar(node, granularity=512),
        Padded(Liar(node, granularity=4096, alignment=512)),
        FilterNode(Liar(node, granularity=4096)),
    ):
        assert list(extents(over, 0, MiB)) == expected


# --- known to be zero ---


def test_what_is_known_to_be_zero(chain: tuple[list[QedImage], OptionTree]) -> None:
    images, options = chain
    with images[2].open() as disk:
        disk.write(2 * CLUSTER, b"c" * CLUSTER)
    node = open_node(options, read_only=True)
    assert reads_as_zero(node, 0, 2 * CLUSTER)
    assert not reads_as_zero(node, 0, 2 * CLUSTER + 1)
    assert not reads_as_zero(node, 3 * CLUSTER - 1, CLUSTER)
    assert reads_as_zero(node, 3 * CLUSTER, 5 * CLUSTER)
    node.close()


def test_behind_the_end_there_is_nothing() -> None:
    node: Node = memory(size=1000)
    found = resolve(node, 1000, 50)
    assert (found.length, found.zero, found.present) == (50, True, False)


def test_extents_follow_each_other_only_in_every_respect() -> None:
    one = Extent(0, 10, True, False, True, 0, 100, "file")
    assert Extent(10, 5, True, False, True, 0, 110, "file").follows(one)
    for other in (
        Extent(10, 5, False, True, True, 0, 110, "file"),
        Extent(10, 5, True, False, True, 1, 110, "file"),
        Extent(10, 5, True, False, True, 0, 111, "file"),
        Extent(10, 5, True, False, True, 0, 110, "other"),
        Extent(10, 5, True, False, True, 0),
    ):
        assert not other.follows(one)
        assert not one.follows(other)
    joined = one.joined(Extent(10, 5, True, False, True, 0, 110, "file"))
    assert joined == Extent(0, 15, True, False, True, 0, 100, "file")
    assert joined.part(3, 4) == Extent(3, 4, True, False, True, 0, 103, "file")
    assert joined.moved(50).offset == 50
    assert hash(joined) == hash(joined.part(0, 15))
    assert "data depth 0 at 0x64 in file" in repr(joined)


def test_a_disk_walks_while_it_shrinks(rng: random.Random) -> None:
    image = QedImage(4 * MiB)
    with image.open() as disk:
        for cluster in range(0, 400, 3):
            disk.write(cluster * CLUSTER, b"x")
        walk = disk.extents()
        first = next(walk)
        assert first.data
        disk.resize(MiB)
        rest = list(walk)
        assert rest[-1].end == 4 * MiB
        model = ModelDisk(MiB)
        for cluster in range(0, 256, 3):
            model.write(cluster * CLUSTER, b"x")
        model.check(disk)
