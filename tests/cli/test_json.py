# SPDX-License-Identifier: Apache-2.0
"""JSON output: the members and values of QEMU's, indented as theirs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import MiB
from tests.cli.side_by_side import OURS, THEIRS, give_both, make_pair, make_template
from tests.support import needs

BLK = [sys.executable, "-m", "blocklayer"]

pytestmark = needs("qemu-img", "qemu-io")

LINES = (
    "info --output=json data.qed",
    "info --output json data.raw",
    "info --output=json over.qed",
    "info --output=json folder/far.qed",
    "info --output=json --backing-chain top.qed",
    "info --output=json --backing-chain data.raw",
    "check --output=json data.qed",
    "check --output=json empty.qed",
    "check --output=json leaky.qed",
    "check --output=json wrong.qed",
    "check --output=json twice.qed",
    "check --output=json -r leaks data.qed",
    "measure --output=json data.qed",
    "measure --output=json --size 10G",
)


@pytest.mark.parametrize("line", LINES)
def test_same_members(line: str, tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.mkdir()
    make_template(template)
    make_pair(template, tmp_path)
    theirs, ours = give_both("qemu-img", line, tmp_path)
    assert ours.code == theirs.code
    assert json.loads(ours.stdout) == json.loads(theirs.stdout)
    assert sorted(ours.stdout.splitlines()) == sorted_as(theirs.stdout, ours.stdout)
    assert {THEIRS, OURS} < {path.name for path in tmp_path.iterdir()}


def sorted_as(theirs: str, ours: str) -> list[str]:
    """Their lines, when only the order of members may differ: commas move with it."""
    plain = sorted(line.rstrip(",") for line in theirs.splitlines())
    assert plain == sorted(line.rstrip(",") for line in ours.splitlines())
    return sorted(ours.splitlines())


def test_a_map_that_fails_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    image = tmp_path / "image"
    blocklayer.create(image, format="qed", size=8 * MiB)
    with blocklayer.open(image, mode="r+") as disk:
        disk.write(0, b"x" * 8 * MiB)
    content = bytearray(image.read_bytes())
    l1_table = int.from_bytes(content[40:48], "little")
    l2_table = int.from_bytes(content[l1_table : l1_table + 8], "little")
    content[l2_table + 80 * 8 : l2_table + 81 * 8] = (1 << 40).to_bytes(8, "little")
    image.write_bytes(content)
    done = subprocess.run(
        [*BLK, "map", "--output=json", str(image)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert '"start": 0' in done.stdout
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.stdout)
    assert json.loads(done.stderr.splitlines()[-1])["error"]
