# SPDX-License-Identifier: Apache-2.0
"""Shells complete `blk`: asked in the way in which the tab key asks them."""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blocklayer.cli.docs import model
from blocklayer.cli.docs.model import ANY
from blocklayer.cli.io import all_commands
from blocklayer.cli.main import main
from blocklayer.cli.usage import spellings
from blocklayer.core.opening import CACHE_MODES
from tests.cli.docs.shells import ask_bash, ask_fish, ask_zsh, type_into_bash
from tests.support import needs

FILES = {"disk.qed", "other.raw"}
COMMANDS = {command.name for command in model.commands()}
IO_COMMANDS = {command.name for command in all_commands().values()}
QED = {"backing_file=", "backing_fmt=", "cluster_size=", "size=", "table_size="}
RAW = {"preallocation=", "size="}
FORMATS = {"qed", "raw"}

CASES: dict[str, set[str]] = {
    "blk ": COMMANDS,
    "blk com": {"commit", "compare", "completion"},
    "blk --ver": {"--version"},
    "blk -T 'qed_*' inf": {"info"},
    "blk nonsense ": set(),
    "blk info --back": {"--backing-chain"},
    "blk info --output=": {"human", "json"},
    "blk info --output=j": {"json"},
    "blk info --output ": {"human", "json"},
    "blk info -f ": FORMATS,
    "blk info --format=r": {"raw"},
    "blk check -r ": {"leaks", "all"},
    "blk check -q --repair=l": {"leaks"},
    "blk resize --preallocation f": {"falloc", "full"},
    "blk convert -t ": set(CACHE_MODES),
    "blk convert -T write": {"writeback", "writethrough"},
    "blk create -qf ": FORMATS,
    "blk create -f qed -o ": QED | {"help"},
    "blk create -fqed -o ": QED | {"help"},
    "blk create --format=qed -o cl": {"cluster_size="},
    "blk create -o ": RAW | {"help"},
    "blk create -o preallocation=": {"off", "falloc", "full"},
    "blk create -f qed -o backing_fmt=r": {"raw"},
    "blk create -f qed -o cluster_size=4k,ta": {"table_size="},
    "blk convert -f qed -o ": RAW | {"help"},
    "blk convert -f raw -O qed disk.qed -o c": {"cluster_size="},
    "blk convert --target-format qed -o c": {"cluster_size="},
    "blk convert --target-format=qed --target-format-options c": {"cluster_size="},
    "blk create --format qed --options=c": {"cluster_size="},
    "blk dd --output-format q": {"qed"},
    "blk measure -Oqed -o ta": {"table_size="},
    "blk io -c ": IO_COMMANDS,
    "blk io -c wr": {"write", "writev"},
    "blk io -r -c 'trunc": {"truncate"},
    "blk io -c 'discard -": {"-C", "-q"},
    "blk io -c 'help tr": {"truncate"},
    "blk io -d ": {"ignore", "unmap"},
    "blk help inf": {"info"},
    "blk completion ": {"bash", "zsh", "fish"},
    "blk dd o": {"of="},
    "blk convert --progress=": {"json"},
}
"""What is offered at the end of a line."""

WITH_FILES = (
    "blk info --untrusted=",
    *("blk info ", "blk convert disk.qed ", "blk create -b ", "blk rebase --backing="),
    *("blk create -f qed -o backing_file=", "blk dd if=", "blk info -- "),
)
WITHOUT_FILES = ("blk ", "blk create -f ", "blk convert -S ", "blk check -r ", "blk completion ")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def script_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Path]:
    def write(shell: str) -> Path:
        assert main(["completion", shell]) == 0
        path = tmp_path / f"script.{shell}"
        path.write_text(capsys.readouterr().out)
        return path

    return write


ScriptOf = Callable[[str], Path]


def value(word: str) -> str:
    """What a word ends with: shells replace more or less of what stands before the cursor."""
    return re.split("[=, ]", word.rstrip("="))[-1]


def bare(words: set[str]) -> set[str]:
    return {word.rstrip("=") for word in words}


# --- bash ---------------------------------------------------------------------------------------


def test_bash_words(script_of: ScriptOf) -> None:
    script = script_of("bash")
    for line, expected in CASES.items():
        offered, _ = ask_bash(script, line)
        assert {word.rpartition(",")[2].rpartition(" ")[2] for word in offered} == expected, line


def test_bash_files(script_of: ScriptOf) -> None:
    script = script_of("bash")
    for line in WITH_FILES:
        assert ask_bash(script, line) in (([], " -o default"), ([], " -o nospace -o default"))
    for line in WITHOUT_FILES:
        assert "default" not in ask_bash(script, line)[1], line


def test_bash_offers_every_option(script_of: ScriptOf) -> None:
    script = script_of("bash")
    for command in model.commands():
        offered, _ = ask_bash(script, f"blk {command.name} -")
        expected = {name for option in command.options for name in spellings(option)}
        assert set(offered) == expected, command.name


def test_bash_offers_every_known_value(script_of: ScriptOf) -> None:
    script = script_of("bash")
    for command in model.commands():
        for option in command.options:
            kind = model.value_kind(option)
            for name in spellings(option) if kind not in ("", ANY) else ():
                offered, options = ask_bash(script, f"blk {command.name} {name} ")
                assert offered or "default" in options, (command.name, name)


def test_bash_is_told_of_the_function(script_of: ScriptOf) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", 'source "$1"; complete -p blk', "bash", script_of("bash")],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout == "complete -F _blk blk\n"
    assert done.stderr == ""


TYPED = {
    "blk inf\t": "<info>",
    "blk info --output=j\t": "<info><--output=json>",
    "blk info two\t": "<info><two words.qed>",
    "blk info -fq\t": "<info><-fqed>",
    "blk rebase --backing=two\t": "<rebase><--backing=two words.qed>",
    "blk create -f qed -o size=1M,clus\t4k,ta\t": (
        "<create><-f><qed><-o><size=1M,cluster_size=4k,table_size=>"
    ),
    "blk create -f qed -o backing_file=dis\t": "<create><-f><qed><-o><backing_file=disk.qed>",
    "blk io -c trunc\t": "<io><-c><truncate>",
    "blk info --image-opts dri\tqe\t,file.filename=oth\t": (
        "<info><--image-opts><driver=qed,file.filename=other.raw>"
    ),
}


def test_bash_completes_what_is_typed(script_of: ScriptOf, home: Path) -> None:
    (home / "two words.qed").touch()
    assert type_into_bash(script_of("bash"), list(TYPED), home) == list(TYPED.values())


def test_bash_is_not_surprised_by_files(
    script_of: ScriptOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words of the tables are no patterns for file names."""
    (tmp_path / "a").touch()
    monkeypatch.chdir(tmp_path)
    assert "a" not in ask_bash(script_of("bash"), "blk io -c ")[0]


# --- zsh, fish ----------------------------------------------------------------------------------


@needs("zsh")
def test_zsh_words(script_of: ScriptOf, home: Path) -> None:
    answers = ask_zsh(script_of("zsh"), list(CASES), home)
    for (line, expected), offered in zip(CASES.items(), answers, strict=True):
        # Names of options of formats come without the = that zsh adds.
        assert offered == bare(expected), line


@needs("zsh")
def test_zsh_files(script_of: ScriptOf, home: Path) -> None:
    lines = [*WITH_FILES, *WITHOUT_FILES]
    answers = ask_zsh(script_of("zsh"), lines, home)
    for line, offered in zip(lines, answers, strict=True):
        assert (offered >= FILES) == (line in WITH_FILES), line


@needs("zsh")
def test_zsh_offers_every_option(script_of: ScriptOf, home: Path) -> None:
    commands = model.commands()
    lines = [f"blk {command.name} -" for command in commands]
    for command, offered in zip(commands, ask_zsh(script_of("zsh"), lines, home), strict=True):
        expected = {name for option in command.options for name in spellings(option)}
        assert expected <= offered, command.name


@needs("fish")
def test_fish_words(script_of: ScriptOf, home: Path) -> None:
    script = script_of("fish")
    for line, expected in CASES.items():
        offered = ask_fish(script, line, home)
        # Files are offered beside the words of dd, and beside values that may be left out.
        others = FILES | {script.name}
        assert {value(word) for word in offered} - others == bare(expected), line


@needs("fish")
def test_fish_files(script_of: ScriptOf, home: Path) -> None:
    script = script_of("fish")
    for line in (*WITH_FILES, *WITHOUT_FILES):
        offered = {value(word) for word in ask_fish(script, line, home)}
        assert (offered >= FILES) == (line in WITH_FILES), line


@needs("fish")
def test_fish_offers_every_option(script_of: ScriptOf, home: Path) -> None:
    script = script_of("fish")
    for command in model.commands():
        offered = ask_fish(script, f"blk {command.name} -", home)
        expected = {name for option in command.options for name in spellings(option)}
        assert expected <= set(offered), command.name
        long = ask_fish(script, f"blk {command.name} --", home)
        for option in command.options:
            assert not option.long or long[f"--{option.long}"] == option.help


# --- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "blk: Expecting one shell: bash, zsh, fish"),
        (["bash", "zsh"], "blk: Expecting one shell: bash, zsh, fish"),
        (["csh"], "blk: Unknown shell 'csh'; there are scripts for bash, zsh, fish"),
    ],
)
def test_complaints(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", *words]) == 1
    assert capsys.readouterr().err.startswith(complaint)


def test_there_is_a_script_for_each_shell() -> None:
    for shell in ("bash", "zsh", "fish"):
        script = importlib.import_module(f"blocklayer.cli.docs.{shell}").script()
        assert script.endswith("\n")
        assert not re.search("@[A-Z]+@", script), shell
