# SPDX-License-Identifier: Apache-2.0
"""Walking extents: true by the model, merged, clipped to the range that was asked for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import blocklayer
from blocklayer import Extent, InvalidArgument, OpenError
from blocklayer.base.units import MiB
from tests.ops.images import CLUSTER, SMALL, Layer, chain, make

SIZES = [(5000, 20000), (40000, 9000, 70000), (100000, 0, 60000), (1, 511, 512), (0, 0)]


class Mapped:
    """What `map` says, in the words of a disk."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self.size = layer.model.size

    def read(self, offset: int, length: int) -> bytes:
        return self._layer.content[offset : offset + length]

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        layer = self._layer
        return blocklayer.map(layer.path, format=layer.format, offset=offset, length=length)


@pytest.mark.parametrize("sizes", SIZES)
def test_what_it_says_is_true(tmp_path: Path, rng: random.Random, sizes: tuple[int, ...]) -> None:
    layers = chain(tmp_path, rng, *sizes)
    for layer in layers:
        found = layer.model.check_extents(Mapped(layer))
        with blocklayer.open(layer.path, format=layer.format) as disk:
            assert sum(each.length for each in disk.extents()) == sum(e.length for e in found)
        below = {str(each.path): each for each in layers}
        for extent in found:
            if extent.host_offset is not None and extent.data:
                assert extent.filename is not None
                stored = below[extent.filename].path.read_bytes()
                piece = stored[extent.host_offset : extent.host_offset + extent.length]
                assert (
                    piece.ljust(extent.length, b"\0") == layer.content[extent.offset : extent.end]
                )


def clipped(extents: list[Extent], start: int, end: int) -> Iterator[Extent]:
    for extent in extents:
        first, last = max(extent.offset, start), min(extent.end, end)
        if first < last:
            yield extent.part(first, last - first)


@pytest.mark.parametrize("sizes", SIZES)
def test_every_range_is_a_part_of_the_whole(
    tmp_path: Path, rng: random.Random, sizes: tuple[int, ...]
) -> None:
    top = chain(tmp_path, rng, *sizes)[-1]
    whole = list(blocklayer.map(top.path))
    size = top.model.size
    borders = {0, 1, 511, CLUSTER, CLUSTER + 7, size - 1, size, size + 1, 2 * size + 5}
    borders |= {extent.offset for extent in rng.sample(whole, min(3, len(whole)))}
    for offset in sorted(border for border in borders if border >= 0):
        for length in (None, 0, 1, CLUSTER, size, 1 << 62):
            end = size if length is None else min(size, offset + length)
            expected = list(clipped(whole, offset, end))
            assert list(blocklayer.map(top.path, offset=offset, length=length)) == expected


def test_neighbours_are_one(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size=8 * MiB, **SMALL)
    with blocklayer.open(path, mode="r+") as disk:
        for offset in range(0, 4 * MiB, MiB):
            disk.write_zeroes(offset, MiB)
    found = list(blocklayer.map(path))
    assert [(each.offset, each.length, each.status) for each in found] == [
        (0, 4 * MiB, "zero"),
        (4 * MiB, 4 * MiB, "hole"),
    ]


def test_negative_ranges(tmp_path: Path) -> None:
    layer = make(tmp_path / "image", b"x" * 512)
    for offset, length in ((-1, None), (0, -1), (-1, -1)):
        with pytest.raises(InvalidArgument, match="cannot be negative"):
            list(blocklayer.map(layer.path, offset=offset, length=length))


def test_the_image_is_open_while_somebody_walks(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size=MiB, **SMALL)
    walk = blocklayer.map(path)
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(0, b"x")
    next(walk)
    with pytest.raises(OpenError, match="lock"):
        blocklayer.open(path, mode="r+")
    walk.close()  # type: ignore[attr-defined]
    with blocklayer.open(path, mode="r+"):
        with pytest.raises(OpenError, match="lock"):
            list(blocklayer.map(path))
        assert list(blocklayer.map(path, force_share=True))


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(OpenError, match="No such file"):
        list(blocklayer.map(tmp_path / "missing"))
