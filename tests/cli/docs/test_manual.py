# SPDX-License-Identifier: Apache-2.0
"""Help, manual pages and web page tell the same, and everything."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import blocklayer
from blocklayer.cli.docs import model
from blocklayer.cli.docs.__main__ import all_files
from blocklayer.cli.docs.pages import all_pages
from blocklayer.cli.getopt import Option, getopt
from blocklayer.cli.io import all_commands
from blocklayer.cli.io_help import HELP
from blocklayer.cli.main import main
from blocklayer.cli.parsing import Command, parse
from blocklayer.cli.usage import spellings
from tests.support import needs

ROOT = Path(__file__).parents[3]
COMMANDS = {command.name: command for command in model.commands()}
IO_COMMANDS = {command.name: command for command in all_commands().values()}


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return all_files()


def plain(roff: str) -> str:
    """The words of a manual page, without what is said to the formatter."""
    text = re.sub(r"\\f[BRI]|\\&", "", roff)
    for escape, character in (("\\-", "-"), ("\\(aq", "'"), ("\\(ti", "~"), ("\\e", "\\")):
        text = text.replace(escape, character)
    return text


def in_a_line(text: str) -> str:
    return " ".join(text.split())


class Reader(HTMLParser):
    """The text of a page whose elements are closed as they must be."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.open: list[str] = []
        self.places: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                assert value not in self.places
                self.places.add(value)
            elif name in ("href", "src") and value:
                self.links.add(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


# --- everything is told -------------------------------------------------------------------------


def options() -> list[tuple[str, Option]]:
    own = [("", option) for option in model.program_options()]
    return own + [(name, option) for name, each in COMMANDS.items() for option in each.options]


def test_manual_pages_tell_of_every_option(files: dict[str, str]) -> None:
    for name, option in options():
        page = plain(files[f"share/man/man1/blk{'-' if name else ''}{name}.1"])
        term = f"{', '.join(spellings(option))} {option.value}".rstrip()
        assert f".TP\n{term}\n" in page, (name, term)
        assert in_a_line(option.help) in in_a_line(page), (name, term)


def test_the_pages_tell_of_every_option(files: dict[str, str]) -> None:
    markdown = files["share/doc/blocklayer/commands.md"]
    html = read(files["share/doc/blocklayer/commands.html"]).text
    for text, begin in ((markdown, "\n## "), (html, "\n")):
        position = 0
        for name in ("", *COMMANDS):
            position = text.index(f"{begin}blk {name}".rstrip() + "\n", position)
            end = text.find(f"{begin}blk ", position + len(begin) + 4)
            part = text[position:end].replace("\\", "").replace("`", "")
            for option_name, option in options():
                if option_name == name and text is markdown:
                    assert f"| {', '.join(spellings(option))} " in part, (name, option.key)
                    assert option.help.replace("|", "|") in part, (name, option.key)
    for name, option in options():
        assert f"{', '.join(spellings(option))} {option.value}".rstrip() in html, name
        assert option.help in html, name


def test_help_tells_of_every_option_and_command(capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in COMMANDS.items():
        assert main([name, "--help"]) == 0
        told = capsys.readouterr().out
        assert main(["help", name]) == 0
        assert capsys.readouterr().out == told
        for option in command.options:
            term = f"{', '.join(spellings(option))} {option.value}".rstrip()
            assert re.search(rf"^ +{re.escape(term)}(  |$)", told, re.MULTILINE), (name, term)
            assert in_a_line(option.help) in in_a_line(told)
        for line, about in command.examples:
            assert f"\n  blk {line}\n" in told
            assert about in in_a_line(told)
    assert main(["help"]) == 0
    told = capsys.readouterr().out
    for name, command in COMMANDS.items():
        row = rf"^  {name} +{re.escape(model.summary(command))}$"
        assert re.search(row, told, re.MULTILINE)


def test_the_manual_tells_of_every_io_command(files: dict[str, str]) -> None:
    page = plain(files["share/man/man1/blk-io.1"])
    for name, command in IO_COMMANDS.items():
        begin = page.index(f'.SS "{name}"\n')
        part = page[begin : page.find("\n.S", begin + 1)]
        assert f"{name} {command.usage}".rstrip() in part
        for option in command.options:
            assert f".TP\n-{option.short} {option.value}".rstrip() in part
        for line, _ in HELP[name][1]:
            assert line in part


def test_io_help_tells_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert HELP.keys() == IO_COMMANDS.keys()
    for name, command in IO_COMMANDS.items():
        assert main(["io", "-c", f"help {name}"]) == 0
        told = capsys.readouterr().out
        assert main(["help", "io", name]) == 0
        assert capsys.readouterr().out == told
        assert in_a_line(HELP[name][0]) in in_a_line(told)
        for option in command.options:
            assert f"\n -{option.short} " in told


def test_the_page_in_the_repository_is_current(files: dict[str, str]) -> None:
    """It shows what this version of the program can; after a change, say `make docs`."""
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    assert page == files["share/doc/blocklayer/commands.md"], "docs/commands.md: say 'make docs'"


def test_links_of_the_web_page(files: dict[str, str]) -> None:
    page = read(files["share/doc/blocklayer/commands.html"])
    assert page.links == {f"#{page.name}" for page in all_pages()}
    assert page.links == {f"#{place}" for place in page.places}


# --- form ---------------------------------------------------------------------------------------

LINTERS = {
    "mandoc": ["mandoc", "-T", "lint", "-W", "warning"],
    "groff": ["groff", "-ww", "-man", "-T", "utf8", "-z"],
    "man": ["man", "--warnings", "-E", "UTF-8", "-Tutf8", "-Z", "-l"],
}


@pytest.fixture
def written(files: dict[str, str], tmp_path: Path) -> list[Path]:
    pages = []
    for name, text in files.items():
        if name.endswith(".1"):
            pages.append(tmp_path / Path(name).name)
            pages[-1].write_text(text, "utf-8")
    return pages


@pytest.mark.parametrize(
    "tool", [pytest.param(tool, marks=needs(tool)) for tool in sorted(LINTERS)]
)
def test_manual_pages_are_without_a_warning(tool: str, written: list[Path]) -> None:
    for page in written:
        done = subprocess.run(
            [*LINTERS[tool], str(page)],
            capture_output=True,
            encoding="utf-8",
            check=False,
            env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
        )
        told = done.stderr if tool != "mandoc" else done.stderr + done.stdout
        assert (done.returncode, told) == (0, ""), page.name


@needs("mandoc")
def test_a_manual_page_shows_what_was_meant(written: list[Path]) -> None:
    """Nothing is lost on the way through the formatter: dashes, quotes, dots, backslashes."""
    (page,) = (page for page in written if page.name == "blk-io.1")
    done = subprocess.run(
        ["mandoc", "-T", "ascii", "-O", "width=78", str(page)],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    shown = in_a_line(re.sub(".\x08", "", done.stdout))
    for wanted in (
        "blk io -c 'write -P 1 0 64k' -c 'read -P 1 0 64k' disk.qed",
        "[-c COMMAND]... [FILE]",
        "writev [-Cfq] [-P pattern] off len [len..]",
        "events of drivers that match: 'qed_*'",
        *(option.help for option in COMMANDS["io"].options),
    ):
        assert wanted in shown


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_help_fits_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for words in (["--help"], *([name, "--help"] for name in COMMANDS)):
        assert main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        examples = {f"  blk {line}" for each in COMMANDS.values() for line, _ in each.examples}
        long = [line for line in lines if len(line) > min(width, 100) and line not in examples]
        # A word can be longer than what is left of a narrow line.
        assert all(len(line.split()) <= 3 or width < 60 for line in long), long
        assert width < 80 or not long


# --- examples -----------------------------------------------------------------------------------

WITHOUT_IMAGES = {"amend", "bitmap", "snapshot"}
"""What no format can do yet."""
SERVERS = {"daemon", "nbd"}
"""They go on until they are stopped; their own tests start them."""


def test_every_command_has_examples() -> None:
    for name, command in COMMANDS.items():
        assert command.examples, f"{name}: give its COMMAND examples=((line, what it does), ...)"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_examples_are_of_the_command(name: str) -> None:
    for line, _ in COMMANDS[name].examples:
        first, *words = shlex.split(line.partition(" > ")[0])
        assert first == name
        parse(COMMANDS[name], words)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - WITHOUT_IMAGES - SERVERS))
def test_examples_work(name: str, tmp_path: Path) -> None:
    for number, (line, _) in enumerate(COMMANDS[name].examples):
        line = line.partition(" > ")[0].replace("/dev/vg/disk", "device")
        if "--qmp" in line:  # a daemon's nodes: the tests of blk mirror start one
            continue
        directory = tmp_path / str(number)
        directory.mkdir()
        make_images(directory)
        done = subprocess.run(
            [sys.executable, "-m", "blocklayer", *shlex.split(line)],
            capture_output=True,
            encoding="utf-8",
            cwd=directory,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), line


def make_images(directory: Path) -> None:
    """What the examples speak of."""
    for name in ("disk", "server", "scratch", "base", "new", "full", "moved"):
        blocklayer.create(directory / f"{name}.qed", format="qed", size="8M")
    for name in ("disk", "server", "a", "b"):
        blocklayer.create(directory / f"{name}.raw", format="raw", size="8M")
    blocklayer.create(directory / "device", format="raw", size="8M")
    for name, base in (("overlay", "base"), ("middle", "base"), ("top", "middle")):
        blocklayer.create(
            directory / f"{name}.qed", format="qed", backing=f"{base}.qed", backing_format="qed"
        )


@pytest.mark.parametrize("name", sorted(IO_COMMANDS))
def test_examples_of_io_are_of_the_command(name: str) -> None:
    for line, _ in HELP[name][1]:
        first, *words = line.split()
        command = IO_COMMANDS[first]
        assert name in (first, "break")
        getopt(command.options, words)
        least, most = command.words
        assert least <= len(words)
        assert most == -1 or len(words) <= most


def test_a_command_may_tell_little() -> None:
    """What is not declared leaves no empty place."""
    from blocklayer.cli.usage import command_help

    text = command_help(Command("test", "FILE", "Do nothing.", (), common=()))
    assert text == "usage: blk test [options] FILE\nDo nothing."
