# SPDX-License-Identifier: Apache-2.0
"""Facts about images and chains: nothing else is opened, and nothing is changed."""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import ChainError, LockError, OpenError
from blocklayer.base.units import MiB
from blocklayer.core.node import FormatNode
from blocklayer.ops import info as module
from blocklayer.ops.info import info_chain
from tests.ops.images import CLUSTER, SMALL, chain, unchanged


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 100000])
def test_a_raw_image(tmp_path: Path, length: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x" * length)
    with unchanged(tmp_path):
        info = blocklayer.info(path)
    assert (info.format, info.filename) == ("raw", str(path))
    assert info.virtual_size == (length + 511) // 512 * 512
    assert info.actual_size == path.stat().st_blocks * 512
    assert info.cluster_size is None
    assert info.backing_filename is None
    assert info.full_backing_filename is None
    assert not info.dirty_flag
    assert info.as_dict() == {
        "virtual-size": info.virtual_size,
        "filename": str(path),
        "format": "raw",
        "actual-size": info.actual_size,
        "dirty-flag": False,
    }


def test_a_qed_image_and_its_overlay(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    blocklayer.create(base, format="qed", size=3 * MiB, **SMALL)
    blocklayer.create(top, format="qed", backing="base", cluster_size=8192, table_size=2)
    info = blocklayer.info(base)
    assert (info.format, info.virtual_size, info.cluster_size) == ("qed", 3 * MiB, CLUSTER)
    assert info.format_specific == {"table-size": 2}
    assert info.limits["opt-transfer"] == CLUSTER
    info = blocklayer.info(top)
    assert info.cluster_size == 8192
    assert info.backing_filename == "base"
    assert info.full_backing_filename == str(base)
    assert info.backing_format is None
    words = info.as_dict()
    assert words["full-backing-filename"] == str(base)
    assert "backing-filename-format" not in words
    json.dumps(words)


def test_a_mark_of_an_image_that_was_not_closed(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size=MiB)
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(0, b"x")
        left = path.read_bytes()
    assert not blocklayer.info(path).dirty_flag
    path.write_bytes(left)
    with unchanged(tmp_path):
        assert blocklayer.info(path).dirty_flag


def test_a_window_shows_itself(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(5000))
    tree = {"driver": "raw", "offset": 512, "size": 1024, "file.filename": str(path)}
    for name in (tree, "json:" + json.dumps(tree)):
        info = blocklayer.info(name)
        assert info.virtual_size == 1024
        assert info.format_specific == {"offset": 512, "size": 1024}


@pytest.mark.parametrize("below", ["missing", "broken", "fifo"])
def test_what_lies_below_is_not_opened(tmp_path: Path, below: str) -> None:
    (tmp_path / "broken").write_bytes(b"QED\0" * 100)
    os.mkfifo(tmp_path / "fifo")
    blocklayer.create(tmp_path / "top", format="qed", size=512, backing=below, check_backing=False)
    assert blocklayer.info(tmp_path / "top").full_backing_filename == str(tmp_path / below)
    if below != "fifo":
        with pytest.raises(OpenError):
            info_chain(tmp_path / "top")


@pytest.mark.parametrize(
    ("backing", "told"),
    [
        ({"driver": "nosuch", "foo": "bar"}, "Invalid parameter 'backing.driver'"),
        ({"file": {"driver": "file", "filename": "below"}}, "Invalid parameter 'backing.file'"),
        ("below", "Invalid parameter 'backing'"),
        (None, None),
        ("", None),
    ],
)
def test_a_backing_file_that_is_described_is_not_forgotten(
    tmp_path: Path, backing: object, told: str | None
) -> None:
    """It is not opened here, so nobody may think that it was."""
    (tmp_path / "below").write_bytes(bytes(512))
    blocklayer.create(tmp_path / "top", format="qed", backing="below", backing_format="raw")
    file = {"driver": "file", "filename": str(tmp_path / "top")}
    tree = {"driver": "qed", "file": file, "backing": backing}
    for tell in (blocklayer.info, info_chain):
        if told is None:
            tell(tree)
        else:
            with pytest.raises(OpenError, match=told):
                tell(tree)


def test_names_of_backing_files_as_seen_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for stored, seen in (
        ("base", "sub/base"),
        ("../base", "sub/../base"),
        ("/abs/base", "/abs/base"),
        ("file:base", "file:base"),
        ("new\nline", "sub/new\nline"),
        (os.fsdecode(b"\xff"), "sub/" + os.fsdecode(b"\xff")),
    ):
        blocklayer.create("sub/top", format="qed", size=0, backing=stored, check_backing=False)
        info = blocklayer.info("sub/top")
        assert (info.backing_filename, info.full_backing_filename) == (stored, seen)


# --- locks ---


def test_images_that_somebody_writes(tmp_path: Path) -> None:
    for format in ("raw", "qed"):
        path = tmp_path / format
        blocklayer.create(path, format=format, size=MiB)
        with blocklayer.open(path, mode="r+", format=format):
            assert blocklayer.info(path, force_share=True).virtual_size == MiB
            if format == "raw":
                # No table of a raw image can be half written.
                assert blocklayer.info(path).virtual_size == MiB
                continue
            with pytest.raises(OpenError) as caught:
                blocklayer.info(path)
            assert isinstance(caught.value.__cause__, LockError)
            assert info_chain(path, force_share=True)[0].virtual_size == MiB


@pytest.mark.parametrize("name", ["missing", ".", "bad"])
def test_what_cannot_be_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "bad").write_bytes(b"QED\0" * 100)
    for each in (blocklayer.info, info_chain):
        with pytest.raises(OpenError) as caught:
            each(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    with pytest.raises(OpenError):
        blocklayer.info(tmp_path / "bad", format="nonsense")
    assert blocklayer.info(tmp_path / "bad", format="raw").virtual_size == 512


# --- chains ---


def test_a_chain_is_told_from_its_top(tmp_path: Path, rng: random.Random) -> None:
    layers = chain(tmp_path, rng, 5000, 20000, 0, 100)
    with unchanged(tmp_path):
        found = info_chain(layers[-1].path)
    assert [each.filename for each in found] == [str(each.path) for each in reversed(layers)]
    assert [each.virtual_size for each in found] == [each.model.size for each in reversed(layers)]
    assert [each.format for each in found] == ["qed"] * 3 + ["raw"]
    assert [each.backing_format for each in found] == [None, None, "raw", None]
    for one, below in itertools.pairwise(found):
        assert one.full_backing_filename == below.filename
        assert one == blocklayer.info(one.filename)
    (tmp_path / "0.raw").unlink()
    with pytest.raises(OpenError, match=r"0\.raw"):
        info_chain(layers[-1].path)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_loop(tmp_path: Path, rng: random.Random, length: int) -> None:
    layers = chain(tmp_path, rng, *[5000] * length, bottom="qed")
    with blocklayer.open(layers[0].path, mode="r+", backing_chain=False) as disk:
        assert isinstance(disk.node, FormatNode)
        disk.node.change_backing(layers[-1].path.name, "qed")
    for layer in layers:
        with pytest.raises(ChainError, match="infinite loop"):
            info_chain(layer.path)
        blocklayer.info(layer.path)


def test_the_deepest_chain(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = chain(tmp_path, rng, *[512] * 6)
    monkeypatch.setattr(module, "CHAIN_DEPTH_MAX", 5)
    assert len(info_chain(layers[-1].path)) == 6
    monkeypatch.setattr(module, "CHAIN_DEPTH_MAX", 4)
    with pytest.raises(ChainError, match="deeper than 4 layers"):
        info_chain(layers[-1].path)


@pytest.mark.parametrize("options", [{}, {"align": 4096}, {"max-transfer": 65536}])
def test_filters_are_called_as_they_were_asked_for(options: dict[str, int], tmp_path: Path) -> None:
    """Also where storage has to be padded, of which nobody has heard."""
    (tmp_path / "file").write_bytes(bytes(8192))
    image: dict[str, object] = {"driver": "file", "filename": str(tmp_path / "file")}
    more = {"max-discard": 8192, "opt-discard": 4096, "max-write-zero": 4096, "opt-write-zero": 0}
    for name in ("blkdebug", "fault"):
        tree = {"driver": name, "image": image, **options, **more}
        assert blocklayer.info(tree).format == name
        with blocklayer.open(tree, mode="r+") as disk:
            disk.write_zeroes(1, 8000)
            disk.discard(0, 8192)
    for name in ("blkverify", "verify"):
        tree = {"driver": name, "test": image, "raw": {"driver": "null-co", "size": 8192}}
        assert blocklayer.info(tree).format == name


def test_a_null_image_takes_its_time() -> None:
    tree: dict[str, object] = {"driver": "null-aio", "size": 4096, "latency-ns": 20_000_000}
    with blocklayer.open({"driver": "raw", "file": tree}, mode="r+") as disk:
        for request in (lambda: disk.read(0, 512), lambda: disk.write(0, b"x"), disk.flush):
            started = time.monotonic()
            request()
            assert time.monotonic() - started >= 0.02
        assert disk.read(0, 1) == b"\0"


def test_a_stored_name_may_not_use_filters(tmp_path: Path) -> None:
    """What an image names is less trusted than what its user names."""
    (tmp_path / "base").write_bytes(bytes(512))
    tree = {"driver": "fault", "file": {"filename": str(tmp_path / "base"), "driver": "file"}}
    stored = "json:" + json.dumps(tree)
    top = tmp_path / "top"
    blocklayer.create(top, format="qed", size=512, backing=stored, check_backing=False)
    assert blocklayer.info(stored).virtual_size == 512
    with pytest.raises(OpenError, match="cannot use driver 'fault'"):
        info_chain(top)
