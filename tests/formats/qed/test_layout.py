# SPDX-License-Identifier: Apache-2.0
"""Address arithmetic and the header, against naive arithmetic and the specification."""

from __future__ import annotations

import random
from typing import Any

import pytest

from blocklayer.base.errors import BlocklayerError, FormatError
from blocklayer.base.units import INT64_MAX, SECTOR, KiB, MiB
from blocklayer.formats.qed.layout import (
    MAGIC,
    Geometry,
    Header,
    is_cluster_size_valid,
    is_table_size_valid,
)
from tests.support.graphs import check, create, memory, open_disk

CLUSTER_SIZES = [4 * KiB << bits for bits in range(15)]
TABLE_SIZES = [1, 2, 4, 8, 16]
GEOMETRIES = [(cluster, table) for cluster in CLUSTER_SIZES for table in TABLE_SIZES]


def test_the_header_is_that_of_the_specification() -> None:
    offsets = {field.name: (field.offset, field.size) for field in Header.FIELDS}
    assert offsets == {
        "magic": (0, 4),
        "cluster_size": (4, 4),
        "table_size": (8, 4),
        "header_size": (12, 4),
        "features": (16, 8),
        "compat_features": (24, 8),
        "autoclear_features": (32, 8),
        "l1_table_offset": (40, 8),
        "image_size": (48, 8),
        "backing_filename_offset": (56, 4),
        "backing_filename_size": (60, 4),
    }
    assert MAGIC.to_bytes(4, "little") == b"QED\0"


def test_sizes_are_powers_of_two_in_their_range() -> None:
    assert [size for size in range(40) if is_table_size_valid(size)] == TABLE_SIZES
    candidates = {1 << bits for bits in range(32)} | {3 * KiB, 5 * KiB, 4 * KiB + 1, 0}
    assert sorted(filter(is_cluster_size_valid, candidates)) == CLUSTER_SIZES


@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
def test_clusters_of_a_length(cluster_size: int) -> None:
    """Around every multiple that somebody once got wrong, the cluster size itself included."""
    geometry = Geometry(cluster_size, 1)
    counts = [*range(70), cluster_size - 2, cluster_size - 1, cluster_size, cluster_size + 1]
    for clusters in counts:
        length = clusters * cluster_size
        assert geometry.clusters(length) == clusters
        assert geometry.clusters(length + 1) == clusters + 1
        if clusters:
            assert geometry.clusters(length - 1) == clusters


def test_clusters_of_every_small_length() -> None:
    geometry = Geometry(4 * KiB, 1)
    expected = 0
    for length in range(5 * 4 * KiB):
        if length % (4 * KiB) == 1:
            expected += 1
        assert geometry.clusters(length) == expected
        assert geometry.cluster_up(length) == expected * 4 * KiB
        assert geometry.cluster_start(length) + geometry.in_cluster(length) == length


@pytest.mark.parametrize(("cluster_size", "table_size"), GEOMETRIES)
def test_an_offset_is_found_where_long_division_finds_it(
    cluster_size: int, table_size: int, rng: random.Random
) -> None:
    geometry = Geometry(cluster_size, table_size)
    entries = cluster_size * table_size // 8
    assert geometry.table_entries == entries
    limit = min(geometry.image_size_max, INT64_MAX)
    offsets = [0, limit - 1, geometry.table_span - 1, geometry.table_span % limit]
    offsets += [rng.randrange(limit) for _ in range(200)]
    for offset in offsets:
        cluster, within = divmod(offset, cluster_size)
        l1_index, l2_index = divmod(cluster, entries)
        assert geometry.l1_index(offset) == l1_index
        assert geometry.l2_index(offset) == l2_index
        assert geometry.in_cluster(offset) == within
        assert geometry.guest_offset(l1_index, l2_index) + within == offset
        number, index = divmod(cluster, 512)
        assert geometry.slice_number(offset) == number
        assert geometry.slice_index(offset) == index
        assert geometry.slice_in_table(number) == l2_index // 512
        assert geometry.to_slice_end(offset) == 512 * cluster_size - offset % (512 * cluster_size)
        span = entries * cluster_size
        assert geometry.to_table_end(offset) == span - offset % span


@pytest.mark.parametrize(("cluster_size", "table_size"), GEOMETRIES)
def test_the_largest_disk(cluster_size: int, table_size: int) -> None:
    """What the tables can map, inclusive, or what a file offset can express; it is usable."""
    entries = cluster_size * table_size // 8
    largest = min(entries * entries * cluster_size, INT64_MAX // SECTOR * SECTOR)
    assert Geometry(cluster_size, table_size).image_size_max == largest
    node = memory()
    options: dict[str, Any] = {"cluster_size": cluster_size, "table_size": table_size}
    with pytest.raises(BlocklayerError, match=str(largest)):
        create(node, size=min(largest + SECTOR, INT64_MAX), **options)
    create(node, size=largest, **options)
    with open_disk(node) as disk:
        assert disk.size == largest
        assert disk.read(largest - 5, 5) == bytes(5)
        disk.write(largest - 7, b"the end")
        assert disk.read(largest - 8, 8) == b"\0the end"
        start = (largest - 1) // cluster_size * cluster_size - cluster_size
        disk.write_zeroes(start, largest - start)
    with open_disk(node, read_only=True) as disk:
        assert disk.read(largest - 5, 5) == bytes(5)
    assert check(node).clean


def test_a_size_above_the_largest_is_refused_at_opening() -> None:
    node = memory()
    create(node, size=MiB, cluster_size=4 * KiB, table_size=1)
    header = bytearray(Header.SIZE)
    node.readv(0, [memoryview(header)])
    largest = Geometry(4 * KiB, 1).image_size_max
    changed = Header.unpack_from(header).replace(image_size=largest + SECTOR)
    node.writev(0, [memoryview(changed.pack())])
    with pytest.raises(FormatError, match="image size is invalid"):
        open_disk(node)
