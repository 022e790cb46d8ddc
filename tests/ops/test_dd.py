# SPDX-License-Identifier: Apache-2.0
"""A part of a disk in a new image, against slices of the disk's bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import blocklayer
from blocklayer import BlocklayerError, Cancelled, CancelToken, CreateError, InvalidArgument
from blocklayer.ops.dd import dd

SIZE = 300 * 1024


@pytest.fixture
def source(tmp_path: Path, rng: random.Random) -> tuple[Path, bytes]:
    """An overlay that shows parts of a raw image, zeroes, and data of its own."""
    base = rng.randbytes(SIZE // 2) + bytes(SIZE // 2)
    (tmp_path / "base").write_bytes(base)
    top = tmp_path / "top"
    blocklayer.create(top, format="qed", backing="base", backing_format="raw", cluster_size=4096)
    content = bytearray(base)
    with blocklayer.open(top, mode="r+") as disk:
        for _ in range(5):
            offset, data = rng.randrange(SIZE - 9000), rng.randbytes(rng.randint(1, 9000))
            disk.write(offset, data)
            content[offset : offset + len(data)] = data
        disk.write_zeroes(8192, 20000)
        content[8192:28192] = bytes(20000)
    return top, bytes(content)


@pytest.mark.parametrize("format", ["raw", "qed"])
def test_slices(
    tmp_path: Path, source: tuple[Path, bytes], rng: random.Random, format: str
) -> None:
    top, content = source
    for number in range(12):
        block_size = rng.choice((1, 512, 1000, 4096, 65536, 2**31 - 1))
        skip = rng.choice((0, 1, SIZE // block_size, rng.randrange(SIZE)))
        count = rng.choice((None, 0, 1, rng.randrange(SIZE)))
        target = tmp_path / f"{format}{number}"
        result = dd(top, target, format=format, block_size=block_size, skip=skip, count=count)
        start = skip * block_size
        end = SIZE if count is None else start + count * block_size
        expected = content[start:end]
        assert result.size == len(expected)
        assert result.skipped_all == (start > SIZE)
        with blocklayer.open(target, format=format) as disk:
            shown = disk.read(0, disk.size)
        assert shown == expected.ljust(-(-len(expected) // 512) * 512, b"\0")


def test_zeroes_take_no_space(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(1 << 20))
    dd(tmp_path / "source", tmp_path / "target", source_format="raw")
    assert (tmp_path / "target").stat().st_blocks == 0


def test_nothing_is_left_behind(tmp_path: Path, source: tuple[Path, bytes]) -> None:
    top, _ = source
    before = sorted(tmp_path.iterdir())
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        dd(top, tmp_path / "target", cancel=cancel)
    for wrong, words in (
        ({"format": "foo"}, "Unknown file format"),
        ({"block_size": 0}, "Blocks"),
        ({"skip": -1}, "Blocks"),
        ({"count": -1}, "Blocks"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            dd(top, tmp_path / "target", **wrong)
    with pytest.raises(CreateError):
        dd(top, tmp_path / "none" / "target")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["top", "base"])
def test_source_is_not_overwritten(tmp_path: Path, source: tuple[Path, bytes], name: str) -> None:
    before = (tmp_path / name).read_bytes()
    with pytest.raises(BlocklayerError, match="part of the source"):
        dd(source[0], tmp_path / name)
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("format", ["raw", "qed"])
def test_a_hole_as_long_as_the_data_before_it_and_a_byte(
    tmp_path: Path, rng: random.Random, format: str
) -> None:
    content = rng.randbytes(4096) + bytes(4096) + rng.randbytes(8192)
    with open(tmp_path / "source", "wb") as file:
        file.write(content[:4096])
        file.seek(8192)
        file.write(content[8192:])
    dd(
        tmp_path / "source",
        tmp_path / "target",
        source_format="raw",
        format=format,
        block_size=1,
        skip=1,
    )
    with blocklayer.open(tmp_path / "target", format=format) as disk:
        assert disk.read(0, disk.size) == content[1:] + b"\0"
