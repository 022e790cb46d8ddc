# SPDX-License-Identifier: Apache-2.0
"""Resizing by name: what stays, what appears, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer import (
    BlocklayerError,
    InvalidArgument,
    IoError,
    LockError,
    NotSupported,
    OpenError,
    ReadOnly,
)
from blocklayer.base.align import align_up
from blocklayer.base.units import KiB, MiB
from tests.ops.images import (
    CLUSTER,
    SMALL,
    Layer,
    base,
    chain,
    content,
    faulty,
    make,
    scribble,
    unchanged,
)

FORMATS = ("raw", "qed")
SIZES = (0, 1, 511, 512, 513, CLUSTER, CLUSTER + 512, 50000, 300 * KiB)


def resized(content: bytes, size: int) -> bytes:
    length = align_up(size, 512)
    return content[:length].ljust(length, b"\0")


@pytest.mark.parametrize("format", FORMATS)
def test_from_every_size_to_every_size(tmp_path: Path, rng: random.Random, format: str) -> None:
    for old in SIZES:
        for new in SIZES:
            before = rng.randbytes(align_up(old, 512))
            layer = make(tmp_path / "image", before, format)
            shrinks = align_up(old, 512) > new
            if format == "qed" and new % 512:
                with unchanged(tmp_path), pytest.raises(InvalidArgument, match="multiple of"):
                    blocklayer.resize(layer.path, new, shrink=True)
                continue
            assert blocklayer.resize(layer.path, new, format=format, shrink=shrinks) == align_up(
                new, 512
            )
            expected = resized(before, new)
            # A raw file that ends in a sector loses the rest of it.
            if format == "raw" and shrinks:
                expected = before[:new].ljust(len(expected), b"\0")
            assert content(layer.path, format) == expected


def test_a_random_walk(tmp_path: Path, rng: random.Random) -> None:
    """Over a backing file, which must not show where the disk had ended."""
    for format in ("plain", "overlay"):
        layers = chain(tmp_path, rng, 200 * KiB, 100 * KiB, bottom="qed")
        layer = layers[0] if format == "plain" else layers[1]
        below = layers[0].path.read_bytes()
        for _ in range(30):
            size = rng.choice((rng.randrange(600) * 512, rng.randrange(60) * CLUSTER))
            layer.model.resize(size)
            blocklayer.resize(layer.path, size, shrink=True)
            with blocklayer.open(layer.path, mode="r+") as disk:
                scribble(disk, layer.model, rng, 2)
            layer.check()
        assert blocklayer.check(layer.path).clean
        if format == "overlay":
            assert layers[0].path.read_bytes() == below


@pytest.mark.parametrize("format", FORMATS)
def test_shrinking_needs_consent(tmp_path: Path, rng: random.Random, format: str) -> None:
    layer = base(tmp_path / "image", 100 * KiB, rng, format)
    for size in (0, 1, 99 * KiB, 100 * KiB - 1):
        with unchanged(tmp_path), pytest.raises(InvalidArgument, match="shrink"):
            blocklayer.resize(layer.path, size, format=format)
    with unchanged(tmp_path):
        assert blocklayer.resize(layer.path, 100 * KiB, format=format) == 100 * KiB
        assert blocklayer.resize(layer.path, "100k", format=format) == 100 * KiB
    assert blocklayer.resize(layer.path, "0.5M", format=format, shrink=True) == MiB // 2
    assert blocklayer.resize(layer.path, "50k", format=format, shrink=True) == 50 * KiB
    assert content(layer.path, format) == layer.content[: 50 * KiB]


@pytest.mark.parametrize("size", [-1, 1 << 63, "", "x", "+1k", 1.0, None, True])
def test_sizes_that_cannot_be(tmp_path: Path, size: Any) -> None:
    for format in FORMATS:
        make(tmp_path / "image", b"x" * 512, format)
        with unchanged(tmp_path), pytest.raises(InvalidArgument, match="Invalid image size"):
            blocklayer.resize(tmp_path / "image", size, shrink=True)


def test_sizes_that_the_image_has_no_room_for(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size=MiB, **SMALL)
    largest = 1024 * 1024 * CLUSTER
    assert blocklayer.resize(path, largest) == largest
    with unchanged(tmp_path), pytest.raises(BlocklayerError, match=r"(?i)size"):
        blocklayer.resize(path, largest + 1)
    blocklayer.create(path, size=512)
    with unchanged(tmp_path), pytest.raises(BlocklayerError):
        blocklayer.resize(path, (1 << 63) - 512, format="raw")


@pytest.mark.parametrize("mode", ["off", "falloc", "full"])
def test_preallocation_of_what_is_new(tmp_path: Path, rng: random.Random, mode: str) -> None:
    layer = make(tmp_path / "image", rng.randbytes(5000))
    blocklayer.resize(layer.path, MiB, format="raw", preallocation=mode)
    assert content(layer.path, "raw") == resized(layer.content, MiB)
    allocated = layer.path.stat().st_blocks * 512
    assert allocated < MiB // 2 if mode == "off" else allocated >= MiB


def test_preallocation_that_is_refused(tmp_path: Path) -> None:
    for format, modes in (("raw", ["metadata", "x"]), ("qed", ["metadata", "falloc", "full"])):
        layer = make(tmp_path / "image", b"x" * 512, format)
        for mode in modes:
            with unchanged(tmp_path), pytest.raises((NotSupported, InvalidArgument)):
                blocklayer.resize(layer.path, MiB, format=format, preallocation=mode)


@pytest.mark.parametrize("size", [MiB, MiB // 2])
def test_nothing_is_preallocated_where_nothing_is_new(tmp_path: Path, size: int) -> None:
    layer = make(tmp_path / "image", b"x" * MiB)
    with unchanged(tmp_path), pytest.raises(InvalidArgument, match="only be used for growing"):
        blocklayer.resize(layer.path, size, format="raw", shrink=True, preallocation="full")


def test_a_window_keeps_its_size(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"x" * 4096)
    tree = {"driver": "raw", "offset": 512, "size": 512, "file.filename": str(tmp_path / "image")}
    with unchanged(tmp_path), pytest.raises(NotSupported, match="fixed-size"):
        blocklayer.resize(tree, 1024)


def test_a_window_to_the_end_takes_its_file_along(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x" * 8192)
    tree = {"driver": "raw", "offset": 4096, "file.filename": str(path)}
    assert blocklayer.resize(tree, MiB) == MiB
    assert path.read_bytes() == b"x" * 8192 + bytes(MiB - 4096)
    assert blocklayer.resize(tree, 512, shrink=True) == 512
    assert path.read_bytes() == b"x" * 4608


def test_images_in_use_and_images_that_are_not_there(tmp_path: Path, rng: random.Random) -> None:
    layer = base(tmp_path / "image", MiB, rng, "qed")
    for mode in ("r", "r+"):
        with blocklayer.open(layer.path, mode=mode), pytest.raises(OpenError) as caught:
            blocklayer.resize(layer.path, 2 * MiB)
        assert isinstance(caught.value.__cause__, LockError)
    with pytest.raises(OpenError, match="No such file"):
        blocklayer.resize(tmp_path / "missing", 512)
    assert not (tmp_path / "missing").exists()
    tree = {"driver": "qed", "file.filename": str(layer.path), "read-only": True}
    with unchanged(tmp_path), pytest.raises(ReadOnly):
        blocklayer.resize(tree, 2 * MiB)


def resize_failing(layer: Layer, size: int, nth: int) -> bool:
    """Whether it fails when the n-th request and all that follow fail."""
    rules: list[dict[str, Any]] = [{"nth": nth}, {"iotype": "truncate", "nth": max(1, nth // 2)}]
    try:
        blocklayer.resize(faulty(layer.path, layer.format, *rules), size, shrink=True)
    except (IoError, OpenError):
        return True
    return False


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [0, 10 * KiB + 512, 250 * KiB])
def test_whatever_fails_the_rest_stays(
    tmp_path: Path, rng: random.Random, format: str, size: int
) -> None:
    """The image has one size or the other, and every byte that both have."""
    failures = 0
    for nth in range(1, 60):
        layer = base(tmp_path / "image", 100 * KiB, rng, format)
        if not resize_failing(layer, size, nth):
            break
        failures += 1
        shown = content(layer.path, format)
        assert len(shown) in (size, 100 * KiB)
        common = min(size, len(shown))
        assert shown[:common] == resized(layer.content, max(size, 100 * KiB))[:common]
        if format == "qed":
            assert not blocklayer.check(layer.path).corruptions
    assert failures
    assert content(layer.path, format) == resized(layer.content, size)


def test_without_permission(
    public_path: Path, rng: random.Random, as_nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    layer = base(public_path / "image", MiB, rng, "qed")
    layer.path.chmod(0o444)
    with unchanged(public_path), as_nobody(), pytest.raises(OpenError, match="Permission denied"):
        blocklayer.resize(layer.path, 2 * MiB)
