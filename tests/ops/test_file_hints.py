# SPDX-License-Identifier: Apache-2.0
"""Wishes about files: taken for every format, told, and no reason to fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer import CreateError


@pytest.mark.parametrize("format", ["raw", "qed"])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"nocow": "on"}, {"nocow": "on"}),
        ({"nocow": False}, {"nocow": "off"}),
        ({"extent_size_hint": "1M"}, {"extent_size_hint": 1 << 20}),
        ({"extent_size_hint": 0, "nocow": True}, {"extent_size_hint": 0, "nocow": "on"}),
    ],
)
def test_hints(tmp_path: Path, format: str, given: dict[str, Any], told: dict[str, Any]) -> None:
    plain, hinted = tmp_path / "plain", tmp_path / "hinted"
    usual = blocklayer.create(plain, format=format, size="1M")
    assert blocklayer.create(hinted, format=format, size="1M", **given) == usual | told
    assert hinted.read_bytes() == plain.read_bytes()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"nocow": "x"}, "expects 'on' or 'off'"),
        ({"extent_size_hint": "x"}, "Invalid extent_size_hint"),
        ({"extent_size_hint": 2**32}, "too large"),
    ],
)
def test_wrong_hints(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(CreateError, match=words):
        blocklayer.create(tmp_path / "image", size="1M", **wrong)
    assert not (tmp_path / "image").exists()


@pytest.mark.parametrize("size", [2**63 - 1, 2**63 - 512, "8191P"])
def test_sizes_that_no_file_has(tmp_path: Path, size: int | str) -> None:
    with pytest.raises(CreateError, match="The image size is too large for file format 'raw'"):
        blocklayer.create(tmp_path / "image", size=size)
    assert not (tmp_path / "image").exists()


def test_an_image_is_never_its_own_backing_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size="1M")
    before = path.read_bytes()
    for check in (True, False):
        with pytest.raises(CreateError, match="same filename as the backing file"):
            blocklayer.create(
                path,
                format="qed",
                size="1M",
                backing="./image",
                backing_format="qed",
                check_backing=check,
            )
    assert path.read_bytes() == before
