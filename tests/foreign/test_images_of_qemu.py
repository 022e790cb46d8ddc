# SPDX-License-Identifier: Apache-2.0
"""Images that QEMU made: we find the same facts, extents, problems and bytes in them."""

import random
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.align import align_down, align_up
from blocklayer.base.units import GiB, KiB, MiB
from blocklayer.formats.qed.layout import F_BACKING_FORMAT_NO_PROBE, Geometry, Header
from tests.foreign import qemu, views
from tests.foreign.operations import Generator, commands
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-io")

CLUSTER_SIZES = [4 * KiB << step for step in range(15)]
TABLE_SIZES = [1, 2, 4, 8, 16]
MAXIMUM_FITS_64_BITS = [
    (cluster_size, table_size)
    for cluster_size in CLUSTER_SIZES
    for table_size in TABLE_SIZES
    if (table_size * cluster_size // 8) ** 2 * cluster_size < 1 << 64
]
"""DEFECT: QEMU computes an image's greatest size in 64 bits, where for the others it becomes 0."""

USABLE = [pair for pair in MAXIMUM_FITS_64_BITS if pair[1] > 1]
"""DEFECT: QEMU creates images with tables of one cluster, but cannot open them."""

QEMU_MAPS_LESS_THAN = 4 * GiB
"""DEFECT: QEMU computes the length of a run in 32 bits, and fails an assertion of its own."""


def disk_size(geometry: Geometry) -> int:
    """A disk that needs two L2 tables where QEMU can have two, of an odd number of sectors.

    DEFECT: from `cluster_size - 1` clusters on QEMU miscounts those of a request.
    """
    counted_right = geometry.cluster_size * (geometry.cluster_size - 2)
    return min(geometry.table_span + 5 * geometry.cluster_size, counted_right) - 1536


def places(geometry: Geometry, size: int) -> list[tuple[int, int]]:
    """Ranges of all sorts: parts of clusters, across clusters and tables, both ends."""
    cluster = geometry.cluster_size
    short = min(3 * cluster, 256 * KiB)
    middle = align_down(size // 2, cluster)
    border = min(geometry.table_span, align_down(size, cluster) - cluster)
    return [
        (0, 1),
        (cluster - 700, 1400),
        (3 * cluster + 512, 512),
        (middle - cluster // 2 - 3, short),
        (border - 1000, 2000),
        (size - 777, 777),
    ]


@pytest.mark.parametrize(("cluster_size", "table_size"), USABLE)
def test_every_geometry(tmp_path: Path, cluster_size: int, table_size: int) -> None:
    geometry = Geometry(cluster_size, table_size)
    size = disk_size(geometry)
    path = tmp_path / "image"
    qemu.create(path, size, cluster_size=cluster_size, table_size=table_size)
    writes = places(geometry, size)
    zeroed = (align_down(size // 3, cluster_size), 2 * cluster_size)
    discarded = (align_down(size // 4, cluster_size), cluster_size)
    told = [f"write -P {value} {at} {count}" for value, (at, count) in enumerate(writes, 1)]
    told += [f"write -z {zeroed[0]} {zeroed[1]}", f"discard {discarded[0]} {discarded[1]}"]
    qemu.io(path, *told)

    with blocklayer.open(path) as disk:
        assert disk.size == size
        for value, (at, count) in enumerate(writes, 1):
            before, behind = max(0, at - 100), min(size, at + count + 100)
            shown = disk.read(before, behind - before)
            assert shown == bytes(at - before) + bytes([value]) * count + bytes(behind - at - count)
        assert disk.read(*zeroed) == bytes(zeroed[1])
        assert not any(disk.read(*discarded))
    if size < QEMU_MAPS_LESS_THAN:
        assert views.extents(path) == qemu.extents(path)
    allocated = [extent for extent in views.extents(path) if extent["data"]]
    assert views.assert_clean(path).allocated == sum(
        geometry.clusters(extent["length"]) for extent in allocated
    )


@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
def test_tables_of_one_cluster_are_ours_alone(tmp_path: Path, cluster_size: int) -> None:
    path = tmp_path / "image"
    size = 10 * cluster_size + 512 if (cluster_size, 1) in MAXIMUM_FITS_64_BITS else 0
    qemu.create(path, size, cluster_size=cluster_size, table_size=1)
    refused = qemu.run("qemu-img", "info", "-f", "qed", path)
    assert refused.code == 1
    assert "QED table offset is invalid" in refused.output

    with blocklayer.open(path, mode="r+") as disk:
        assert disk.size == size
        if not size:
            disk.resize(10 * cluster_size + 512)
        disk.write(disk.size - 700, b"end" * 100)
    found = views.check(path)
    assert found.clean
    assert found.allocated == 2


@pytest.mark.parametrize(
    ("cluster_size", "table_size"),
    [
        (cluster_size, table_size)
        for cluster_size in CLUSTER_SIZES
        for table_size in TABLE_SIZES
        if (cluster_size, table_size) not in MAXIMUM_FITS_64_BITS
    ],
)
def test_geometries_whose_maximum_wraps_are_ours_alone(
    tmp_path: Path, cluster_size: int, table_size: int
) -> None:
    path = tmp_path / "image"
    options = f"cluster_size={cluster_size},table_size={table_size}"
    refused = qemu.run("qemu-img", "create", "-f", "qed", "-o", options, path, 1 * MiB)
    assert refused.code == 1
    assert "less than 0 bytes" in refused.output

    size = 3 * cluster_size + 512
    blocklayer.create(
        path, format="qed", size=size, cluster_size=cluster_size, table_size=table_size
    )
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(cluster_size - 1, b"ab")
    with blocklayer.open(path) as disk:
        assert disk.read(cluster_size - 2, 4) == b"\0ab\0"
    assert views.check(path).clean


SIZES = [0, 512, 1536, 64 * KiB - 512, 64 * KiB, 64 * KiB + 512, 7 * MiB + 3 * 512]


@pytest.mark.parametrize("size", SIZES)
def test_sizes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "image"
    qemu.create(path, size)
    if size:
        qemu.io(path, f"write -P 1 {size - 512} 512", f"write -z 0 {size // 2}")
    views.assert_same(path)
    views.assert_clean(path)


@pytest.mark.parametrize(
    ("cluster_size", "table_size"), [(4 * KiB, 2), (4 * KiB, 16), (64 * KiB, 4)]
)
def test_random_requests(
    tmp_path: Path, rng: random.Random, cluster_size: int, table_size: int
) -> None:
    path = tmp_path / "image"
    size = 9 * MiB + 512 * rng.randrange(1, 100)
    qemu.create(path, size, cluster_size=cluster_size, table_size=table_size)
    model = bytearray(size)
    requests = Generator(rng, size, cluster_size).many(200)
    for request in requests:
        request.tell_bytes(model)
    qemu.io(path, *commands(requests))
    views.assert_same(path, expected=bytes(model))
    views.assert_clean(path)


def test_large_files_have_no_false_leaks(tmp_path: Path) -> None:
    path = tmp_path / "image"
    qemu.create(path, 20 * MiB, cluster_size=4 * KiB, table_size=2)
    qemu.io(path, *(f"write -P 1 {start}M 1M" for start in range(18)))
    assert qemu.false_leaks(path) == 1
    # The helper takes the false leaks away; without it QEMU's exit code is that of leaks.
    assert qemu.run("qemu-img", "check", path).code == 3
    assert views.assert_clean(path).allocated == 18 * MiB // (4 * KiB)


# Chains.


def fill(path: Path, rng: random.Random, *, format: str = "qed") -> None:
    """Some of everything, without requests that QEMU does wrong in an overlay."""
    size = qemu.info(path, format=format)["virtual-size"]
    cluster_size = 64 * KiB if format == "raw" else qemu.info(path)["cluster-size"]
    requests = Generator(rng, size, cluster_size, over_backing=True).many(25)
    qemu.io(path, *commands(requests), format=format)


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("base_format", ["qed", "raw"])
@pytest.mark.parametrize("naming", ["relative", "absolute"])
def test_chains(
    tmp_path: Path, rng: random.Random, levels: int, base_format: str, naming: str
) -> None:
    below = tmp_path / "level0"
    qemu.create(below, 3 * MiB + 512, format=base_format)
    fill(below, rng, format=base_format)
    for level in range(1, levels):
        path = tmp_path / f"level{level}"
        qemu.create(
            path,
            rng.randrange(1, 12000) * 512,
            backing=below.name if naming == "relative" else below,
            backing_format=base_format if level == 1 else "qed",
            cluster_size=rng.choice([4, 16, 64, 128]) * KiB,
            table_size=rng.choice([2, 4, 16]),
            directory=tmp_path,
        )
        fill(path, rng)
        views.assert_same(path)
        views.assert_clean(path)
        below = path


@pytest.mark.parametrize("size", [1 * MiB + 512, 3 * MiB + 512, 5 * MiB + 1024])
@pytest.mark.parametrize("base_format", ["qed", "raw"])
def test_overlays_of_all_sizes(
    tmp_path: Path, rng: random.Random, size: int, base_format: str
) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    qemu.create(base, 3 * MiB + 512, format=base_format)
    fill(base, rng, format=base_format)
    qemu.create(top, size, backing=base, backing_format=base_format)
    views.assert_same(top)
    # Clusters in which the base or the overlay ends are copied up in part.
    end = min(size, 3 * MiB + 512)
    qemu.io(top, f"write -P 1 {end - 1000} 1000", f"write -P 2 {size - 5} 5", "write -P 3 7 1")
    views.assert_same(top)
    views.assert_clean(top)


def test_a_raw_backing_file_named_without_a_format_is_probed(tmp_path: Path) -> None:
    """As old QEMUs made them: the name alone."""
    base, top = tmp_path / "base", tmp_path / "top"
    qemu.create(base, MiB, format="raw")
    qemu.io(base, "write -P 7 100 1000", format="raw")
    qemu.create(top, MiB, backing=base, backing_format="raw")
    assert views.assert_same(top)[:100] == bytes(100)
    assert qemu.info(top)["backing-filename-format"] == "raw"
    forget_backing_format(top)
    assert "backing-filename-format" not in qemu.info(top)
    assert views.assert_same(top)[100:1100] == b"\7" * 1000


def forget_backing_format(path: Path) -> None:
    with path.open("rb+") as file:
        header = Header.unpack_from(file.read(Header.SIZE))
        file.seek(0)
        file.write(header.replace(features=header.features & ~F_BACKING_FORMAT_NO_PROBE).pack())


def test_a_raw_base_that_looks_like_an_image_stays_raw(tmp_path: Path) -> None:
    inner, top = tmp_path / "inner", tmp_path / "top"
    qemu.create(inner, MiB)
    qemu.io(inner, "write -P 7 100 1000")
    qemu.create(top, backing=inner, backing_format="raw")
    assert views.assert_same(top)[: inner.stat().st_size] == inner.read_bytes()


def test_a_zero_cluster_hides_the_backing_file_around_a_later_write(tmp_path: Path) -> None:
    """DEFECT: QEMU brings the backing file's bytes back; the specification says zeroes."""
    base, ours, theirs = tmp_path / "base", tmp_path / "ours", tmp_path / "theirs"
    qemu.create(base, MiB)
    qemu.io(base, "write -P 7 0 1M")
    for path in (ours, theirs):
        qemu.create(path, MiB, backing=base)
        qemu.io(path, "write -z 0 256k")
    qemu.io(theirs, "write -P 1 1k 1k")
    with blocklayer.open(ours, mode="r+") as disk:
        disk.write(1 * KiB, b"\1" * KiB)
    written = bytes(KiB) + b"\1" * KiB
    assert views.assert_same(ours)[: 256 * KiB] == written + bytes(256 * KiB - len(written))
    assert views.assert_same(theirs)[: 2 * KiB] == b"\7" * KiB + b"\1" * KiB


def test_the_largest_disks(tmp_path: Path) -> None:
    """The greatest size is allowed, on both sides; one sector more on neither."""
    for cluster_size, table_size in [(4 * KiB, 2), (64 * KiB, 4)]:
        maximum = Geometry(cluster_size, table_size).image_size_max
        path = tmp_path / f"{cluster_size}"
        qemu.create(path, maximum, cluster_size=cluster_size, table_size=table_size)
        qemu.io(path, f"write -P 3 {maximum - 4096} 4096", "write -P 4 0 1")
        with blocklayer.open(path, mode="r+") as disk:
            assert disk.size == maximum
            assert disk.read(maximum - 4096, 4096) == b"\3" * 4096
            disk.write(maximum - 1, b"\5")
        qemu.io(path, f"read -P 5 {maximum - 1} 1", f"read -P 3 {maximum - 4096} 4095")
        assert views.extents(path) == qemu.extents(path)
        views.assert_clean(path)
        options = f"cluster_size={cluster_size},table_size={table_size}"
        more = qemu.run("qemu-img", "create", "-f", "qed", "-o", options, path, maximum + 512)
        assert more.code == 1
        with pytest.raises(blocklayer.CreateError):
            blocklayer.create(
                tmp_path / "more",
                format="qed",
                size=maximum + 512,
                cluster_size=cluster_size,
                table_size=table_size,
            )
    assert align_up(maximum, GiB) == 64 * 1024 * GiB
