# SPDX-License-Identifier: Apache-2.0
"""Image locks: among ourselves, and against QEMU's in both directions."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

import pytest

from blocklayer.base.errors import IoError, LockError, NotSupported
from blocklayer.protocols import file_locks
from blocklayer.protocols.file_locks import (
    BACKING,
    FORCE_SHARE,
    READER,
    WRITER,
    ImageLock,
    LockMode,
    Permission,
    supported,
)
from tests.support import needs
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has these locks")

SIZE = 4 << 20
WRITER_BYTES = {100, 101, 103, 201, 203}
READER_BYTES = {100, 201, 203}
EXCLUSIVE = LockMode(used=Permission.CONSISTENT_READ, shared=0)
"""Shares nothing: what a mirror's target does, and more."""


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def locked_bytes(path: Path) -> set[int]:
    """The bytes of a file that anybody has locked, found by asking about what is left.

    /proc/locks would tell the same, but leaves lines out when the list changes while it is read.
    """
    locked: set[int] = set()
    pending = [(0, 1 << 62)]
    with opened(path, os.O_RDONLY) as descriptor:
        while pending:
            start, end = pending.pop()
            if start >= end:
                continue
            asked = file_locks._FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, end - start, 0)
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
            kind, _, first, length, _ = file_locks._FLOCK.unpack(answer)
            if kind != fcntl.F_UNLCK:
                assert kind == fcntl.F_RDLCK
                locked.update(range(first, first + length))
                pending += [(start, first), (first + length, end)]
    return locked


def listed_locks(pid: int, path: Path) -> list[list[str]]:
    """A process's locks on a file in the kernel's words: type, strictness, mode … first, last."""
    directory = Path("/proc", str(pid))
    own = [fd.name for fd in (directory / "fd").iterdir() if fd.resolve() == path]
    lines = "".join((directory / "fdinfo" / fd).read_text("ascii") for fd in own).splitlines()
    return [line.split()[2:] for line in lines if line.startswith("lock:")]


@contextmanager
def held(path: Path, mode: LockMode) -> Iterator[ImageLock]:
    """The image opened and locked by us, as a file node does it."""
    with opened(path, os.O_RDWR if mode is WRITER else os.O_RDONLY) as descriptor:
        lock = ImageLock(descriptor, str(path))
        lock.acquire(mode)
        yield lock


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file of no format."""
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    return path


# Modes and bytes.


def test_linux_has_them() -> None:
    assert supported()


@pytest.mark.parametrize(
    ("mode", "offsets"),
    [
        (READER, READER_BYTES),
        (BACKING, READER_BYTES),
        (WRITER, WRITER_BYTES),
        (FORCE_SHARE, {100}),
        (EXCLUSIVE, {100, 200, 201, 202, 203}),
        (LockMode(used=0, shared=~0), set()),
    ],
)
def test_a_mode_locks_its_bytes(image: Path, mode: LockMode, offsets: set[int]) -> None:
    assert mode.offsets == offsets
    with held(image, mode) as lock:
        assert locked_bytes(image) == offsets
        lock.release()
        assert locked_bytes(image) == set()


def test_closing_the_descriptor_releases(image: Path) -> None:
    with held(image, WRITER) as lock:
        pass
    assert locked_bytes(image) == set()
    lock.release()


def test_closing_another_descriptor_does_not_release(image: Path) -> None:
    with held(image, WRITER):
        with opened(image):
            pass
        assert locked_bytes(image) == WRITER_BYTES


def test_release_is_idempotent_and_acquire_works_again(image: Path) -> None:
    with held(image, READER) as lock:
        lock.release()
        lock.release()
        lock.acquire(WRITER)
        assert locked_bytes(image) == WRITER_BYTES


# Two locks in one process.

SHARING = [(READER, READER), (READER, BACKING), (BACKING, BACKING)]
SHARING += [(FORCE_SHARE, mode) for mode in (READER, WRITER, FORCE_SHARE)]


@pytest.mark.parametrize(("first", "second"), SHARING + [(b, a) for a, b in SHARING])
def test_modes_that_share(image: Path, first: LockMode, second: LockMode) -> None:
    with held(image, first), held(image, second):
        assert locked_bytes(image) == first.offsets | second.offsets


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (WRITER, WRITER, 'Failed to get "write" lock'),
        (READER, WRITER, 'Failed to get "write" lock'),
        (WRITER, READER, 'Failed to get shared "write" lock'),
        (WRITER, BACKING, 'Failed to get shared "write" lock'),
        (EXCLUSIVE, FORCE_SHARE, 'Failed to get "consistent read" lock'),
        (FORCE_SHARE, EXCLUSIVE, 'Failed to get shared "consistent read" lock'),
        (
            EXCLUSIVE,
            LockMode(used=Permission.WRITE_UNCHANGED, shared=~0),
            'Failed to get "write unchanged" lock',
        ),
        (
            LockMode(used=Permission.RESIZE, shared=~0),
            READER,
            'Failed to get shared "resize" lock',
        ),
    ],
)
def test_modes_that_exclude(image: Path, first: LockMode, second: LockMode, message: str) -> None:
    with held(image, first) as lock:
        with pytest.raises(LockError) as caught, held(image, second):
            pass
        assert caught.value.errno == errno.EAGAIN
        question = f"Is another process using the image [{image}]?"
        assert str(caught.value) == f"{message}\n{question}"
        assert locked_bytes(image) == first.offsets
        lock.release()
        with held(image, second):
            pass


def test_only_one_of_two_that_start_together_is_admitted(image: Path) -> None:
    """Both may be refused, as each sees the other's bytes."""
    with opened(image) as one, opened(image) as other:
        locks = ImageLock(one, "one"), ImageLock(other, "other")
        for _ in range(300):
            admitted: list[ImageLock] = []
            start = threading.Barrier(2)

            def attempt(lock: ImageLock, start: Any = start, admitted: Any = admitted) -> None:
                start.wait()
                try:
                    lock.acquire(WRITER)
                except LockError:
                    return
                admitted.append(lock)

            threads = [threading.Thread(target=attempt, args=(lock,)) for lock in locks]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(admitted) <= 1
            for lock in admitted:
                assert locked_bytes(image) == WRITER_BYTES
                lock.release()
            assert locked_bytes(image) == set()


# Another mode, another descriptor.


def test_mode_changes_both_ways(image: Path) -> None:
    with held(image, READER) as lock:
        lock.acquire(WRITER)
        assert locked_bytes(image) == WRITER_BYTES
        lock.acquire(READER)
        assert locked_bytes(image) == READER_BYTES


def test_a_refused_change_of_mode_leaves_the_lock_as_it_was(image: Path) -> None:
    with held(image, READER) as first, held(image, READER) as second:
        with pytest.raises(LockError, match='Failed to get "write" lock'):
            first.acquire(WRITER)
        assert locked_bytes(image) == READER_BYTES
        second.release()
        assert locked_bytes(image) == READER_BYTES
        first.acquire(WRITER)
        assert locked_bytes(image) == WRITER_BYTES


def test_giving_up_bytes_is_not_refused(image: Path) -> None:
    """Somebody who is just trying, and will be refused, does not stand in the way."""
    with held(image, WRITER) as lock, opened(image) as other:
        # The other's bytes before it looks for ours.
        file_locks._lock(other, WRITER.offsets)
        lock.acquire(READER)


def test_move_keeps_others_out_throughout(image: Path) -> None:
    with opened(image) as new, opened(image) as other:
        with held(image, READER) as lock:
            lock.acquire(WRITER)
            lock.move(new)
            assert locked_bytes(image) == WRITER_BYTES
            lock.acquire(READER)
            assert locked_bytes(image) == READER_BYTES
            lock.acquire(WRITER)
        assert locked_bytes(image) == WRITER_BYTES
        with pytest.raises(LockError):
            ImageLock(other, "other").acquire(READER)


def test_a_move_that_fails_leaves_the_lock_where_it_was(image: Path) -> None:
    with held(image, READER) as lock:
        with opened(image, os.O_WRONLY) as new, pytest.raises(IoError) as caught:
            lock.move(new)  # read locks need read access
        assert caught.value.errno == errno.EBADF
        assert locked_bytes(image) == READER_BYTES
        lock.acquire(WRITER)
        assert locked_bytes(image) == WRITER_BYTES


def test_a_write_lock_of_something_else_is_a_conflict(image: Path) -> None:
    with opened(image) as other:
        file_locks._flock(other, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 201)
        with pytest.raises(LockError), held(image, READER):
            pass
        with held(image, FORCE_SHARE):
            pass


# Without locks.


def test_locking_off_locks_nothing(image: Path) -> None:
    with held(image, WRITER), opened(image) as other:
        lock = ImageLock(other, str(image), locking="off")
        lock.acquire(WRITER)
        lock.release()
        assert locked_bytes(image) == WRITER_BYTES


@contextmanager
def refusing_kernel(monkeypatch: pytest.MonkeyPatch, code: int, after: int) -> Iterator[None]:
    """A kernel that lets `after` calls pass and then refuses all, but those that unlock."""
    real, calls = fcntl.fcntl, count()

    def refusing(fd: int, command: int, argument: bytes) -> bytes:
        kind = int.from_bytes(argument[:2], sys.byteorder)
        if kind != fcntl.F_UNLCK and next(calls) >= after:
            raise OSError(code, os.strerror(code))
        return real(fd, command, argument)

    assert supported()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", refusing)
        yield


WRITER_CALLS = range(2 * len(WRITER_BYTES))
"""Each byte is locked, then its counterpart looked at."""


@pytest.mark.parametrize("after", WRITER_CALLS)
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(
    image: Path, monkeypatch: pytest.MonkeyPatch, code: int, after: int
) -> None:
    with opened(image) as descriptor:
        lock = ImageLock(descriptor, str(image), locking="on")
        with (
            refusing_kernel(monkeypatch, code, after),
            pytest.raises(NotSupported, match=os.strerror(code)),
        ):
            lock.acquire(WRITER)
        assert locked_bytes(image) == set()
        lock = ImageLock(descriptor, str(image), locking="auto")
        with refusing_kernel(monkeypatch, code, after):
            lock.acquire(WRITER)
        assert locked_bytes(image) == set()
        lock.acquire(READER)
        assert locked_bytes(image) == READER_BYTES


@pytest.mark.parametrize("after", WRITER_CALLS)
@pytest.mark.parametrize("locking", ["auto", "on"])
def test_other_failures_are_told(
    image: Path, monkeypatch: pytest.MonkeyPatch, locking: str, after: int
) -> None:
    with opened(image) as descriptor:
        lock = ImageLock(descriptor, str(image), locking=locking)
        with (
            refusing_kernel(monkeypatch, errno.EIO, after),
            pytest.raises(IoError, match="lock failed on"),
        ):
            lock.acquire(WRITER)
        assert locked_bytes(image) == set()


WITHOUT_LOCKS = """
import os, sys
{change}
from blocklayer.base.errors import NotSupported
from blocklayer.protocols.file_locks import READER, WRITER, ImageLock, supported
assert not supported()
lock = ImageLock(os.open(sys.argv[1], os.O_RDWR), sys.argv[1])
lock.acquire(READER)
lock.acquire(WRITER)
lock.move(os.open(sys.argv[1], os.O_RDWR))
lock.release()
try:
    ImageLock(0, "an image", locking="on").acquire(READER)
except NotSupported as error:
    assert "Cannot lock 'an image'" in str(error)
    assert "locking=off" in str(error)
else:
    raise SystemExit("locking=on went unnoticed")
"""


@pytest.mark.parametrize(
    "change",
    [
        "sys.modules['fcntl'] = None",
        "sys.platform = 'freebsd'",
        "import fcntl; del fcntl.F_OFD_SETLK",
        "import fcntl; fcntl.F_OFD_GETLK = 9999",  # a kernel that does not know the command
    ],
)
def test_a_system_without_locks(image: Path, change: str) -> None:
    script = WITHOUT_LOCKS.format(change=change)
    with held(image, WRITER):
        subprocess.run([sys.executable, "-c", script, str(image)], check=True)


# QEMU.


def run(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, text=True, capture_output=True, check=False)


@contextmanager
def background(*command: str | Path, **options: Any) -> "Iterator[subprocess.Popen[str]]":
    """A tool that runs until the end of the block."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def qemu_io(*arguments: str | Path) -> Iterator[int]:
    """An image that qemu-io has open; the process number."""
    with background("qemu-io", *arguments) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("length\n")
        process.stdin.flush()
        assert "MiB" in process.stdout.readline()
        yield process.pid


@contextmanager
def serving(tmp_path: Path, pid_option: str, *command: str | Path) -> Iterator[None]:
    """A server that has told its process number, as it does when all is open."""
    pid_file = tmp_path / "pid"
    with background(*command, pid_option, pid_file):
        wait_until(lambda: pid_file.exists() and bool(pid_file.read_text("ascii")))
        yield


def qemu_nbd(tmp_path: Path, *arguments: str | Path) -> Any:
    socket = f"--socket={tmp_path / 'socket'}"
    return serving(tmp_path, "--pid-file", "qemu-nbd", "-t", socket, *arguments)


def storage_daemon(tmp_path: Path, *nodes: dict[str, Any]) -> Any:
    options = [text for node in nodes for text in ("--blockdev", json.dumps(node))]
    return serving(tmp_path, "--pidfile", "qemu-storage-daemon", *options)


@pytest.fixture
def qed(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qed"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qed", path, str(SIZE)], check=True)
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"\1" * SIZE)
    return path


def make_overlay(path: Path, backing: Path, format_name: str = "qed") -> Path:
    create = f"qemu-img create -q -f qed -F {format_name} -b".split()
    subprocess.run([*create, backing, path], check=True)
    return path


LOCKS = {"write": 'Failed to get "write" lock', "shared": 'Failed to get shared "write" lock'}


def assert_refused(answer: "subprocess.CompletedProcess[str]", which: str, path: Path) -> None:
    assert answer.returncode == 1
    assert LOCKS[which] in answer.stderr
    assert f"Is another process using the image [{path}]?" in answer.stderr


# QEMU has the image open.


@needs("qemu-img", "qemu-io")
@pytest.mark.parametrize(
    ("options", "mode"), [([], WRITER), (["-r"], READER), (["-r", "-U"], FORCE_SHARE)]
)
def test_the_kernel_lists_ours_as_it_lists_theirs(
    qed: Path, options: list[str], mode: LockMode
) -> None:
    with qemu_io(*options, qed) as pid:
        theirs = listed_locks(pid, qed)
    with held(qed, mode):
        ours = listed_locks(os.getpid(), qed)
    assert ours == theirs
    assert {tuple(lock[:3]) for lock in ours} == {("OFDLCK", "ADVISORY", "READ")}
    covered = [range(int(lock[-2]), int(lock[-1]) + 1) for lock in ours]
    assert set(chain(*covered)) == mode.offsets


@needs("qemu-img", "qemu-io")
def test_against_a_writer_of_qemu(qed: Path) -> None:
    with qemu_io(qed):
        assert locked_bytes(qed) == WRITER.offsets
        for mode, which in ((WRITER, "write"), (READER, "shared"), (BACKING, "shared")):
            with pytest.raises(LockError) as caught, held(qed, mode):
                pass
            assert caught.value.message == LOCKS[which]
        with held(qed, FORCE_SHARE):
            pass
        assert locked_bytes(qed) == WRITER.offsets
    with held(qed, WRITER):
        assert locked_bytes(qed) == WRITER.offsets


@needs("qemu-img", "qemu-io")
def test_against_a_reader_of_qemu(qed: Path) -> None:
    with qemu_io("-r", qed):
        assert locked_bytes(qed) == READER.offsets
        with held(qed, READER) as lock:
            with pytest.raises(LockError, match=LOCKS["write"]):
                lock.acquire(WRITER)
            assert run("qemu-img", "check", qed).returncode == 0
        with pytest.raises(LockError, match=LOCKS["write"]), held(qed, WRITER):
            pass
        with held(qed, BACKING), held(qed, FORCE_SHARE):
            assert locked_bytes(qed) == READER.offsets


@needs("qemu-img", "qemu-io")
def test_against_force_share_of_qemu(qed: Path) -> None:
    with qemu_io("-r", "-U", qed):
        assert locked_bytes(qed) == FORCE_SHARE.offsets
        with held(qed, WRITER):
            pass


@needs("qemu-img", "qemu-io")
@pytest.mark.parametrize("options", [[], ["-r"]])
def test_against_an_overlay_of_qemu(tmp_path: Path, qed: Path, options: list[str]) -> None:
    middle = make_overlay(tmp_path / "middle.qed", qed)
    top = make_overlay(tmp_path / "top.qed", middle)
    with qemu_io(*options, top):
        assert locked_bytes(top) == (READER if options else WRITER).offsets
        for backing in (middle, qed):
            assert locked_bytes(backing) == BACKING.offsets
            with pytest.raises(LockError, match=LOCKS["write"]), held(backing, WRITER):
                pass
            with held(backing, READER), held(backing, BACKING):
                pass


@needs("qemu-img", "qemu-nbd")
@pytest.mark.parametrize("options", [[], ["-r"]])
def test_against_qemu_nbd(tmp_path: Path, qed: Path, options: list[str]) -> None:
    with qemu_nbd(tmp_path, *options, "-f", "qed", qed):
        assert locked_bytes(qed) == (READER if options else WRITER).offsets
        with pytest.raises(LockError, match=LOCKS["write"]), held(qed, WRITER):
            pass


@needs("qemu-img", "qemu-storage-daemon")
@pytest.mark.parametrize("read_only", [False, True])
def test_against_the_storage_daemon(tmp_path: Path, qed: Path, read_only: bool) -> None:
    file = {"driver": "file", "filename": str(qed)}
    node = {"driver": "qed", "node-name": "n", "read-only": read_only, "file": file}
    with storage_daemon(tmp_path, node):
        assert locked_bytes(qed) == (READER if read_only else WRITER).offsets
        with pytest.raises(LockError, match=LOCKS["write"]), held(qed, WRITER):
            pass


@needs("qemu-img")
def test_against_convert(tmp_path: Path, raw: Path) -> None:
    """Its source is held as by READER, raw or not, and its target of a format as by WRITER."""
    target = tmp_path / "target.qed"
    convert = ["convert", "-f", "raw", "-O", "qed", "-r", "4096", "-m", "1"]
    with background("qemu-img", *convert, raw, target):
        wait_until(lambda: target.exists() and locked_bytes(target) == WRITER.offsets)
        assert locked_bytes(raw) == READER.offsets
        with held(raw, READER):
            pass
        with pytest.raises(LockError), held(raw, WRITER):
            pass
        with pytest.raises(LockError), held(target, READER):
            pass


@needs("qemu-io")
def test_against_raw_images_of_qemu(raw: Path) -> None:
    """qemu-io shares raw images with other writers of its kind; not with us."""
    with qemu_io("-f", "raw", raw):
        assert locked_bytes(raw) == {100, 101}
        for mode in (WRITER, READER):
            with pytest.raises(LockError, match=LOCKS["shared"]), held(raw, mode):
                pass
        with held(raw, FORCE_SHARE):
            pass
    with qemu_io("-f", "raw", "-r", raw):
        assert locked_bytes(raw) == {100}
        with held(raw, WRITER):
            pass


# We have the image open.


@needs("qemu-img", "qemu-io")
def test_our_writer_against_qemu(qed: Path) -> None:
    with held(qed, WRITER):
        assert_refused(run("qemu-io", "-c", "quit", qed), "write", qed)
        assert_refused(run("qemu-io", "-r", "-c", "quit", qed), "shared", qed)
        assert_refused(run("qemu-img", "info", qed), "shared", qed)
        assert_refused(run("qemu-img", "check", qed), "shared", qed)
        assert_refused(run("qemu-img", "create", "-f", "qed", qed, "1M"), "write", qed)
        assert run("qemu-img", "info", "-U", qed).returncode == 0
        with qemu_io("-r", "-U", qed):
            assert locked_bytes(qed) == WRITER.offsets
    assert run("qemu-io", "-c", "quit", qed).returncode == 0


@needs("qemu-img", "qemu-io")
def test_our_reader_against_qemu(qed: Path) -> None:
    with held(qed, READER) as lock:
        assert_refused(run("qemu-io", "-c", "quit", qed), "write", qed)
        assert_refused(run("qemu-img", "create", "-f", "qed", qed, "1M"), "write", qed)
        assert run("qemu-img", "info", qed).returncode == 0
        with qemu_io("-r", qed):
            assert locked_bytes(qed) == READER.offsets
        lock.acquire(WRITER)
        assert_refused(run("qemu-io", "-r", "-c", "quit", qed), "shared", qed)


@needs("qemu-img", "qemu-io")
def test_our_force_share_against_qemu(qed: Path) -> None:
    with held(qed, FORCE_SHARE):
        assert run("qemu-io", "-c", "write 0 64k", qed).returncode == 0
        assert run("qemu-img", "resize", qed, str(2 * SIZE)).returncode == 0


@needs("qemu-img", "qemu-io")
@pytest.mark.parametrize("format_name", ["qed", "raw"])
def test_our_backing_file_against_qemu(
    request: pytest.FixtureRequest, tmp_path: Path, format_name: str
) -> None:
    base: Path = request.getfixturevalue(format_name)
    overlay = make_overlay(tmp_path / "overlay.qed", base, format_name)
    with held(base, BACKING):
        assert run("qemu-io", "-c", "write 0 64k", overlay).returncode == 0
        assert_refused(run("qemu-img", "commit", overlay), "write", base)
        assert_refused(run("qemu-io", "-f", format_name, "-c", "quit", base), "write", base)


@needs("qemu-io")
def test_our_raw_image_against_qemu(raw: Path) -> None:
    with held(raw, WRITER):
        assert_refused(run("qemu-io", "-f", "raw", "-c", "quit", raw), "write", raw)
    with held(raw, READER):
        assert_refused(run("qemu-io", "-f", "raw", "-c", "quit", raw), "write", raw)
        assert run("qemu-io", "-f", "raw", "-r", "-c", "quit", raw).returncode == 0


@needs("qemu-img", "qemu-io")
def test_many_readers_of_both_kinds(qed: Path) -> None:
    with ExitStack() as stack:
        locks = [stack.enter_context(held(qed, READER)) for _ in range(3)]
        for _ in range(2):
            stack.enter_context(qemu_io("-r", qed))
        for lock in locks:
            with pytest.raises(LockError, match=LOCKS["write"]):
                lock.acquire(WRITER)
        assert locked_bytes(qed) == READER.offsets
