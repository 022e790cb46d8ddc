# SPDX-License-Identifier: Apache-2.0
"""New images: what they are made of, what is refused, and what a failure leaves behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import BlocklayerError, CreateError, InvalidArgument, NotSupported
from blocklayer.base.units import GiB, KiB, MiB
from blocklayer.core.opening import probe_node
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import CHANGING, InjectError
from blocklayer.formats.qed.create import measure, resolve
from blocklayer.formats.qed.layout import (
    F_BACKING_FILE,
    F_BACKING_FORMAT_NO_PROBE,
    MAGIC,
    Header,
)
from blocklayer.testing.liar import GARBAGE, Liar
from tests.support.graphs import check, create, memory, snapshot
from tests.support.qed_image import CLUSTER, QedImage


@pytest.mark.parametrize(("cluster_size", "table_size"), [(4 * KiB, 1), (64 * KiB, 4), (MiB, 16)])
def test_a_new_image_is_a_header_and_an_empty_table(cluster_size: int, table_size: int) -> None:
    node = memory()
    create(node, size=GiB, cluster_size=cluster_size, table_size=table_size)
    assert node.size == cluster_size * (1 + table_size)
    header = Header(
        magic=MAGIC,
        cluster_size=cluster_size,
        table_size=table_size,
        header_size=1,
        l1_table_offset=cluster_size,
        image_size=GiB,
    )
    assert snapshot(node) == header.pack() + bytes(node.size - Header.SIZE)
    assert check(node).clean


def test_the_defaults() -> None:
    node = memory()
    create(node, size=MiB)
    header = Header.unpack_from(snapshot(node))
    assert (header.cluster_size, header.table_size) == (64 * KiB, 4)


def test_a_backing_file_is_named_behind_the_header() -> None:
    image = QedImage(MiB, backing_file="a base", backing_fmt="raw")
    header = image.header
    assert header.features == F_BACKING_FILE | F_BACKING_FORMAT_NO_PROBE
    assert (header.backing_filename_offset, header.backing_filename_size) == (Header.SIZE, 6)
    assert image.get(Header.SIZE, 8) == b"a base\0\0"


@pytest.mark.parametrize(("size", "rounded"), [(0, 0), (1, 512), (512, 512), (1000, 1024)])
def test_sizes_are_rounded_up_to_sectors(size: int, rounded: int) -> None:
    image = QedImage(size)
    with image.open() as disk:
        assert disk.size == rounded
        assert disk.read(0, rounded) == bytes(rounded)
        assert [extent.length for extent in disk.extents()] == [rounded] * bool(rounded)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"cluster_size": 2 * KiB}, InvalidArgument, r"range \[4096, 67108864\] and power of 2"),
        ({"cluster_size": 128 * MiB}, InvalidArgument, "cluster size"),
        ({"cluster_size": 12 * KiB}, InvalidArgument, "cluster size"),
        ({"cluster_size": "65537"}, InvalidArgument, "cluster size"),
        ({"cluster_size": "lots"}, InvalidArgument, "cluster_size"),
        ({"table_size": 3}, InvalidArgument, r"range \[1, 16\] and power of 2"),
        ({"table_size": 32}, InvalidArgument, "table size"),
        ({"size": 1 << 62, "cluster_size": "4k", "table_size": 1}, InvalidArgument, "1073741824"),
        ({"preallocation": "full"}, NotSupported, "preallocation mode 'full'"),
        ({"preallocation": "metadata"}, NotSupported, "preallocation"),
        ({"backing_file": "a\0b"}, InvalidArgument, "Invalid backing file name"),
        ({"backing_file": "x" * 4033, "cluster_size": "4k"}, InvalidArgument, "room for 4032"),
        ({"backing_file": "x" * 4096}, InvalidArgument, "room for 4095"),
    ],
)
def test_options_that_cannot_be(
    options: dict[str, Any], error: type[BlocklayerError], words: str
) -> None:
    with pytest.raises(error, match=words):
        resolve({"size": MiB, **options})


@pytest.mark.parametrize("length", [4032, 4095])
def test_the_longest_backing_names(length: int) -> None:
    cluster_size = CLUSTER if length == 4032 else 64 * KiB
    image = QedImage(MiB, cluster_size=cluster_size, backing_file="x" * length)
    with image.open(backing_chain=False) as disk:
        disk.write(0, b"data")
        assert disk.read(0, 5) == b"data\0"
    assert image.check().clean


@pytest.mark.parametrize("progress", ["none", "half", "all"])
def test_what_is_half_made_is_no_image(progress: str) -> None:
    """The magic number is written last."""
    for nth in range(1, 20):
        rule = InjectError(iotypes=CHANGING, nth=nth, progress=progress)
        node = memory()
        try:
            create(FaultNode(node, [rule]), size=MiB, backing_file="base")
        except BlocklayerError:
            last = snapshot(node)[:4] == b"QED\0"
            assert not last or progress == "all"
        else:
            assert probe_node(node) == "qed"
            assert nth > 3
            return
    pytest.fail("it never works")


def test_what_cannot_grow_is_refused_untouched() -> None:
    node = memory("device", 4 * MiB)
    for offset in range(0, node.size, len(GARBAGE)):
        node.writev(offset, [memoryview(GARBAGE)])
    before = snapshot(node)
    with pytest.raises(NotSupported, match="Cannot resize device files"):
        create(Liar(node, fixed=True, zeroes=0.0), size=MiB, cluster_size=CLUSTER, table_size=2)
    assert snapshot(node) == before


# --- files ---


@pytest.mark.parametrize(
    "options",
    [
        {"size": 1 << 62, "cluster_size": 4096},
        {"size": MiB, "cluster_size": 5},
        {"size": MiB, "preallocation": "full"},
        {"size": MiB, "nonsense": 1},
        {"size": -1},
        {},
        {"size": MiB, "backing": "missing"},
        {"size": MiB, "backing": "x" * 5000, "check_backing": False},
    ],
)
@pytest.mark.parametrize("existed", [False, True])
def test_a_refused_image_leaves_nothing_and_touches_nothing(
    tmp_path: Path, options: dict[str, Any], existed: bool
) -> None:
    path = tmp_path / "image.qed"
    if existed:
        path.write_bytes(b"precious")
    with pytest.raises(CreateError):
        blocklayer.create(path, format="qed", **options)
    assert os.listdir(tmp_path) == (["image.qed"] if existed else [])
    if existed:
        assert path.read_bytes() == b"precious"


# --- measuring ---


def test_what_is_measured_is_what_is_used() -> None:
    image = QedImage(40 * MiB)
    ranges = [
        (5, 10),
        (CLUSTER, 3 * CLUSTER),
        (4 * CLUSTER + 1, 1),
        (9 * MiB - 1, 2),
        (39 * MiB, 1),
    ]
    with image.open() as disk:
        for offset, length in ranges:
            disk.write(offset, b"x" * length)
    options = {"size": 40 * MiB, "cluster_size": CLUSTER, "table_size": 1}
    required, full = measure(options, ranges)
    assert required == image.node.size
    with image.open() as disk:
        disk.write(0, b"x" * disk.size)
    assert full == image.node.size
    assert measure({**options, "size": 0}, []) == (2 * CLUSTER, 2 * CLUSTER)
