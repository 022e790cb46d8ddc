# SPDX-License-Identifier: Apache-2.0
"""`docs/compatibility.md` names tests that exist, and all reasons for which lines may differ."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.cli import lines, more_lines
from tests.cli.test_random_lines import KNOWN
from tests.support.source import ROOT

TEXT = (ROOT / "docs" / "compatibility.md").read_text("utf-8")


def reasons() -> list[str]:
    """Those of single lines and of patterns of lines."""
    tables = [
        *(lines.IMG_DIFFERENCES, lines.IO_DIFFERENCES, lines.IO_PROGRAM_DIFFERENCES),
        *(more_lines.IMG_DIFFERENCES, more_lines.IO_PROGRAM_DIFFERENCES),
    ]
    single = {difference.reason for table in tables for difference in table.values()}
    return sorted(single | {known.reason for known in KNOWN})


def named_tests() -> Iterator[str]:
    for row in TEXT.splitlines():
        if row.startswith("|") or ".py`" in row:
            yield from re.findall(r"`([\w/]+\.py(?:::\w+)?)`", row)


def test_tests_that_are_named_are_there() -> None:
    names = list(named_tests())
    assert len(names) > 40
    for name in names:
        path, _, function = name.removeprefix("tests/").partition("::")
        text = (ROOT / "tests" / path).read_text("utf-8")
        assert f"def {function}(" in text or not function, name


def test_every_row_says_what_holds_it() -> None:
    rows = [row for row in TEXT.splitlines() if row.startswith("|") and "---" not in row]
    for row in rows:
        _, what, how, held_by, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", row))
        assert held_by or not what or "there is none" in how, row


def test_all_reasons_are_told() -> None:
    told = re.findall(r"^- (.*)$", TEXT, re.MULTILINE)
    assert told == reasons()
