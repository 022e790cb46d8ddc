# SPDX-License-Identifier: Apache-2.0
"""Create, convert, compare, measure, resize: our results beside those of `qemu-img`."""

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.align import align_up
from blocklayer.base.units import KiB, MiB
from tests.foreign import qemu, views
from tests.foreign.operations import Generator, commands, pieces
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-io")

# Creating.


@pytest.mark.parametrize("size", [0, 512, 100, 10 * MiB, 10 * MiB + 1, 3 << 40])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cluster_size": 4096, "table_size": 16},
        {"cluster_size": 1 << 20, "table_size": 2},
        {"table_size": 1},
    ],
)
def test_new_images_are_the_same(tmp_path: Path, size: int, options: dict[str, Any]) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    if size > 1 << 40 and options.get("cluster_size") == 4096:
        size >>= 10
    qemu.create(theirs, size, **options)
    blocklayer.create(ours, format="qed", size=size, **options)
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("base_format", ["qed", "raw"])
@pytest.mark.parametrize("size", [None, 5 * MiB])
def test_new_overlays_are_the_same(tmp_path: Path, base_format: str, size: int | None) -> None:
    ours, theirs, base = tmp_path / "ours", tmp_path / "theirs", tmp_path / "bäse"
    qemu.create(base, 3 * MiB + 512, format=base_format)
    for name in ("bäse", str(base)):
        qemu.create(theirs, size, backing=name, backing_format=base_format, directory=tmp_path)
        blocklayer.create(ours, format="qed", size=size, backing=name, backing_format=base_format)
        assert ours.read_bytes() == theirs.read_bytes()


# Converting.


def clusters(path: Path) -> int:
    return views.assert_clean(path).allocated


def disk_space(path: Path) -> int:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return path.stat().st_blocks * 512


def convert_by_qemu(source: Path, target: Path, *words: str, formats: tuple[str, str]) -> None:
    qemu.img("convert", "-f", formats[0], "-O", formats[1], *words, source, target)


@pytest.fixture
def real_disk(tmp_path: Path, rng: random.Random) -> Path:
    """A partition table and a file system with files in it."""
    files = tmp_path / "files"
    for number in range(40):
        path = files / f"directory{number % 4}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(40000)) + bytes(rng.randrange(40000)))
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(40 * MiB)
    table = tmp_path / "table"
    table.write_text("label: dos\nstart=2048, size=65536, type=83\n", "ascii")
    made = qemu.run("sh", "-c", 'sfdisk -q "$1" < "$2"', "sh", disk, table)
    assert made.code == 0, made
    made = qemu.run("mkfs.ext4", "-q", "-F", "-d", files, "-E", "offset=1048576", disk, "32M")
    assert made.code == 0, made
    return disk


def assert_healthy(disk: Path) -> None:
    checked = qemu.run("e2fsck", "-f", "-n", f"{disk}?offset=1048576")
    assert checked.code == 0, checked
    assert qemu.run("sfdisk", "--verify", "-q", disk).code == 0


@needs("mkfs.ext4", "sfdisk")
@pytest.mark.parametrize("into", ["us", "qemu"])
@pytest.mark.parametrize("back", ["us", "qemu"])
def test_a_real_disk_there_and_back(real_disk: Path, into: str, back: str) -> None:
    image, again = real_disk.with_name("image"), real_disk.with_name("again")
    assert_healthy(real_disk)
    if into == "us":
        blocklayer.convert(real_disk, image, source_format="raw", format="qed")
    else:
        convert_by_qemu(real_disk, image, formats=("raw", "qed"))
    views.assert_clean(image)
    qemu.compare(real_disk, image, formats=("raw", "qed"))
    if back == "us":
        blocklayer.convert(image, again, format="raw")
    else:
        convert_by_qemu(image, again, formats=("qed", "raw"))
    assert again.read_bytes() == real_disk.read_bytes()
    assert_healthy(again)
    assert disk_space(again) <= disk_space(real_disk) + 64 * KiB


def sparse(path: Path, rng: random.Random, size: int = 9 * MiB + 512) -> None:
    """A raw file with holes, data, and zeroes that take space, in pieces of all sizes."""
    with path.open("wb") as file:
        while file.tell() < size:
            count = min(
                rng.choice([100, 512, 4096, 5000, 65536, 200000, 700000]), size - file.tell()
            )
            kind = rng.choice(["hole", "data", "zeroes"])
            if kind == "hole":
                file.seek(count, os.SEEK_CUR)
            else:
                file.write(rng.randbytes(count) if kind == "data" else bytes(count))
        file.truncate(size)


SPARSE_SIZES = [0, 512, 4 * KiB, 64 * KiB, 1 * MiB]


@pytest.mark.parametrize("sparse_size", SPARSE_SIZES)
@pytest.mark.parametrize("target_format", ["raw", "qed"])
def test_sparse_sizes(
    tmp_path: Path, rng: random.Random, sparse_size: int, target_format: str
) -> None:
    source, ours, theirs = tmp_path / "source", tmp_path / "ours", tmp_path / "theirs"
    sparse(source, rng)
    formats = ("raw", target_format)
    blocklayer.convert(
        source, ours, source_format="raw", format=target_format, sparse_size=sparse_size
    )
    convert_by_qemu(source, theirs, "-S", str(sparse_size), formats=formats)
    qemu.compare(ours, theirs, formats=(target_format, target_format))
    qemu.compare(source, ours, formats=formats)
    # Every whole block of zeroes is left out, or every cluster of them: one write fills a cluster.
    content = source.read_bytes()
    block = max(sparse_size, 4 * KiB if target_format == "raw" else 64 * KiB)
    block = block if sparse_size else len(content)
    stored = sum(
        count for start, count in pieces(len(content), block) if any(content[start:][:count])
    )
    assert disk_space(ours) <= stored + 64 * KiB
    if sparse_size <= 64 * KiB:
        # We count whole blocks, QEMU any run of that length; it matters for large blocks only.
        assert disk_space(ours) <= disk_space(theirs) * 1.05 + 64 * KiB
    if target_format == "raw" and sparse_size <= 64 * KiB:
        assert disk_space(ours) >= disk_space(theirs) * 0.8
    elif target_format == "raw":
        # A block of holes and zeroes is left out here; there, zeroes beside holes are short runs.
        dense = sum(
            count for start, count in pieces(len(content), 4 * KiB) if any(content[start:][:count])
        )
        assert disk_space(ours) >= dense
    elif sparse_size <= 64 * KiB:
        assert clusters(ours) <= clusters(theirs)
        if not sparse_size:
            assert clusters(ours) == clusters(theirs) == align_up(9 * MiB + 512, 64 * KiB) >> 16


@pytest.mark.parametrize("length", [1, 511, 513, MiB + 100, 3 * MiB + 511])
def test_files_that_end_in_a_sector(tmp_path: Path, rng: random.Random, length: int) -> None:
    source, ours, theirs = tmp_path / "source", tmp_path / "ours", tmp_path / "theirs"
    source.write_bytes(rng.randbytes(length))
    views.assert_same(source, format="raw")
    for target_format in ("qed", "raw"):
        blocklayer.convert(source, ours, source_format="raw", format=target_format)
        convert_by_qemu(source, theirs, formats=("raw", target_format))
        qemu.compare(ours, theirs, formats=(target_format, target_format))
        shown = views.content(ours, format=target_format)
        assert shown == source.read_bytes().ljust(align_up(length, 512), b"\0")
        assert blocklayer.info(ours).virtual_size == qemu.info(theirs, format=target_format).pop(
            "virtual-size"
        )


@pytest.mark.parametrize("base_size", [2 * MiB + 512, 4 * MiB, 7 * MiB])
@pytest.mark.parametrize("source_format", ["qed", "raw"])
def test_onto_a_backing_file(
    tmp_path: Path, rng: random.Random, base_size: int, source_format: str
) -> None:
    """Only what differs is stored."""
    base, source, ours, theirs = (tmp_path / name for name in ("base", "source", "ours", "theirs"))
    size = 4 * MiB
    common = commands(Generator(rng, min(size, base_size), 64 * KiB).many(40))
    differing = commands(Generator(rng, size, 64 * KiB).many(4))
    qemu.create(base, base_size)
    qemu.io(base, *common, f"write -P 3 {base_size - MiB} 1M")
    qemu.create(source, size, format=source_format)
    qemu.io(source, *common, *differing, format=source_format)
    blocklayer.convert(
        source,
        ours,
        source_format=source_format,
        format="qed",
        options={"backing_file": "base", "backing_fmt": "qed"},
    )
    convert_by_qemu(source, theirs, "-B", str(base), "-F", "qed", formats=(source_format, "qed"))
    views.assert_same(ours, expected=views.content(source, format=source_format))
    qemu.compare(ours, theirs)
    assert clusters(ours) <= clusters(theirs)


def test_several_sources(tmp_path: Path, rng: random.Random) -> None:
    sources = []
    for number, length in enumerate((MiB + 512, 512, 3 * MiB - 512, 100)):
        path = tmp_path / f"source{number}"
        path.write_bytes(rng.randbytes(length // 2) + bytes(length - length // 2))
        sources.append(path)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    blocklayer.convert(sources, ours, source_format="raw", format="qed")
    qemu.img("convert", "-f", "raw", "-O", "qed", *sources, theirs)
    qemu.compare(ours, theirs)
    whole = b"".join(p.read_bytes().ljust(align_up(p.stat().st_size, 512), b"\0") for p in sources)
    assert views.assert_same(ours) == whole


@pytest.mark.parametrize("target_format", ["raw", "qed"])
@pytest.mark.parametrize("longer", [0, MiB])
def test_into_an_image_that_is_there(
    tmp_path: Path, rng: random.Random, target_format: str, longer: int
) -> None:
    """With `-n`: zeroes replace what was there; a longer target keeps what is behind."""
    source, ours, theirs = tmp_path / "source", tmp_path / "ours", tmp_path / "theirs"
    sparse(source, rng, 4 * MiB + 512)
    for target in (ours, theirs):
        qemu.create(target, 4 * MiB + 512 + longer, format=target_format)
        qemu.io(target, f"write -q -P 5 0 {4 * MiB + 512 + longer}", format=target_format)
    blocklayer.convert(source, ours, source_format="raw", format=target_format, create=False)
    convert_by_qemu(source, theirs, "-n", formats=("raw", target_format))
    qemu.compare(ours, theirs, formats=(target_format, target_format))
    seen = views.assert_same(ours, format=target_format)
    assert seen == source.read_bytes() + b"\5" * longer


def test_into_a_shorter_image(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(MiB))
    qemu.create(target, MiB - 512)
    refused = qemu.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "qed", source, target)
    assert "output file is smaller than input file" in refused.output
    with pytest.raises(blocklayer.InvalidArgument, match="output file is smaller than input file"):
        blocklayer.convert(source, target, source_format="raw", format="qed", create=False)


def test_chains_are_flattened(tmp_path: Path, rng: random.Random) -> None:
    base, top, ours, theirs = (tmp_path / name for name in ("base", "top", "ours", "theirs"))
    qemu.create(base, 3 * MiB)
    qemu.io(base, *commands(Generator(rng, 3 * MiB, 64 * KiB).many(30)))
    qemu.create(top, 5 * MiB, backing=base, cluster_size=8192)
    qemu.io(top, *commands(Generator(rng, 5 * MiB, 8192, over_backing=True).many(30)))
    for target_format in ("qed", "raw"):
        blocklayer.convert(top, ours, format=target_format)
        convert_by_qemu(top, theirs, formats=("qed", target_format))
        qemu.compare(top, ours, formats=("qed", target_format))
        assert disk_space(ours) <= disk_space(theirs) + 64 * KiB


# Comparing.


def verdict(one: Path, two: Path, *words: str) -> tuple[bool, int | None, str]:
    """What `qemu-img compare` finds: equal, the offset of a difference, and what it prints."""
    outcome = qemu.run("qemu-img", "compare", "-f", "raw", "-F", "qed", *words, one, two)
    assert outcome.code in (0, 1), outcome
    offset = re.search(r"[Oo]ffset (\d+)", outcome.output)
    return outcome.code == 0, int(offset.group(1)) if offset else None, outcome.output


def test_verdicts(tmp_path: Path, rng: random.Random) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for _ in range(25):
        sizes = [align_up(rng.randrange(1, 5 * MiB), 512) for _ in range(2)]
        size = min(sizes)
        content = rng.choice([bytes(size), rng.randbytes(size)])
        one.write_bytes(content + bytes(sizes[0] - size))
        qemu.create(two, sizes[1])
        if any(content):
            copy = tmp_path / "copy"
            copy.write_bytes(content)
            qemu.io(two, f"write -q -s {copy} 0 {size}")
        for _ in range(rng.randrange(3)):
            qemu.io(two, f"write -q -P {rng.randrange(256)} {rng.randrange(sizes[1])} 1")
        expected = verdict(one, two)
        found = blocklayer.compare(one, two, first_format="raw")
        assert (found.identical, found.offset) == expected[:2]
        assert found.sizes_differ == (sizes[0] != sizes[1])
        if found.identical:
            assert found.sizes_differ == ("Image size mismatch" in expected[2])
        other_way = blocklayer.compare(two, one, second_format="raw")
        assert (other_way.identical, other_way.offset) == expected[:2]


@pytest.mark.parametrize(
    ("told", "size"),
    [
        ([], 2 * MiB),
        ([], 2 * MiB + 512),
        (["write -P 1 128k 64k"], 2 * MiB),
        (["write -z 128k 64k"], 2 * MiB),
        (["write -P 0 320k 64k"], 2 * MiB),
        (["write -P 1 0 64k", "write -P 1 256k 64k"], 2 * MiB),
    ],
)
def test_strict_verdicts(tmp_path: Path, told: list[str], size: int) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    qemu.create(one, 2 * MiB)
    qemu.io(one, "write -P 1 256k 64k")
    qemu.create(two, size)
    qemu.io(two, "write -P 1 256k 64k", *told)
    outcome = qemu.run("qemu-img", "compare", "-s", "-f", "qed", "-F", "qed", one, two)
    found = blocklayer.compare(one, two, strict=True)
    assert found.identical is (outcome.code == 0)
    if not found.identical:
        kinds = {
            "size": "Strict mode: Image size mismatch!",
            "status": f"Strict mode: Offset {found.offset} block status mismatch!",
            "content": f"Content mismatch at offset {found.offset}!",
        }
        assert found.kind is not None
        assert kinds[found.kind] in outcome.output


def test_where_the_status_differs(tmp_path: Path) -> None:
    """DEFECT: to QEMU the run before it differs already, if in one image it reaches the end."""
    one, two = tmp_path / "one", tmp_path / "two"
    qemu.create(one, 2 * MiB)
    qemu.create(two, 2 * MiB)
    qemu.io(two, "write -P 0 1M 64k")
    refused = qemu.run("qemu-img", "compare", "-s", "-f", "qed", "-F", "qed", one, two)
    assert refused.output == "Strict mode: Offset 0 block status mismatch!\n"
    assert blocklayer.compare(one, two, strict=True).offset == MiB
    assert views.extents(two)[1]["start"] == MiB


# Measuring, resizing.


@pytest.mark.parametrize("source_format", ["qed", "raw"])
def test_measure_raw(tmp_path: Path, rng: random.Random, source_format: str) -> None:
    raw, image = tmp_path / "raw", tmp_path / "image"
    sparse(raw, rng, 3 * MiB + 512)
    convert_by_qemu(raw, image, formats=("raw", source_format))
    printed = qemu.img("measure", "-O", "raw", "-f", source_format, image)
    found = blocklayer.measure(image, source_format=source_format)
    assert printed == (
        f"required size: {found.required}\nfully allocated size: {found.fully_allocated}\n"
    )
    by_size = qemu.img("measure", "-O", "raw", "--size", str(5 * MiB + 1))
    found = blocklayer.measure(size=5 * MiB + 1)
    assert by_size == (
        f"required size: {found.required}\nfully allocated size: {found.fully_allocated}\n"
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"cluster_size": 4096, "table_size": 2}, {"cluster_size": 1 << 20, "table_size": 16}],
)
def test_measure_tells_what_conversion_needs(
    tmp_path: Path, rng: random.Random, options: dict[str, Any]
) -> None:
    """QEMU does not measure QED; what it makes has the length that we predict."""
    raw, image, full = tmp_path / "raw", tmp_path / "image", tmp_path / "full"
    sparse(raw, rng)
    words = ["-o", ",".join(f"{name}={value}" for name, value in options.items())]
    convert_by_qemu(raw, image, *(words if options else []), formats=("raw", "qed"))
    found = blocklayer.measure(image, format="qed", options=dict(options))
    assert found.required == image.stat().st_size
    convert_by_qemu(raw, full, "-S", "0", *(words if options else []), formats=("raw", "qed"))
    assert found.fully_allocated == full.stat().st_size


@pytest.mark.parametrize("format", ["qed", "raw"])
def test_growing(tmp_path: Path, rng: random.Random, format: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    size = 3 * MiB + 512
    qemu.create(ours, size, format=format)
    qemu.io(ours, *commands(Generator(rng, size, 64 * KiB).many(30)), format=format)
    theirs.write_bytes(ours.read_bytes())
    for _ in range(5):
        size += rng.randrange(1, 4000) * 512
        assert blocklayer.resize(ours, size, format=format) == size
        qemu.img("resize", "-q", "-f", format, theirs, size)
        qemu.compare(ours, theirs, formats=(format, format))
        views.assert_same(ours, format=format)
        write = f"write -P {rng.randrange(1, 256)} {size - 700} 700"
        for path in (ours, theirs):
            qemu.io(path, write, format=format)


def test_shrinking(tmp_path: Path, rng: random.Random) -> None:
    """QEMU shrinks raw images only, and so is a witness of what must be left of others."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    size = 6 * MiB
    qemu.create(ours, size, cluster_size=4096, table_size=2)
    qemu.io(ours, *commands(Generator(rng, size, 4096).many(60)))
    convert_by_qemu(ours, theirs, formats=("qed", "raw"))
    refused = qemu.run("qemu-img", "resize", "--shrink", "-f", "qed", ours, str(MiB))
    assert "Shrinking images is currently not supported" in refused.output
    while size > 2 * MiB:
        size -= rng.randrange(1, 3000) * 512
        qemu.img("resize", "-q", "--shrink", "-f", "raw", theirs, size)
        with pytest.raises(blocklayer.InvalidArgument, match="--shrink"):
            blocklayer.resize(ours, size)
        blocklayer.resize(ours, size, shrink=True)
        qemu.compare(ours, theirs, formats=("qed", "raw"))
        views.assert_clean(ours)
        # What was cut off does not come back.
        for path, format in ((ours, "qed"), (theirs, "raw")):
            qemu.img("resize", "-q", "-f", format, path, size + MiB)
        qemu.compare(ours, theirs, formats=("qed", "raw"))
        for path, format in ((ours, "qed"), (theirs, "raw")):
            blocklayer.resize(path, size, format=format, shrink=True)


def test_sizes_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "image"
    qemu.create(path, MiB)
    before = path.read_bytes()
    refused = qemu.run("qemu-img", "resize", "-f", "qed", path, 64 * 2**40 + 512)
    assert "Invalid image size specified" in refused.output
    with pytest.raises(blocklayer.InvalidArgument, match="Invalid image size specified"):
        blocklayer.resize(path, 64 * 2**40 + 512)
    refused = qemu.run("qemu-img", "resize", "--preallocation=full", "-f", "qed", path, "2M")
    assert "Unsupported preallocation mode 'full'" in refused.output
    with pytest.raises(blocklayer.NotSupported, match="Unsupported preallocation mode 'full'"):
        blocklayer.resize(path, 2 * MiB, preallocation="full")
    assert path.read_bytes() == before
