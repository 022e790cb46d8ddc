# SPDX-License-Identifier: Apache-2.0
"""The examples do what they say."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import blocklayer
from blocklayer.base.units import KiB, MiB
from tests.support.source import ROOT


def upload(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "examples" / "upload.py", *words],
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=60,
    )


def test_an_upload_is_taken_in(tmp_path: Path, rng: random.Random) -> None:
    source, target = tmp_path / "upload", tmp_path / "disk.qed"
    source.write_bytes(rng.randbytes(MiB) + bytes(MiB))
    done = upload(source, target)
    assert done.returncode == 0, done.stderr
    assert f"{source}: raw, 2 MiB\n" in done.stdout
    assert blocklayer.digest(source, format="raw").digest in done.stdout
    assert "100%" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["disk.qed", "upload"]


def test_an_upload_that_reaches_out_is_not(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret" * KiB)
    folder = tmp_path / "folder"
    folder.mkdir()
    source = folder / "upload"
    blocklayer.create(source, format="qed", backing="../secret", backing_format="raw")
    done = upload(source, tmp_path / "disk.qed")
    assert done.returncode == 1
    assert "asks for backing file '../secret'" in done.stdout
    assert "not taken in: Refused to open" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["folder", "secret"]
    assert upload("--folder", tmp_path, source, tmp_path / "disk.qed").returncode == 0
