# SPDX-License-Identifier: Apache-2.0
"""Every command has the short options that qemu-img's has, with a value where that has one."""

from __future__ import annotations

import importlib
import string
from pathlib import Path

import pytest

from blocklayer.cli.main import COMMANDS
from blocklayer.cli.parsing import Command
from tests.cli.side_by_side import run_ours, run_theirs
from tests.support import needs

LETTERS = [letter for letter in string.ascii_letters if letter != "h"]
OTHERWISE = {
    "measure": "its own getopt prints other words, and the whole help, and exits with 0",
    "io": "qemu-io prints other words, and the whole help",
    "resize": "its last argument is none of its options",
    "completion": "qemu-img has none",
    "help": "qemu-img has none",
    "digest": "qemu-img has none",
    "nbd": "its letters are those of qemu-nbd",
    "daemon": "it is qemu-storage-daemon",
    "mirror": "qemu-img has none",
}


def commands() -> dict[str, Command]:
    return {name: importlib.import_module(f"blocklayer.cli.{name}").COMMAND for name in COMMANDS}


@needs("qemu-img")
@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - OTHERWISE))
def test_letters(name: str, tmp_path: Path) -> None:
    differences = []
    for letter in LETTERS:
        words = [name, f"-{letter}"]
        theirs, ours = run_theirs("qemu-img", words, tmp_path), run_ours(words, tmp_path)
        if (theirs.code, theirs.complaint) != (ours.code, ours.complaint):
            differences.append((letter, theirs, ours))
    assert not differences


def test_spellings_are_unique_and_described() -> None:
    for name, command in commands().items():
        for kind in ("short", "long"):
            spellings = [getattr(option, kind) for option in command.options]
            given = [spelling for spelling in spellings if spelling]
            assert len(given) == len(set(given)), (name, kind)
        assert all(option.help for option in command.options), name
        assert command.name == name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option(name: str, tmp_path: Path) -> None:
    for flag in ("-h", "--help"):
        outcome = run_ours([name, flag], tmp_path)
        assert outcome.code == 0
        for option in commands()[name].options:
            assert not option.short or f"-{option.short}" in outcome.stdout
            assert not option.long or f"--{option.long}" in outcome.stdout
