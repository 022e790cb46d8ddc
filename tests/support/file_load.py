# SPDX-License-Identifier: Apache-2.0
"""A load on a mounted file system, as file systems' testers make it, that knows what must be there.

Each thread has a folder of its own: it creates, writes at odd offsets, through the page cache, past
it and through mappings, truncates, punches holes, renames, unlinks and syncs, and holds what it
reads against what it wrote. Each has a ledger as well, a file to which it appends numbered lines:
what a sync has promised is in it, whenever somebody takes a copy of the disk.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import random
import threading
import time
from pathlib import Path

from blocklayer.base.units import KiB, MiB

FILE_MAX = 2 * MiB
FILES = 6
DIRECT = 4 * KiB
KEEP_SIZE, PUNCH_HOLE = 1, 2
LINE = "line {:08d} of the ledger\n"
LINE_BYTES = len(LINE.format(0))
_libc = ctypes.CDLL(None, use_errno=True)


def punch(descriptor: int, offset: int, length: int) -> None:
    """Make a hole in a file."""
    answer = _libc.fallocate(
        descriptor, PUNCH_HOLE | KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(length)
    )
    if answer:
        raise OSError(ctypes.get_errno(), "fallocate")


class Worker:
    """One thread's folder, and what its files hold."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.files: dict[str, bytearray] = {}
        self.steps = 0
        self.promised = 0
        """Lines of the ledger that a sync has made durable."""
        self._lines = 0
        self._made = 0
        self._rng = random.Random(seed)
        self._aligned = mmap.mmap(-1, 64 * KiB)
        """Memory at whose address no direct I/O takes offence."""
        folder.mkdir()

    def step(self) -> None:
        """One change, or a look."""
        rng = self._rng
        self.steps += 1
        if self.steps % 10 == 0:
            self._write_ledger()
        if len(self.files) < FILES:
            self._create()
            return
        name = rng.choice(sorted(self.files))
        action = rng.choice(
            [
                *(self._write, self._write, self._write_direct, self._write_mapped),
                *(self._truncate, self._punch, self._rename, self._look, self._sync),
            ]
        )
        action(name)
        if rng.randrange(25) == 0:
            self._unlink(rng.choice(sorted(self.files)))

    def _create(self) -> None:
        self._made += 1
        name = f"file{self._made}"
        data = self._rng.randbytes(self._rng.randrange(1, 300_000))
        (self.folder / name).write_bytes(data)
        self.files[name] = bytearray(data)

    def _put(self, name: str, offset: int, piece: bytes) -> None:
        data = self.files[name]
        data += bytes(max(0, offset - len(data)))
        data[offset : offset + len(piece)] = piece

    def _write(self, name: str) -> None:
        offset = self._rng.randrange(FILE_MAX // 2)
        piece = self._rng.randbytes(self._rng.randrange(1, 100_000))
        with open(self.folder / name, "r+b", buffering=0) as file:
            assert os.pwrite(file.fileno(), piece, offset) == len(piece)
        self._put(name, offset, piece)

    def _write_direct(self, name: str) -> None:
        count = DIRECT * self._rng.randrange(1, len(self._aligned) // DIRECT + 1)
        offset = DIRECT * self._rng.randrange(FILE_MAX // 2 // DIRECT)
        piece = self._rng.randbytes(count)
        self._aligned[:count] = piece
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_DIRECT)
        try:
            with memoryview(self._aligned) as view, view[:count] as part:
                assert os.pwritev(descriptor, [part], offset) == count
        finally:
            os.close(descriptor)
        self._put(name, offset, piece)

    def _write_mapped(self, name: str) -> None:
        size = len(self.files[name])
        if not size:
            return
        offset = self._rng.randrange(size)
        piece = self._rng.randbytes(min(size - offset, self._rng.randrange(1, 50_000)))
        with open(self.folder / name, "r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
            mapped[offset : offset + len(piece)] = piece
            mapped.flush()
        self._put(name, offset, piece)

    def _truncate(self, name: str) -> None:
        size = self._rng.randrange(FILE_MAX)
        os.truncate(self.folder / name, size)
        data = self.files[name]
        data[size:] = b""
        data += bytes(size - len(data))

    def _punch(self, name: str) -> None:
        data = self.files[name]
        offset, length = self._rng.randrange(FILE_MAX), self._rng.randrange(1, 500_000)
        with open(self.folder / name, "r+b") as file:
            punch(file.fileno(), offset, length)
        end = min(offset + length, len(data))
        if offset < end:
            data[offset:end] = bytes(end - offset)

    def _rename(self, name: str) -> None:
        self._made += 1
        new = self._rng.choice([f"file{self._made}", *sorted(self.files)])
        if new != name:
            os.rename(self.folder / name, self.folder / new)
            self.files[new] = self.files.pop(name)

    def _unlink(self, name: str) -> None:
        os.unlink(self.folder / name)
        del self.files[name]

    def _look(self, name: str) -> None:
        """Half of the looks are past the cache, at what the disk below has."""
        path, data = self.folder / name, self.files[name]
        if self._rng.randrange(2):
            assert path.read_bytes() == data, f"{path} has something else"
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            offset = DIRECT * self._rng.randrange(len(data) // DIRECT + 1)
            with memoryview(self._aligned) as view:
                count = os.preadv(descriptor, [view], offset)
                wanted = data[offset : offset + len(view)]
                assert view[:count] == wanted, f"{path} at {offset} has something else"
        finally:
            os.close(descriptor)

    def _sync(self, name: str) -> None:
        with open(self.folder / name, "rb") as file:
            os.fsync(file.fileno())

    def _write_ledger(self) -> None:
        with open(self.folder / "ledger", "ab", buffering=0) as file:
            file.write(LINE.format(self._lines).encode("ascii"))
            self._lines += 1
            os.fsync(file.fileno())
        self.promised = self._lines

    def digests(self) -> dict[str, str]:
        """What the files must be in the end."""
        return {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}


class Load:
    """Several threads at work on a mounted file system."""

    def __init__(self, mount: Path, seed: int, threads: int = 3) -> None:
        self.workers = [Worker(mount / f"worker{n}", seed + n) for n in range(threads)]
        self._failures: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), daemon=True)
            for worker in self.workers
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, worker: Worker) -> None:
        try:
            while not self._stop.is_set():
                worker.step()
        except BaseException as error:
            self._failures.append(error)

    def raise_failure(self) -> None:
        """What a thread has met."""
        if self._failures:
            raise self._failures[0]

    def wait_for_steps(self, count: int, patience: float = 30.0) -> None:
        """Until every thread has done so many more."""
        goals = [worker.steps + count for worker in self.workers]
        deadline = time.monotonic() + patience
        while any(w.steps < goal for w, goal in zip(self.workers, goals, strict=True)):
            self.raise_failure()
            assert time.monotonic() < deadline, "the load hangs"
            time.sleep(0.01)

    @property
    def steps(self) -> int:
        """How much was done."""
        return sum(worker.steps for worker in self.workers)

    @property
    def promised(self) -> dict[str, int]:
        """Lines of the ledgers that are durable, by folder."""
        return {worker.folder.name: worker.promised for worker in self.workers}

    def stop(self) -> None:
        """End it; raises what a thread has met."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads), "the load hangs"
        self.raise_failure()

    def check(self, mount: Path) -> None:
        """The load is over: a file system, mounted again, has all of it and nothing else."""
        for worker in self.workers:
            folder = mount / worker.folder.name
            found = {path.name: digest(path) for path in folder.iterdir() if path.name != "ledger"}
            assert found == worker.digests()
        check_ledgers(mount, self.promised)


def digest(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_ledgers(mount: Path, promised: dict[str, int]) -> None:
    """What syncs have promised is there, and what follows it is what was written then."""
    for name, count in promised.items():
        data = (mount / name / "ledger").read_bytes() if count else b""
        lines = len(data) // LINE_BYTES
        assert lines >= count, f"{name}: {lines} lines, {count} were promised"
        assert data == "".join(LINE.format(n) for n in range(lines)).encode("ascii")
