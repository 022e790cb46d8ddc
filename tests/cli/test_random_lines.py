# SPDX-License-Identifier: Apache-2.0
"""Command lines put together at random: output, exit code and images are QEMU's.

Where they are not, a row of KNOWN tells which lines are meant, what differs in them, and why.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.cli.grammar import GRAMMARS, random_line
from tests.cli.side_by_side import Outcome, differing_files, give_both, make_pair, make_template
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-io")

ROUNDS = 12
"""Lines for each command."""
MANY_ROUNDS = 1500


@dataclass(frozen=True)
class Known:
    """What differs in lines that match, and why."""

    pattern: str
    aspects: tuple[str, ...]
    reason: str


KNOWN = (
    Known(r"^check .*data.raw", ("complaint",), "nothing is written: no guess can do harm"),
    Known(r"^create .*-b .*-f raw", ("complaint",), "of two mistakes the backing file is one"),
    Known(
        r"^convert .*-t foo", ("files",), "a wrong cache mode is noticed before a target is made"
    ),
    Known(
        r"^convert .*-B .*(none|folder)/new.img|^convert .*(none|folder)/new.img .*-B",
        ("complaint", "files"),
        "the backing file is looked for before anything is made",
    ),
    Known(
        r"^convert .*data.raw.*data.raw",
        ("code", "complaint", "files"),
        "a source is not overwritten, even if nothing is locked (-U)",
    ),
    Known(
        r"^convert .*-B data.qed .*top.qed|^convert .*top.qed .*-B data.qed",
        ("files",),
        "what is written in a layer between source and backing file is part of the source",
    ),
    Known(
        r"^convert .*(-B|-c|--bitmaps|-O foo)",
        ("complaint",),
        "of two mistakes another one is found first",
    ),
    Known(r"^resize .* -512k -512k", ("complaint",), "a negative size is no word"),
    Known(
        r"^resize .*--shrink",
        ("code", "stdout", "complaint", "files"),
        "QED disks can shrink",
    ),
    Known(r"^rebase .*-b \S+( (?!-F)|$)", ("complaint",), "the format is asked for first"),
    Known(r"^rebase .*-b -", ("complaint",), "the format is asked for first"),
    Known(r"^rebase (?!.*-b)", ("complaint",), "no name is not called (null)"),
    Known(
        r"^rebase .*-b (\S*) .*\1",
        ("complaint",),
        "the file that could not be opened is named by the error itself",
    ),
    Known(r"^create .*(none/|folder)", ("stdout",), "a new image is announced when it is there"),
    Known(r"^create ", ("stdout",), "a new image is announced when it is there"),
    Known(r"^compare .*-s", ("stdout",), "where the image ends is no part of an extent's status"),
    Known(r"^convert .*-o foo=1", ("complaint",), "an error of the target names it"),
    Known(
        r"^convert .*data.raw",
        ("complaint",),
        "that the target is a source as well is said plainly",
    ),
    Known(
        r"^(commit|rebase|snapshot|bitmap|amend) .*data.raw",
        ("complaint",),
        "nothing is written: no guess can do harm",
    ),
    Known(
        r"^commit .*folder/far.qed.*-b|^commit .*-b .*folder/far.qed",
        ("code", "stdout", "complaint", "files"),
        "a name as seen from here is understood as well",
    ),
    Known(r"^commit .*-b", ("complaint",), "that there is no backing file is said plainly"),
    Known(r"^measure .*-[Oo] ", ("complaint",), "the target is looked at first"),
    Known(
        r"^dd .*(count=.* skip=|skip=.* count=)",
        ("complaint", "files"),
        "count= counts blocks behind those that were skipped, as dd(1) does",
    ),
    Known(
        r"^bench .*--object",
        ("code", "stdout", "complaint", "files"),
        "objects are taken by every command",
    ),
    Known(
        r"^snapshot (?!.*-l).*(-U|--force-share)",
        ("code", "complaint"),
        "listing snapshots needs no right to write",
    ),
    Known(r"^bitmap .*--add", ("complaint",), "a file is known by its name, a node is not"),
)


def differences(theirs: Outcome, ours: Outcome, files: list[str]) -> set[str]:
    """Which aspects of two outcomes differ. Errors may say more."""
    ours = replace(ours, complaint=_plain(ours.complaint))
    found = {name for name in ("code", "stdout") if getattr(theirs, name) != getattr(ours, name)}
    if not ours.complaint.startswith(theirs.complaint) or bool(ours.complaint) != bool(
        theirs.complaint
    ):
        found.add("complaint")
    return found | ({"files"} if files else set())


def _plain(complaint: str) -> str:
    """The text of an error in JSON: who asks for output in JSON gets that."""
    if not complaint.startswith('{"error"'):
        return complaint
    message: str = json.loads(complaint)["error"]["message"]
    return f"TOOL: {message}"


def explained(line: str) -> set[str]:
    """The aspects of a line that may differ."""
    rows = (known.aspects for known in KNOWN if re.search(known.pattern, line))
    return {aspect for aspects in rows for aspect in aspects}


def run_lines(command: str, count: int, directory: Path, rng: random.Random) -> None:
    template = directory / "template"
    template.mkdir()
    make_template(template)
    for number in range(count):
        line = random_line(command, rng)
        place = directory / str(number)
        make_pair(template, place)
        theirs, ours = give_both("qemu-img", line, place)
        unexplained = differences(theirs, ours, differing_files(place)) - explained(line)
        assert not unexplained, (line, theirs, ours)
        shutil.rmtree(place)


@pytest.mark.parametrize("command", GRAMMARS)
def test_random_lines(command: str, tmp_path: Path, rng: random.Random) -> None:
    run_lines(command, ROUNDS, tmp_path, rng)


@pytest.mark.long
@pytest.mark.parametrize("command", GRAMMARS)
def test_many_random_lines(command: str, tmp_path: Path, rng: random.Random) -> None:
    run_lines(command, MANY_ROUNDS, tmp_path, rng)


def test_every_difference_has_a_reason() -> None:
    assert all(known.reason and known.aspects for known in KNOWN)
