# SPDX-License-Identifier: Apache-2.0
"""Measuring: the estimate is the length of the file that converting makes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer import BlocklayerError, InvalidArgument, Measurement, NotSupported, OpenError
from blocklayer.base.align import align_up
from blocklayer.base.units import GiB, KiB, MiB
from tests.ops.images import CLUSTER, SMALL, Layer, base, chain, make, unchanged


def converted(layer: Layer, target: Path, format: str, options: dict[str, Any]) -> int:
    """The length of a real target that holds what the source's extents call data."""
    with blocklayer.open(layer.path, format=layer.format) as disk:
        blocklayer.create(target, format=format, size=disk.size, **options)
        with blocklayer.open(target, mode="r+", format=format) as written:
            for extent in disk.extents():
                if not extent.zero:
                    written.write(extent.offset, b"x" * extent.length)
    return target.stat().st_size


@pytest.mark.parametrize(
    "options", [{}, SMALL, {"cluster_size": "64k", "table_size": 1}, {"cluster_size": 8192}]
)
def test_it_is_the_length_of_the_file(
    tmp_path: Path, rng: random.Random, options: dict[str, Any]
) -> None:
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        layers = chain(folder, rng, *(rng.choice((0, 512, 50000, 5 * MiB)) for _ in range(3)))
        for layer in layers:
            with unchanged(folder):
                found = blocklayer.measure(
                    layer.path, source_format=layer.format, format="qed", options=options
                )
            assert found.required == converted(layer, tmp_path / "target", "qed", options)
            blocklayer.create(tmp_path / "full", format="qed", size=layer.model.size, **options)
            with blocklayer.open(tmp_path / "full", mode="r+") as disk:
                disk.write(0, b"x" * disk.size)
            assert found.fully_allocated == (tmp_path / "full").stat().st_size
            empty = blocklayer.measure(size=layer.model.size, format="qed", options=options)
            blocklayer.create(tmp_path / "empty", format="qed", size=layer.model.size, **options)
            assert empty.required == (tmp_path / "empty").stat().st_size
            assert empty.fully_allocated == found.fully_allocated


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, "1.5k", 100 * GiB])
def test_raw_images(tmp_path: Path, size: int | str) -> None:
    blocklayer.create(tmp_path / "image", size=size)
    length = (tmp_path / "image").stat().st_size
    assert blocklayer.measure(size=size) == Measurement(length, length)
    assert blocklayer.measure(tmp_path / "image") == Measurement(length, length)


def test_raw_files_of_odd_lengths(tmp_path: Path) -> None:
    for length in (0, 1, 511, 513, 70001):
        layer = make(tmp_path / "image", b"x" * length)
        rounded = align_up(length, 512)
        found = blocklayer.measure(layer.path, source_format="raw")
        assert found == Measurement(rounded, rounded)


def test_nothing_is_made_for_an_enormous_disk() -> None:
    largest = 1024 * 1024 * CLUSTER
    found = blocklayer.measure(size=largest, format="qed", options=SMALL)
    assert found.required == 3 * CLUSTER
    assert found.fully_allocated == 3 * CLUSTER + 1024 * 2 * CLUSTER + largest


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, InvalidArgument, "Either --size N or one filename"),
        ({"name": "x", "size": 1}, InvalidArgument, "cannot be used together"),
        ({"size": -1}, InvalidArgument, "Invalid image size"),
        ({"size": "x"}, InvalidArgument, "Invalid image size"),
        ({"size": 1, "format": "nonsense"}, InvalidArgument, "Unknown file format"),
        ({"size": 1, "format": "fault"}, InvalidArgument, "Unknown file format"),
        ({"size": 1, "options": {"nonsense": 1}}, InvalidArgument, "Invalid parameter"),
        ({"size": 1, "options": {"cluster_size": 1}}, InvalidArgument, "Invalid parameter"),
        ({"size": 1, "format": "qed", "options": {"cluster_size": 1}}, InvalidArgument, "cluster"),
        ({"size": 1 << 62, "format": "qed", "options": SMALL}, InvalidArgument, "image size"),
        (
            {"size": 1, "format": "qed", "options": {"preallocation": "full"}},
            NotSupported,
            "preallocation",
        ),
        ({"name": "missing"}, OpenError, "No such file"),
    ],
)
def test_arguments_that_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    error: type[BlocklayerError],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        blocklayer.measure(**arguments)


def test_images_that_somebody_writes(tmp_path: Path, rng: random.Random) -> None:
    layer = base(tmp_path / "image", 300 * KiB, rng, "qed")
    with blocklayer.open(layer.path, mode="r+"):
        with pytest.raises(OpenError, match="lock"):
            blocklayer.measure(layer.path)
        assert blocklayer.measure(layer.path, force_share=True).required == 300 * KiB
