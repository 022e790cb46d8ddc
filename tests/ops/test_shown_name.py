# SPDX-License-Identifier: Apache-2.0
"""An image's name in `info` opens the same disk, and is a plain one where that is enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import blocklayer


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocklayer.create("image", format="qed", size="1M")


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(
    "name",
    [
        "image",
        "file:image",
        {"driver": "qed", "filename": "image"},
        {"driver": "qed", "file": "image"},
        {"file.filename": "image", "read-only": "on", "cache.direct": "off"},
        {"driver": "file", "filename": "image", "locking": "off"},
        {"driver": "qed", "file.filename": "image", "file.locking": "off", "file.aio": "threads"},
        {"driver": "qed", "file.filename": "image", "file.node-name": "a", "file.read-only": True},
        {"driver": "qed", "file.filename": "image", "file.cache.no-flush": "on"},
        {"driver": "file", "filename": "image", "locking": "off", "drop-cache": "on"},
        {"driver": "raw", "file": {"driver": "file", "filename": "image", "aio-max-batch": 4}},
        'json:{"driver": "qed", "file.filename": "image"}',
        'json:{"driver": "qed", "file": {"driver": "file", "filename": "image"}}',
    ],
)
def test_plain_names(name: str | dict[str, Any]) -> None:
    assert blocklayer.info(name).filename == "image"


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(
    "tree",
    [
        {"driver": "raw", "offset": 512, "size": 1024, "file.filename": "image"},
        {"driver": "raw", "file": {"driver": "raw", "offset": 4096, "file": "image"}},
        {"driver": "qed", "file": {"driver": "fault", "file.filename": "image"}},
    ],
)
def test_names_that_say_more(tree: dict[str, Any]) -> None:
    for name in (tree, f"json:{json.dumps(tree)}"):
        shown = blocklayer.info(name).filename
        assert shown.startswith("json:{")
        with blocklayer.open(shown) as again, blocklayer.open(name) as disk:
            assert (again.size, again.format) == (disk.size, disk.format)
            assert again.read(0, 512) == disk.read(0, 512)
