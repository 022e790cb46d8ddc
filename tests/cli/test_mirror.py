# SPDX-License-Identifier: Apache-2.0
"""`blk mirror`: between images, and between nodes of a daemon: ours and QEMU's."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import MiB

SIZE = 8 * MiB
BLK = [sys.executable, "-m", "blocklayer"]
QEMU = shutil.which("qemu-storage-daemon")


def blk(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BLK, *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(3 * MiB)
        file.write(os.urandom(MiB))
    return path


@pytest.mark.parametrize("format", ["raw", "qed"])
def test_a_new_image(tmp_path: Path, source: Path, format: str) -> None:
    target = tmp_path / "target"
    done = blk("mirror", "--output=json", "-O", format, source, target)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["moved"] == MiB
    with blocklayer.open(target, format=format) as disk:
        assert disk.read(0, SIZE) == source.read_bytes()
    assert target.stat().st_blocks * 512 < MiB + 512 * 1024


def test_a_target_is_as_large_as_its_source(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"kept")
    for size in ("64M", "1M", "0"):
        done = blk("mirror", "-O", "qed", "-o", f"size={size}", source, target)
        wanted = "blk: Source and target image have different sizes\n"
        assert (done.returncode, done.stderr) == (1, wanted)
        assert target.read_bytes() == b"kept", "nothing was made"
    done = blk("mirror", "-O", "qed", "-o", "size=8M,cluster_size=1M", source, target)
    assert done.returncode == 0, done.stderr
    with blocklayer.open(target, format="qed") as disk:
        assert disk.read(0, disk.size) == source.read_bytes()


@pytest.mark.parametrize("sync", ["full", "top"])
def test_a_new_image_over_a_backing_file(tmp_path: Path, source: Path, sync: str) -> None:
    """Full hides all of the backing file, and top shows it below what is moved."""
    overlay, target = tmp_path / "overlay", tmp_path / "target"
    blocklayer.create(overlay, format="qed", backing="source.raw", backing_format="raw")
    with blocklayer.open(overlay, mode="r+") as disk:
        disk.write(5 * MiB, b"own" * 1000)
        disk.write_zeroes(3 * MiB, 64 * 1024)
        shown = disk.read(0, SIZE)
    other = tmp_path / "other.raw"
    other.write_bytes(b"o" * SIZE)
    below = other if sync == "full" else source
    options = f"backing_file={below.name},backing_fmt=raw"
    done = blk("mirror", "--sync", sync, "-O", "qed", "-o", options, overlay, target)
    assert done.returncode == 0, done.stderr
    assert blocklayer.info(target).backing_filename == below.name
    with blocklayer.open(target) as disk:
        assert disk.read(0, SIZE) == shown
    assert other.read_bytes() == b"o" * SIZE
    if sync == "top":
        assert target.stat().st_blocks * 512 < MiB, "what the backing file shows was not copied"


def test_a_backing_file_that_cannot_be(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    for options, words, wanted in (
        ("backing_file=x", ["-O", "qed"], "Use of backing file requires explicit backing format"),
        ("backing_file=x,backing_fmt=raw", [], "Backing file not supported for file format 'raw'"),
        ("backing_file=x,backing_fmt=raw", ["-O", "qed"], "No such file or directory"),
    ):
        done = blk("mirror", *words, "-o", options, source, target)
        assert done.returncode == 1
        assert wanted in done.stderr
        assert not target.exists()


def test_a_target_that_exists(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"o" * SIZE)
    assert blk("mirror", "-n", source, target).returncode == 0
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 == MiB, "zeroes give the space back"
    target.write_bytes(b"o" * SIZE)
    assert blk("mirror", "-n", "--keep-space", source, target).returncode == 0
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 == SIZE


def test_failures_leave_nothing(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    done = blk("mirror", tmp_path / "nix", target)
    assert done.returncode == 1
    assert "No such file or directory" in done.stderr
    assert not target.exists()
    (tmp_path / "small").write_bytes(bytes(512))
    done = blk("mirror", "-n", source, tmp_path / "small")
    assert done.stderr == "blk: Source and target image have different sizes\n"
    assert (tmp_path / "small").exists()
    before = source.read_bytes()
    done = blk("mirror", source, source)
    wanted = f"blk: '{source}' is part of the source and cannot be the target\n"
    assert (done.returncode, done.stderr) == (1, wanted)
    assert source.read_bytes() == before
    done = blk("mirror", source)
    assert (done.returncode, done.stderr) == (1, "blk: Expecting a source and a target\n")


def in_little_space(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """No file may become larger than three quarters of a megabyte."""
    code = (
        "import resource, sys; from blocklayer.cli.main import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (768 << 10, 768 << 10)); sys.exit(main())"
    )
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("made", [True, False])
def test_failed_writes_are_told_as_convert_tells_them(
    tmp_path: Path, source: Path, made: bool
) -> None:
    target = tmp_path / "target"
    if not made:
        blocklayer.create(target, format="qed", size=SIZE)
    words = ["mirror", *([] if made else ["-n"]), "-O", "qed", str(source), str(target)]
    done = in_little_space(*words)
    assert done.returncode == 1
    state = (
        f"'{target}' was not complete, and has been removed"
        if made
        else f"'{target}' holds a part of the copy only: do not use it"
    )
    assert target.exists() is not made
    first, second = done.stderr.splitlines()
    assert first.startswith(f"blk: write failed on '{target}' at offset ")
    assert first.endswith(": File too large")
    assert second == state
    error = json.loads(in_little_space(*words, "--output=json").stderr)["error"]
    assert error.pop("offset") > 0
    assert error.pop("length") > 0
    assert error.pop("message").startswith("write failed on")
    assert error == {
        "class": "IoError",
        "code": "EFBIG",
        "file": str(target),
        "operation": "write",
        "hint": state,
        "exit-code": 1,
    }


def test_interrupted(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    words = ["mirror", "-r", "100k", str(source), str(target)]
    process = subprocess.Popen([*BLK, *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not target.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(2)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said == f"blk: interrupted\n'{target}' was not complete, and has been removed\n"
    assert not target.exists()


@contextmanager
def daemon(program: list[str], tmp_path: Path, source: Path, target: Path) -> Iterator[Path]:
    address = tmp_path / "qmp.sock"
    command = [*program, "--chardev", f"socket,id=c,path={address},server=on,wait=off"]
    command += ["--monitor", "chardev=c"]
    for name, path in (("src", source), ("dst", target)):
        command += [
            "--blockdev",
            f"driver=raw,node-name={name},file.driver=file,file.filename={path}",
        ]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            probe = socket.socket(socket.AF_UNIX)
            try:
                probe.connect(str(address))
                break
            except OSError:
                time.sleep(0.02)
            finally:
                probe.close()
        yield address
    finally:
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize("whose", ["ours", "qemu"])
@pytest.mark.parametrize("options", [[], ["--move"], ["--write-blocking", "--move"]])
def test_nodes_of_a_daemon(tmp_path: Path, source: Path, whose: str, options: list[str]) -> None:
    if whose == "qemu" and QEMU is None:
        pytest.skip("qemu-storage-daemon is not installed")
    program = [*BLK, "daemon"] if whose == "ours" else [str(QEMU)]
    target = tmp_path / "target.raw"
    with target.open("wb") as file:
        file.truncate(SIZE)
    with daemon(program, tmp_path, source, target) as address:
        done = blk("mirror", "--qmp", address, *options, "src", "dst")
        assert done.returncode == 0, done.stderr
        done = blk("mirror", "--qmp", address, "src", "nobody")
        assert done.returncode == 1
        wanted = "blk: Cannot find device='nobody' nor node-name='nobody'\n"
        assert done.stderr == wanted
    assert target.read_bytes() == source.read_bytes()
