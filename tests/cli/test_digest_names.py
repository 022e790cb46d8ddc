# SPDX-License-Identifier: Apache-2.0
"""Lines of `blk digest --flat` are those of sha256sum, whatever a file is called."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from blocklayer.cli.main import main


@pytest.mark.parametrize("name", ["plain", "new\nline", "back\\slash", "re\rturn", "\\\n\\n"])
def test_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(bytes(512))
    assert main(["digest", "--flat", "-f", "raw", f"./{name}"]) == 0
    line = capsys.readouterr().out
    theirs = subprocess.run(
        ["sha256sum", f"./{name}"], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    assert line == theirs.stdout
    Path("sums").write_text(line, newline="")
    subprocess.run(["sha256sum", "--status", "-c", "sums"], check=True, timeout=60)
