# SPDX-License-Identifier: Apache-2.0
"""JSON output: the members and values of QEMU's, indented as theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.side_by_side import OURS, THEIRS, give_both, make_pair, make_template
from tests.support import needs

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
