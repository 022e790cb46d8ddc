# SPDX-License-Identifier: Apache-2.0
"""How `blk` ends: exit codes, what stderr says, and what happens when nobody reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import blocklayer
from blocklayer.cli import info as info_command
from blocklayer.cli.main import COMMANDS, main
from blocklayer.cli.parsing import Arguments
from blocklayer.core.events import full_names

BLK = [sys.executable, "-m", "blocklayer"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qed"
    blocklayer.create(path, format="qed", size="16M", cluster_size=4096)
    with blocklayer.open(path, mode="r+") as disk:
        disk.write_many([(cluster * 8192, b"x") for cluster in range(1000)])
    return path


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["-V"], ["--version"], ["io", "-V"]):
        assert main(words) == 0
        assert capsys.readouterr().out == f"blk version {blocklayer.__version__}\n"
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in COMMANDS)
    assert "Supported formats: qed raw" in told


def test_usage_errors_tell_where_help_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--nonsense"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        "blk: unrecognized option '--nonsense'\nTry 'blk --help' for more information\n"
    )


def test_errors_of_the_system_are_told(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = f"qed_*,file={tmp_path}/none/log"
    assert main(["--trace", trace, "info", str(image)]) == 1
    assert capsys.readouterr().err == f"blk: {tmp_path}/none/log: No such file or directory\n"


def test_notes_of_an_error_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: Arguments) -> int:
        error = blocklayer.InvalidArgument("first")
        error.add_note("second")
        raise error

    monkeypatch.setattr(info_command, "run", fail)
    assert main(["info", "x"]) == 1
    assert capsys.readouterr().err == "blk: first\nsecond\n"


def test_faults_of_the_program_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: Arguments) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(info_command, "run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["info", "x"])


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.qed"
    for words in ([b"create", b"-f", b"qed", name, b"1M"], [b"info", name]):
        done = subprocess.run([*BLK, *words], capture_output=True, check=True)
        assert b"\xff.qed" in done.stdout
        assert done.stderr == b""
    words = [b"info", b"--output=json", name]
    done = subprocess.run([*BLK, *words], capture_output=True, check=True)
    assert json.loads(done.stdout)["filename"].endswith("/\ufffd.qed")
    for encoding in ("ascii", "latin-1", "utf-8"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        words = [b"info", name + "日本".encode()]
        done = subprocess.run([*BLK, *words], capture_output=True, check=False, env=environment)
        assert done.returncode == 1
        assert b"No such file" in done.stderr
        assert b"Traceback" not in done.stderr


def test_nobody_reads(image: Path) -> None:
    process = subprocess.Popen(
        [*BLK, "map", "--output=json", str(image)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        assert errors.read() == b""
    assert process.wait() == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_output_that_cannot_be_written(image: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*BLK, "info", str(image)], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"blk: stdout: No space left on device\n"
    for output in ("human", "json"):  # 1 would mean that they differ
        words = ["compare", f"--output={output}", str(image), str(image)]
        with open("/dev/full", "wb") as full:
            done = subprocess.run([*BLK, *words], stdout=full, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 4
        assert b"No space left on device" in done.stderr


def test_closed_streams(image: Path) -> None:
    before = image.read_bytes()
    for redirection in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        command = f'"$@" {redirection}'
        done = subprocess.run(["sh", "-c", command, "sh", *BLK, "info", image], check=False)
        assert done.returncode == 0, redirection
    done = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *BLK, "info", "none"], check=False)
    assert done.returncode == 1
    assert image.read_bytes() == before


def test_traces(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, patterns = tmp_path / "log", tmp_path / "patterns"
    patterns.write_text("# what to look for\nqed_l2_*\n\nnone_*\n")
    commands = ("-c", "write -q 1k 1k", "-c", "read -q 0 4k")
    assert main(["io", "-T", "qed_*", *commands, str(image)]) == 0
    everything = capsys.readouterr().err
    assert " qed_l2_load " in everything
    assert " qed_write_aio " in everything
    for trace in (f"events={patterns},file={log}", f"enable=qed_l2_*,file={log}"):
        assert main(["--trace", trace, "io", *commands, str(image)]) == 0
        assert capsys.readouterr().err == ""
        lines = log.read_text().splitlines()
        assert lines
        assert all(" qed_l2_" in line for line in lines)
    assert main(["info", "--trace=qed_*,colour=red", str(image)]) == 1
    assert capsys.readouterr().err == "blk: Invalid parameter 'colour'\n"
    patterns.write_bytes(b"\xff\xfe")
    assert main(["info", f"--trace=events={patterns}", str(image)]) == 1
    assert "Could not read events" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        *("-T help", "--trace=help info nonexistent", "-T enable=?,file=none/log"),
        *("-T file=none/log,enable=help", "-T qed_* -T help nonsense"),
        *("io -T help nonexistent", "nbd -T help nonexistent", "nbd -V -T help"),
        *("daemon -T help", "daemon --daemonize -T help --pidfile none/pid", "info --trace help x"),
    ],
)
def test_events_are_listed(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing else is done."""
    assert main(line.split()) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "qed_l2_update\nqed_need_check_set\n" in told.out
    assert told.out.splitlines() == full_names()


def test_an_event_that_there_is_not(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """QEMU's words; a pattern may match nothing."""
    assert (
        main(["-T", "qed_nonsense", "info", "--trace=q*x", "--trace", "raw_read_aio", str(image)])
        == 0
    )
    warning = "blk: warning: trace event 'qed_nonsense' does not exist\n"
    assert capsys.readouterr().err == warning


@pytest.mark.parametrize(
    "trace", ["nosuch", "enable=nosuch", "-nosuch", "qed_nosuch", "qed_nosuc?", "-", "nosuch*", ""]
)
@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
def test_an_unknown_event_is_warned_of_as_by_qemu(
    image: Path, capsys: pytest.CaptureFixture[str], trace: str
) -> None:
    words = ["-T", trace, "info", "-f", "qed", str(image)]
    theirs = subprocess.run(
        ["qemu-img", *words], capture_output=True, encoding="utf-8", check=False, timeout=60
    )
    assert main(words) == theirs.returncode == 0
    assert capsys.readouterr().err == theirs.stderr.replace("qemu-img", "blk")


def test_every_event_is_known(image: Path, tmp_path: Path) -> None:
    """What is announced can be asked for by its name."""
    overlay, log = tmp_path / "overlay.qed", tmp_path / "log"
    blocklayer.create(overlay, format="qed", backing=str(image), backing_format="qed")
    commands = ("-c", "write 1000 64k", "-c", "read 0 1M", "-c", "write 0 512", "-c", "flush")
    found = set()
    for name in (overlay, image):
        assert main(["-T", f"*,file={log}", "io", *commands, "-f", "qed", str(name)]) == 0
        found |= {line.split()[1] for line in log.read_text().splitlines()}
    assert {"qed_l2_update", "qed_cow_write", "qed_need_check_set"} <= found
    assert found <= set(full_names())


def test_events_are_taken_out_again(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names").write_text("qed_*\n-qed_l2_*\nqed_none\n")
    trace = f"events={tmp_path}/names"
    assert main(["-T", trace, "io", "-c", "write -q 1k 1k", str(image)]) == 0
    told = capsys.readouterr().err
    assert f"blk: warning: {tmp_path}/names:3: trace event 'qed_none' does not exist\n" in told
    assert " qed_write_aio " in told
    assert " qed_l2_" not in told


@pytest.mark.parametrize(("format", "ability"), [("qed", "native"), ("raw", "native")])
def test_limits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str, ability: str
) -> None:
    """What JSON has without the option is not more than QEMU's; see the tests of JSON."""
    path = str(tmp_path / "disk")
    blocklayer.create(path, format=format, size="1M")
    assert main(["info", "--limits", "-f", format, path]) == 0
    told = capsys.readouterr().out
    assert "Block limits:\n    request alignment: 1\n" in told
    assert told.endswith(f"    zero ability: {ability}\n")
    assert main(["info", "--limits", "--output=json", "--backing-chain", "-f", format, path]) == 0
    (image,) = json.loads(capsys.readouterr().out)
    assert image["limits"]["zero-ability"] == ability
    assert image["limits"]["request-alignment"] == 1
