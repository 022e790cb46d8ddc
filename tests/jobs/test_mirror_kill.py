# SPDX-License-Identifier: Apache-2.0
"""A process is killed in the middle of a mirror: the source holds all that guests were told of."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from tests.qmp.daemons import OURS, Conversation
from tests.support.nbd_peer import NbdPeer
from tests.support.stamps import SIZE, Writers, prepare

SPACING = 64 * KiB

CHILD = """
import os, random, sys
from blocklayer.core.graph import Graph
from blocklayer.jobs import mirror
from blocklayer.jobs.manager import Jobs

folder, mode, seed = sys.argv[1:]
graph, jobs = Graph(), Jobs()
for name in ("src", "dst"):
    file = {"driver": "file", "filename": f"{folder}/{name}.qed"}
    graph.add({"driver": "qed", "node-name": name, "file": file})
disk = graph.open_disk("src", writable=True)
told = os.open(f"{folder}/told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
mirror.start(
    graph, jobs, job_id="j", device="src", target="dst", sync="full", copy_mode=mode
)
chooser = random.Random(int(seed))
number = 0
while True:
    place = chooser.randrange(64)
    number += 1
    disk.write(place * 65536 + 4000, b"%08d" % number)
    os.write(told, b"%d %d\\n" % (place, number))
"""


@pytest.mark.parametrize("mode", ["background", "write-blocking"])
@pytest.mark.parametrize("seed", range(2))
def test_killed(tmp_path: Path, mode: str, seed: int) -> None:
    for name in ("src", "dst"):
        blocklayer.create(tmp_path / f"{name}.qed", format="qed", size=8 * MiB)
    words = [sys.executable, "-c", CHILD, str(tmp_path), mode, str(seed)]
    process = subprocess.Popen(words)
    try:
        told = tmp_path / "told"
        deadline = time.monotonic() + 30
        while not told.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2 + random.random() * 0.3)
    finally:
        process.kill()
        process.wait(20)
    lines = told.read_text("ascii").splitlines()
    assert len(lines) > 100
    newest = {int(place): int(number) for place, number in map(str.split, lines)}
    result = blocklayer.check(tmp_path / "src.qed")
    assert result.corruptions == 0
    with blocklayer.open(tmp_path / "src.qed") as disk:
        for place, number in newest.items():
            found = int(disk.read(place * SPACING + 4000, 8))
            assert number <= found <= number + len(lines), f"place {place} is older than told"


# --- a daemon with clients ------------------------------------------------------------------------


def kill_daemon(
    folder: Path, kind: str, target: str, mode: str, rng: random.Random, *, ready: bool
) -> int:
    """One mirror under the load of NBD clients, killed; how much the clients were promised.

    ready  killed after the job was ready, not before
    """
    image, format, below = prepare(folder, kind)
    copy, socket = folder / "copy", folder / "nbd.sock"
    blocklayer.create(str(copy), format=target, size=SIZE)
    options: list[str] = []
    for name, driver, path in (("source", format, image), ("target", target, copy)):
        node = f"driver={driver},node-name={name},file.driver=file,file.filename={path}"
        options += ["--blockdev", node]
    options += ["--nbd-server", f"addr.type=unix,addr.path={socket}"]
    options += ["--export", "type=nbd,id=e,node-name=source,name=disk,writable=on"]
    with Conversation(folder, OURS, tuple(options), killed=True) as talk:
        writers = Writers(lambda mode: NbdPeer(socket, export="disk", mode=mode), rng)
        time.sleep(0.1)
        talk.do(
            "blockdev-mirror",
            job_id="j",
            device="source",
            target="target",
            sync="full",
            copy_mode=mode,
            speed=0 if ready else MiB // 2,  # so that it is not ready on a busy machine either
        )
        if ready:
            talk.event("BLOCK_JOB_READY", device="j")
        time.sleep(rng.uniform(0.1, 1))
        (job,) = talk.do("query-block-jobs")
        assert job["ready"] == ready
        writers.require_alive()
        talk.process.send_signal(signal.SIGKILL)
        talk.process.wait(20)
        writers.end()
    writers.check(image, format, below)
    if kind == "backed":
        assert (folder / "base").read_bytes() == below, "the backing file was changed"
    if target == "qed":
        assert not blocklayer.check(str(copy)).corruptions
    return writers.promises


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("mode", ["background", "write-blocking"])
@pytest.mark.parametrize(("kind", "target"), [("raw", "qed"), ("qed", "raw"), ("backed", "qed")])
def test_daemon_killed(
    tmp_path: Path, seed: int, kind: str, target: str, mode: str, ready: bool
) -> None:
    promises = kill_daemon(tmp_path, kind, target, mode, random.Random(seed), ready=ready)
    assert promises, "nothing was promised: this shows nothing"


@pytest.mark.long
@pytest.mark.parametrize("mode", ["background", "write-blocking"])
@pytest.mark.parametrize(("kind", "target"), [("raw", "qed"), ("qed", "raw"), ("backed", "qed")])
def test_daemon_killed_again_and_again(
    tmp_path: Path, seed: int, kind: str, target: str, mode: str
) -> None:
    rng = random.Random(seed)
    for number in range(30):
        folder = tmp_path / str(number)
        folder.mkdir()
        kill_daemon(folder, kind, target, mode, rng, ready=rng.random() < 0.5)
