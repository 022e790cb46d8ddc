# SPDX-License-Identifier: Apache-2.0
"""Opening a disk by name: every option, and every form of a name."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer import (
    Closed,
    Disk,
    InvalidArgument,
    IoError,
    LockError,
    OpenError,
    ReadOnly,
    Refused,
    Trust,
)
from blocklayer.base.units import KiB, MiB
from blocklayer.core.stats import CountingDisk
from tests.ops.images import CLUSTER, SMALL, Layer, base, chain, content, make, unchanged

FORMATS = ("raw", "qed")
CACHES = ("writeback", "none", "writethrough", "directsync", "unsafe")


@pytest.fixture(params=FORMATS)
def layer(request: pytest.FixtureRequest, tmp_path: Path, rng: random.Random) -> Layer:
    return base(tmp_path / "image", 200 * KiB, rng, request.param)


# --- modes ---


def test_reading_is_the_default(layer: Layer, tmp_path: Path) -> None:
    with unchanged(tmp_path), blocklayer.open(layer.path, format=layer.format) as disk:
        assert disk.read_only
        assert (disk.format, disk.size, disk.filename) == (
            layer.format,
            layer.model.size,
            str(layer.path),
        )
        with pytest.raises(ReadOnly):
            disk.write(0, b"x")
        layer.model.check(disk)
    with pytest.raises(Closed):
        disk.read(0, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "w"}, "Invalid mode"),
        ({"mode": "rw"}, "Invalid mode"),
        ({"mode": ""}, "Invalid mode"),
        ({"cache": "hot"}, "Invalid cache option"),
        ({"discard": "on"}, "Invalid discard mode"),
        ({"detect_zeroes": "yes"}, "Invalid detect-zeroes mode"),
        ({"detect_zeroes": "unmap"}, "without setting discard"),
        ({"mode": "r+", "force_share": True}, "read-only"),
        ({"locking": "maybe"}, "lock"),
    ],
)
def test_arguments_that_are_refused(layer: Layer, arguments: dict[str, Any], words: str) -> None:
    for _ in range(2):  # and nothing stays locked
        with pytest.raises((InvalidArgument, OpenError), match=words):
            blocklayer.open(layer.path, format=layer.format, **arguments)
    with blocklayer.open(layer.path, mode="r+", format=layer.format):
        pass


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("detect_zeroes", ["off", "on", "unmap"])
def test_every_option_leaves_the_bytes_alone(
    layer: Layer, rng: random.Random, cache: str, detect_zeroes: str
) -> None:
    with blocklayer.open(
        layer.path,
        mode="r+",
        format=layer.format,
        cache=cache,
        discard="unmap",
        detect_zeroes=detect_zeroes,
        stats=True,
        locking=rng.choice(("auto", "on", "off")),
    ) as disk:
        for _ in range(10):
            offset = rng.randrange(layer.model.size)
            length = min(rng.choice((1, 512, CLUSTER, 20000)), layer.model.size - offset)
            data = rng.choice((bytes(length), rng.randbytes(length)))
            disk.write(offset, data)
            layer.model.content[offset : offset + length] = data
        layer.model.own[:] = bytes(layer.model.size)
        layer.model.check(disk)
        assert isinstance(disk, CountingDisk)
        assert disk.writethrough is (cache in {"writethrough", "directsync"})
    assert content(layer.path, layer.format) == layer.content


def test_zeroes_are_detected(tmp_path: Path) -> None:
    path = tmp_path / "image"
    stored = {}
    for mode in ("off", "on"):
        blocklayer.create(path, format="qed", size=MiB, **SMALL)
        with blocklayer.open(path, mode="r+", detect_zeroes=mode) as disk:
            disk.write(0, bytes(10 * CLUSTER))
        stored[mode] = blocklayer.check(path).allocated_clusters
    assert stored == {"off": 10, "on": 0}


def described(path: Path, **more: Any) -> dict[str, Any]:
    return {"driver": "raw", "file.filename": str(path), **more}


@pytest.mark.parametrize(
    ("options", "zeroed", "discarded"),
    [
        ({}, 16, 8),
        ({"discard": "ignore"}, 16, 16),
        ({"discard": False}, 16, 16),
        ({"detect-zeroes": "unmap"}, 8, 8),
        ({"detect-zeroes": "unmap", "discard": "on"}, 8, 8),
        ({"file.discard": "unmap", "file.auto-read-only": "on", "file.node-name": "a"}, 16, 8),
    ],
)
def test_options_of_the_image_come_before_arguments(
    tmp_path: Path, options: dict[str, Any], zeroed: int, discarded: int
) -> None:
    path = tmp_path / "image"
    tree = described(path, **options)
    found = []
    for name in (tree, f"json:{json.dumps(tree)}"):
        for action in ("write", "discard"):
            path.write_bytes(b"x" * 64 * KiB)
            with blocklayer.open(name, mode="r+", discard="unmap") as disk:
                if action == "write":
                    disk.write(0, bytes(32 * KiB))
                else:
                    disk.discard(0, 32 * KiB)
            found.append(path.stat().st_blocks // 8)
    assert found == [zeroed, discarded] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"discard": "maybe"}, "Invalid discard option"),
        ({"detect-zeroes": "maybe"}, "invalid parameter value: maybe"),
        ({"detect-zeroes": "unmap"}, "without setting discard"),
        ({"detect-zeroes": "unmap", "discard": "ignore"}, "without setting discard"),
        ({"auto-read-only": "maybe"}, "Parameter 'auto-read-only' expects 'on' or 'off'"),
        ({"node-name": "0"}, "Invalid node-name: '0'"),
        ({"node-name": "a" * 32}, "Node name too long"),
        ({"node-name": "a", "file.node-name": "a"}, "Duplicate nodes with node-name='a'"),
        ({"file.discard": "maybe"}, "Invalid discard option"),
        ({"discard.mode": "on"}, "Invalid parameter 'discard'"),
        ({"node-name.x": "a"}, "Invalid parameter 'node-name'"),
    ],
)
def test_options_of_nodes_that_are_refused(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    (tmp_path / "image").write_bytes(b"x" * 512)
    with pytest.raises((InvalidArgument, OpenError), match=words):
        blocklayer.open(described(tmp_path / "image", **options))


@pytest.mark.parametrize("trust", [None, Trust()])
def test_options_for_the_backing_file_that_the_image_names(
    tmp_path: Path, trust: Trust | None
) -> None:
    (tmp_path / "base").write_bytes(b"x" * MiB)
    top = tmp_path / "top"
    blocklayer.create(top, format="qed", backing="base", backing_format="raw")

    def opened(backing: dict[str, Any]) -> Disk:
        tree = {"driver": "qed", "file": str(top), "backing": backing}
        return blocklayer.open(tree, trust=trust)

    for backing in (
        {"node-name": "b", "detect-zeroes": "on", "read-only": "on"},
        {"file": {"locking": "off", "node-name": "b"}},
        {"driver": "raw", "offset": 0},
    ):
        with opened(backing) as disk:
            assert disk.read(0, 4) == b"xxxx"
    with opened({"driver": "raw", "offset": MiB // 2}) as disk:
        assert disk.read(MiB // 2, 4) == bytes(4)
    for wrong in ({"discard": "x"}, {"nonsense": 1}, {"driver": "qed"}, {"driver": "fault"}):
        with pytest.raises(OpenError):
            opened(wrong)
    (tmp_path / "base").unlink()
    with pytest.raises((OpenError, Refused)):
        opened({"node-name": "b"})


def test_options_do_not_take_a_stranger_s_name_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * MiB)
    (tmp_path / "folder").mkdir()
    top = tmp_path / "folder" / "top"
    blocklayer.create(top, format="qed", backing="../secret", backing_format="raw")
    for backing in ({"node-name": "b"}, {"driver": "raw"}, {"file": {"locking": "off"}}):
        tree = {"driver": "qed", "file": str(top), "backing": backing}
        with blocklayer.open(tree) as disk:
            assert disk.read(0, 4) == b"xxxx"
        with pytest.raises(Refused):
            blocklayer.open(tree, trust=Trust())


def test_discards_are_ignored_unless_asked_for(tmp_path: Path) -> None:
    layer = make(tmp_path / "image", b"x" * MiB)
    for mode in ("ignore", "unmap"):
        with blocklayer.open(layer.path, mode="r+", format="raw", discard=mode) as disk:
            disk.discard(0, MiB)
        assert (content(layer.path, "raw") == layer.content) or mode == "unmap"


def test_without_what_lies_below(tmp_path: Path, rng: random.Random) -> None:
    top = chain(tmp_path, rng, 50000, 60000)[-1]
    with blocklayer.open(top.path, backing_chain=False) as disk:
        assert disk.backing is None
        for extent in disk.extents():
            shown = disk.read(extent.offset, extent.length)
            expected = top.content[extent.offset : extent.end]
            assert shown == (expected if extent.data else bytes(extent.length))
    with blocklayer.open(top.path) as disk:
        assert disk.backing is not None
        assert disk.backing.read_only
        assert disk.backing.size == 50176


# --- formats ---


def test_the_format_of_raw_images_should_be_given(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    header = b"QED\0".ljust(512, b"\0")
    with blocklayer.open(path, mode="r+") as disk:
        assert disk.format == "raw"
        with pytest.raises(IoError, match="look like another format"):
            disk.write(0, header)
        disk.write(512, header)
    with blocklayer.open(path, mode="r+", format="raw") as disk:
        disk.write(0, header)
    assert path.read_bytes() == header * 2 + bytes(3072)


def test_formats_that_do_not_fit(tmp_path: Path, rng: random.Random) -> None:
    raw = base(tmp_path / "raw", 5000, rng)
    for format, words in (("qed", "QED"), ("nonsense", "nonsense"), ("", "driver")):
        with pytest.raises((OpenError, InvalidArgument), match=words):
            blocklayer.open(raw.path, format=format)
    with pytest.raises(InvalidArgument, match="specified twice"):
        blocklayer.open({"driver": "raw", "file.filename": str(raw.path)}, format="qed")


# --- names ---


@pytest.mark.parametrize(
    "name", ["plain", "new\nline", "c:colon", "a,b=c", os.fsdecode(b"\xff\xfe")]
)
def test_forms_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"here".ljust(512, b"\0"))
    trees: list[dict[str, Any]] = [
        {"driver": "raw", "file": {"driver": "file", "filename": name}},
        {"driver": "raw", "file": {"filename": name}},
        {"driver": "raw", "file.filename": name},
        {"file.filename": name},
        {"filename": name, "driver": "raw"},
    ]
    texts = ["json:" + json.dumps(tree) for tree in trees]
    forms: list[Any] = [name, f"./{name}", f"file:{name}", Path(name), *trees, *texts]
    for form in forms:
        with blocklayer.open(form) as disk:
            assert disk.read(0, 4) == b"here"
            assert repr(disk)
    assert trees[0] == {"driver": "raw", "file": {"driver": "file", "filename": name}}


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"image"


@pytest.mark.parametrize("name", [b"image", b"json:{}", BytesPath()])
def test_bytes_are_refused(name: Any) -> None:
    """Names that are not UTF-8 are text with surrogates, as `os.fsdecode` makes it."""
    for each in (blocklayer.open, blocklayer.info, blocklayer.probe, blocklayer.check):
        with pytest.raises(InvalidArgument, match="fsdecode"):
            each(name)


@pytest.mark.parametrize("name", [None, 5, 1.5, ["image"], ("image",)])
def test_what_is_no_name(name: Any) -> None:
    with pytest.raises(TypeError):
        blocklayer.open(name)


@pytest.mark.parametrize(
    "name",
    ["", "file:", "nbd:host:10", "http://host/x", "json:", "json:[]", "json:{", "json:{}", "a\0b"],
)
def test_names_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((OpenError, InvalidArgument)) as caught:
        blocklayer.open(name)
    assert str(caught.value)


# --- locks and permissions ---


def test_who_excludes_whom(tmp_path: Path, rng: random.Random) -> None:
    layer = base(tmp_path / "image", MiB, rng, "qed")
    with blocklayer.open(layer.path), blocklayer.open(layer.path):
        with pytest.raises(OpenError) as caught:
            blocklayer.open(layer.path, mode="r+")
        assert isinstance(caught.value.__cause__, LockError)
        assert caught.value.errno == caught.value.__cause__.errno
        with blocklayer.open(layer.path, mode="r+", locking="off"):
            pass
    with blocklayer.open(layer.path, mode="r+"):
        for mode in ("r", "r+"):
            with pytest.raises(OpenError, match="lock"):
                blocklayer.open(layer.path, mode=mode)
        with blocklayer.open(layer.path, force_share=True) as disk:
            assert disk.read(0, 512) == layer.content[:512]


def test_without_permission(
    public_path: Path, rng: random.Random, as_nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    layer = base(public_path / "image", MiB, rng, "qed")
    layer.path.chmod(0o444)
    with unchanged(public_path), as_nobody():
        with blocklayer.open(layer.path) as disk:
            layer.model.check(disk)
            with pytest.raises((OpenError, IoError), match="Permission denied"):
                disk.reopen("r+")
            assert disk.read(0, 512) == layer.content[:512]
        with pytest.raises(OpenError, match="Permission denied") as caught:
            blocklayer.open(layer.path, mode="r+")
        assert caught.value.errno == 13


def test_what_fails_to_open_leaves_nothing_open(tmp_path: Path, rng: random.Random) -> None:
    top = chain(tmp_path, rng, 5000, 6000, 7000)[-1]
    (tmp_path / "0.raw").unlink()
    before = len(os.listdir("/proc/self/fd"))
    for mode in ("r", "r+"):
        with pytest.raises(OpenError, match=r"0\.raw"):
            blocklayer.open(top.path, mode=mode)
    assert len(os.listdir("/proc/self/fd")) == before
