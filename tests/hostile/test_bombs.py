# SPDX-License-Identifier: Apache-2.0
"""Small files that describe something immense: what they cost is bounded by their own size."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from blocklayer.base.units import INT64_MAX, GiB, KiB, MiB, TiB
from blocklayer.formats.qed.layout import MAGIC, ZERO_CLUSTER, Header
from tests.hostile.images import Image, table_of
from tests.hostile.prison import Prison
from tests.hostile.verbs import CHANGING, EVERYTHING, LOOKING

CHEAP = tuple(verb for verb in (*LOOKING, *CHANGING) if verb not in ("extents", "map_it"))
"""What does not walk the whole disk."""


def image(
    pieces: dict[int, bytes],
    length: int,
    *,
    cluster: int = 64 * KiB,
    table: int = 4,
    header: int = 1,
    size: int | None = None,
) -> Image:
    """An image of given tables; as large a disk as they can describe if no size is given."""
    entries = cluster * table // 8
    head = Header(
        magic=MAGIC,
        cluster_size=cluster,
        table_size=table,
        header_size=header,
        l1_table_offset=header * cluster,
        image_size=min(entries * entries * cluster, INT64_MAX - 511) if size is None else size,
    )
    return Image(((0, head.pack()), *pieces.items()), length)


def one_table_for_all(entry: int | None, cluster: int = 64 * KiB, table: int = 4) -> Image:
    """Every L1 entry is the same L2 table, in which every entry is the same.

    `entry` may be None for the data cluster behind the table.
    """
    table_bytes = cluster * table
    count = table_bytes // 8
    l2 = cluster + table_bytes
    data = l2 + table_bytes
    full = table_of([data if entry is None else entry]) * count
    return image(
        {cluster: table_of([l2]) * count, l2: full}, data + cluster, cluster=cluster, table=table
    )


def overlapping_tables(cluster: int = 4 * KiB, table: int = 16) -> Image:
    """Every L1 entry but the first is one table that overlaps the first by all but a cluster."""
    table_bytes = cluster * table
    count = table_bytes // 8
    l2 = cluster + table_bytes
    data = l2 + 20 * cluster
    l1 = table_of([l2]) + table_of([l2 + cluster]) * (count - 1)
    full = table_of([data]) * ((table + 1) * cluster // 8)
    return image({cluster: l1, l2: full}, data + 20 * cluster, cluster=cluster, table=table)


def shifted_tables(cluster: int = 4 * KiB, table: int = 16, tables: int = 256) -> Image:
    """Tables that begin a cluster after each other: each cluster belongs to sixteen."""
    l2 = cluster * (1 + table)
    data = l2 + (tables + table) * cluster
    full = table_of([data]) * ((tables + table) * cluster // 8)
    l1 = table_of([l2 + number * cluster for number in range(tables)])
    return image({cluster: l1, l2: full}, data + cluster, cluster=cluster, table=table)


def scattered(cluster: int = 4 * KiB, table: int = 16, tables: int = 9) -> Image:
    """Clusters so far apart that whatever is remembered of their neighbourhood is a waste."""
    count = cluster * table // 8
    l2 = cluster * (1 + table)
    pieces = {cluster: table_of([l2 + n * cluster * table for n in range(tables)])}
    step = 4096 * cluster
    for number in range(tables):
        first = GiB + number * count * step
        pieces[l2 + number * cluster * table] = table_of(
            [first + index * step for index in range(count)]
        )
    length = GiB + (tables * count + 1) * step
    return image(pieces, length, cluster=cluster, table=table, size=tables * count * cluster)


def half_leaked(cluster: int = 4 * KiB, table: int = 16, tables: int = 3) -> Image:
    """Every second cluster is leaked, and the tables lie where there is no room for them."""
    count = cluster * table // 8
    l2 = cluster * (1 + table)
    data = l2 + tables * cluster * table
    pieces = {cluster: table_of([l2 + n * cluster * table for n in range(tables)])}
    for number in range(tables):
        first = data + 2 * number * count * cluster
        pieces[l2 + number * cluster * table] = table_of(
            [first + 2 * index * cluster for index in range(count)]
        )
    length = data + 2 * tables * count * cluster
    return image(pieces, length, cluster=cluster, table=table, size=tables * count * cluster)


def garbage(where: str, cluster: int = MiB, table: int = 1) -> Image:
    """Tables full of impossible entries."""
    full = table_of([0xDEADBEEF]) * (cluster * table // 8)
    l2 = cluster * (1 + table)
    pieces = {cluster: full} if where == "L1" else {cluster: table_of([l2]), l2: full}
    return image(pieces, l2 + cluster * table, cluster=cluster, table=table)


def far_away(length: int) -> Image:
    """Tables and data in the last clusters of a file of absurd length."""
    cluster = 4 * KiB
    end = length // cluster * cluster
    return image(
        {
            cluster: table_of([end - 2 * cluster, length // 2 // cluster * cluster]),
            end - 2 * cluster: table_of([end - cluster, length // 4 // cluster * cluster]),
            end - cluster: b"far away" * 512,
        },
        length,
        cluster=cluster,
        table=1,
    )


BOMBS: dict[str, tuple[Callable[[], Image], tuple[str, ...]]] = {
    "a data cluster of 64 TiB": (lambda: one_table_for_all(None), CHEAP),
    "zero clusters of 64 TiB": (lambda: one_table_for_all(ZERO_CLUSTER), CHEAP),
    "impossible clusters of 64 TiB": (lambda: one_table_for_all(0xBAD), CHEAP),
    "a table that names itself": (lambda: one_table_for_all(5 * 64 * KiB), CHEAP),
    "one overlapping table": (overlapping_tables, CHEAP),
    "many overlapping tables": (shifted_tables, CHEAP),
    "scattered clusters": (scattered, CHEAP),
    "every second cluster leaked": (half_leaked, EVERYTHING),
    "an L1 table of garbage": (lambda: garbage("L1"), CHEAP),
    "an L2 table of garbage": (lambda: garbage("L2"), CHEAP),
    "an empty disk of 4 EiB": (lambda: image({}, 17 * MiB, cluster=MiB, table=16), EVERYTHING),
    "the longest empty disk": (lambda: image({}, 1088 * MiB, cluster=64 * MiB, table=16), LOOKING),
    "a header of 4 GiB": (
        lambda: image({}, 4 * GiB + MiB, cluster=4 * KiB, table=1, header=(1 << 20) - 1),
        EVERYTHING,
    ),
    "a file of a tebibyte": (lambda: far_away(TiB), EVERYTHING),
}


@pytest.mark.parametrize("what", BOMBS)
def test_costs_are_bounded(prison: Prison, memory_path: Path, what: str) -> None:
    make, verbs = BOMBS[what]
    sentence = prison.run(memory_path, *verbs, "first_extents", image=make())
    assert sentence.broken() == []


@pytest.mark.parametrize("length", [2**62, INT64_MAX - 4095, INT64_MAX])
def test_files_of_absurd_length(prison: Prison, memory_path: Path, length: int) -> None:
    try:
        os.truncate(os.open(memory_path / "long", os.O_CREAT | os.O_WRONLY), length)
    except OSError:
        pytest.skip("no file system here has files of this length")
    (memory_path / "long").unlink()
    sentence = prison.run(memory_path, *EVERYTHING, "first_extents", image=far_away(length))
    assert sentence.broken() == []


@pytest.mark.parametrize("what", ["a data cluster of 64 TiB", "zero clusters of 64 TiB"])
@pytest.mark.parametrize(
    "verb", ["cancel_convert", "cancel_compare", "cancel_rebase", "close_meanwhile"]
)
def test_what_takes_ages_can_be_stopped(
    prison: Prison, memory_path: Path, what: str, verb: str
) -> None:
    sentence = prison.run(memory_path, verb, image=BOMBS[what][0]())
    assert sentence.broken() == []
    assert sentence.of(verb).kind == "done"


@pytest.mark.parametrize(
    "what", ["a data cluster of 64 TiB", "one overlapping table", "many overlapping tables"]
)
def test_repair_copies_in_proportion(prison: Prison, memory_path: Path, what: str) -> None:
    """Each shared cluster could be given a copy: exbibytes of them."""
    bomb = BOMBS[what][0]()
    sentence = prison.run(memory_path, "repair_all", image=bomb)
    assert sentence.broken() == []
    used = (memory_path / "image").stat().st_blocks * 512
    assert used <= 2 * bomb.length + 40 * MiB


def test_trees_of_garbage_are_mended(prison: Prison, memory_path: Path) -> None:
    for where in ("L1", "L2"):
        sentence = prison.run(memory_path, "repair_all", image=garbage(where))
        assert sentence.broken() == []
        assert sentence.of("repair_all").value == (0, MiB // 8)
