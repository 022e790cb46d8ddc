# SPDX-License-Identifier: Apache-2.0
"""Finding out formats: by the first bytes alone, in anything that can be read."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

import blocklayer
from blocklayer import FormatError, OpenError
from blocklayer.base.units import MiB
from tests.ops.images import SMALL, base, chain, unchanged


def test_formats(tmp_path: Path, rng: random.Random) -> None:
    for layer in (*chain(tmp_path, rng, 5000, 6000, 7000), base(tmp_path / "b", 512, rng)):
        with unchanged(tmp_path):
            assert blocklayer.probe(layer.path) == layer.format


@pytest.mark.parametrize("content", [b"", b"Q", b"QED", b"qed\0" * 200, b"\0QED\0", b"x" * 511])
def test_what_has_no_signature_is_raw(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    assert blocklayer.probe(path) == "raw"


@pytest.mark.parametrize("head", [b"QFI\xfb\0\0\0\3", b"KDMV\1\0\0\0", b"vhdxfile"])
def test_formats_of_others(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(head.ljust(1024, b"\0"))
    with pytest.raises(OpenError, match="looks like") as caught:
        blocklayer.probe(path)
    assert isinstance(caught.value.__cause__, FormatError)
    assert blocklayer.probe({"driver": "raw", "file.filename": str(path)}) == "raw"


def test_a_signature_is_not_enough(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"QED\0".ljust(4096, b"\xff"))
    with pytest.raises(OpenError):
        blocklayer.probe(path)


def test_neither_locks_nor_backing_files_matter(tmp_path: Path) -> None:
    path = tmp_path / "top"
    blocklayer.create(path, format="qed", size=MiB, backing="missing", check_backing=False, **SMALL)
    assert blocklayer.probe(path) == "qed"
    with blocklayer.open(path, mode="r+", backing_chain=False):
        assert blocklayer.probe(path) == "qed"


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "new\nline", "c:colon", os.fsdecode(b"\xff")):
        blocklayer.create(name, format="qed", size=512)
        tree = {"file": {"driver": "file", "filename": name}}
        for form in (name, Path(name), f"file:{name}", tree, "json:" + json.dumps(tree)):
            assert blocklayer.probe(form) == "qed"
    for missing in ("missing", "missing/x", "plain/x", "."):
        with pytest.raises(OpenError):
            blocklayer.probe(missing)
