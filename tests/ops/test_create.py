# SPDX-License-Identifier: Apache-2.0
"""Creating: sizes, options, names, what is below; and nothing half made, ever."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.align import align_up
from blocklayer.base.errors import CreateError, IoError, LockError, OpenError
from blocklayer.base.units import KiB, MiB, TiB
from blocklayer.core.node import Node
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import CHANGING, InjectError
from blocklayer.ops import create as module
from tests.ops.images import SMALL, content, files, unchanged
from tests.support.mounts import needs_loop, shown_as_device

FORMATS = ("raw", "qed")

# --- what is there already ---


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("raw", {"size": "7E"}),
        ("qed", {"size": "7E"}),
        ("raw", {"size": "900T", "preallocation": "falloc"}),
        ("raw", {"size": "1P", "preallocation": "full"}),
    ],
)
def test_an_image_that_cannot_be_made_costs_no_file(
    tmp_path: Path, format: str, options: dict[str, Any]
) -> None:
    (tmp_path / "old").write_bytes(b"keep me")
    with unchanged(tmp_path), pytest.raises(CreateError):
        blocklayer.create(tmp_path / "old", format=format, **options)
    with unchanged(tmp_path), pytest.raises(CreateError):
        blocklayer.create(tmp_path / "new", format=format, **options)


@needs_loop()
def test_qed_needs_what_can_grow(tmp_path: Path) -> None:
    path = tmp_path / "device"
    path.write_bytes(b"keep me" + bytes(MiB - 7))
    with shown_as_device(path) as device:
        with unchanged(tmp_path), pytest.raises(CreateError, match="Cannot resize device files"):
            blocklayer.create(device, format="qed", size=512 * KiB)
        blocklayer.create(device, format="raw", size=512 * KiB)


# --- sizes ---


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("size", "length"),
    [
        *((size, align_up(size, 512)) for size in (0, 1, 511, 512, 513, 1000001, 3 * TiB)),
        *(("0", 0), ("1b", 512), ("64k", 64 * KiB), ("1.5M", 3 * MiB // 2), ("0x600", 1536)),
    ],
)
def test_sizes(tmp_path: Path, format: str, size: int | str, length: int) -> None:
    path = tmp_path / "image"
    made = blocklayer.create(path, format=format, size=size)
    assert made["size"] == length
    with blocklayer.open(path, format=format) as disk:
        assert disk.size == length
        assert all(extent.zero for extent in disk.extents())
        for offset in {0, length // 2, max(0, length - 1000)} if length else ():
            count = min(1000, length - offset)
            assert disk.read(offset, count) == bytes(count)
    if format == "raw":
        assert path.stat().st_size == length
    else:
        assert blocklayer.check(path).clean


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "size", [-1, 1 << 63, 1 << 70, "", "x", "1x", "-1", "1.k", 1.5, True, b"1", None]
)
def test_sizes_that_cannot_be(tmp_path: Path, format: str, size: Any) -> None:
    (tmp_path / "old").write_bytes(b"keep me")
    for name in ("new", "old"):
        with unchanged(tmp_path), pytest.raises(CreateError, match="size"):
            blocklayer.create(tmp_path / name, format=format, size=size)


# --- options ---


def test_what_was_made_is_told(tmp_path: Path) -> None:
    path = tmp_path / "image"
    assert blocklayer.create(path, size=1000) == {"size": 1024, "preallocation": "off"}
    for cluster_size, table_size in ((4096, 1), ("64k", "4"), ("1M", 16)):
        made = blocklayer.create(
            path, format="qed", size=MiB, cluster_size=cluster_size, table_size=table_size
        )
        info = blocklayer.info(path)
        assert info.cluster_size == made["cluster_size"]
        assert info.format_specific["table-size"] == made["table_size"]


def test_every_cluster_and_table_size(tmp_path: Path) -> None:
    path = tmp_path / "image"
    powers = [1 << bit for bit in range(9, 29)]
    for cluster_size in {*powers, *(power + 1 for power in powers), 3 * 4096}:
        valid = cluster_size in powers and 4096 <= cluster_size <= 64 * MiB
        if valid:
            blocklayer.create(path, format="qed", size=512, cluster_size=cluster_size, table_size=1)
            assert blocklayer.info(path).cluster_size == cluster_size
        else:
            with pytest.raises(CreateError, match="cluster size"):
                blocklayer.create(path, format="qed", size=512, cluster_size=cluster_size)
    for table_size in range(1, 40):
        if table_size in (1, 2, 4, 8, 16):
            blocklayer.create(path, format="qed", size=512, table_size=table_size)
        else:
            with pytest.raises(CreateError, match="table size"):
                blocklayer.create(path, format="qed", size=512, table_size=table_size)


def test_the_largest_image_of_each_geometry(tmp_path: Path) -> None:
    path = tmp_path / "image"
    for clusters, table_size in itertools.product((4096, 8192), (1, 2)):
        entries = clusters * table_size // 8
        largest = entries * entries * clusters
        options: dict[str, Any] = {"cluster_size": clusters, "table_size": table_size}
        blocklayer.create(path, format="qed", size=largest, **options)
        with blocklayer.open(path, mode="r+") as disk:
            disk.write(largest - 3, b"end")
            assert disk.read(largest - 4, 4) == b"\0end"
        with pytest.raises(CreateError, match=str(largest)):
            blocklayer.create(path, format="qed", size=largest + 1, **options)


@pytest.mark.parametrize("mode", ["off", "falloc", "full"])
def test_preallocation_of_raw_images(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image"
    made = blocklayer.create(path, size=MiB, preallocation=mode)
    assert made["preallocation"] == mode
    assert path.read_bytes() == bytes(MiB)
    allocated = path.stat().st_blocks * 512
    assert allocated == 0 if mode == "off" else allocated >= MiB


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"format": "nonsense"}, "Unknown file format 'nonsense'"),
        ({"format": "fault"}, "Unknown file format 'fault'"),
        ({"format": "file"}, "Unknown file format 'file'"),
        ({"cluster_size": 4096}, "Invalid parameter 'cluster_size'"),
        ({"format": "qed", "nonsense": 1}, "Invalid parameter 'nonsense'"),
        ({"format": "qed", "backing_file": "x"}, "Invalid parameter 'backing_file'"),
        ({"format": "qed", "cluster_size": 0}, "QED cluster size must be within"),
        ({"format": "qed", "cluster_size": "0"}, "QED cluster size must be within"),
        ({"format": "qed", "cluster_size": ""}, "cluster_size"),
        ({"format": "qed", "table_size": 0}, "QED table size must be within"),
        ({"preallocation": "metadata"}, "Unsupported preallocation mode 'metadata'"),
        ({"format": "qed", "preallocation": "full"}, "Unsupported preallocation mode 'full'"),
        ({"backing": "x"}, "Backing file not supported for file format 'raw'"),
        ({"backing_format": "raw"}, "Backing file format not supported for file format 'raw'"),
    ],
)
@pytest.mark.parametrize("name", ["new", "old"])
def test_options_that_are_refused(
    tmp_path: Path, name: str, arguments: dict[str, Any], words: str
) -> None:
    (tmp_path / "old").write_bytes(b"keep me")
    with unchanged(tmp_path), pytest.raises(CreateError) as caught:
        blocklayer.create(tmp_path / name, **{"size": MiB, **arguments})
    assert words in str(caught.value)
    assert caught.value.filename == str(tmp_path / name)


# --- what lies below ---


def test_size_and_format_come_from_the_backing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    folder = tmp_path / "folder"
    for each in (elsewhere, folder):
        each.mkdir()
    monkeypatch.chdir(elsewhere)
    (folder / "odd").write_bytes(b"x" * 1000)
    blocklayer.create(folder / "base", format="qed", size=5000)
    for below, size, stored in (("odd", 1024, "raw"), ("base", 5120, None)):
        made = blocklayer.create(folder / "top", format="qed", backing=below)
        info = blocklayer.info(folder / "top")
        assert made["size"] == info.virtual_size == size
        assert (info.backing_filename, info.backing_format) == (below, stored)
        assert made["backing_fmt"] == (stored or "qed")
        assert content(folder / "top") == content(folder / below)
    for absolute in (folder / "odd", f"file:{folder / 'odd'}"):
        blocklayer.create("top", format="qed", backing=absolute)
        assert content("top") == b"x" * 1000 + bytes(24)
    with pytest.raises(CreateError, match="No such file"):
        blocklayer.create("new", format="qed", backing="odd")
    assert not os.path.exists("new")


@pytest.mark.parametrize("size", [0, 1, 512, 1000, 1024, 1025, 5000])
def test_overlays_of_other_sizes(tmp_path: Path, size: int) -> None:
    (tmp_path / "base").write_bytes(b"x" * 1000)
    path = tmp_path / "top"
    blocklayer.create(path, format="qed", size=size, backing="base", backing_format="raw", **SMALL)
    length = align_up(size, 512)
    assert content(path) == (b"x" * 1000 + bytes(length))[:length]


def test_a_backing_file_that_does_not_open(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"QED\0" * 200)
    for below, words in (("missing", "No such file"), ("bad", "QED"), ("", "size parameter")):
        with unchanged(tmp_path), pytest.raises(CreateError, match=words) as caught:
            blocklayer.create(tmp_path / "top", format="qed", backing=below)
        if below:
            assert isinstance(caught.value.__cause__, OpenError)
    for below in ("missing", "bad"):
        with unchanged(tmp_path), pytest.raises(CreateError, match="size parameter"):
            blocklayer.create(tmp_path / "top", format="qed", backing=below, check_backing=False)
    for below in ("missing", "bad"):
        path = tmp_path / f"over {below}"
        blocklayer.create(path, format="qed", backing=below, check_backing=False, size=512)
        assert blocklayer.info(path).backing_filename == below
        with pytest.raises(OpenError, match="Could not open backing file"):
            blocklayer.open(path)


def test_no_image_is_its_own_backing_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size=512)
    os.link(path, tmp_path / "hard")
    (tmp_path / "soft").symlink_to("image")
    for name, below in itertools.product(("image", "hard", "soft"), repeat=2):
        with unchanged(tmp_path), pytest.raises(CreateError, match="same filename"):
            blocklayer.create(tmp_path / name, format="qed", backing=below)


@pytest.mark.parametrize(("cluster_size", "room"), [(4096, 4096 - 64), (65536, 4095)])
def test_a_name_that_the_header_has_no_room_for(
    tmp_path: Path, cluster_size: int, room: int
) -> None:
    path = tmp_path / "image"
    options: dict[str, Any] = {"size": 512, "check_backing": False, "cluster_size": cluster_size}
    for name in ("x" * room, "é" * (room // 2)):
        blocklayer.create(path, format="qed", backing=name, **options)
        assert blocklayer.info(path).backing_filename == name
    for name in ("x" * (room + 1), "é" * (room // 2 + 1)):
        with unchanged(tmp_path), pytest.raises(CreateError, match=f"room for {room}"):
            blocklayer.create(path, format="qed", backing=name, **options)


# --- targets that are there already ---


@pytest.mark.parametrize("old", FORMATS)
@pytest.mark.parametrize("new", FORMATS)
def test_nothing_is_left_of_what_was_there(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, format=old, size=MiB)
    with blocklayer.open(path, mode="r+", format=old) as disk:
        disk.write(0, b"old" * 100000)
    (tmp_path / "link").symlink_to(path)
    for name in ("image", "link"):
        blocklayer.create(tmp_path / name, format=new, size=2 * MiB)
        assert content(path, new) == bytes(2 * MiB)
        assert b"old" not in path.read_bytes()
    assert (tmp_path / "link").is_symlink()


def test_an_image_in_use_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size=MiB)
    for mode in ("r", "r+"):
        with blocklayer.open(path, mode=mode), unchanged(tmp_path):
            with pytest.raises((LockError, CreateError)) as caught:
                blocklayer.create(path, size=512)
            assert "lock" in str(caught.value)
    with blocklayer.open(path):
        blocklayer.create(path, size=512, locking="off")
    assert path.read_bytes() == bytes(512)


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("missing/image")
    (tmp_path / "file").write_bytes(b"x")
    for name, words in (
        ("missing/image", "No such file"),
        ("dangling", "No such file"),
        ("file/image", "Not a directory"),
        (".", "directory"),
        ("x" * 300, "name too long"),
    ):
        with unchanged(tmp_path), pytest.raises(CreateError, match=words):
            blocklayer.create(tmp_path / name, size=512)
    assert (tmp_path / "dangling").is_symlink()


def test_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("image")
    blocklayer.create(tmp_path / "link", size=512)
    assert (tmp_path / "image").stat().st_size == 512
    assert (tmp_path / "link").is_symlink()


def test_without_permission(
    public_path: Path, as_nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    path = public_path / "image"
    blocklayer.create(path, size=512)
    path.chmod(0o444)
    public_path.chmod(0o555)
    with unchanged(public_path), as_nobody():
        for name in ("image", "new"):
            with pytest.raises(CreateError, match="Permission denied"):
                blocklayer.create(public_path / name, size=MiB)


# --- names ---

ODD_NAMES = [
    "with space",
    "ünïcode",
    "new\nline",
    "tab\t\x1b[31m",
    "c:colon",
    "-dash",
    "percent%20",
    "comma,x=y",
    "quote'\"",
    "{braces}",
    os.fsdecode(b"\xff\xfe not UTF-8"),
]


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("format", FORMATS)
def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, format: str) -> None:
    """As the image and as its backing file, in each form a name has."""
    monkeypatch.chdir(tmp_path)
    for form in (name, f"file:{name}", Path(name), str(tmp_path / name)):
        blocklayer.create(form, format=format, size=1000)
        assert list(files(tmp_path)) == [name]
        with blocklayer.open(form, mode="r+", format=format) as disk:
            disk.write(0, b"here")
        blocklayer.create("top", format="qed", backing=str(tmp_path / name), backing_format=format)
        assert content("top")[:4] == b"here"
        blocklayer.create("top", format="qed", backing=f"./{name}", backing_format=format)
        assert content("top")[:4] == b"here"
        shown = blocklayer.info(form, format=format).filename
        assert os.fsencode(shown.removeprefix("file:")) == os.fsencode(form).removeprefix(b"file:")
        os.unlink(name)
        os.unlink("top")


def test_names_that_could_be_of_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("nbd:unix:/none", "http://host/x"):
        with (
            unchanged(tmp_path),
            pytest.raises(CreateError, match=r"Unknown protocol|Failed to connect"),
        ):
            blocklayer.create(name, size=512)
    for form in ("./nbd:x", "file:nbd:x", Path("nbd:x")):
        blocklayer.create(form, size=512)
        assert list(files(tmp_path)) == ["nbd:x"]
        os.unlink("nbd:x")


@pytest.mark.parametrize(
    "name",
    ["", "file:", "a\0b", "json:{}", 'json:{"driver": "file", "filename": "x"}', b"x", "\ud800"],
)
def test_names_that_are_of_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with unchanged(tmp_path), pytest.raises(CreateError) as caught:
        blocklayer.create(name, size=512)
    assert caught.value.filename == name
    str(caught.value)


# --- failures in the middle ---


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("existed", [False, True])
def test_whatever_fails_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, existed: bool
) -> None:
    path = tmp_path / "image"
    (tmp_path / "base").write_bytes(b"x" * 5000)
    below: dict[str, Any] = (
        {"backing": "base", "backing_format": "raw", **SMALL} if format == "qed" else {}
    )
    open_storage = module._open_storage
    rules: list[InjectError] = []

    def open_failing(target: str, locking: str) -> Node:
        return FaultNode(open_storage(target, locking), rules)

    monkeypatch.setattr(module, "_open_storage", open_failing)
    failed = 0
    reasons: list[BaseException | None] = []
    old = b"QED\0" * 5000
    for nth in range(1, 20):
        if existed:
            path.write_bytes(old)
        rules[:] = [InjectError(iotypes=CHANGING, errno=errno.ENOSPC, nth=nth)]
        try:
            blocklayer.create(path, format=format, size=MiB, **below)
        except CreateError as error:
            failed += 1
            reasons.append(error.__cause__)
            # What was there is as it was, or gone, or no longer an image.
            assert files(tmp_path).get("image", b"") in ((old, b"") if existed else (b"",))
            assert existed or not path.exists()
        else:
            break
    assert failed == nth - 1 > 0
    assert {type(reason) for reason in reasons} == {IoError}
    assert all("No space left" in str(reason) for reason in reasons)
    assert len(content(path, format)) == MiB


@pytest.mark.parametrize("link", [False, True])
def test_a_disk_that_takes_no_such_file(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]], link: bool
) -> None:
    (tmp_path / "real").write_bytes(b"x" * 5000)
    if link:
        (tmp_path / "link").symlink_to("real")
    for format, options in (("raw", {"preallocation": "full"}), ("qed", SMALL), ("raw", {})):
        with full_disk(4096), pytest.raises(CreateError, match="too large"):
            blocklayer.create(
                tmp_path / ("link" if link else "real"), format=format, size=MiB, **options
            )
        assert (tmp_path / "real").read_bytes() == b"x" * 5000
