# SPDX-License-Identifier: Apache-2.0
"""Sources with very many small extents: asking for each costs more than reading them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.jobs import mirror
from tests.jobs.scenes import stage, wait_end, wait_ready
from tests.support.graphs import snapshot

SIZE = 160 * MiB
EVERY = 32 * KiB


def make_scattered(path: Path, rng: random.Random) -> int:
    """Odd pieces of data among holes, and a part that is whole; extents."""
    with path.open("wb") as file:
        file.truncate(SIZE)
        for start in range(0, SIZE - 16 * MiB, EVERY):
            file.seek(start + rng.randrange(7) * 4 * KiB)
            file.write(rng.randbytes(rng.choice((512, 4 * KiB))))
        file.seek(SIZE - 8 * MiB)
        file.write(rng.randbytes(4 * MiB))
    return 2 * ((SIZE - 16 * MiB) // EVERY)


@pytest.mark.parametrize("format", ["raw", "qed"])
@pytest.mark.parametrize("known", [True, False])
def test_few_questions_and_no_holes_filled(
    tmp_path: Path,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    known: bool,
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    extents = make_scattered(source, rng)
    blocklayer.create(target, format=format, size=SIZE)
    if not known:  # something is there: zeroes have to be written
        with blocklayer.open(target, mode="r+", format=format) as disk:
            disk.write(SIZE - 64 * KiB, b"old" * 1000)
    asked = 0
    seek = os.lseek

    def note(descriptor: int, offset: int, whence: int) -> int:
        nonlocal asked
        asked += 1
        return seek(descriptor, offset, whence)

    with stage() as here:
        for name, path, kind in (("src", source, "raw"), ("dst", target, format)):
            here.graph.add(
                {
                    "driver": kind,
                    "node-name": name,
                    "discard": "unmap",
                    "file": {"driver": "file", "filename": str(path)},
                }
            )
        with monkeypatch.context() as patch:
            patch.setattr(os, "lseek", note)
            job = mirror.start(
                here.graph, here.jobs, job_id="j", device="src", target="dst", sync="full"
            )
            wait_ready(job)
        job.cancel()
        wait_end(job)
        same = snapshot(here.graph.find("src")) == snapshot(here.graph.find("dst"))
    assert same
    assert asked < extents / 4
    if format == "raw":
        assert target.stat().st_blocks <= source.stat().st_blocks * 1.02
    else:
        assert blocklayer.check(target).clean
