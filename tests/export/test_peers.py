# SPDX-License-Identifier: Apache-2.0
"""Other people's clients on our server: QEMU's tools, libnbd's, fio, a kernel's file system."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import MiB
from blocklayer.core.disk import Disk
from blocklayer.export.export import Export
from blocklayer.nbd import wire
from blocklayer.testing.model import ModelDisk
from tests.export.conftest import Serve, Served
from tests.support import needs, needs_root
from tests.support.crew import run_together
from tests.support.mounts import mounted, needs_loop, shown_as_device, shown_as_file

Make = Callable[..., Disk]
SIZE = 16 * MiB
SYSTEM_PYTHON = "/usr/bin/python3"
"""Whose packages have libnbd's module."""


def run(*words: object, check: bool = True, timeout: float = 60, **options: object) -> str:
    """Run a peer; its output."""
    done = subprocess.run(
        [str(word) for word in words],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,  # type: ignore[call-overload]
    )
    assert not check or done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
    return str(done.stdout)


def uri(served: Served, name: str = "") -> str:
    return f"nbd+unix:///{name}?socket={served.path}"


def fill(disk: Disk, seed: int = 1) -> ModelDisk:
    """Data and holes of many sizes; what it should be."""
    rng = random.Random(seed)
    model = ModelDisk(disk.size)
    for _ in range(40):
        length = rng.choice([1, 512, 4096, 65_536, 300_000])
        offset = rng.randrange(disk.size - length)
        data = rng.randbytes(length)
        disk.write(offset, data)
        model.write(offset, data)
    return model


@pytest.fixture(params=["qed", "raw", "backed"])
def filled(request: pytest.FixtureRequest, make: Make, serve: Serve, tmp_path: Path) -> Served:
    """A served disk with some content."""
    if request.param == "backed":
        with make(SIZE, name="base.qed") as base:
            fill(base)
        disk = make(SIZE, backing=str(tmp_path / "base.qed"), backing_format="qed")
        disk.write(MiB, b"overlay" * 100_000)
    else:
        disk = make(SIZE, format=request.param)
        fill(disk)
    return serve(disk, description="für Menschen", allocation_depth=True)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content(served: Served) -> str:
    return hashlib.sha256(served.disk.read(0, served.disk.size)).hexdigest()


# --- QEMU's tools -------------------------------------------------------------------------------


@needs("qemu-img")
def test_qemu_img_reads(filled: Served, tmp_path: Path) -> None:
    target = tmp_path / "copy.raw"
    run("qemu-img", "convert", "-O", "raw", uri(filled), target)
    assert digest(target) == content(filled)
    answer = run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri(filled), target)
    assert "identical" in answer
    info = json.loads(run("qemu-img", "info", "--output=json", uri(filled)))
    assert info["virtual-size"] == SIZE
    told = json.loads(run("qemu-img", "map", "--output=json", uri(filled)))
    assert sum(entry["length"] for entry in told) == SIZE
    whole = target.read_bytes()
    for entry in told:
        if entry["zero"]:
            assert not any(whole[entry["start"] : entry["start"] + entry["length"]])


@needs("qemu-img")
@pytest.mark.parametrize("format", ["qed", "raw"])
def test_qemu_img_writes(make: Make, serve: Serve, tmp_path: Path, format: str) -> None:
    source = tmp_path / "source.raw"
    with make(SIZE, format="raw", name="source.raw") as disk:
        fill(disk, 7)
    served = serve(make(SIZE, format=format))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", source, uri(served))
    assert content(served) == digest(source)
    served.server.stop()
    served.disk.close()
    if format == "qed":
        assert blocklayer.check(served.disk.filename).clean


@needs("qemu-io")
@pytest.mark.parametrize("format", ["qed", "raw"])
def test_qemu_io(make: Make, serve: Serve, format: str) -> None:
    served = serve(make(SIZE, format=format))
    commands = [
        "write -P 0xaa 1000 70000",
        "write -f -P 0xbb 1M 64k",
        "write -z 1M 512",
        "write -z -u 2M 1M",
        "aio_write -P 0xcc 3M 4M",
        "aio_flush",
        "discard 5M 64k",
        "flush",
        "read -P 0xaa 1000 70000",
        "read -P 0 1M 512",
        "read -P 0xbb 1049088 65024",
        "read -P 0xcc 3M 2M",
        "read -P 0 8M 4M",
    ]
    words = [word for command in commands for word in ("-c", command)]
    said = run("qemu-io", "-f", "raw", *words, uri(served))
    assert "failed" not in said
    assert served.disk.read(MiB + 512, 512) == b"\xbb" * 512


@needs("qemu-nbd")
def test_qemu_nbd_lists(filled: Served) -> None:
    said = run("qemu-nbd", "--list", "-k", filled.path)
    assert "exports available: 1" in said
    assert "description: für Menschen" in said
    assert f"size:  {SIZE}" in said
    flags = "flush fua trim zeroes df multi cache fast-zero"
    assert f"( {flags} )" in said
    for context in ("base:allocation", "qemu:allocation-depth"):
        assert context in said


# --- libnbd's tools -----------------------------------------------------------------------------


@needs("nbdinfo")
def test_nbdinfo(filled: Served) -> None:
    told = json.loads(run("nbdinfo", "--json", uri(filled)))
    assert told["protocol"] == "newstyle-fixed"
    assert told["structured"] is True
    (export,) = told["exports"]
    expected = {
        "export-size": SIZE,
        "description": "für Menschen",
        "is_read_only": False,
        "is_rotational": False,
        "can_multi_conn": True,
        "can_df": True,
        "can_fua": True,
        "can_flush": True,
        "can_trim": True,
        "can_zero": True,
        "can_fast_zero": True,
        "can_cache": True,
        "block_size_minimum": 1,
        "block_size_preferred": 4096,
        "block_size_maximum": 32 * MiB,
    }
    assert {key: export[key] for key in expected} == expected
    assert export["contexts"] == ["base:allocation", "qemu:allocation-depth"]
    for what in ("--size", "--can=zero", "--can=multi-conn", "--can=structured-reply"):
        run("nbdinfo", what, uri(filled))


@needs("nbdinfo")
def test_nbdinfo_maps(filled: Served) -> None:
    extents = json.loads(run("nbdinfo", "--json", "--map", uri(filled)))
    assert sum(extent["length"] for extent in extents) == SIZE
    for extent in extents:
        if extent["type"] & wire.STATE_ZERO:
            data = filled.disk.read(extent["offset"], extent["length"])
            assert not any(data)
    run("nbdinfo", "--map=qemu:allocation-depth", uri(filled))
    run("nbdinfo", "--map", "--totals", uri(filled))


@needs("nbdinfo")
def test_nbdinfo_lists_several(filled: Served, make: Make) -> None:
    other = make(5 * MiB, name="other.qed")
    filled.server.add(Export("zweites ü", other))
    told = json.loads(run("nbdinfo", "--json", "--list", uri(filled)))
    assert [export["export-name"] for export in told["exports"]] == ["", "zweites ü"]
    assert [export["is_read_only"] for export in told["exports"]] == [False, True]
    filled.server.remove("zweites ü")
    other.close()


@needs("nbdcopy")
def test_nbdcopy_both_ways(filled: Served, make: Make, serve: Serve, tmp_path: Path) -> None:
    copy = tmp_path / "copy.raw"
    run("nbdcopy", uri(filled), copy)
    assert digest(copy) == content(filled)
    target = serve(make(SIZE, name="target.qed"))
    run("nbdcopy", "--connections=4", "--requests=64", copy, uri(target))
    assert content(target) == content(filled)
    second = serve(make(SIZE, format="raw", name="second.raw"))
    run("nbdcopy", "--flush", "--request-size=1048576", uri(filled), uri(second))
    assert content(second) == content(filled)
    third = serve(make(SIZE, format="raw", name="third.raw"))
    run("nbdcopy", "--synchronous", "--allocated", uri(second), uri(third))
    assert content(third) == content(filled)


SCRIPT = r"""
import errno, nbd, os, sys
h = nbd.NBD()
assert h.set_strict_mode(0) is None
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
size = h.get_size()
assert h.get_structured_replies_negotiated()


def fails(code, action, *arguments, **named):
    try:
        action(*arguments, **named)
    except nbd.Error as error:
        assert error.errnum == code, (action, arguments, error)
    else:
        raise AssertionError(("no error", action, arguments))


h.pwrite(b"hello", 5)
assert h.pread(5, 5) == b"hello"
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.EINVAL, h.pread, 512, size - 1)
fails(errno.EINVAL, h.pread, 512, (1 << 63) - 512)
fails(errno.ENOSPC, h.pwrite, bytes(512), size)
fails(errno.ENOSPC, h.zero, 512, size)
fails(errno.EINVAL, h.trim, 512, size)
fails(errno.EINVAL, h.cache, 512, size)
fails(errno.EINVAL, h.block_status, 512, size, lambda *a: 0)
fails(errno.EINVAL, h.block_status, 0, 0, lambda *a: 0)
for bit in range(1, 16):
    if bit not in (2,):
        fails(errno.EINVAL, h.pread, 512, 0, flags=1 << bit)
    fails(errno.EINVAL, h.pwrite, bytes(512), 0, flags=1 << bit)
    fails(errno.EINVAL, h.flush, flags=1 << bit)
    fails(errno.EINVAL, h.trim, 512, 0, flags=1 << bit)
    fails(errno.EINVAL, h.cache, 512, 0, flags=1 << bit)
    if bit != 3:
        fails(errno.EINVAL, h.block_status, 512, 0, lambda *a: 0, flags=1 << bit)
    if bit not in (1, 4):
        fails(errno.EINVAL, h.zero, 512, 0, flags=1 << bit)
h.pread(0, 0)
h.pwrite(b"", 0)
h.zero(0, 0)
h.trim(0, size)
data = os.urandom(3 << 20)
h.pwrite(data, 1 << 20, flags=nbd.CMD_FLAG_FUA)
assert h.pread(3 << 20, 1 << 20) == data
assert h.pread(3 << 20, 1 << 20, flags=nbd.CMD_FLAG_DF) == data
chunks = []
h.pread_structured(3 << 20, 1 << 20, lambda buf, *rest: chunks.append(len(buf)))
assert sum(chunks) == 3 << 20
h.zero(1 << 20, 1 << 20, flags=nbd.CMD_FLAG_FUA)
assert h.pread(1 << 20, 1 << 20) == bytes(1 << 20)
seen = []
h.block_status(size, 0, lambda context, offset, entries, err: seen.extend(entries) or 0)
assert sum(seen[::2]) >= size, seen
for n in range(200):
    h.aio_pread(nbd.Buffer(65536), (n * 65536) % (size - 65536))
while h.aio_in_flight():
    h.poll(-1)
h.shutdown()
print("all was well")
"""


@needs("nbdsh")
@pytest.mark.parametrize("format", ["qed", "raw"])
def test_libnbd_with_wrong_requests(make: Make, serve: Serve, format: str) -> None:
    served = serve(make(SIZE, format=format))
    said = run(SYSTEM_PYTHON, "-c", SCRIPT, uri(served))
    assert "all was well" in said


READ_ONLY = r"""
import errno, nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
assert h.is_read_only()
for action in (lambda: h.pwrite(b"x", 0), lambda: h.zero(1, 0), lambda: h.trim(1, 0)):
    try:
        action()
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error
    else:
        raise AssertionError("a read-only export was changed")
print("all was well")
"""


@needs("nbdsh")
def test_libnbd_on_a_read_only_export(make: Make, serve: Serve) -> None:
    served = serve(make(SIZE), writable=False)
    assert "all was well" in run(SYSTEM_PYTHON, "-c", READ_ONLY, uri(served))


@needs("nbdsh")
def test_nbdsh(filled: Served) -> None:
    # It runs the first Python of the path, which must be the one that has the module.
    path = {**os.environ, "PATH": "/usr/bin:" + os.environ["PATH"]}
    said = run("nbdsh", "-u", uri(filled), "-c", "print(h.get_size())", env=path)
    assert said.strip() == str(SIZE)


# --- fio ----------------------------------------------------------------------------------------


@needs("fio")
@pytest.mark.parametrize("kind", ["qed", "raw", "backed"])
def test_fio_verifies(make: Make, serve: Serve, tmp_path: Path, kind: str) -> None:
    if kind == "backed":
        with make(SIZE, name="base.qed") as base:
            base.write(0, os.urandom(SIZE // 2))
        disk = make(SIZE, backing=str(tmp_path / "base.qed"), backing_format="qed")
    else:
        disk = make(SIZE, format=kind)
    served = serve(disk)
    run(
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={uri(served)}", "--rw=randrw"),
        *("--bsrange=512-128k", "--bs_unaligned=0", "--iodepth=16", f"--size={SIZE}"),
        *("--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--io_size=24m"),
        *("--fsync=50", "--norandommap=0", "--group_reporting", "--output-format=json"),
        cwd=str(tmp_path),
    )
    served.server.stop()
    served.disk.close()
    if kind != "raw":
        assert blocklayer.check(served.disk.filename).clean


# --- a kernel's file system ---------------------------------------------------------------------


@needs("nbdfuse", "mkfs.ext4")
@needs_root()
@needs_loop()
@pytest.mark.parametrize("kind", ["qed", "backed"])
def test_a_file_system_of_the_kernel(
    make: Make, serve: Serve, tmp_path: Path, seed: int, kind: str
) -> None:
    size = 128 * MiB
    options = {}
    if kind == "backed":
        make(size, name="base.qed").close()
        options = {"backing": str(tmp_path / "base.qed"), "backing_format": "qed"}
    served = serve(make(size, **options))
    with shown_as_file(uri(served), tmp_path / "fuse") as file:
        run("mkfs.ext4", "-q", "-F", file)
        with shown_as_device(file) as device:
            with mounted(device, tmp_path / "mount") as mount:
                expected = load(mount, seed)
            with mounted(device, tmp_path / "mount", "-o", "ro") as mount:
                for name, data in expected.items():
                    assert (mount / name).read_bytes() == data, name
            run("e2fsck", "-f", "-n", device)
    served.server.stop()
    served.disk.close()
    assert blocklayer.check(served.disk.filename).clean
    with blocklayer.open(served.disk.filename) as disk:
        (tmp_path / "image").write_bytes(disk.read(0, size))
    run("e2fsck", "-f", "-n", tmp_path / "image")


def load(mount: Path, seed: int) -> dict[str, bytes]:
    """Change files at random, as file systems' testers do; what they must hold."""
    rng = random.Random(seed)
    files: dict[str, bytearray] = {}
    for step in range(400):
        name = f"file{rng.randrange(12)}"
        data = files.setdefault(name, bytearray())
        with open(mount / name, "r+b" if (mount / name).exists() else "w+b") as file:
            match rng.randrange(5):
                case 0:
                    size = rng.randrange(2 * MiB)
                    file.truncate(size)
                    data[size:] = b""
                    data += bytes(size - len(data))
                case _:
                    offset, piece = rng.randrange(MiB), rng.randbytes(rng.randrange(1, 200_000))
                    file.seek(offset)
                    file.write(piece)
                    data += bytes(max(0, offset - len(data)))
                    data[offset : offset + len(piece)] = piece
            if step % 10 == 0:
                file.flush()
                os.fsync(file.fileno())
        if rng.randrange(20) == 0:
            os.unlink(mount / name)
            del files[name]
    return {name: bytes(data) for name, data in files.items()}


# --- many at once -------------------------------------------------------------------------------


@needs("qemu-img", "nbdcopy", "nbdinfo")
def test_all_of_them_at_once(filled: Served, tmp_path: Path) -> None:
    expected = content(filled)

    def convert(number: int) -> None:
        target = tmp_path / f"converted{number}"
        run("qemu-img", "convert", "-O", "raw", uri(filled), target)
        assert digest(target) == expected

    def copy(number: int) -> None:
        target = tmp_path / f"copied{number}"
        run("nbdcopy", uri(filled), target)
        assert digest(target) == expected

    actions = [lambda n=n: convert(n) for n in range(3)] + [lambda n=n: copy(n) for n in range(3)]
    run_together(*actions, lambda: run("nbdinfo", "--map", uri(filled)))
