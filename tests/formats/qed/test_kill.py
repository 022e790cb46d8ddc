# SPDX-License-Identifier: Apache-2.0
"""Processes that are killed while they write: the real thing, on real files.

Everything the process was told is done must be there; its last request may be there in part. What
we recover, the real qemu-img calls clean, and reads the same.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blocklayer.base.units import SECTOR
from blocklayer.ops.check import check
from blocklayer.ops.create import create
from blocklayer.ops.open_image import open_disk
from blocklayer.testing.crash_states import Effort, crash_states
from tests.formats.qed import killed_writer
from tests.formats.qed.crash_lab import Lab
from tests.formats.qed.crash_scenarios import SCENARIOS
from tests.formats.qed.killed_writer import CLUSTER, SIZE
from tests.support import needs

ROOT = Path(__file__).parents[3]
ROUNDS_AN_IMAGE = 6
"""Then a new one is made, since no clusters are left to allocate."""

Look = Callable[[Path], None]
"""Somebody else's opinion of an image."""


def make_image(directory: Path, rng: random.Random) -> tuple[Path, bytearray]:
    """A new image, alone or over a backing file, and what it reads as."""
    path, content = directory / "disk.qed", bytearray(SIZE)
    path.unlink(missing_ok=True)
    backing = None
    if rng.random() < 0.5:
        backing = "base.raw"
        below = rng.randbytes(rng.randrange(SIZE // 2, SIZE * 3 // 2, SECTOR))
        (directory / backing).write_bytes(below)
        content[: len(below)] = below[:SIZE]
    create(
        path,
        format="qed",
        size=SIZE,
        backing=backing,
        backing_format="raw",
        cluster_size=CLUSTER,
        table_size=2,
    )
    return path, content


def run_and_kill(path: Path, seed: int, rng: random.Random) -> int:
    """Let a process write, kill it at some moment; how many requests were acknowledged."""
    command = [sys.executable, "-m", killed_writer.__name__, str(path), str(seed)]
    wanted = rng.randint(0, 60)
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, bufsize=0) as writer:
        assert writer.stdout is not None
        acknowledged = len(os.read(writer.stdout.fileno(), 1))
        assert acknowledged, "it ended by itself"
        while acknowledged < wanted:
            acknowledged += len(os.read(writer.stdout.fileno(), wanted - acknowledged))
        time.sleep(rng.random() * 0.003)
        writer.kill()
        acknowledged += len(writer.stdout.read() or b"")
    return acknowledged


def apply(content: bytearray, seed: int, count: int) -> bytearray:
    """Apply the acknowledged requests; what the next one would have made of it."""
    asked = killed_writer.requests(seed)
    for _ in range(count):
        for offset, data in next(asked):
            content[offset : offset + len(data)] = data
    future = bytearray(content)
    for offset, data in next(asked):
        future[offset : offset + len(data)] = data
    return future


def require_old_or_new(found: bytes, old: bytearray, new: bytearray) -> None:
    assert len(found) == len(old)
    for start in range(0, len(found), SECTOR):
        sector = slice(start, start + SECTOR)
        assert found[sector] in (old[sector], new[sector]), f"wrong bytes at {start:#x}"


def kill_and_recover(directory: Path, rng: random.Random, rounds: int, look: Look) -> None:
    acknowledged = 0
    for number in range(rounds):
        if number % ROUNDS_AN_IMAGE == 0:
            path, content = make_image(directory, rng)
        seed = rng.getrandbits(32)
        count = run_and_kill(path, seed, rng)
        acknowledged += count
        future = apply(content, seed, count)
        with open_disk(path, mode="r+") as disk:
            found = disk.read(0, SIZE)
        require_old_or_new(found, content, future)
        content[:] = found
        result = check(path, repair="all" if rng.random() < 0.3 else "none")
        assert not result.corruptions
        assert not result.check_errors
        look(path)
        with open_disk(path) as disk:
            assert disk.read(0, SIZE) == content
    assert acknowledged > 5 * rounds


def qemu_check(path: Path) -> None:
    """No corruption in the eyes of qemu-img; leaks are allowed."""
    command = ["qemu-img", "check", "-f", "qed", "--output=json", str(path)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    assert answer.returncode in (0, 3), answer.stdout
    result = json.loads(answer.stdout)
    assert not result.get("corruptions")
    assert not result["check-errors"]


@pytest.mark.slow
def test_killed_while_writing(tmp_path: Path, rng: random.Random) -> None:
    kill_and_recover(tmp_path, rng, 18, lambda path: None)


@pytest.mark.slow
@needs("qemu-img")
def test_killed_while_writing_in_the_eyes_of_qemu(tmp_path: Path, rng: random.Random) -> None:
    kill_and_recover(tmp_path, rng, 18, qemu_check)


@pytest.mark.long
@needs("qemu-img")
def test_killed_a_thousand_times(tmp_path: Path, rng: random.Random) -> None:
    kill_and_recover(tmp_path, rng, 1000, qemu_check)


# --- recovered from a power failure, in the eyes of qemu ------------------------------------------


def require_qemu_reads(path: Path, expected: bytes) -> None:
    raw = path.with_suffix(".raw")
    command = ["qemu-img", "convert", "-f", "qed", "-O", "raw", str(path), str(raw)]
    subprocess.run(command, check=True)
    assert raw.read_bytes() == expected


@pytest.mark.slow
@needs("qemu-img")
@pytest.mark.parametrize(
    "name",
    ["allocations_without_flush", "batch_over_backing", "zeroes_over_backing", "open_dirty"],
)
def test_qemu_agrees_after_a_power_failure(name: str, tmp_path: Path, rng: random.Random) -> None:
    lab = Lab(CLUSTER, 4)
    SCENARIOS[name](lab)
    for backing, content in lab.backings.items():
        content.save(tmp_path / backing)
    states = list({s.snapshot.key: s for s in crash_states(lab.storage, Effort(), rng)}.values())
    for state in rng.sample(states, 8):
        path = tmp_path / "disk.qed"
        state.snapshot.save(path)
        with open_disk(path, mode="r+") as disk:
            expected = disk.read(0, disk.size)
        qemu_check(path)
        require_qemu_reads(path, expected)
