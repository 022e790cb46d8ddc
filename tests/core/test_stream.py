# SPDX-License-Identifier: Apache-2.0
"""A disk as a file object."""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
from pathlib import Path

import pytest

from blocklayer.base.errors import IoError
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import FLUSH, READ, WRITE, InjectError
from tests.support.graphs import memory
from tests.support.qed_image import QedImage


def test_it_is_a_file_of_a_fixed_size(rng: random.Random) -> None:
    with QedImage(MiB).open() as disk, disk.as_file() as stream, io.BytesIO(bytes(MiB)) as other:
        for _ in range(300):
            offset = rng.randrange(MiB + 100)
            assert stream.seek(offset) == other.seek(offset)
            length = rng.randrange(9000)
            if rng.random() < 0.5:
                assert stream.read(length) == other.read(length)
            elif offset < MiB:
                data = rng.randbytes(min(length, MiB - offset))
                assert stream.write(data) == other.write(data)
            assert stream.tell() == other.tell()
        assert disk.read(0, MiB) == other.getvalue()
        assert (stream.readable(), stream.writable(), stream.seekable()) == (True, True, True)
        assert stream.name == disk.filename


def test_positions() -> None:
    with QedImage(1024).open() as disk, disk.as_file() as stream:
        assert stream.seek(-24, os.SEEK_END) == 1000
        assert stream.seek(10, os.SEEK_CUR) == 1010
        assert stream.read() == bytes(14)
        assert stream.read(5) == b""
        assert stream.seek(5000) == 5000
        assert stream.read(5) == b""
        for arguments in ((-1,), (-2000, os.SEEK_END), (0, 7)):
            with pytest.raises(ValueError, match=r"negative|whence"):
                stream.seek(*arguments)
        assert stream.tell() == 5000


def test_the_end_of_the_disk() -> None:
    with QedImage(1024).open() as disk, disk.as_file() as stream:
        stream.seek(1020)
        assert stream.write(b"0123456789") == 4
        with pytest.raises(OSError, match="No space left") as caught:
            stream.write(b"456")
        assert caught.value.errno == 28
        assert stream.write(b"") == 0
        with pytest.raises(io.UnsupportedOperation, match="resize"):
            stream.truncate(2048)
        assert disk.read(1020, 4) == b"0123"


def test_reading_only() -> None:
    with QedImage(1024).open(read_only=True) as disk, disk.as_file() as stream:
        assert not stream.writable()
        with pytest.raises(OSError, match="read-only"):
            stream.write(b"x")
        stream.flush()


def test_errors_are_those_of_files() -> None:
    fault = FaultNode(memory(size=1024))
    disk = Disk(fault)
    stream = disk.as_file()
    fault.add_rule(InjectError(errno=5, iotypes=frozenset({READ, WRITE})))
    for action in (lambda: stream.read(5), lambda: stream.write(b"x")):
        with pytest.raises(OSError, match="injected") as caught:
            action()
        assert caught.value.errno == 5
        assert isinstance(caught.value.__cause__, IoError)
    fault.clear_rules()
    assert stream.read(5) == bytes(5)
    stream.close()
    disk.close()


def test_flushing_reaches_the_disk() -> None:
    fault = FaultNode(memory(size=1024))
    with Disk(fault) as disk:
        with disk.as_file() as stream:
            stream.write(b"x")
            stream.flush()
            assert fault.requests[FLUSH] == 1
        assert not disk.closed
        assert disk.read(0, 1) == b"x"
        for action in (stream.tell, lambda: stream.seek(0), lambda: stream.read(1)):
            with pytest.raises(ValueError, match="closed"):
                action()


def test_a_stream_outlives_its_disk_in_peace() -> None:
    disk = QedImage(1024).open()
    stream = disk.as_file()
    disk.close()
    with pytest.raises(OSError, match="closed"):
        stream.read(1)
    stream.close()


def test_libraries_take_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content" * 5000)
    with QedImage(MiB).open() as disk:
        with io.BufferedRandom(disk.as_file()) as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                archive.add(tmp_path / "a", "a")
            file.seek(0)
            with tarfile.open(fileobj=file) as archive:
                member = archive.extractfile("a")
                assert member is not None
                assert member.read() == b"content" * 5000
        with disk.as_file() as source, (tmp_path / "copy").open("wb") as target:
            shutil.copyfileobj(source, target, 64 * KiB)
        assert (tmp_path / "copy").read_bytes() == disk.read(0, MiB)
