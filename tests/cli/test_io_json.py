# SPDX-License-Identifier: Apache-2.0
"""`blk io --output=json`: an object for each command, with the numbers that people are shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.cli import io_session
from blocklayer.cli.main import main

BLK_IO = [sys.executable, "-m", "blocklayer", "io", "--output=json"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qed"
    blocklayer.create(path, format="qed", size=8 * MiB)
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(0, b"\x01" * 64 * KiB)
    return path


@pytest.fixture
def ask(image: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run commands: their objects, what stderr has, and the exit code."""

    def run(*commands: str, options: tuple[str, ...] = ()) -> Any:
        words = [word for command in commands for word in ("-c", command)]
        code = main(["io", "--output=json", *options, *words, str(image)])
        told = capsys.readouterr()
        objects = [json.loads(line) for line in told.out.splitlines()]
        for found in objects:
            if "seconds" in found:
                assert 0 <= found.pop("seconds") < 60
        return objects, [json.loads(line) for line in told.err.splitlines()], code

    return run


def request(offset: int, count: int, operations: int = 1) -> dict[str, Any]:
    return {"ok": True, "offset": offset, "bytes": count, "operations": operations}


@pytest.mark.parametrize(
    ("line", "members"),
    [
        ("read -P 1 0 64k", request(0, 64 * KiB)),
        ("r -C 4k 512", request(4 * KiB, 512)),
        ("readv 0 512 1k", request(0, 1536)),
        ("write -P 2 1M 4k", request(MiB, 4 * KiB)),
        ("writev 1M 4k 4k", request(MiB, 8 * KiB)),
        ("multiwrite 0 512 ; 1M 4k", request(0, 512 + 4 * KiB, 2)),
        ("discard 0 64k", request(0, 64 * KiB)),
        ("write -q 0 512", {"ok": True}),
        ("length", {"ok": True, "size": 8 * MiB}),
        ("info", {"ok": True, "format": "qed", "cluster-size": 64 * KiB}),
        ("alloc 0 128k", {"ok": True, "offset": 0, "length": 128 * KiB, "allocated": 64 * KiB}),
        (
            "map",
            {
                "ok": True,
                "extents": [
                    {"offset": 0, "length": 64 * KiB, "allocated": True},
                    {"offset": 64 * KiB, "length": 8 * MiB - 64 * KiB, "allocated": False},
                ],
            },
        ),
        ("flush", {"ok": True}),
        ("truncate 16M", {"ok": True}),
        ("quit", {"ok": True}),
    ],
)
def test_numbers(ask: Any, line: str, members: dict[str, Any]) -> None:
    command, *arguments = line.split()
    assert ask(line) == ([{"command": command, "arguments": arguments, **members}], [], 0)


def test_what_has_no_numbers_is_text(ask: Any) -> None:
    (dump, about), _, code = ask("read -v 0 32", "help length")
    assert code == 0
    assert dump["bytes"] == 32
    assert [line[:15] for line in dump["text"]] == ["00000000:  01 0", "00000010:  01 0"]
    assert about["text"][0] == "length -- tell the size of the disk"


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("read 9M 512", "OutOfRange", "read failed: Input/output error"),
        ("write 9M 512", "OutOfRange", "write failed: Input/output error"),
        ("read -P 3 0 512", "Failure", "Pattern verification failed at offset 0, 512 bytes"),
        ("read 0 x", "InvalidArgument", "Parsing error: non-numeric argument, or"),
        ("read -x 0 1", "UsageError", "read: invalid option -- 'x'"),
        ("alloc", "UsageError", "bad argument count 0 to alloc, expected between"),
        ("multiwrite 0 1 ; 2", "UsageError", "wrong arguments for multiwrite"),
        ("write -s /nowhere 0 1", "OSError", "/nowhere: No such file or directory"),
        ("open other", "Failure", "file open already, try 'help close'"),
        ("break a b", "Failure", "Could not set breakpoint: Operation not supported"),
        ("truncate -m x 1", "Failure", "Invalid preallocation mode 'x'"),
    ],
)
def test_errors(ask: Any, line: str, kind: str, message: str) -> None:
    objects, said, code = ask(line, "length")
    failed, after = objects
    assert failed["command"] == line.split(maxsplit=1)[0]
    assert failed["ok"] is False
    assert failed["error"]["class"] == kind
    assert failed["error"]["message"].startswith(message)
    assert "text" not in failed
    assert "exit-code" not in failed["error"]
    assert after["ok"], "the others go on"
    assert code == 1
    (last,) = said
    assert last["error"]["message"] == "1 of 2 commands failed"
    assert last["error"]["exit-code"] == 1


def test_mistyped_commands(ask: Any) -> None:
    (found,), _, code = ask("raed 0 1")
    assert found["error"]["message"] == 'command "raed" not found'
    assert found["error"]["hint"] == "Did you mean 'read'?"
    assert code == 1


def test_a_read_only_disk(ask: Any) -> None:
    (found,), _, _ = ask("write 0 512", options=("-r",))
    assert found["error"]["message"] == "Block node is read-only"


def test_requests_aside_are_answered_when_they_are_done(
    ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io_session, "GATHER_SECONDS", 30)
    objects, _, code = ask(
        "aio_write 1M 64k", "aio_write 9M 4k", "length", "aio_read -P 7 0 512", "aio_flush"
    )
    assert code == 0, "as for people"
    names = [found["command"] for found in objects]
    assert sorted(names) == ["aio_flush", "aio_read", "aio_write", "aio_write", "length"]
    assert names[-1] == "aio_flush"
    by_arguments = {tuple(found["arguments"]): found for found in objects}
    assert by_arguments["1M", "64k"]["bytes"] == 64 * KiB
    message = by_arguments["9M", "4k"]["error"]["message"]
    assert message == "aio_write failed: Input/output error"
    message = by_arguments["-P", "7", "0", "512"]["error"]["message"]
    assert message == "Pattern verification failed at offset 0, 512 bytes"
    assert all("text" not in found for found in objects)


def test_what_was_not_waited_for_is_answered_in_the_end(ask: Any) -> None:
    objects, _, code = ask("aio_write 1M 64k")
    assert [found["ok"] for found in objects] == [True]
    assert code == 0


def test_an_image_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["io", "--output=json", "-c", "length", str(tmp_path / "nothing")]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert json.loads(told.err)["error"]["code"] == "ENOENT"


def test_a_dialogue(image: Path) -> None:
    """Each line is answered at once, and there is no prompt between answers."""
    with subprocess.Popen(
        [*BLK_IO, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line, wanted in (("length", "size"), ("read 0 512", "bytes"), ("nothing", "error")):
            process.stdin.write(f"\n{line}\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert answer["command"] == line.split()[0]
            assert wanted in answer
        process.stdin.close()
        assert process.stdout.read() == ""
    assert process.returncode == 1


def test_answers_that_came_before_a_crash(image: Path) -> None:
    done = subprocess.run(
        [*BLK_IO, "-c", "length", "-c", "abort", image], capture_output=True, check=False
    )
    assert done.returncode == -6
    assert json.loads(done.stdout)["size"] == 8 * MiB
