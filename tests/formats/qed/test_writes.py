# SPDX-License-Identifier: Apache-2.0
"""Which requests reach the file, and in which order; zero clusters; entries that cannot be."""

from __future__ import annotations

import random

import pytest

from blocklayer.base.errors import BlocklayerError, CorruptImage, TruncatedImage
from blocklayer.base.options import OptionTree
from blocklayer.base.units import SECTOR, KiB, MiB
from blocklayer.core.batch import Request
from blocklayer.core.disk import Disk
from blocklayer.core.node import Node
from blocklayer.formats.qed.layout import F_NEED_CHECK
from blocklayer.testing.recorder import Recorded, Recorder
from tests.support.graphs import create, memory, open_disk, tree
from tests.support.qed_image import CLUSTER, QedImage

SPAN = 2 * MiB
"""Guest bytes of a table of one cluster of 4 KiB."""


def over(image: QedImage, size: int, **options: int) -> tuple[QedImage, OptionTree]:
    """A new overlay, and what it lies over."""
    overlay = QedImage(size, name="overlay", backing_file="base", backing_fmt="qed", **options)
    return overlay, image.tree()


def recorded(node: Node, backing: OptionTree | None = None) -> tuple[Disk, Recorder]:
    recorder = Recorder(node)
    disk = open_disk(recorder, backing=backing)
    recorder.take()
    return disk, recorder


def changes(recorder: Recorder) -> list[Recorded]:
    return recorder.take("write", "zero", "discard", "flush", "truncate")


# --- the order of things ---

HEADER = ("write", 0, 512)
FLUSH = ("flush", 0, 0)


def test_the_first_write_ever() -> None:
    """Bit, flush, data, table, flush, L1 entry."""
    image = QedImage(8 * MiB)
    disk, recorder = recorded(image.node)
    disk.write(5 * CLUSTER, b"x" * CLUSTER)
    data, table = 2 * CLUSTER, 3 * CLUSTER
    assert changes(recorder) == [
        HEADER,
        FLUSH,
        ("write", data, CLUSTER),
        ("truncate", table + CLUSTER, 0),
        ("write", table, CLUSTER),
        FLUSH,
        ("write", CLUSTER, 512),
    ]
    disk.write(9 * CLUSTER, b"y" * CLUSTER)
    assert changes(recorder) == [("write", 4 * CLUSTER, CLUSTER), ("write", table, 512)]
    disk.write(9 * CLUSTER + 10, b"in place")
    assert changes(recorder) == [("write", 4 * CLUSTER + 10, 8)]
    disk.close()
    assert changes(recorder) == [FLUSH, FLUSH, HEADER, FLUSH]


def test_a_part_of_a_cluster_over_nothing_is_all_that_is_written() -> None:
    image = QedImage(8 * MiB)
    disk, recorder = recorded(image.node)
    disk.write(0, b"makes the table")
    changes(recorder)
    disk.write(5 * CLUSTER + 100, b"part")
    assert changes(recorder) == [
        ("truncate", 5 * CLUSTER, 0),
        ("write", 4 * CLUSTER + 100, 4),
        ("write", 3 * CLUSTER, 512),
    ]
    disk.close()


def test_an_overlay_flushes_its_data_and_leaves_the_bit_alone() -> None:
    base = QedImage(8 * MiB)
    with base.open() as disk:
        disk.write(0, b"base" * CLUSTER)
    overlay, backing = over(base, 8 * MiB)
    disk, recorder = recorded(overlay.node, backing)
    disk.write(100, b"x")
    table = 3 * CLUSTER
    assert changes(recorder) == [
        ("truncate", 3 * CLUSTER, 0),
        ("write", 2 * CLUSTER, CLUSTER),
        ("truncate", 4 * CLUSTER, 0),
        ("write", table, CLUSTER),
        FLUSH,
        ("write", CLUSTER, 512),
    ]
    disk.write(2 * CLUSTER, b"y" * CLUSTER)
    assert changes(recorder) == [
        ("write", 4 * CLUSTER, CLUSTER),
        FLUSH,
        ("write", table, 512),
    ]
    assert not overlay.header.features & F_NEED_CHECK
    disk.close()


def test_one_request_is_one_run_and_one_entry_update() -> None:
    image = QedImage(8 * MiB, cluster_size=64 * KiB)
    disk, recorder = recorded(image.node)
    disk.write(0, b"t")
    changes(recorder)
    disk.write(64 * KiB, b"x" * (20 * 64 * KiB))
    writes = changes(recorder)
    assert [verb for verb, _, _ in writes] == ["write", "write"]
    assert writes[0][2] == 20 * 64 * KiB
    assert writes[1][2] == 512
    disk.close()


def test_a_batch_costs_one_flush_and_one_table_update() -> None:
    base = QedImage(8 * MiB)
    overlay, backing = over(base, 8 * MiB)
    disk, recorder = recorded(overlay.node, backing)
    disk.write(0, b"t")
    changes(recorder)
    requests = [(offset * CLUSTER, b"x" * CLUSTER) for offset in range(2, 40, 3)]
    disk.write_many(requests)
    done = changes(recorder)
    assert [request.verb for request in done].count("flush") == 1
    entries = [request for request in done if request[0] == "write" and request[1] < 4 * CLUSTER]
    assert entries == [("write", 3 * CLUSTER, 512)]
    disk.close()


@pytest.mark.parametrize("clusters", [4094, 4095, 4096, 4097, 5120])
def test_requests_of_very_many_clusters(clusters: int) -> None:
    """Exactly the clusters asked for are allocated: one more would hide what is below."""
    size = (clusters + 3) * CLUSTER
    below = memory("below", size)
    below.writev(0, [memoryview(b"\x5a" * size)])
    overlay = QedImage(size, table_size=16, backing_file="below", backing_fmt="raw")
    with overlay.open(tree(below, "raw")) as disk:
        disk.write(CLUSTER, b"x" * (clusters * CLUSTER))
        assert disk.read(0, CLUSTER) == b"\x5a" * CLUSTER
        assert disk.read((clusters + 1) * CLUSTER, 2 * CLUSTER) == b"\x5a" * 2 * CLUSTER
        assert disk.read(clusters * CLUSTER, CLUSTER) == b"x" * CLUSTER
    result = overlay.check()
    assert result.clean
    assert result.allocated_clusters == clusters


@pytest.mark.parametrize("table_size", [1, 2, 16])
def test_a_request_over_whole_tables(table_size: int) -> None:
    """From before one table to behind the next, data and zeroes."""
    span = table_size * CLUSTER // 8 * CLUSTER
    image = QedImage(2 * span + 9 * CLUSTER, table_size=table_size)
    with image.open() as disk:
        disk.write(CLUSTER - 7, b"x" * (min(span, 8 * MiB) + 9 * CLUSTER))
        disk.write_zeroes(3, 2 * span)
        assert disk.read(0, 3 * CLUSTER) == bytes(3 * CLUSTER)
        assert disk.read(disk.size - CLUSTER, CLUSTER) == bytes(CLUSTER)
    assert image.check().clean


# --- zero clusters ---


@pytest.mark.parametrize("within", [0, 100, CLUSTER - 20])
def test_a_write_into_a_zero_cluster_does_not_bring_back_what_is_below(within: int) -> None:
    base = QedImage(MiB)
    with base.open() as disk:
        disk.write(0, b"\xbb" * MiB)
    overlay, backing = over(base, MiB)
    with overlay.open(backing) as disk:
        disk.write_zeroes(CLUSTER, 3 * CLUSTER)
        assert overlay.l2(2 * CLUSTER) == 1
        disk.write(2 * CLUSTER + within, b"data")
        expected = bytes(within) + b"data" + bytes(CLUSTER - within - 4)
        assert disk.read(2 * CLUSTER, CLUSTER) == expected
        assert disk.read(CLUSTER, CLUSTER) == disk.read(3 * CLUSTER, CLUSTER) == bytes(CLUSTER)
        assert disk.read(0, CLUSTER) == disk.read(4 * CLUSTER, CLUSTER) == b"\xbb" * CLUSTER
    with overlay.open(backing) as disk:
        assert disk.read(2 * CLUSTER, CLUSTER) == expected
    assert overlay.check().clean


def test_a_run_of_both_kinds_of_clusters_takes_each_one_s_own_surroundings() -> None:
    """Head in a zero cluster, tail in an unallocated one, and the other way round."""
    base = QedImage(MiB)
    with base.open() as disk:
        disk.write(0, b"\xbb" * MiB)
    overlay, backing = over(base, MiB)
    with overlay.open(backing) as disk:
        disk.write_zeroes(CLUSTER, CLUSTER)
        disk.write(CLUSTER + 50, b"x" * CLUSTER)
        assert disk.read(CLUSTER, 50) == bytes(50)
        assert disk.read(2 * CLUSTER + 50, CLUSTER) == b"\xbb" * CLUSTER
        disk.write_zeroes(9 * CLUSTER, CLUSTER)
        disk.write(8 * CLUSTER + 50, b"x" * CLUSTER)
        assert disk.read(8 * CLUSTER, 50) == b"\xbb" * 50
        assert disk.read(9 * CLUSTER + 50, CLUSTER - 50) == bytes(CLUSTER - 50)


def test_zeroing_needs_no_space_where_nothing_is_stored() -> None:
    base = QedImage(8 * MiB)
    with base.open() as disk:
        disk.write(0, b"\xbb" * MiB)
    overlay, backing = over(base, 8 * MiB)
    disk, recorder = recorded(overlay.node, backing)
    size = overlay.node.size
    disk.write_zeroes(0, 8 * MiB)
    # Four tables, and nothing else.
    assert overlay.node.size == size + 4 * CLUSTER
    assert {overlay.l2(offset) for offset in range(0, 8 * MiB, CLUSTER)} == {1}
    recorder.take()
    disk.write_zeroes(0, 8 * MiB, unmap=True)
    assert [r for r in recorder.take() if r.verb != "read"] == []
    disk.close()
    with overlay.open(backing) as disk:
        [extent] = list(disk.extents())
    assert (extent.zero, extent.data, extent.present, extent.depth) == (True, False, True, 0)


def test_zeroing_what_is_stored_is_done_in_place() -> None:
    image = QedImage(MiB)
    disk, recorder = recorded(image.node)
    disk.write(0, b"x" * 4 * CLUSTER)
    entry = image.l2(CLUSTER)
    recorder.take()
    disk.write_zeroes(CLUSTER, 2 * CLUSTER)
    assert changes(recorder) == [("zero", entry, 2 * CLUSTER)]
    assert image.l2(CLUSTER) == entry
    disk.close()


def test_zeroing_parts_of_clusters_that_are_zero_anyway_writes_nothing() -> None:
    image = QedImage(MiB)
    disk, recorder = recorded(image.node)
    disk.write_zeroes(100, 200)
    disk.write_zeroes(CLUSTER - 1, 2)
    assert changes(recorder) == []
    disk.close()
    assert image.l1(0) == 0


def test_allocating_zeroes() -> None:
    base = QedImage(MiB)
    with base.open() as disk:
        disk.write(0, b"\xbb" * MiB)
    overlay, backing = over(base, MiB)
    with overlay.open(backing) as disk:
        disk.write_zeroes(CLUSTER + 7, 3 * CLUSTER, allocate=True)
        assert all(overlay.l2(cluster * CLUSTER) > 1 for cluster in (1, 2, 3, 4))
        assert disk.read(CLUSTER, 7) == b"\xbb" * 7
        assert disk.read(CLUSTER + 7, 3 * CLUSTER) == bytes(3 * CLUSTER)
        assert disk.read(4 * CLUSTER + 7, 100) == b"\xbb" * 100
    assert overlay.check().clean


def test_the_last_cluster_is_whole_although_the_disk_ends_in_it() -> None:
    base = QedImage(3 * CLUSTER)
    with base.open() as disk:
        disk.write(0, b"\xbb" * disk.size)
    overlay, backing = over(base, 2 * CLUSTER + SECTOR)
    with overlay.open(backing) as disk:
        disk.write_zeroes(2 * CLUSTER, SECTOR)
        assert overlay.l2(2 * CLUSTER) == 1
        disk.resize(3 * CLUSTER)
        assert disk.read(2 * CLUSTER, CLUSTER) == bytes(CLUSTER)


# --- entries that cannot be ---


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (2, CorruptImage, "not aligned"),
        (CLUSTER + 1, CorruptImage, "not aligned"),
        (CLUSTER, CorruptImage, "lies in the L1 table"),
        (1 << 40, TruncatedImage, "behind the end"),
        ((1 << 64) - CLUSTER, TruncatedImage, "behind the end"),
    ],
)
def test_an_entry_that_points_where_nothing_can_be(
    value: int, error: type[BlocklayerError], words: str
) -> None:
    """An error for whoever touches it, never a wrong read; its neighbours are fine."""
    image = QedImage(MiB)
    with image.open() as disk:
        disk.write(0, b"x" * 3 * CLUSTER)
    image.set_l2(CLUSTER, value)
    before = image.content
    with image.open() as disk:
        for action in (
            lambda: disk.read(CLUSTER, 1),
            lambda: disk.read(0, 3 * CLUSTER),
            lambda: disk.read_into(CLUSTER + 5, bytearray(9)),
            lambda: disk.read_many([(0, 5), (CLUSTER, 5)]),
            lambda: disk.write(CLUSTER, b"data"),
            lambda: disk.write_many([(CLUSTER, b"data")]),
            lambda: disk.write_zeroes(CLUSTER, CLUSTER),
            lambda: disk.discard(CLUSTER, CLUSTER),
            lambda: list(disk.extents()),
        ):
            with pytest.raises(error, match=words):
                action()
        request = Request.write(CLUSTER, b"data")
        disk.submit([request, Request.write(2 * CLUSTER, b"fine")])
        assert isinstance(request.error, error)
        assert disk.read(2 * CLUSTER, 4) == b"fine"
        assert disk.read(0, CLUSTER) == b"x" * CLUSTER
    assert len(image.content) == len(before)


@pytest.mark.parametrize("value", [1, 512, CLUSTER, 1 << 50])
def test_an_l1_entry_that_points_where_no_table_can_be(value: int) -> None:
    image = QedImage(8 * MiB)
    with image.open() as disk:
        disk.write(0, b"x")
        disk.write(SPAN, b"y")
    image.set_l1(0, value)
    with image.open() as disk:
        for action in (lambda: disk.read(5, 1), lambda: disk.write(9 * CLUSTER, b"data")):
            with pytest.raises(CorruptImage if value != 1 << 50 else TruncatedImage):
                action()
        assert disk.read(SPAN, 1) == b"y"


def test_a_run_over_the_l1_table_is_refused() -> None:
    """Each entry but one may be where a cluster can be; together they are not."""
    image = QedImage(MiB)
    image.node.truncate(9 * CLUSTER)
    image.put(4 * CLUSTER, bytes(CLUSTER))
    image.set_header(l1_table_offset=4 * CLUSTER)
    table = 7 * CLUSTER
    image.set_l1(0, table)
    image.put(table, b"".join((n * CLUSTER).to_bytes(8, "little") for n in (2, 3, 4, 5, 6)))
    with image.open() as disk:
        assert disk.read(0, 2 * CLUSTER) == bytes(2 * CLUSTER)
        for length in (CLUSTER, 3 * CLUSTER):
            with pytest.raises(CorruptImage, match="L1 table"):
                disk.read(2 * CLUSTER, length)
        with pytest.raises(CorruptImage, match="L1 table"):
            disk.read(0, 5 * CLUSTER)
        with pytest.raises(CorruptImage, match="L1 table"):
            disk.write(0, b"x" * 5 * CLUSTER)
    assert image.l1(0) == table


def test_a_table_cache_that_is_too_small_for_the_image(
    monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    """Slices come and go; nothing is lost."""
    monkeypatch.setattr("blocklayer.formats.qed.tables.CACHE_SLICES_MAX", 2)
    node = memory()
    create(node, size=40 * SPAN, cluster_size=CLUSTER, table_size=2)
    written = {rng.randrange(40 * SPAN // CLUSTER) * CLUSTER: rng.randbytes(64) for _ in range(300)}
    with open_disk(node) as disk:
        for offset, data in written.items():
            disk.write(offset, data)
            some = rng.choice(list(written))
            disk.read(some, 64)
        for offset, data in written.items():
            assert disk.read(offset, 64) == data
    with open_disk(node, read_only=True) as disk:
        for offset, data in written.items():
            assert disk.read(offset, 64) == data
