# SPDX-License-Identifier: Apache-2.0
"""What a header may say, and what happens to the parts of it that nobody here knows."""

from __future__ import annotations

from typing import Any

import pytest

from blocklayer.base.errors import (
    BlocklayerError,
    CorruptImage,
    FormatError,
    NotSupported,
    OutOfRange,
    TruncatedImage,
)
from blocklayer.base.units import KiB, MiB
from blocklayer.formats.qed.header import fits_header, place_backing_name
from blocklayer.formats.qed.layout import (
    F_BACKING_FILE,
    F_BACKING_FORMAT_NO_PROBE,
    F_NEED_CHECK,
    Header,
)
from tests.support.graphs import NO_REPAIR, snapshot
from tests.support.qed_image import CLUSTER, QedImage, qed


@pytest.fixture
def image() -> QedImage:
    return QedImage(MiB)


def refusal(image: QedImage) -> BlocklayerError:
    """The error of opening, which must not have changed anything."""
    before = image.content
    with pytest.raises(BlocklayerError) as caught:
        image.open()
    assert image.content == before
    return caught.value


# --- what is refused ---


def test_unknown_features_are_named_and_only_they(image: QedImage) -> None:
    image.set_header(features=F_NEED_CHECK | 1 << 5 | 1 << 63)
    error = refusal(image)
    assert isinstance(error, NotSupported)
    assert "Unsupported QED features: 8000000000000020" in str(error)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"magic": 0x00444551 + 1}, "not in QED format"),
        ({"cluster_size": 2 * KiB}, "cluster size is invalid: 2048"),
        ({"cluster_size": 5000}, "cluster size is invalid"),
        ({"cluster_size": 128 * MiB}, "cluster size is invalid"),
        ({"table_size": 0}, "table size is invalid: 0"),
        ({"table_size": 3}, "table size is invalid"),
        ({"table_size": 32}, "table size is invalid"),
        ({"header_size": 0}, "header size is invalid"),
        ({"header_size": 1 << 20}, "header size is too large"),
        ({"header_size": 2}, "table offset is invalid"),
        ({"image_size": 511}, "image size is invalid"),
        ({"image_size": (1 << 64) - 512}, "image size is invalid"),
        ({"l1_table_offset": 0}, "table offset is invalid"),
        ({"l1_table_offset": CLUSTER + 512}, "table offset is invalid"),
        ({"l1_table_offset": (1 << 64) - CLUSTER}, "L1 table would end at"),
        (
            {
                "features": F_BACKING_FILE,
                "backing_filename_offset": CLUSTER - 3,
                "backing_filename_size": 4,
            },
            "backing filename offset is invalid",
        ),
    ],
)
def test_an_impossible_header(image: QedImage, fields: dict[str, int], words: str) -> None:
    image.set_header(**fields)
    assert words in str(refusal(image))


def test_a_backing_name_that_is_too_long(image: QedImage) -> None:
    big = QedImage(MiB, cluster_size=64 * KiB)
    big.set_header(features=F_BACKING_FILE, backing_filename_offset=64, backing_filename_size=4096)
    assert "Failed to read backing filename" in str(refusal(big))


def test_a_backing_name_with_a_zero_byte(image: QedImage) -> None:
    image.put(64, b"ba\0se")
    image.set_header(features=F_BACKING_FILE, backing_filename_offset=64, backing_filename_size=5)
    assert isinstance(refusal(image), CorruptImage)


@pytest.mark.parametrize("size", [0, 1, 63])
def test_a_file_without_room_for_a_header(image: QedImage, size: int) -> None:
    image.node.truncate(size)
    error = refusal(image)
    assert isinstance(error, TruncatedImage)
    assert f"{size} bytes" in str(error)
    assert "header" in str(error)


@pytest.mark.parametrize("size", [64, 512, CLUSTER, 2 * CLUSTER - 1])
def test_a_file_without_its_l1_table(image: QedImage, size: int) -> None:
    image.node.truncate(size)
    error = refusal(image)
    assert isinstance(error, TruncatedImage)
    assert "L1 table" in str(error)


def test_a_file_without_an_l2_table() -> None:
    """The table that is missing is named; nothing reads as zeroes in its place."""
    image = QedImage(6 * MiB)
    with image.open() as disk:
        disk.write(0, b"first")
        disk.write(3 * MiB, b"second")
    image.node.truncate(image.l1(3 * MiB) + 512)
    with image.open(read_only=True) as disk:
        assert disk.read(0, 5) == b"first"
        for offset in (2 * MiB, 3 * MiB):
            with pytest.raises(TruncatedImage, match="L2 table 1 "):
                disk.read(offset, 5)
        with pytest.raises(TruncatedImage, match="L2 table 1 "):
            list(disk.extents())
        assert disk.read(5 * MiB, 5) == bytes(5)


def test_a_file_without_a_data_cluster(image: QedImage) -> None:
    with image.open() as disk:
        disk.write(0, b"a" * CLUSTER)
        disk.write(CLUSTER, b"b" * CLUSTER)
    image.node.truncate(image.l2(CLUSTER) + 100)
    with image.open(read_only=True) as disk:
        assert disk.read(0, 1) == b"a"
        with pytest.raises(TruncatedImage, match="guest offset 0x1000"):
            disk.read(CLUSTER, 1)
        with pytest.raises(TruncatedImage):
            disk.read(0, CLUSTER + 1)


def test_a_partial_cluster_at_the_end_is_nobodys(image: QedImage) -> None:
    """It is ignored, also when it holds something, and does not shine through new clusters."""
    image.put(image.node.size, b"garbage" * 100)
    assert image.check().clean
    with image.open() as disk:
        disk.write(100, b"x")
        assert disk.read(0, CLUSTER) == bytes(100) + b"x" + bytes(CLUSTER - 101)
    assert image.check().clean


# --- what is kept ---


def test_compatible_features_are_kept_and_the_rest_of_the_header_too(image: QedImage) -> None:
    reserve = bytes(range(1, 201))
    image.set_header(compat_features=0xF0F0)
    image.put(64, reserve)
    image.put(CLUSTER - 200, reserve)
    with image.open() as disk:
        disk.write(0, b"data")
        disk.resize(2 * MiB)
        assert image.header.features == F_NEED_CHECK
    assert image.header.compat_features == 0xF0F0
    assert image.get(64, 200) == image.get(CLUSTER - 200, 200) == reserve


def test_autoclear_features_are_cleared_by_writers_only(image: QedImage) -> None:
    image.set_header(autoclear_features=1 << 40 | 1)
    before = image.content
    image.open(read_only=True).close()
    assert image.content == before
    image.open().close()
    assert image.header.autoclear_features == 0
    image.set_header(autoclear_features=1)
    with image.open(read_only=True) as disk:
        disk.reopen("r+")
        assert image.header.autoclear_features == 0


def test_a_long_header_is_respected() -> None:
    """The L1 table need not follow the header, and the header may have several clusters."""
    image = QedImage(MiB)
    moved = QedImage(MiB)
    moved.node.truncate(7 * CLUSTER)
    moved.set_header(header_size=3, l1_table_offset=5 * CLUSTER)
    moved.put(CLUSTER, b"a" * 100)
    assert moved.check().leaks == 3  # 3 and 4 between the header and the table, 6 behind it
    with moved.open() as disk:
        disk.write(0, b"data")
        assert disk.read(0, 5) == b"data\0"
    assert moved.get(CLUSTER, 100) == b"a" * 100
    assert image.header.header_size == 1


def test_a_backing_name_may_stand_anywhere_in_the_header() -> None:
    image = QedImage(MiB)
    image.node.truncate(4 * CLUSTER)
    image.set_header(header_size=2, l1_table_offset=3 * CLUSTER)
    image.put(2 * CLUSTER - 4, b"base")
    image.set_header(
        features=F_BACKING_FILE | F_BACKING_FORMAT_NO_PROBE,
        backing_filename_offset=2 * CLUSTER - 4,
        backing_filename_size=4,
    )
    with image.open(backing_chain=False, read_only=True) as disk:
        assert qed(disk).backing_filename == "base"
        assert qed(disk).backing_format == "raw"


# --- changing the backing name ---


def overlay(**options: Any) -> QedImage:
    return QedImage(MiB, backing_file="base", backing_fmt="qed", **options)


def test_only_a_raw_format_is_stored() -> None:
    image = overlay()
    with image.open() as disk:
        node = qed(disk)
        node.change_backing("other", "raw")
        assert image.header.features == F_BACKING_FILE | F_BACKING_FORMAT_NO_PROBE
        assert node.backing_format == "raw"
        node.change_backing("another", "qed")
        assert image.header.features == F_BACKING_FILE
        assert node.backing_format is None
        node.change_backing(None, None)
        assert image.header.features == 0
        assert node.backing_filename is None
    header = image.header
    assert (header.backing_filename_offset, header.backing_filename_size) == (0, 0)


def test_compatible_features_forbid_a_new_name_but_not_its_removal() -> None:
    image = overlay()
    image.set_header(compat_features=4)
    with image.open() as disk:
        with pytest.raises(NotSupported, match="compatible features"):
            qed(disk).change_backing("other", None)
        qed(disk).change_backing(None, None)
    assert not image.header.features & F_BACKING_FILE


@pytest.mark.parametrize("length", [CLUSTER - Header.SIZE, 4095])
def test_the_longest_names(length: int) -> None:
    image = overlay(cluster_size=CLUSTER if length < 4095 else 64 * KiB)
    name = "x" * length
    with image.open() as disk:
        before = image.content
        with pytest.raises(OutOfRange, match="No space left in the file header"):
            qed(disk).change_backing(name + "x", None)
        assert image.content == before
        qed(disk).change_backing(name, None)
    with image.open(backing_chain=False, read_only=True) as disk:
        assert qed(disk).backing_filename == name


def test_names_are_bytes() -> None:
    name = b"caf\xe9/\xff".decode("utf-8", "surrogateescape")
    image = QedImage(MiB, backing_file=name)
    assert image.get(64, 6) == b"caf\xe9/\xff"
    with image.open(backing_chain=False, read_only=True) as disk:
        assert qed(disk).backing_filename == name


def test_a_new_name_stands_beside_the_old_one() -> None:
    """As long as there is room, so that one sector switches between them."""
    header = Header(cluster_size=CLUSTER, header_size=1)
    room = CLUSTER - Header.SIZE
    assert place_backing_name(header, room) == Header.SIZE
    assert fits_header(header, room)
    assert not fits_header(header, room + 1)
    for old in (1, 100, room // 2, room - 100, room):
        for start in {Header.SIZE, Header.SIZE + 50, CLUSTER - old}:
            named = header.replace(
                features=F_BACKING_FILE, backing_filename_offset=start, backing_filename_size=old
            )
            for length in (1, 49, 50, 51, room - old - 50, room - old, room - old + 1, room):
                if length > 0 and start + old <= CLUSTER:
                    assert_beside(named, length)


def assert_beside(header: Header, length: int) -> None:
    start = header.backing_filename_offset
    end = start + header.backing_filename_size
    place = place_backing_name(header, length)
    fits = length <= max(start - Header.SIZE, CLUSTER - end)
    assert (place is not None) == fits
    if place is not None:
        assert place >= Header.SIZE
        assert place + length <= CLUSTER
        assert place + length <= start or place >= end


@pytest.mark.parametrize("table_size", [1, 2, 16])
def test_the_header_grows_for_names_that_do_not_fit_beside_each_other(table_size: int) -> None:
    """The L1 table moves; what it maps does not, and nothing leaks."""
    old, new = "o" * 3000, "n" * 3001
    image = QedImage(MiB, backing_file=old, table_size=table_size)
    with image.open(backing_chain=False) as disk:
        disk.write(300 * KiB, b"x" * 5000)
        qed(disk).change_backing(new, "raw")
        disk.write(700 * KiB, b"y" * 5000)
    assert image.header.header_size == 1 + table_size
    assert image.header.l1_table_offset >= 5 * CLUSTER
    with image.open(backing_chain=False) as disk:
        assert qed(disk).backing_filename == new
        assert disk.read(300 * KiB, 5000) == b"x" * 5000
        assert disk.read(700 * KiB, 5000) == b"y" * 5000
        assert qed(disk).check(NO_REPAIR).clean
        qed(disk).change_backing(old, None)
        qed(disk).change_backing(new, None)
    assert image.header.header_size == 1 + table_size


def test_a_name_is_never_written_over_the_old_one() -> None:
    """Where the header cannot grow, as something else stands behind it."""
    image = QedImage(MiB, backing_file="o" * 3000)
    image.put(9 * CLUSTER, bytes(CLUSTER))
    image.set_header(l1_table_offset=9 * CLUSTER)
    before = image.content
    with (
        image.open(backing_chain=False) as disk,
        pytest.raises(NotSupported, match="remove the old name first"),
    ):
        qed(disk).change_backing("n" * 3001, None)
    assert image.content == before


def test_names_can_be_changed_for_ever() -> None:
    """Whatever was stored before, a name of up to half the header finds room beside it."""
    image = overlay()
    for turn in range(20):
        with image.open() as disk:
            before = image.get(image.header.backing_filename_offset, 4)
            old = image.header.backing_filename_offset
            qed(disk).change_backing(f"{turn:04}" * (1 + turn * 97 % 400), None)
            assert image.get(old, 4) == before


def test_a_refused_name_changes_nothing() -> None:
    image = overlay()
    before = image.content
    with image.open() as disk:
        with pytest.raises(BlocklayerError):
            qed(disk).change_backing("a\0b", None)
        with pytest.raises(BlocklayerError):
            qed(disk).change_backing("x" * CLUSTER, None)
    assert image.content == before
    assert snapshot(image.node) == before


def test_an_unreadable_header() -> None:
    image = QedImage(MiB)
    image.put(0, b"QED\1")
    with pytest.raises(FormatError, match="Image not in QED format"):
        image.open()
