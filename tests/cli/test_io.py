# SPDX-License-Identifier: Apache-2.0
"""What `blk io` does beyond single commands: break points, prompts, crashes, other drivers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import blocklayer
from blocklayer.cli import io_session
from blocklayer.cli.io import all_commands
from blocklayer.cli.main import main
from blocklayer.core.batch import Request
from blocklayer.core.disk import Disk
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


@pytest.mark.parametrize("place", ["512k 512", "575k 1k", "544k 64k"])
def test_break_where_a_new_cluster_is_filled(
    image: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where nothing has to be written for it, as new space reads as zeroes."""
    commands = ("break cow_write A", f"aio_write -q {place}", "wait_break A", "resume A")
    assert main(["io", *words(*commands), with_faults(image)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "blkdebug: Suspended request 'A'",
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


@pytest.mark.parametrize(
    ("commands", "stored"),
    [
        (["reopen -o detect-zeroes=on"], False),
        (["reopen -o detect-zeroes=unmap,auto-read-only=on"], False),
        (["reopen -o detect-zeroes=on", "reopen -o detect-zeroes=off"], True),
        (["reopen -o detect-zeroes=on", "reopen -c none", "reopen -r", "reopen -w"], False),
        (["reopen -o detect-zeroes=on,cache.direct=on", "reopen -o discard=off"], False),
    ],
)
def test_reopening_changes_what_becomes_of_zeroes(
    image: Path, commands: list[str], stored: bool
) -> None:
    assert main(["io", *words(*commands, "write -q -P 0 512k 64k"), str(image)]) == 0
    with blocklayer.open(image) as disk:
        assert all(extent.zero != stored for extent in disk.extents(512 * 1024, 64 * 1024))


def test_names_and_aliases_are_unique() -> None:
    names = [
        name for command in set(all_commands().values()) for name in (command.name, command.alias)
    ]
    given = [name for name in names if name]
    assert len(given) == len(set(given)) == len(all_commands())


# --- batches --------------------------------------------------------------------------------------


def io_lines(capsys: pytest.CaptureFixture[str], path: Path | str, *commands: str) -> list[str]:
    assert main(["io", *words(*commands), str(path)]) == 0
    return capsys.readouterr().out.splitlines()


def test_multiwrite_writes_its_requests_with_rising_patterns(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = io_lines(capsys, image, "multiwrite -P 254 64k 4k 4k ; 72k 512 ; 128k 64k")
    assert lines[0] == f"wrote {8192 + 512 + 65536}/{8192 + 512 + 65536} bytes at offset 65536"
    assert lines[1].startswith("72.500 KiB, 3 ops; ")
    with blocklayer.open(image) as disk:
        expected = b"\xfe" * 8192 + b"\xff" * 512
        assert disk.read(65536, 65536) == expected.ljust(65536, b"\0")
        assert disk.read(131072, 65536) == bytes(65536)


def test_multiwrite_is_one_batch(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where requests overlap, the later one wins; the table is updated once."""
    requests = " ; ".join(f"{256 + 4 * number}k 8k" for number in range(16))
    code = main(["io", "-T", "qed_*", *words(f"multiwrite -q {requests}"), str(image)])
    assert code == 0
    told = capsys.readouterr()
    updates = [line for line in (told.out + told.err).splitlines() if "l2_update" in line]
    assert len(updates) == 1
    with blocklayer.open(image) as disk:
        for number in range(16):
            assert disk.read((256 + 4 * number) << 10, 4096) == bytes([0xCD + number]) * 4096


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("multiwrite 0 4k ;", "multiwrite [-Cq] "),
        ("multiwrite 0 ; 4k 4k", "multiwrite [-Cq] "),
        ("multiwrite x 4k", "Parsing error: non-numeric argument"),
        ("multiwrite -P 256 0 4k", "256 is not a valid pattern byte"),
        ("multiwrite 0 4k ; 2M 4k", "aio_multiwrite failed: Input/output error"),
    ],
)
def test_multiwrite_that_cannot_be(
    image: Path, capsys: pytest.CaptureFixture[str], command: str, told: str
) -> None:
    assert main(["io", *words(command), str(image)]) == 1
    assert capsys.readouterr().out.startswith(told)


def batches_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of batches that disks get, as they come."""
    sizes: list[int] = []
    submit = Disk.submit

    def counting(disk: Disk, requests: Sequence[Request]) -> int:
        sizes.append(len(requests))
        return submit(disk, requests)

    monkeypatch.setattr(Disk, "submit", counting)
    monkeypatch.setattr(io_session, "GATHER_SECONDS", 30)
    return sizes


def test_writes_in_flight_together_are_batches(
    image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = batches_of(monkeypatch)
    lines = io_lines(
        capsys,
        image,
        "aio_write -q -P 1 0 4k",
        "aio_write -P 2 128k 4k 4k",
        "aio_write -qz 192k 64k",
        "length",
        "aio_write -qf -P 3 256k 4k",
        "aio_flush",
    )
    assert sizes == [3, 1]
    assert "wrote 8192/8192 bytes at offset 131072" in lines
    with blocklayer.open(image) as disk:
        assert disk.read(128 << 10, 8192) == b"\2" * 8192
        assert disk.read(192 << 10, 65536) == bytes(65536)
        assert disk.read(256 << 10, 4096) == b"\3" * 4096


def test_each_write_of_a_batch_fails_for_itself(
    image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = batches_of(monkeypatch)
    commands = ("aio_write -q -P 7 0 4k", "aio_write 2M 4k", "aio_write -q -P 8 4k 4k")
    lines = io_lines(capsys, image, *commands, "aio_flush", "read -q -P 7 0 4k")
    assert sizes == [3]
    assert lines == ["aio_write failed: Input/output error"]
    with blocklayer.open(image) as disk:
        assert disk.read(4096, 4096) == b"\x08" * 4096


def test_a_write_that_was_begun_does_not_wait_for_another_command(image: Path) -> None:
    """Somebody who types, or waits for an answer, may not say anything more."""
    program = subprocess.Popen([*BLK_IO, str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdin is not None
    program.stdin.write(b"aio_write -P 9 512k 4k\n")
    program.stdin.flush()
    deadline = time.monotonic() + 30
    while b"\x09" * 4096 not in image.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    program.communicate(b"quit\n")
    assert program.returncode == 0
