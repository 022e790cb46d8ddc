# SPDX-License-Identifier: Apache-2.0
"""A process is killed in the middle of a mirror: the source holds all that guests were told of."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB

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
