# SPDX-License-Identifier: Apache-2.0
"""Digests: by an implementation that follows the definition and nothing else."""

from __future__ import annotations

import hashlib
import json
import random
from functools import cache
from pathlib import Path

import pytest

import blocklayer
from blocklayer import Cancelled, InvalidArgument
from blocklayer.base.units import EiB, KiB, MiB
from blocklayer.cli.main import main
from tests.ops.images import SMALL, Watcher, cancelled_everywhere, chain, content, faulty, make

BLOCK = 64 * KiB


def by_definition(data: bytes, algorithm: str = "sha256", size: int | None = None) -> str:
    """`docs/digest.md`, recursively: a tree over 2^63 bytes, of which `data` is the beginning."""

    def h(text: bytes) -> bytes:
        return hashlib.new(algorithm, text).digest()

    @cache
    def zeroes(level: int) -> bytes:
        return h(b"\1" + zeroes(level - 1) * 2) if level else h(b"\0" + bytes(BLOCK))

    def tree(part: bytes, level: int) -> bytes:
        if not part:
            return zeroes(level)
        if not level:
            return h(b"\0" + part.ljust(BLOCK, b"\0"))
        half = BLOCK << (level - 1)
        return h(b"\1" + tree(part[:half], level - 1) + tree(part[half:], level - 1))

    length = len(data) if size is None else size
    return h(b"\2" + length.to_bytes(8, "big") + tree(data, 47)).hex()


SIZES = (0, 512, BLOCK - 512, BLOCK, BLOCK + 512, 2 * MiB, 2 * MiB + 512, 5 * MiB - 512, 7 * MiB)


def patchy(size: int, rng: random.Random) -> bytes:
    """Data and zeroes in pieces of all lengths."""
    data = bytearray(size)
    position = 0
    while position < size:
        length = rng.choice((512, 4096, BLOCK, 3 * BLOCK, MiB))
        if rng.random() < 0.5:
            piece = rng.randbytes(min(length, size - position))
            data[position : position + len(piece)] = piece
        position += length
    return bytes(data)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("format", ["raw", "qed"])
def test_as_defined(tmp_path: Path, size: int, format: str, rng: random.Random) -> None:
    data = patchy(size, rng)
    layer = make(tmp_path / "image", data, format)
    for threads in (1, 3):
        found = blocklayer.digest(layer.path, format=format, threads=threads)
        assert found.digest == by_definition(data)
        assert (found.size, found.kind, found.algorithm) == (size, "tree", "sha256")
        flat = blocklayer.digest(layer.path, format=format, flat=True, threads=threads)
        assert flat.digest == hashlib.sha256(data).hexdigest()
        assert flat.block_size is None


def test_the_same_in_every_format_and_chain(tmp_path: Path, rng: random.Random) -> None:
    layers = chain(tmp_path, rng, 300 * KiB, 2 * MiB + 512, 3 * MiB)
    data = content(layers[-1].path)
    expected = by_definition(data)
    paths = [(layers[-1].path, "qed")]
    for number, (format, options) in enumerate(
        [("raw", {}), ("qed", SMALL), ("qed", {"cluster_size": 2 * MiB}), ("qed", {})]
    ):
        path = tmp_path / f"copy{number}"
        blocklayer.convert(
            layers[-1].path, path, format=format, options=dict(options), sparse_size=512 * number
        )
        paths.append((path, format))
    for path, format in paths:
        assert blocklayer.digest(path, format=format).digest == expected


def test_written_zeroes_are_holes(tmp_path: Path) -> None:
    size = 6 * MiB
    written, holes = tmp_path / "written", tmp_path / "holes"
    written.write_bytes(bytes(size))
    blocklayer.create(holes, format="qed", size=size)
    assert blocklayer.digest(written, format="raw").digest == blocklayer.digest(holes).digest


def test_the_size_counts(tmp_path: Path) -> None:
    found = set()
    for size in (0, 512, BLOCK, 2 * BLOCK):
        path = tmp_path / str(size)
        path.write_bytes(bytes(size))
        found.add(blocklayer.digest(path, format="raw").digest)
    assert len(found) == 4


def test_holes_cost_nothing() -> None:
    """An exbibyte in no time: in a tree, not one block after the other."""
    size = 7 * EiB
    found = blocklayer.digest({"driver": "null", "size": size, "read-zeroes": True})
    assert found.digest == by_definition(b"", size=size)


def test_a_little_data_behind_a_large_hole(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size="1T")
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(2**40 - 4096, b"x" * 4096)
    raw = tmp_path / "raw"
    blocklayer.convert(path, raw)
    assert blocklayer.digest(path).digest == blocklayer.digest(raw, format="raw").digest


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "sha1", "blake2b", "sha3_256", "md5"])
def test_algorithms(tmp_path: Path, algorithm: str, rng: random.Random) -> None:
    layer = make(tmp_path / "image", data := patchy(MiB, rng))
    found = blocklayer.digest(layer.path, format="raw", algorithm=algorithm)
    assert found.digest == by_definition(data, algorithm)


@pytest.mark.parametrize("algorithm", ["crc32", "", "shake_128"])
def test_unknown_algorithms(tmp_path: Path, algorithm: str) -> None:
    with pytest.raises(InvalidArgument, match=r"Unknown digest algorithm.*sha256"):
        blocklayer.digest(tmp_path / "nothing", algorithm=algorithm)


@pytest.mark.parametrize("flat", [False, True])
def test_progress_cancellation_and_errors(tmp_path: Path, flat: bool, rng: random.Random) -> None:
    layer = make(tmp_path / "image", rng.randbytes(8 * MiB))
    watcher = Watcher("digest")
    blocklayer.digest(layer.path, format="raw", flat=flat, progress=watcher)
    assert watcher.finished
    for canceller in cancelled_everywhere("digest", 4):
        with pytest.raises(Cancelled):
            blocklayer.digest(
                layer.path, format="raw", flat=flat, progress=canceller, cancel=canceller.token
            )
    broken = faulty(layer.path, "raw", {"iotype": "read", "sector": 10000})
    with pytest.raises(blocklayer.IoError):
        blocklayer.digest(broken, flat=flat)


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rng: random.Random
) -> None:
    data = patchy(MiB, rng)
    path = str(make(tmp_path / "image", data).path)
    assert main(["digest", "-f", "raw", path]) == 0
    assert capsys.readouterr().out == f"tree-sha256:{by_definition(data)}  {path}\n"
    assert main(["digest", "-f", "raw", "--flat", "--algorithm", "md5", path]) == 0
    assert capsys.readouterr().out == f"{hashlib.md5(data).hexdigest()}  {path}\n"
    assert main(["digest", "-f", "raw", "-m", "2", "--output=json", path]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "filename": path,
        "digest": by_definition(data),
        "algorithm": "sha256",
        "kind": "tree",
        "size": MiB,
        "block-size": BLOCK,
    }
    assert main(["digest", "-f", "raw", "-m", "0", path]) == 1
    assert main(["digest", "-f", "raw", "--algorithm", "crc", path]) == 1
    assert "Unknown digest algorithm 'crc'" in capsys.readouterr().err
