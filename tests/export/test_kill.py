# SPDX-License-Identifier: Apache-2.0
"""The server is killed in the middle of writes: what it promised to keep is there."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import MiB
from tests.support import needs
from tests.support.nbd_peer import EXTENDED, FUA, ZERO
from tests.support.nbd_process import blk_nbd
from tests.support.stamps import SIZE, Writers, prepare


def kill_in_the_middle(
    tmp_path: Path, kind: str, rng: random.Random, seconds: float, *, promised: bool = False
) -> int:
    """One life and death; how much was promised: with `promised`, something in any case."""
    image, format, below = prepare(tmp_path, kind)
    path = tmp_path / "sock"
    with blk_nbd(path, "-t", "-e", "0", "-f", format, image) as server:
        writers = Writers(server.connect, rng)
        time.sleep(seconds)
        deadline = time.monotonic() + 30  # for a disk that others keep busy
        while promised and not writers.promises and time.monotonic() < deadline:
            time.sleep(0.01)
        writers.require_alive()
        server.end(signal.SIGKILL)
        writers.end()
    writers.check(image, format, below)
    if kind == "backed":
        assert (tmp_path / "base").read_bytes() == below, "the backing file was changed"
    return writers.promises


@pytest.mark.parametrize("kind", ["qed", "backed", "raw"])
def test_killed_in_the_middle(tmp_path: Path, seed: int, kind: str) -> None:
    rng = random.Random(seed)
    promises = kill_in_the_middle(tmp_path, kind, rng, rng.uniform(0.3, 1.5), promised=True)
    assert promises, "nothing was promised: this shows nothing"


@pytest.mark.long
@pytest.mark.parametrize("kind", ["qed", "backed", "raw"])
def test_killed_again_and_again(tmp_path: Path, seed: int, kind: str) -> None:
    rng = random.Random(seed)
    for number in range(40):
        folder = tmp_path / str(number)
        folder.mkdir()
        kill_in_the_middle(folder, kind, rng, rng.uniform(0.01, 2))


@needs("fio")
@pytest.mark.parametrize("kind", ["qed", "backed"])
def test_killed_under_fio(tmp_path: Path, kind: str) -> None:
    """As fast as fio can: the image is sound afterwards, and what lies below it untouched."""
    image, format, below = prepare(tmp_path, kind)
    path = tmp_path / "sock"
    with blk_nbd(path, "-t", "-e", "0", "-f", format, image) as server:
        fio = subprocess.Popen(
            [
                *("fio", "--name=f", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={path}"),
                *("--rw=randwrite", "--bs=4k", "--iodepth=16", f"--size={SIZE}", "--fsync=20"),
                *("--time_based", "--runtime=30"),
            ],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(1)
        assert fio.poll() is None, "fio has ended"
        server.end(signal.SIGKILL)
        fio.wait(30)
    blocklayer.check(str(image), repair="all")
    assert blocklayer.check(str(image)).clean
    with blocklayer.open(str(image), format=format) as disk:
        assert disk.read(0, SIZE) != below, "nothing was written"
    if kind == "backed":
        assert (tmp_path / "base").read_bytes() == below


def test_a_promise_with_zeroes(tmp_path: Path) -> None:
    """WRITE_ZEROES with FUA counts, too."""
    image, format, _ = prepare(tmp_path, "backed")
    path = tmp_path / "sock"
    with blk_nbd(path, "-t", "-f", format, image) as server, server.connect(mode=EXTENDED) as peer:
        peer.write(0, b"x" * MiB)
        assert not peer.do(ZERO, 0, MiB, flags=FUA).error
        assert not peer.do(ZERO, 3 * MiB, MiB, flags=FUA).error
        server.end(signal.SIGKILL)
    with blocklayer.open(str(image), format=format, mode="r+") as disk:
        assert disk.read(0, MiB) == bytes(MiB)
        assert disk.read(3 * MiB, MiB) == bytes(MiB)
