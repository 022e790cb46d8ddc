# SPDX-License-Identifier: Apache-2.0
"""Every command has the options that qemu-img's has, with a value where that has one."""

from __future__ import annotations

import importlib
import re
import shutil
import string
import subprocess
from pathlib import Path

import pytest

from blocklayer.cli.getopt import BadOption, Option, getopt
from blocklayer.cli.main import COMMANDS
from blocklayer.cli.parsing import Command
from blocklayer.cli.usage import spellings
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
NEWER = {"convert": "b", "create": "B", "rebase": "Bc", "snapshot": "f"}
"""Letters that newer QEMUs have."""

LONG_NAMES = {
    "amend": "-o --options -f --format --image-opts -t --cache --force -p --progress -q --quiet",
    "bench": (
        "-f --format --image-opts -t --cache -c --count -d --depth -o --offset -s --buffer-size"
        " -S --step-size -w --write --pattern --flush-interval --no-drain -i --aio -n --native"
        " -U --force-share -q --quiet"
    ),
    "bitmap": (
        "-f --format --image-opts --add -g --granularity --remove --clear --enable --disable"
        " --merge -b --source-file -F --source-format"
    ),
    "check": (
        "-f --format --image-opts -T --cache -r --repair -U --force-share --output -q --quiet"
    ),
    "commit": (
        "-f --format --image-opts -t --cache -d --drop -b --base -r --rate-limit -p --progress"
        " -q --quiet"
    ),
    "compare": (
        "-f --a-format -F --b-format --image-opts -s --strict -T --cache -U --force-share"
        " -p --progress -q --quiet"
    ),
    "convert": (
        "-f --source-format --image-opts -T --source-cache -l --snapshot --bitmaps"
        " --skip-broken-bitmaps --salvage -O --target-format --target-image-opts"
        " -o --target-format-options -t --target-cache -b --backing -F --backing-format"
        " -S --sparse-size -n --no-create --target-is-zero -c --compress -U --force-share"
        " -r --rate-limit -m --parallel -W --oob-writes -C --copy-range-offloading"
        " -p --progress -q --quiet"
    ),
    "create": (
        "-f --format -o --options -b --backing -B --backing-format -u --backing-unsafe -q --quiet"
    ),
    "dd": "-f --format --image-opts -O --output-format -U --force-share",
    "info": "-f --format --image-opts --backing-chain -U --force-share --limits --output",
    "map": ("-f --format --image-opts -s --start-offset -l --max-length -U --force-share --output"),
    "measure": (
        "-f --source-format -f --format --image-opts --source-image-opts -l --snapshot"
        " -O --target-format -o --target-format-options -o --options -U --force-share --output"
        " -s --size"
    ),
    "rebase": (
        "-f --format --image-opts -t --cache -c --compress -b --backing -B --backing-format"
        " -T --backing-cache -u --backing-unsafe -U --force-share -p --progress -q --quiet"
    ),
    "resize": "-f --format --image-opts --preallocation --shrink -q --quiet",
    "snapshot": (
        "-f --format --image-opts -l --list -a --apply -c --create -d --delete -U --force-share"
        " -q --quiet"
    ),
}
"""The options of each command of qemu-img 10.1, a long name behind its letter if it has one; all
commands have -h --help and --object, too."""


def commands() -> dict[str, Command]:
    return {name: importlib.import_module(f"blocklayer.cli.{name}").COMMAND for name in COMMANDS}


@needs("qemu-img")
@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - OTHERWISE))
def test_letters(name: str, tmp_path: Path) -> None:
    differences = []
    for letter in LETTERS:
        if letter in NEWER.get(name, ""):
            continue
        words = [name, f"-{letter}"]
        theirs, ours = run_theirs("qemu-img", words, tmp_path), run_ours(words, tmp_path)
        if (theirs.code, theirs.complaint) != (ours.code, ours.complaint):
            differences.append((letter, theirs, ours))
    assert not differences


def test_spellings_are_unique_and_described() -> None:
    for name, command in commands().items():
        given = [spelling for option in command.options for spelling in spellings(option)]
        assert len(given) == len(set(given)), name
        assert all(option.help for option in command.options), name
        assert command.name == name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_letter_has_a_long_name(name: str) -> None:
    assert [option.short for option in commands()[name].options if not option.long] == []


@pytest.mark.parametrize("name", LONG_NAMES)
def test_long_names_are_those_of_the_newest_qemu(name: str) -> None:
    ours = {spelling: each for each in commands()[name].options for spelling in spellings(each)}
    letter = ""
    for spelling in ["-h", "--help", "--object", *LONG_NAMES[name].split()]:
        assert spelling in ours
        if not spelling.startswith("--"):
            letter = spelling
            continue
        option = ours[spelling]
        assert not letter or letter in spellings(option)
        letter = ""


@pytest.mark.parametrize(("tool", "name"), [("qemu-nbd", "nbd"), ("qemu-io", "io")])
def test_options_of_other_tools(tool: str, name: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    told = subprocess.run([tool, "--help"], capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"^ +(?:-(\w), )?--([a-z-]+)", told, re.MULTILINE)
    assert len(rows) > 15
    theirs = {long: letter for letter, long in rows}
    ours = {long: option for option in commands()[name].options for long in option.longs}
    for long, letter in theirs.items():
        assert long in ours
        assert not letter or letter in ours[long].shorts


def test_names_of_one_option_are_not_ambiguous() -> None:
    options = commands()["measure"].options
    assert getopt(options, ["--source-f", "qed", "--form=raw", "--opt", "a=b"])[0] == [
        ("format", "qed"),
        ("format", "raw"),
        ("options", "a=b"),
    ]
    assert getopt([Option("--aa --ab", "X")], ["--a", "1"])[0] == [("aa", "1")]
    with pytest.raises(BadOption):
        getopt(options, ["--source", "x"])  # -f, or --image-opts


@pytest.mark.parametrize(
    "line",
    [
        "create --format qed --backing below.raw --backing-format raw t.qed",
        "create -f qed -b below.raw -B raw t.qed",
        "create --form qed --options backing_file=below.raw,backing_fmt=raw t.qed",
        "convert -O qed -b below.raw -F raw below.raw t.qed",
        "convert -O qed -B below.raw -F raw below.raw t.qed",
        (
            "convert --source-format raw --target-format qed --target-cache none --parallel 4"
            " --source-cache none --sparse 4k --oob --rate-limit 1G --backing below.raw"
            " --backing-format raw below.raw t.qed"
        ),
        (
            "convert --format raw --target-format qed --target-format-o"
            " backing_file=below.raw,backing_fmt=raw below.raw t.qed"
        ),
    ],
)
def test_newer_spellings_mean_the_same(line: str, tmp_path: Path) -> None:
    (tmp_path / "below.raw").write_bytes(b"x" * 65536)
    outcome = run_ours(line.split(), tmp_path)
    assert outcome.code == 0, outcome
    told = run_ours(["info", "t.qed"], tmp_path).stdout
    assert "backing file: below.raw" in told
    assert "backing file format: raw" in told


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option(name: str, tmp_path: Path) -> None:
    for flag in ("-h", "--help"):
        outcome = run_ours([name, flag], tmp_path)
        assert outcome.code == 0
        for option in commands()[name].options:
            assert ", ".join(spellings(option)) in outcome.stdout
