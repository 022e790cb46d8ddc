# SPDX-License-Identifier: Apache-2.0
"""QED against a byte array: every geometry, chains, and storage from pleasant to hostile."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.options import OptionTree
from blocklayer.base.units import SECTOR, KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.node import Node
from blocklayer.testing.exercise import Exercise
from blocklayer.testing.liar import Liar
from blocklayer.testing.model import ModelDisk
from tests.support.graphs import check, create, memory, open_disk, tree

CLUSTER_SIZES = (4 * KiB, 64 * KiB, MiB, 64 * MiB)
TABLE_SIZES = (1, 2, 16)
DEPTHS = (1, 2, 3, 4)

Wrap = Callable[[Node, random.Random], Node]

LIARS: dict[str, Wrap] = {
    "honest": lambda node, rng: node,
    "one cluster a map": lambda node, rng: Liar(node, rng=rng, granularity=4 * KiB),
    "one byte a map": lambda node, rng: Liar(node, rng=rng, granularity=1, zeroes=0.0),
    "knows no holes": lambda node, rng: Liar(node, rng=rng, knows_holes=False, zeroes=1.0),
    "blocks of 512": lambda node, rng: Liar(node, rng=rng, alignment=SECTOR),
    "blocks of 4096": lambda node, rng: Liar(node, rng=rng, alignment=4 * KiB),
}


class Chain:
    """Layers of QED in nodes of memory, each exercised and then covered by the next."""

    def __init__(self, seed: int, cluster_size: int, table_size: int, wrap: Wrap) -> None:
        self.rng = random.Random(seed)
        self.cluster_size = cluster_size
        self.table_size = table_size
        self.wrap = wrap
        self.layers: list[Node] = []
        self.model: ModelDisk | None = None

    def options(self, depth: int) -> OptionTree | None:
        """The tree of the lowest `depth` layers, every node wrapped anew."""
        below: OptionTree | None = None
        for layer in self.layers[:depth]:
            below = tree(self.wrap(layer, self.rng), backing=below)
        return below

    def open(self) -> Disk:
        top = self.wrap(self.layers[-1], self.rng)
        return open_disk(top, backing=self.options(len(self.layers) - 1))

    def size(self) -> int:
        """Not a whole number of clusters, and long enough for several tables of the small ones."""
        clusters = max(2, min(1400, 6 * MiB // self.cluster_size))
        return (clusters + self.rng.randrange(2)) * self.cluster_size + 5 * SECTOR

    def add_layer(self, steps: int) -> None:
        size = self.size()
        node = memory(f"layer {len(self.layers)}")
        backing = {"backing_file": "below"} if self.layers else {}
        create(
            node, size=size, cluster_size=self.cluster_size, table_size=self.table_size, **backing
        )
        self.layers.append(node)
        self.model = ModelDisk(size, backing=self.model)
        exercise = Exercise(
            self.open(),
            self.model,
            seed=self.rng.getrandbits(32),
            grain=self.cluster_size,
            length_max=min(4 * self.cluster_size, MiB),
            reopen=self.open,
            size_max=size + 3 * self.cluster_size,
        )
        try:
            exercise.run(steps)
        finally:
            exercise.disk.close()
        result = check(node)
        assert result.clean, result


def run_chain(seed: int, cluster_size: int, table_size: int, depth: int, wrap: Wrap) -> None:
    chain = Chain(seed, cluster_size, table_size, wrap)
    steps = 100 if cluster_size <= MiB else 25
    for _ in range(depth):
        chain.add_layer(steps)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("table_size", TABLE_SIZES)
@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES[:3])
def test_every_geometry(seed: int, cluster_size: int, table_size: int, depth: int) -> None:
    run_chain(seed, cluster_size, table_size, depth, LIARS["honest"])


@pytest.mark.parametrize("table_size", TABLE_SIZES)
def test_the_largest_clusters(seed: int, table_size: int) -> None:
    run_chain(seed, CLUSTER_SIZES[-1], table_size, 2, LIARS["honest"])


@pytest.mark.parametrize("liar", [name for name in LIARS if name != "honest"])
@pytest.mark.parametrize(("cluster_size", "table_size"), [(4 * KiB, 1), (4 * KiB, 16), (MiB, 2)])
def test_unpleasant_storage(seed: int, cluster_size: int, table_size: int, liar: str) -> None:
    run_chain(seed, cluster_size, table_size, 2, LIARS[liar])


@pytest.mark.parametrize("cache", ["writeback", "none", "writethrough"])
@pytest.mark.parametrize(("cluster_size", "table_size"), [(4 * KiB, 1), (64 * KiB, 4)])
def test_real_files(
    seed: int, tmp_path: Path, cluster_size: int, table_size: int, cache: str
) -> None:
    rng = random.Random(seed)
    model: ModelDisk | None = None
    backing: Path | None = None
    for depth in range(3):
        path = tmp_path / f"layer{depth}.qed"
        size = rng.randrange(2, 800) * cluster_size + rng.randrange(8) * SECTOR
        blocklayer.create(
            path,
            format="qed",
            size=size,
            backing=backing,
            cluster_size=cluster_size,
            table_size=table_size,
        )

        def reopen(path: Path = path) -> Disk:
            return blocklayer.open(path, mode="r+", discard="unmap", cache=cache)

        model = ModelDisk(size, backing=model)
        exercise = Exercise(
            reopen(),
            model,
            seed=rng.getrandbits(32),
            grain=cluster_size,
            reopen=reopen,
            size_max=size + 100 * cluster_size,
        )
        try:
            exercise.run(150)
        finally:
            exercise.disk.close()
        assert blocklayer.check(path).clean
        backing = path


@pytest.mark.long
@pytest.mark.parametrize("liar", LIARS)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("table_size", TABLE_SIZES)
@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
def test_everything(seed: int, cluster_size: int, table_size: int, depth: int, liar: str) -> None:
    for turn in range(10):
        run_chain(seed + turn, cluster_size, table_size, depth, LIARS[liar])
        gc.collect()  # images in memory, of clusters of 64 MiB, are gigabytes
