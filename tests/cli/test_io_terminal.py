# SPDX-License-Identifier: Apache-2.0
"""`blk io` on a terminal: keys, history, completion."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import blocklayer
from blocklayer.cli.io import all_commands
from blocklayer.cli.io_completion import candidates
from blocklayer.cli.io_session import Session
from tests.cli.terminal import Terminal

ENTER, CTRL_C, CTRL_D, TAB, UP = "\n", "\x03", "\x04", "\t", "\x10"
PASTE = "\x1b[200~", "\x1b[201~"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qed"
    blocklayer.create(path, format="qed", size="16M")
    return path


def converse(*words: object, state: Path | None = None) -> Terminal:
    environment = {"TERM": "xterm"}
    if state is not None:
        environment["XDG_STATE_HOME"] = str(state)
    terminal = Terminal(["io", *map(str, words)], keys=True, environment=environment)
    terminal.wait_for_prompt()
    return terminal


def test_ctrl_c_drops_the_line(image: Path) -> None:
    terminal = converse(image)
    terminal.type("write 0 4k")
    terminal.wait_for("write 0 4k")
    terminal.wait_a_moment()  # readline does not notice a signal while it echoes
    terminal.type(CTRL_C)
    terminal.wait_for_prompt()
    terminal.type("length\n")
    terminal.wait_for("16 MiB")
    terminal.wait_for_prompt()
    terminal.type(CTRL_D)
    assert terminal.finish() == 0
    assert "wrote" not in terminal.shown
    assert "Traceback" not in terminal.shown


@pytest.mark.parametrize(
    "command", ["sleep 100000", "write -q 0 4M", "read -q 0 4M", "write -q -z 0 4M"]
)
def test_ctrl_c_stops_the_command_and_not_the_session(image: Path, command: str) -> None:
    with blocklayer.open(image, mode="r+") as disk:
        disk.write(0, bytes(4 << 20), fua=True)
    options = f"driver=throttle,bps-total=1M,file.driver=qed,file.file.filename={image}"
    terminal = converse("--image-opts", options)
    terminal.type("length\n")
    terminal.wait_for_prompt()
    terminal.type("aio_write -q -P 7 8M 1M\n")  # what was begun goes on
    terminal.wait_for_prompt()
    terminal.type(f"{command}\n")
    terminal.wait_for(command)
    terminal.wait_a_moment()
    terminal.type(CTRL_C)
    terminal.wait_for("blk: interrupted")
    terminal.wait_for_prompt()
    terminal.type("aio_flush\n")
    terminal.wait_for_prompt()
    terminal.type("write -q -P 9 12M 4k\n")
    terminal.wait_for_prompt()
    terminal.type(CTRL_D)
    assert terminal.finish() == 1
    assert "Traceback" not in terminal.shown
    assert blocklayer.check(image).clean
    with blocklayer.open(image) as disk:
        assert disk.read(12 << 20, 4096) == b"\x09" * 4096
        assert disk.read(8 << 20, 1 << 20) == b"\x07" * (1 << 20)


def test_ctrl_c_while_waiting_at_a_break_point(image: Path) -> None:
    options = f"driver=qed,file.driver=blkdebug,file.image.filename={image}"
    terminal = converse("--image-opts", options)
    for line in ("break write_aio A", "wait_break A"):
        terminal.type(f"{line}\n")
        terminal.wait_for(line)
        terminal.wait_a_moment()
    terminal.type(CTRL_C)
    terminal.wait_for("blk: interrupted")
    terminal.wait_for_prompt()
    terminal.type("quit\n")
    assert terminal.finish() == 1


def test_pasted_lines(image: Path) -> None:
    terminal = converse(image)
    terminal.type("write -q -P 1 0 4k\nread -P 1 0 4k\n")
    terminal.wait_for("read 4096/4096")
    terminal.wait_for_prompt()
    begin, end = PASTE
    terminal.type(f"{begin}write -q -P 2 0 4k\nread -P 2 0 4k\nlength{end}")
    terminal.wait_for("length")
    terminal.type(ENTER)
    terminal.wait_for("read 4096/4096")
    terminal.wait_for("16 MiB")
    terminal.wait_for_prompt()
    terminal.type(CTRL_D)
    assert terminal.finish() == 0


def test_tab_completes(image: Path) -> None:
    terminal = converse("-r", image)
    terminal.type(f"len{TAB}")
    terminal.wait_for("length")
    terminal.type(ENTER)
    terminal.wait_for("16 MiB")
    terminal.wait_for_prompt()
    terminal.type("close\n")
    terminal.wait_for_prompt()
    terminal.type(f"open -r {image.parent}/di{TAB}")
    terminal.wait_for("disk.qed")
    terminal.type(ENTER)
    terminal.wait_for_prompt()
    terminal.type("length\n")
    terminal.wait_for("16 MiB")
    terminal.wait_for_prompt()
    terminal.type(CTRL_D)
    assert terminal.finish() == 0


# --- history ------------------------------------------------------------------------------------


def test_lines_are_remembered(image: Path, tmp_path: Path) -> None:
    state = tmp_path / "none" / "state"
    terminal = converse(image, state=state)
    terminal.type("alloc 0 4k\n")
    terminal.wait_for("0/4096")
    terminal.wait_for_prompt()
    terminal.type(CTRL_D)
    assert terminal.finish() == 0
    history = state / "blocklayer" / "io_history"
    assert history.read_text() == "alloc 0 4k\n"
    assert history.stat().st_mode & 0o777 == 0o600
    assert history.parent.stat().st_mode & 0o777 == 0o700
    terminal = converse(image, state=state)
    terminal.type(UP)
    terminal.wait_for("alloc 0 4k")
    terminal.type(ENTER)
    terminal.wait_for("0/4096")
    terminal.wait_for_prompt()
    terminal.type("length\nquit\n")
    assert terminal.finish() == 0
    assert history.read_text().splitlines() == ["alloc 0 4k", "length", "quit"]


def test_history_is_bounded_and_of_all_sessions(image: Path, tmp_path: Path) -> None:
    history = tmp_path / "blocklayer" / "io_history"
    history.parent.mkdir()
    history.write_text("".join(f"sleep {number}\n" for number in range(1500)))
    first, second = (converse("-r", image, state=tmp_path) for _ in range(2))
    for number, terminal in enumerate((first, second)):
        terminal.type(f"sleep {number}\n")
        terminal.wait_for_prompt()
        terminal.type(CTRL_D)
        assert terminal.finish() == 0
    lines = history.read_text().splitlines()
    assert len(lines) == 1000
    assert lines[-3:] == ["sleep 1499", "sleep 0", "sleep 1"]


@pytest.mark.parametrize("kind", ["no directory", "read-only", "a directory", "no text"])
def test_history_that_cannot_be_kept(image: Path, tmp_path: Path, kind: str) -> None:
    state = tmp_path / "state"
    history = state / "blocklayer" / "io_history"
    if kind == "no directory":
        state.touch()
    else:
        history.parent.mkdir(parents=True)
    if kind == "read-only":
        if os.geteuid() == 0:
            state = Path("/proc/self")  # root may write everywhere else
        history.parent.chmod(0o500)
    elif kind == "a directory":
        history.mkdir()
    elif kind == "no text":
        history.write_bytes(b"\xff\xfe\0\n\x80\n")
    terminal = converse(image, state=state)
    terminal.type("length\n")
    terminal.wait_for("16 MiB")
    terminal.wait_for_prompt()
    terminal.type(CTRL_D)
    assert terminal.finish() == 0
    assert "rror" not in terminal.shown
    assert "blk:" not in terminal.shown


# --- candidates ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("wr", ["write ", "writev "]),
        ("help re", ["read ", "readv ", "remove_break ", "reopen ", "resume "]),
        ("? len", ["length "]),
        ("nonsense ", []),
        ("discard -", ["-C ", "-q "]),
        ("d -", ["-C ", "-q "]),
        ("truncate -m f", ["falloc ", "full "]),
        ("open -t write", ["writeback ", "writethrough "]),
        ("open -rd ", ["ignore ", "unmap "]),
        ("open -dunmap ", ["disk.qed ", "folder/"]),
        ("open d", ["disk.qed "]),
        ("open folder/", ["folder/inner.qed "]),
        ("write -s di", ["disk.qed "]),
        ("write -P ", []),
        ("write 0 ", []),
        ("open none/", []),
        ("open .", [".hidden "]),
        ("resume ", ["A ", "B "]),
        ("break ", []),
    ],
)
def test_candidates(
    image: Path, monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]
) -> None:
    monkeypatch.chdir(image.parent)
    for name in ("folder/inner.qed", ".hidden", "two words"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    session = Session(all_commands())
    session.tags |= {"B", "A"}
    *before, text = line.split(" ")
    assert candidates(session, before, text) == expected


def test_every_command_is_a_candidate() -> None:
    session = Session(all_commands())
    names = {command.name for command in session.commands.values()}
    assert {word.strip() for word in candidates(session, [], "")} == names
