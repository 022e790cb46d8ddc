# SPDX-License-Identifier: Apache-2.0
"""`blk` against qemu-img and qemu-io: same arguments, same output, exit code and images."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli import lines, more_lines
from tests.cli.lines import Difference
from tests.cli.side_by_side import differing_files, give_both, make_pair, make_template
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-io")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("template")
    make_template(directory)
    return directory


def check(
    tool: str,
    line: str,
    place: tuple[Path, Path],
    difference: Difference | None,
    script: str = "",
) -> None:
    """Both answer the same, but for a difference that is listed; and that one is there."""
    template, directory = place
    make_pair(template, directory)
    theirs, ours = give_both(tool, line, directory, script)
    changed = {}
    if difference is not None:
        aspects = ("code", "stdout", "complaint")
        given = {name: getattr(difference, name) for name in aspects}
        changed = {name: value for name, value in given.items() if value is not None}
    expected = replace(theirs, **changed)
    if expected.complaint and ours.complaint.startswith(expected.complaint):
        ours = replace(ours, complaint=expected.complaint)  # it may say more
    assert ours == expected
    files = differing_files(directory)
    assert files == list(difference.files if difference is not None else ())
    assert difference is None or expected != theirs or files, "no difference any more"


def split(text: str) -> list[str]:
    return text.strip().splitlines()


IMG = [*split(lines.IMG), *split(more_lines.IMG)]
IO_PROGRAM = [*split(lines.IO_PROGRAM), *split(more_lines.IO_PROGRAM)]
IMG_DIFFERENCES = lines.IMG_DIFFERENCES | more_lines.IMG_DIFFERENCES
IO_PROGRAM_DIFFERENCES = lines.IO_PROGRAM_DIFFERENCES | more_lines.IO_PROGRAM_DIFFERENCES


@pytest.mark.parametrize("line", IMG)
def test_image_commands(line: str, template: Path, tmp_path: Path) -> None:
    words = "" if line == "-" else line
    check("qemu-img", words, (template, tmp_path), IMG_DIFFERENCES.get(line))


@pytest.mark.parametrize("command", split(lines.IO))
def test_io_commands(command: str, template: Path, tmp_path: Path) -> None:
    line = f"-c {shlex.quote(command)} data.qed"
    check("qemu-io", line, (template, tmp_path), lines.IO_DIFFERENCES.get(command))


@pytest.mark.parametrize("line", IO_PROGRAM)
def test_io_program(line: str, template: Path, tmp_path: Path) -> None:
    difference = IO_PROGRAM_DIFFERENCES.get(line)
    check("qemu-io", line, (template, tmp_path), difference)


@pytest.mark.parametrize("script", lines.IO_SCRIPTS)
def test_io_scripts(script: str, template: Path, tmp_path: Path) -> None:
    check("qemu-io", "data.qed", (template, tmp_path), None, script)


def test_every_difference_belongs_to_a_line() -> None:
    for differences, known in (
        (IMG_DIFFERENCES, IMG),
        (lines.IO_DIFFERENCES, split(lines.IO)),
        (IO_PROGRAM_DIFFERENCES, IO_PROGRAM),
    ):
        assert differences.keys() <= set(known)
        assert all(difference.reason for difference in differences.values())
