# SPDX-License-Identifier: Apache-2.0
"""The verify filter: an image beside a raw reference."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import InvalidArgument, IoError, NotSupported
from blocklayer.base.units import MiB
from blocklayer.core.disk import Disk
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import WRITE, InjectError
from blocklayer.filters.verify import VerifyNode
from blocklayer.testing.exercise import Exercise
from blocklayer.testing.liar import Liar
from blocklayer.testing.model import ModelDisk
from blocklayer.testing.recorder import Recorder
from tests.support import needs
from tests.support.crew import run_together
from tests.support.graphs import memory, open_node, snapshot
from tests.support.qed_image import CLUSTER, QedImage

SIZE = 3 * MiB


def verified(image: QedImage | None = None) -> tuple[Disk, Recorder]:
    image = image or QedImage(SIZE)
    raw = Recorder(memory("raw", SIZE))
    return Disk(VerifyNode(open_node(image.tree()), raw), discard="unmap"), raw


def test_qed_is_what_a_raw_image_is(seed: int) -> None:
    disk, raw = verified()
    model = ModelDisk(SIZE)
    Exercise(disk, model, seed=seed, grain=CLUSTER, size_max=SIZE + MiB).run(200)
    assert snapshot(raw.child) == bytes(model.content)
    disk.close()


@pytest.mark.parametrize("where", [0, 1, CLUSTER - 1, CLUSTER, 5 * CLUSTER + 77])
def test_the_first_difference_is_named(where: int) -> None:
    disk, raw = verified()
    disk.write(0, b"same" * 8 * CLUSTER)
    raw.child.writev(where, [memoryview(b"!")])
    raw.child.writev(where + 9, [memoryview(b"!")])
    with pytest.raises(IoError, match=f"contents mismatch at offset {where}: .*0x21"):
        disk.read(0, 8 * CLUSTER)
    with pytest.raises(IoError, match=f"offset {where}:"):
        disk.node.readv(where, [memoryview(bytearray(1)), memoryview(bytearray(99))])
    assert disk.read(where + 10, 100)
    disk.close()


@needs("qemu-io")
@pytest.mark.parametrize("place", ["0 1M", "65540 4k", "64k 4k"])
def test_a_difference_is_told_as_qemu_tells_it(place: str, tmp_path: Path) -> None:
    for name, letter in (("raw", b"x"), ("test", b"y")):
        (tmp_path / name).write_bytes(bytes(65546) + letter + bytes(MiB - 65547))
    options = "driver=blkverify,test.driver=raw,test.file.filename=test,raw.filename=raw"
    told = [
        subprocess.run(
            [*tool, "--image-opts", options, "-c", f"read -q {place}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        for tool in (["qemu-io"], [sys.executable, "-m", "blocklayer", "io"])
    ]
    assert told[0].stderr == told[1].stderr
    assert "contents mismatch at offset 65546\n" in told[1].stderr
    assert told[0].returncode == told[1].returncode == 1


def test_a_difference_in_a_later_part_of_a_vector() -> None:
    disk, raw = verified()
    raw.child.writev(130, [memoryview(b"!")])
    parts = [memoryview(bytearray(length)) for length in (100, 27, 50)]
    with pytest.raises(IoError, match="offset 130:"):
        disk.node.readv(0, parts)
    disk.close()


def test_both_get_what_changes_them_and_neither_is_discarded() -> None:
    disk, raw = verified()
    disk.write(5, b"data")
    disk.write_zeroes(CLUSTER, CLUSTER)
    disk.discard(0, MiB)
    disk.flush()
    disk.resize(SIZE + MiB)
    assert [r.verb for r in raw.take()] == ["write", "zero", "flush", "truncate"]
    assert disk.read(5, 4) == b"data"
    disk.close()


def test_zeroing_that_the_image_cannot_do_reaches_neither() -> None:
    raw = Recorder(memory("raw", SIZE))
    disk = Disk(VerifyNode(Liar(memory("test", SIZE), zeroes=0.0), raw))
    disk.write(0, b"x" * MiB)
    raw.take()
    with pytest.raises(NotSupported):
        disk.write_zeroes(0, MiB, no_fallback=True)
    assert raw.take() == []
    disk.write_zeroes(0, MiB)
    assert {r.verb for r in raw.take()} == {"write"}
    disk.close()


def test_a_write_that_one_of_them_misses_is_found_by_reading() -> None:
    raw = FaultNode(memory("raw", SIZE))
    disk = Disk(VerifyNode(memory("test", SIZE), raw))
    raw.add_rule(InjectError(iotypes=frozenset({WRITE}), once=True))
    with pytest.raises(IoError, match="write failed"):
        disk.write(10, b"data")
    with pytest.raises(IoError, match="contents mismatch at offset 10"):
        disk.read(0, 100)
    disk.write(10, b"data")
    disk.read(0, 100)
    disk.close()


def test_readers_and_writers_at_once() -> None:
    """No reader meets one image before and the other after a write."""
    raw = Liar(memory("raw", SIZE), delay=0.001)
    disk = Disk(VerifyNode(Liar(memory("test", SIZE), delay=0.001), raw))
    done = threading.Event()

    def write() -> None:
        for turn in range(60):
            disk.write(turn % 7 * 100, bytes([turn]) * 300)
        done.set()

    def read() -> None:
        while not done.is_set():
            disk.read(50, 800)

    run_together(write, read, read)
    disk.close()


def test_block_status_is_the_image_s() -> None:
    image = QedImage(SIZE)
    with image.open() as disk:
        disk.write(CLUSTER, b"x")
    raw = memory("raw", SIZE)
    raw.writev(CLUSTER, [memoryview(b"x")])
    disk = Disk(VerifyNode(open_node(image.tree()), raw))
    assert [(e.offset, e.length, e.data) for e in disk.extents()] == [
        (0, CLUSTER, False),
        (CLUSTER, CLUSTER, True),
        (2 * CLUSTER, SIZE - 2 * CLUSTER, False),
    ]
    disk.close()


def test_a_reference_that_is_too_short() -> None:
    with pytest.raises(InvalidArgument, match="fewer than"):
        VerifyNode(memory("test", 1000), memory("raw", 999))


@pytest.mark.parametrize("driver", ["verify", "blkverify"])
def test_by_name(tmp_path: Path, driver: str) -> None:
    blocklayer.create(tmp_path / "raw", size=SIZE)
    blocklayer.create(tmp_path / "qed", format="qed", size=SIZE)
    options = {
        "driver": driver,
        "raw": str(tmp_path / "raw"),
        "test": {"driver": "qed", "file": str(tmp_path / "qed")},
    }
    with blocklayer.open("json:" + json.dumps(options), mode="r+") as disk:
        disk.write(12345, b"data")
        assert disk.read(12344, 6) == b"\0data\0"
    with blocklayer.open(tmp_path / "qed") as disk:
        assert disk.read(12345, 4) == b"data"
    assert (tmp_path / "raw").read_bytes()[12345:12349] == b"data"


@pytest.mark.parametrize("missing", ["raw", "test"])
def test_without_one_of_them(tmp_path: Path, missing: str) -> None:
    blocklayer.create(tmp_path / "raw", size=SIZE)
    options = {"driver": "verify", "raw": str(tmp_path / "raw"), "test": str(tmp_path / "raw")}
    del options[missing]
    with pytest.raises(blocklayer.OpenError, match=f'must be specified for "{missing}"'):
        blocklayer.open(options)
