# SPDX-License-Identifier: Apache-2.0
"""The inline path answers what the mapping says: in one cluster, and over clusters in a row."""

import random
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.extent import DATA
from blocklayer.formats.qed.driver import QedNode
from blocklayer.formats.qed.mapping import INLINE_RUN_MAX

CLUSTER = 4096
SIZE = 3 * 512 * CLUSTER  # three slices of a table


def scattered(path: Path, rng: random.Random) -> None:
    """Runs of clusters in a row, some out of order, some with holes or zero clusters between."""
    blocklayer.create(str(path), format="qed", size=SIZE, cluster_size=CLUSTER)
    with blocklayer.open(str(path), mode="r+") as disk:
        starts = list(range(0, SIZE, 32 * CLUSTER))
        rng.shuffle(starts)
        for start in starts:
            kind = rng.random()
            if kind < 0.8:
                disk.write(start, b"\1" * rng.choice((CLUSTER, 8 * CLUSTER, 32 * CLUSTER)))
            elif kind < 0.9:
                disk.write_zeroes(start, 8 * CLUSTER)


@pytest.mark.parametrize("wholly_in_order", [False, True])
def test_runs_are_where_the_mapping_says(
    tmp_path: Path, rng: random.Random, wholly_in_order: bool
) -> None:
    path = tmp_path / "a.qed"
    if wholly_in_order:
        blocklayer.create(str(path), format="qed", size=SIZE, cluster_size=CLUSTER)
        with blocklayer.open(str(path), mode="r+") as disk:
            disk.write(0, b"\1" * SIZE)
    else:
        scattered(path, rng)
    answered = 0
    with blocklayer.open(str(path)) as disk:
        node = disk.node
        assert isinstance(node, QedNode)
        inline = node.inline()
        assert inline is not None
        disk.read(0, SIZE)  # tables are in memory
        for _ in range(3000):
            offset = rng.randrange(SIZE)
            length = rng.choice((1, CLUSTER, rng.randrange(1, 40 * CLUSTER), INLINE_RUN_MAX))
            host = inline.read(offset, length)
            kind, count, _, expected = node.map(offset, min(length, SIZE - offset))
            if host >= 0:
                answered += 1
                assert (kind, count, expected) == (DATA, length, host)
            elif kind == DATA and count == length and offset + length <= SIZE:
                # Refused although it could be answered: only where it leaves a slice.
                assert offset // (512 * CLUSTER) != (offset + length - 1) // (512 * CLUSTER)
    assert answered > 200


def test_a_run_into_what_the_file_does_not_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.qed"
    blocklayer.create(str(path), format="qed", size=SIZE, cluster_size=CLUSTER)
    with blocklayer.open(str(path), mode="r+") as disk:
        disk.write(0, b"\1" * (8 * CLUSTER))
        node = disk.node
        assert isinstance(node, QedNode)
        inline = node.inline()
        assert inline is not None
        assert inline.read(0, 8 * CLUSTER) >= 0
        assert inline.read(0, 8 * CLUSTER + 1) == -1
        assert inline.read(CLUSTER - 1, 2) >= 0
        end = node.file_end
        node.file_end = inline.read(0, 1) + 7 * CLUSTER  # as if the file had been cut
        assert inline.read(0, 8 * CLUSTER) == -1
        assert inline.read(0, 7 * CLUSTER) >= 0
        node.file_end = end
