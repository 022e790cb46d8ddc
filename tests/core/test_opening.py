# SPDX-License-Identifier: Apache-2.0
"""Names, option trees, probing, chains: from what a user says to open nodes."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import (
    BlocklayerError,
    ChainError,
    FormatError,
    InvalidArgument,
    LockError,
    OpenError,
)
from blocklayer.base.options import nest
from blocklayer.base.units import MiB
from blocklayer.core import drivers, opening
from blocklayer.core.disk import Disk
from blocklayer.core.drivers import FILTER, FORMAT, PROTOCOL, foreign_signature, probe_signature
from blocklayer.core.events import Tracer, add_tracer, combined_sink, remove_tracer
from blocklayer.core.names import backing_path, parse_name
from blocklayer.core.node import FormatNode
from blocklayer.core.opening import CACHE_MODES, Opener, OpenFlags, cache_mode, probe_node
from tests.support.graphs import memory
from tests.support.qed_image import QedImage


@pytest.fixture
def qed(tmp_path: Path) -> Path:
    path = tmp_path / "image.qed"
    blocklayer.create(path, format="qed", size=MiB)
    return path


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- names ---


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a/b", {"file": {"driver": "file", "filename": "a/b"}}),
        (Path("a/b"), {"file": {"driver": "file", "filename": "a/b"}}),
        ("file:a:b", {"file": {"driver": "file", "filename": "a:b"}}),
        (Path("odd:name"), {"file": {"driver": "file", "filename": "odd:name"}}),
        ("./odd:name", {"file": {"driver": "file", "filename": "./odd:name"}}),
        ("c:x", {"file": {"driver": "file", "filename": "c:x"}}),
        ("null-co://", {"driver": "raw", "file": {"driver": "null-co"}}),
        ("null-aio://", {"driver": "raw", "file": {"driver": "null-aio"}}),
        (
            'json:{"driver": "qed", "file.filename": "x"}',
            {"driver": "qed", "file": {"filename": "x"}},
        ),
        ({"driver": "raw", "file.filename": "x"}, {"driver": "raw", "file": {"filename": "x"}}),
    ],
)
def test_what_a_name_means(name: Any, options: dict[str, Any]) -> None:
    assert parse_name(name) == options


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "file name is empty"),
        ("iscsi://host", "Unknown protocol 'iscsi'"),
        ("gopher:x", r"Unknown protocol 'gopher' .*file:gopher:x"),
        ("json:{", "Could not parse the JSON options"),
        ("json:[1]", "Invalid JSON object"),
        ("json:" + "[" * 100000, "Could not parse"),
        ('json:{"a": 1, "a.b": 2}', "Cannot mix"),
    ],
)
def test_names_that_mean_nothing(name: str, words: str) -> None:
    with pytest.raises((OpenError, InvalidArgument), match=words):
        parse_name(name)


@pytest.mark.parametrize(
    ("overlay", "backing", "path"),
    [
        ("top", "base", "base"),
        ("a/top", "base", "a/base"),
        ("a/top", "../b/base", "a/../b/base"),
        ("a/top", "/b/base", "/b/base"),
        ("a/top", "file:base", "file:base"),
        ("a/top", "json:{}", "json:{}"),
        ("a/top", "nbd://x", "nbd://x"),
    ],
)
def test_relative_backing_names_start_at_the_overlay(overlay: str, backing: str, path: str) -> None:
    assert backing_path(overlay, backing) == path


def test_cache_modes() -> None:
    assert cache_mode("none").direct
    assert cache_mode("directsync").writethrough
    assert set(CACHE_MODES) == {"writeback", "none", "writethrough", "directsync", "unsafe"}
    with pytest.raises(InvalidArgument, match="Invalid cache option: fast"):
        cache_mode("fast")


# --- trees ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"driver": "nonsense"}, "Unknown driver 'nonsense'"),
        ({"driver": "qed"}, 'must be specified for "file"'),
        ({"driver": "qed", "file": 5}, "expected: object"),
        ({"driver": "qed", "filename": "IMAGE", "colour": 1}, "Invalid parameter 'colour'"),
        ({"driver": "qed", "file": {"filename": "IMAGE", "x": 1}}, "Invalid parameter 'x'"),
        ({"driver": "qed", "filename": "IMAGE", "cache": "none"}, "Invalid parameter 'cache'"),
        ({"driver": "qed", "filename": "IMAGE", "cache.x": 1}, "Invalid parameter 'cache.x'"),
        ({"driver": "qed", "filename": "IMAGE", "read-only": 5}, "'read-only'"),
        ({"driver": "qed", "filename": "IMAGE", "backing": 5}, "for 'backing'"),
        ({"driver": "qed", "filename": "missing"}, "No such file"),
        ({}, "Must specify either driver or file"),
    ],
)
def test_trees_that_cannot_be_opened(qed: Path, options: dict[str, Any], words: str) -> None:
    text = json.dumps(options).replace("IMAGE", str(qed))
    before = descriptors()
    with pytest.raises(OpenError, match=words) as caught:
        blocklayer.open("json:" + text)
    assert str(caught.value).startswith("Could not open '")
    assert descriptors() == before


def test_the_same_image_in_many_words(qed: Path) -> None:
    with blocklayer.open(qed, mode="r+") as disk:
        disk.write(0, b"data")
    for name in (
        str(qed),
        f"file:{qed}",
        {"driver": "qed", "filename": str(qed)},
        {"driver": "qed", "file": str(qed)},
        {"file.filename": str(qed)},
        {"driver": "qed", "file": {"driver": "file", "filename": str(qed)}, "node-name": "x"},
        {"driver": "qed", "file.filename": str(qed), "cache.direct": "off", "read-only": True},
        "json:" + json.dumps({"driver": "qed", "file": {"filename": str(qed)}}),
    ):
        with blocklayer.open(name) as disk:
            assert (disk.format, disk.read(0, 4)) == ("qed", b"data")


def test_options_that_every_node_has(qed: Path) -> None:
    with blocklayer.open({"driver": "qed", "file.filename": str(qed), "read-only": "on"}) as disk:
        assert disk.read_only
    with (
        blocklayer.open(qed, mode="r+"),
        blocklayer.open({"driver": "qed", "file.filename": str(qed), "force-share": True}) as disk,
    ):
        assert disk.size == MiB
    with pytest.raises(InvalidArgument, match="Driver specified twice"):
        blocklayer.open({"driver": "qed", "file.filename": str(qed)}, format="raw")


# --- probing ---


def test_formats_are_found_by_their_signatures(qed: Path, tmp_path: Path) -> None:
    with blocklayer.open(qed) as disk:
        assert disk.format == "qed"
        assert isinstance(disk.node, FormatNode)
        assert not disk.node.probed
    (tmp_path / "raw").write_bytes(bytes(MiB))
    with blocklayer.open(tmp_path / "raw") as disk:
        assert disk.format == "raw"
        assert isinstance(disk.node, FormatNode)
        assert disk.node.probed
    (tmp_path / "empty").touch()
    with blocklayer.open(tmp_path / "empty") as disk:
        assert (disk.format, disk.size) == ("raw", 0)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"QFI\xfb\0\0\0\2", "qcow2"),
        (b"QFI\xfb\0\0\0\3", "qcow2"),
        (b"QFI\xfb\0\0\0\1", "qcow"),
        (b"KDMV", "vmdk"),
        (b"# Disk DescriptorFile", "vmdk"),
        (bytes(64) + b"\x7f\x10\xda\xbe", "vdi"),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vpc"),
        (b"LUKS\xba\xbe", "luks"),
    ],
)
def test_formats_of_others_are_not_taken_for_raw(head: bytes, name: str) -> None:
    node = memory(size=MiB)
    node.writev(0, [memoryview(head)])
    with pytest.raises(FormatError, match=f"looks like {name}"):
        probe_node(node)
    assert foreign_signature(head) == name
    assert foreign_signature(b"x" + head) is None
    assert probe_signature(head) is None


def test_drivers_by_name() -> None:
    kinds = {"file": PROTOCOL, "memory": PROTOCOL, "qed": FORMAT, "raw": FORMAT, "fault": FILTER}
    for name, kind in kinds.items():
        assert drivers.is_known(name)
        driver = drivers.load(name)
        assert driver.kind == kind
    assert drivers.load("blkdebug").name == "fault"
    assert not drivers.is_known("nonsense")
    assert all(drivers.load(name).create for name in drivers.FORMATS)


# --- chains ---


def chain(folder: Path, length: int) -> Path:
    below = None
    for number in range(length):
        path = folder / f"{number}.qed"
        blocklayer.create(
            path,
            format="qed",
            size=MiB,
            backing=below,
            backing_format="qed" if below else None,
            check_backing=False,
            cluster_size=4096,
            table_size=1,
        )
        below = path.name
    return path


def test_a_chain_is_opened_read_only_below_its_top(tmp_path: Path) -> None:
    with blocklayer.open(chain(tmp_path, 4), mode="r+") as disk:
        node, depth = disk.node, 0
        while isinstance(node, FormatNode) and node.backing is not None:
            node, depth = node.backing, depth + 1
            assert node.read_only
        assert depth == 3
        assert not disk.read_only


def test_a_chain_of_many_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = chain(tmp_path, 60)
    with blocklayer.open(tmp_path / "0.qed", mode="r+") as disk:
        disk.write(0, b"from far below")
    before = descriptors()
    with blocklayer.open(top) as disk:
        assert disk.read(0, 14) == b"from far below"
        assert next(disk.extents()).depth == 59
    monkeypatch.setattr(opening, "CHAIN_DEPTH_MAX", 30)
    with pytest.raises(ChainError, match="deeper than 30 layers"):
        blocklayer.open(top)
    assert descriptors() == before


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_loop(tmp_path: Path, length: int) -> None:
    top = chain(tmp_path, length)
    with blocklayer.open(tmp_path / "0.qed", mode="r+", backing_chain=False) as disk:
        assert isinstance(disk.node, FormatNode)
        disk.node.change_backing(top.name, "qed")
    before = descriptors()
    for mode in ("r", "r+"):
        with pytest.raises(ChainError, match="infinite loop"):
            blocklayer.open(top, mode=mode)
    with blocklayer.open(top, backing_chain=False) as disk:
        assert disk.backing is None
    assert descriptors() == before


def test_a_layer_that_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    top = chain(tmp_path, 3)
    (tmp_path / "0.qed").write_bytes(b"QED\0" * 100)
    with pytest.raises(OpenError, match="Unsupported QED features") as caught:
        blocklayer.open(top)
    for path in (top, tmp_path / "1.qed", tmp_path / "0.qed"):
        assert str(path) in str(caught.value)
    (tmp_path / "0.qed").unlink()
    with pytest.raises(OpenError, match="No such file") as caught:
        blocklayer.open(top)
    assert caught.value.errno == 2
    with blocklayer.open({"driver": "qed", "file.filename": str(top), "backing": None}) as disk:
        assert disk.backing is None


def test_the_user_can_say_what_lies_below(tmp_path: Path) -> None:
    top = chain(tmp_path, 2)
    (tmp_path / "other").write_bytes(b"other" * 1000)
    options = {"driver": "qed", "file.filename": str(top), "backing": str(tmp_path / "other")}
    with blocklayer.open(options) as disk:
        assert disk.read(0, 5) == b"other"
    options["backing"] = {"driver": "memory", "size": 4096}  # type: ignore[assignment]
    with blocklayer.open(options) as disk:
        assert disk.read(0, 5) == bytes(5)


def test_one_backing_file_for_two_overlays_but_no_writer(tmp_path: Path) -> None:
    base = chain(tmp_path, 1)
    tops = []
    for name in ("a", "b"):
        blocklayer.create(tmp_path / name, format="qed", backing=base)
        tops.append(blocklayer.open(tmp_path / name, mode="r+"))
    with pytest.raises(OpenError, match='Failed to get "write" lock') as caught:
        blocklayer.open(base, mode="r+")
    assert isinstance(caught.value.__cause__, LockError)
    for disk in tops:
        disk.close()
    blocklayer.open(base, mode="r+").close()


def test_nesting_has_an_end() -> None:
    options: dict[str, Any] = {"driver": "memory", "size": 512}
    for _ in range(opening.NESTING_MAX + 1):
        options = {"driver": "fault", "file": options}
    with pytest.raises(InvalidArgument, match="nested deeper than"):
        Opener(OpenFlags()).open_options(options)


# --- events ---


def test_tracing_prints_what_matches() -> None:
    stream = io.StringIO()
    tracer = Tracer("qed_*_update", stream)
    add_tracer(tracer)
    try:
        with QedImage(MiB, name="some image").open() as disk:
            disk.write(0, b"x")
    finally:
        remove_tracer(tracer)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["qed_l2_update", "qed_l1_update"]
    assert "some image offset=0x" in lines[0]
    with QedImage(MiB).open() as disk:
        assert disk.node.sink is None


def test_listeners_are_told_in_their_order_and_may_object() -> None:
    heard = []
    node = memory()

    def listen(*event: object) -> None:
        heard.append(event[1])

    def object_to(*event: object) -> None:
        raise InvalidArgument("no")

    assert combined_sink([]) is None
    assert combined_sink([listen]) is listen
    both = combined_sink([listen, object_to, listen])
    assert both is not None
    with pytest.raises(InvalidArgument):
        both(node, "event", {})
    assert heard == ["event"]


def test_a_graph_that_cannot_be_opened_is_closed(qed: Path) -> None:
    """Whatever was open of it by then."""
    before = descriptors()
    for options in (
        {"driver": "qed", "file.filename": str(qed), "backing": "missing"},
        {"driver": "verify", "raw": str(qed), "test": "missing"},
        {"driver": "write_log", "file": str(qed), "log": "missing"},
        {"driver": "fault", "file": str(qed), "colour": "red"},
    ):
        with pytest.raises(BlocklayerError):
            Opener(OpenFlags()).open_options(nest(options))
        assert descriptors() == before
    with Disk(Opener(OpenFlags(read_only=False)).open_name(qed)) as disk:
        disk.write(0, b"nobody holds its lock")


@pytest.mark.parametrize("backing", ["gone", {"driver": "raw", "file.filename": "gone"}], ids=str)
def test_no_error_is_its_own_cause(tmp_path: Path, backing: object) -> None:
    """Whoever follows the causes would never come to an end."""
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size=MiB)
    with pytest.raises(OpenError) as caught:
        blocklayer.open({"driver": "qed", "file.filename": str(path), "backing": backing})
    error: BaseException | None = caught.value
    seen = []
    while error is not None:
        assert error not in seen
        seen.append(error)
        error = error.__cause__
