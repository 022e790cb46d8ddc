# SPDX-License-Identifier: Apache-2.0
"""What `blk io` does beyond single commands: break points, prompts, crashes, other drivers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import blocklayer
from blocklayer.cli.io import all_commands
from blocklayer.cli.main import main
from tests.cli.side_by_side import outcome, run_theirs
from tests.cli.terminal import Terminal
from tests.support import needs

BLK_IO = [sys.executable, "-m", "blocklayer", "io"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qed"
    blocklayer.create(path, format="qed", size="1M")
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(0, b"\x01" * 65536)
    return path


def words(*commands: str) -> list[str]:
    return [word for command in commands for word in ("-c", command)]


def with_faults(image: Path, **rules: object) -> str:
    """The image over the fault filter."""
    fault = {"driver": "blkdebug", "image": {"driver": "file", "filename": str(image)}, **rules}
    return "json:" + json.dumps({"driver": "qed", "file": fault})


BREAKS = (
    "break l2_load A",
    "aio_read 0 4k",
    "wait_break A",
    "aio_read -P 0 512k 4k",
    "resume A",
    "aio_flush",
    "remove_break A",
    "resume B",
    "break nonsense A",
)


@needs("qemu-io")
def test_break_points_as_qemu_has_them(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [command for command in BREAKS if "512k" not in command]
    theirs = run_theirs("qemu-io", [*words(*commands), with_faults(image)], image.parent)
    code = main(["io", *words(*commands), with_faults(image)])
    told = capsys.readouterr()
    assert outcome(code, told.out, told.err) == theirs


def test_other_requests_go_on_while_one_is_suspended(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = ("break write_aio A", "aio_write -q 512k 4k", "wait_break A", "read -q -P 1 0 4k")
    assert main(["io", *words(*commands, "length", "resume A"), with_faults(image)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "blkdebug: Suspended request 'A'",
        "1 MiB",
        "blkdebug: Resuming request 'A'",
    ]


def test_what_is_suspended_at_the_end_is_let_go(image: Path) -> None:
    commands = ("break write_aio A", "aio_write -P 9 512k 4k", "wait_break A")
    assert main(["io", *words(*commands), with_faults(image)]) == 0
    assert main(["io", *words("read -P 9 512k 4k"), str(image)]) == 0


def test_injected_errors_are_told(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = {"inject-error": [{"event": "write_aio", "errno": 28, "once": True}]}
    assert main(["io", *words("write 0 4k", "write -q 0 4k"), with_faults(image, **rules)]) == 1
    assert capsys.readouterr().out == "write failed: No space left on device\n"


def test_asynchronous_failures_are_told_and_are_no_failures_of_the_command(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["io", *words("aio_read 2M 4k", "aio_read -P 2 0 4k", "aio_flush"), str(image)]) == 0
    )
    told = capsys.readouterr().out
    assert "readv failed: Input/output error\n" in told
    assert "Pattern verification failed at offset 0, 4096 bytes\n" in told


def test_many_asynchronous_writes(image: Path) -> None:
    commands = [f"aio_write -q -P {n} {n}k 1k" for n in range(200)]
    checks = [f"read -q -P {n} {n}k 1k" for n in range(200)]
    assert main(["io", *words(*commands, "aio_flush", *checks), str(image)]) == 0


def test_crashes(image: Path) -> None:
    for command, number in (("abort", signal.SIGABRT), ("sigraise 9", signal.SIGKILL)):
        place = f"{number}00k 64k"
        done = subprocess.run(
            [*BLK_IO, *words(f"write -P 7 {place}", command), str(image)],
            capture_output=True,
            check=False,
        )
        assert done.returncode == -number
        assert done.stdout.startswith(b"wrote 65536/65536")
        assert blocklayer.info(image).dirty_flag
        assert main(["io", *words(f"read -q -P 7 {place}"), str(image)]) == 0
        assert not blocklayer.info(image).dirty_flag


def test_a_prompt_on_a_terminal(image: Path) -> None:
    terminal = Terminal(["io", str(image)])
    terminal.wait_for_prompt()
    terminal.type("length\n")
    terminal.wait_for("1 MiB")
    terminal.wait_for_prompt()
    terminal.type("nonsense\n")
    terminal.wait_for("not found")
    terminal.wait_for_prompt()
    terminal.type("\x04")
    assert terminal.finish() == 1


def test_snapshots_are_forgotten(image: Path, tmp_path: Path) -> None:
    before, files = image.read_bytes(), sorted(tmp_path.iterdir())
    for options, name in (
        (["-s"], str(image)),
        (["-s", "-f", "qed"], str(image)),
        (["-s", "--image-opts"], f"driver=qed,file.filename={image}"),
    ):
        commands = words("write -q -P 9 0 4k", "read -q -P 9 0 4k", "read -q -P 1 4k 4k")
        assert main(["io", *options, *commands, name]) == 0
    assert image.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == files


def test_copy_on_read_stores_what_is_read(image: Path, tmp_path: Path) -> None:
    overlay = str(tmp_path / "overlay.qed")
    blocklayer.create(overlay, format="qed", backing=image, backing_format="qed")
    assert main(["io", "-C", *words("read -q -P 1 0 64k"), overlay]) == 0
    with blocklayer.open(overlay) as disk:
        assert next(disk.extents()).depth == 0


def test_reopening_keeps_the_image_if_it_fails(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image.chmod(0o444)
    commands = ("reopen -r", "reopen -c none", "length", "reopen -o cluster_size=1", "length")
    assert main(["io", *words(*commands), str(image)]) == 1
    assert capsys.readouterr().out == "1 MiB\n1 MiB\n"


def test_names_and_aliases_are_unique() -> None:
    names = [
        name for command in set(all_commands().values()) for name in (command.name, command.alias)
    ]
    given = [name for name in names if name]
    assert len(given) == len(set(given)) == len(all_commands())
