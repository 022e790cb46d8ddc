# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and its like: a clean word, an exit code that tells, and nothing half made."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import blocklayer
from blocklayer.cli.failures import Interrupted
from blocklayer.cli.main import main
from blocklayer.cli.parsing import Arguments
from blocklayer.cli.progress import Running
from blocklayer.core.node import Node
from blocklayer.ops import create
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Shells and nohup ignore signals for what they start, and children inherit that."""
    before = [
        (signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler)),
        (signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_DFL)),
    ]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    path.write_bytes(b"data" * (2 << 20))
    return path


def slow_convert(source: Path, target: Path, *options: str) -> list[str]:
    words = ["convert", *options, "-f", "raw", "-O", "qed", "-r", "1M", str(source), str(target)]
    return [sys.executable, "-m", "blocklayer", *words]


def wait_until_half_made(target: Path) -> None:
    wait_until(lambda: target.exists() and target.stat().st_size >= 1 << 20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_convert_leaves_no_target(
    source: Path, tmp_path: Path, number: signal.Signals
) -> None:
    target = tmp_path / "target.qed"
    process = subprocess.Popen(
        slow_convert(source, target), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_until_half_made(target)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert stdout == b""
    assert stderr.decode() == (
        f"blk: interrupted\n'{target}' was not complete, and has been removed\n"
    )
    assert not target.exists()
    assert source.stat().st_size == 8 << 20


@pytest.mark.parametrize(
    "form", ["{}", "file:{}", 'json:{{"driver":"raw","file.filename":"{}"}}', "file.filename={}"]
)
def test_a_target_that_was_there_stays(source: Path, tmp_path: Path, form: str) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(bytes(8 << 20))
    named = form.format(target)
    words = ["convert", "-n", "-f", "raw", "-r", "1M", "-S", "0", str(source), named]
    if named.startswith("file.filename"):
        words.insert(1, "--target-image-opts")
    process = subprocess.Popen([sys.executable, "-m", "blocklayer", *words], stderr=subprocess.PIPE)
    while target.read_bytes()[:4] != b"data":
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1].decode() == (
        f"blk: interrupted\n'{named}' holds a part of the copy only: do not use it\n"
    )
    assert process.returncode == 130
    assert target.stat().st_size == 8 << 20


def test_a_signal_that_is_ignored_stays_ignored(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.qed"
    command = slow_convert(source, target)
    command[command.index("1M")] = "4M"
    process = subprocess.Popen(["nohup", *command], stdout=subprocess.DEVNULL)
    wait_until_half_made(target)
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 0
    assert target.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_create_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    target = tmp_path / "target.raw"
    there = []

    def open_storage(name: str, locking: str) -> Node:
        there.append(target.exists())
        signal.raise_signal(number)
        pytest.fail("went on")

    monkeypatch.setattr(create, "_open_storage", open_storage)
    assert main(["create", "--output=json", str(target), "1M"]) == 128 + number
    assert there == [True]
    assert not target.exists()
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["class"], error["code"]) == ("Interrupted", "EINTR")
    assert error["signal"] == number.name
    assert error["exit-code"] == 128 + number


def test_an_interrupted_commit_tells_of_both_images(source: Path, tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.qed", tmp_path / "over.qed"
    blocklayer.create(base, format="qed", size="8M")
    blocklayer.convert(
        source,
        overlay,
        source_format="raw",
        format="qed",
        options={"backing_file": "base.qed", "backing_fmt": "qed"},
    )
    words = ["commit", "-r", "1M", "--output=json", "--progress=json", str(overlay)]
    before = base.stat().st_size
    process = subprocess.Popen(
        [sys.executable, "-m", "blocklayer", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while base.stat().st_size < before + (1 << 20):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert stdout == ""
    *progress, last = [json.loads(line) for line in stderr.splitlines()]
    assert progress[-1]["done"] < progress[-1]["total"] == 8 << 20
    assert "is as it was, and still shows the same" in last["error"]["hint"]
    assert blocklayer.compare(source, overlay, first_format="raw").identical
    assert blocklayer.check(base).clean


def test_a_second_signal_does_not_wait() -> None:
    before = signal.getsignal(signal.SIGINT)
    running = Running(Arguments([], []))

    def work() -> None:
        with running:
            signal.raise_signal(signal.SIGINT)
            assert running.cancel.cancelled
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("went on")

    with pytest.raises(Interrupted) as caught:
        work()
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
