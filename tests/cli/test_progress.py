# SPDX-License-Identifier: Apache-2.0
"""Progress: lines for programs, a bar for people, nothing where neither is wanted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from tests.cli.terminal import Terminal
from tests.support.waiting import wait_until

SLOW = ("-r", "4M")
"""8 MiB take two seconds: longer than the patience after which there is a bar."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    path.write_bytes(b"data" * (2 << 20))
    return path


def convert(source: Path, *options: str) -> list[str]:
    target = source.with_name("target.qed")
    return ["convert", *options, "-f", "raw", "-O", "qed", str(source), str(target)]


def lines_of(text: str) -> list[float]:
    """Percentages of the lines that programs read, which must be all there is."""
    assert re.fullmatch(r"(    \(\d+\.\d\d/100%\)\r)+\n", text), text
    return [float(found) for found in re.findall(r"\(([\d.]+)/", text)]


def test_lines_where_there_is_no_terminal(source: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blocklayer", *convert(source, "-p")],
        capture_output=True,
        check=True,
    )
    percents = lines_of(done.stdout.decode())
    assert percents[0] == 0
    assert percents[-1] == 100
    assert percents == sorted(percents)
    assert done.stderr == b""


@pytest.mark.parametrize("options", [(), ("-q",), ("-p", "-q")])
def test_silence_where_there_is_no_terminal(source: Path, options: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blocklayer", *convert(source, *options)],
        capture_output=True,
        check=True,
    )
    assert done.stdout + done.stderr == b""


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("-p",)])
def test_a_bar_on_a_terminal(source: Path, options: tuple[str, ...]) -> None:
    terminal = Terminal(convert(source, *SLOW, *options))
    assert terminal.finish() == 0
    assert "convert:" in terminal.shown
    assert "8.00M" in terminal.shown
    assert terminal.shown.endswith("\r\n") == ("-p" in options), "asked for, the bar stays"


PICTURE = re.compile(
    r"convert: +(?P<percent>\d+)%\|(?P<full>█*)(?P<part>[▏▎▍▌▋▊▉]?)(?P<empty> *)\|"
    r" (?P<done>\d\.\d\d)M/8\.00M \[00:(?P<seconds>\d\d)<00:(?P<left>\d\d),"
    r" +(?P<rate>[\d.]+)MiB/s\]"
)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 132])
def test_the_picture_of_the_bar(source: Path, columns: int) -> None:
    """As long as it says: all parts of the line agree with each other, in every picture."""
    terminal = Terminal(convert(source, "-r", "2M", "-p"), columns=columns)
    assert terminal.finish() == 0
    shown = re.sub("\x1b\\[[0-9;]*[A-Za-z]", "", terminal.shown)
    pictures = [PICTURE.fullmatch(line) for line in re.split("[\r\n]+", shown) if line.strip()]
    assert len(pictures) >= 2
    for picture in pictures:
        assert picture is not None, shown
        percent, done = int(picture["percent"]), float(picture["done"])
        assert abs(done / 8 - percent / 100) < 0.01
        filled = len(picture["full"]) + bool(picture["part"]) / 2
        width = len(picture["full"] + picture["part"] + picture["empty"])
        assert abs(filled - width * percent / 100) <= 1
        # The rate is that of the last moments: on a busy machine not that of the whole.
        rate = float(picture["rate"])
        assert abs((8 - done) / rate - int(picture["left"])) <= 1.1
    assert pictures[-1] is not None
    assert pictures[-1]["percent"] == "100"


@pytest.mark.slow
@pytest.mark.parametrize("columns", [0, 1, 5, 25, 69, 132])
def test_the_bar_fits_the_terminal(source: Path, columns: int) -> None:
    terminal = Terminal(convert(source, "-r", "6M"), columns=columns)
    assert terminal.finish() == 0
    shown = re.sub("\x1b\\[[0-9;]*[A-Za-z]", "", terminal.shown)
    states = [state for state in re.split("[\r\n]", shown) if state.strip()]
    if columns == 1:
        assert not states
        return
    assert max(map(len, states)) <= (columns or 80)
    assert "%" in states[-1]
    if columns not in range(1, 25):
        for state in states:  # the first one, too
            assert re.search(r"\d+%.*\d+:\d\d.*[\d.]+MiB/s", state), "rate and time left"


@pytest.mark.parametrize("options", [(), ("-p",)])
def test_no_bar_for_what_is_quick(source: Path, options: tuple[str, ...]) -> None:
    terminal = Terminal(convert(source, *options))
    assert terminal.finish() == 0
    assert "%" not in terminal.shown


@pytest.mark.slow
@pytest.mark.parametrize("options", [("-q",), ("-p", "-q")])
def test_no_bar_for_the_quiet(source: Path, options: tuple[str, ...]) -> None:
    terminal = Terminal(convert(source, *SLOW, *options))
    assert terminal.finish() == 0
    assert terminal.shown == ""


@pytest.mark.slow
def test_a_program_that_reads_stdout_gets_lines_although_stderr_is_a_terminal(
    source: Path,
) -> None:
    terminal = Terminal(convert(source, *SLOW, "-p"), stdout=False)
    assert terminal.process.stdout is not None
    with terminal.process.stdout as stdout:
        assert lines_of(stdout.read().decode())[-1] == 100
    assert terminal.finish() == 0
    assert terminal.shown == ""


@pytest.mark.slow
def test_progress_is_told_once_on_request(source: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "blocklayer", *convert(source, *SLOW)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    target = source.with_name("target.qed")
    wait_until(lambda: target.exists() and target.stat().st_size > 1 << 20)
    process.send_signal(signal.SIGUSR1)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0
    assert stdout == b""
    assert re.fullmatch(rb"    \(\d+\.\d\d/100%\)\n", stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "stream", "code"),
    [("--progress=json", "stderr", 0), ("-p", "stdout", 141), ("-p", "full", 0)],
)
def test_nobody_wants_to_know_any_more(source: Path, option: str, stream: str, code: int) -> None:
    """The work goes on without; a pipe from stdout that is closed ends programs."""
    target = source.with_name("target.qed")
    streams: dict[str, Any] = {stream: subprocess.PIPE}
    if stream == "full":
        streams = {"stdout": os.open("/dev/full", os.O_WRONLY)}
    process = subprocess.Popen(
        [sys.executable, "-m", "blocklayer", *convert(source, option, "-r", "16M")], **streams
    )
    pipe = process.stderr if stream == "stderr" else process.stdout
    if pipe is not None:
        pipe.read(1)
        pipe.close()
    else:
        os.close(streams["stdout"])
    assert process.wait() == code
    assert target.exists() == (code == 0)
    if not code:
        assert blocklayer.compare(source, target, first_format="raw").identical


def test_every_long_operation_reports(source: Path, tmp_path: Path) -> None:
    base, overlay, other = (str(tmp_path / f"{name}.qed") for name in ("base", "over", "other"))
    blocklayer.convert(str(source), base, source_format="raw", format="qed")
    blocklayer.create(overlay, format="qed", backing=base, backing_format="qed")
    blocklayer.create(other, format="qed", size="8M")
    for words in (
        ["compare", "-p", base, overlay],
        ["rebase", "-p", "-b", other, "-F", "qed", overlay],
        ["commit", "-p", "-d", overlay],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "blocklayer", *words], capture_output=True, check=True
        )
        text = done.stdout.decode()
        assert lines_of(text[: text.index("\n") + 1])[-1] == 100, words
