# SPDX-License-Identifier: Apache-2.0
"""What a target looks like after a mirror: as sparse as its source, unless it was to be full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.jobs import mirror
from tests.jobs.scenes import stage, wait_end, wait_ready
from tests.support.graphs import snapshot

SIZE, DATA = 20 * MiB, 2 * MiB


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(5 * MiB)
        file.write(os.urandom(DATA))
    return path


def make(path: Path, how: str) -> None:
    if how == "outside":
        with path.open("wb") as file:
            file.truncate(SIZE)
    else:
        blocklayer.create(path, format="raw", size=SIZE, preallocation=how)


MODES = [("ignore", "off"), ("unmap", "off"), ("unmap", "unmap")]


@pytest.mark.parametrize(("discard", "detect"), MODES)
@pytest.mark.parametrize("how", ["outside", "off", "full"])
def test_space_of_the_target(
    tmp_path: Path, source: Path, how: str, discard: str, detect: str
) -> None:
    target = tmp_path / "target.raw"
    make(target, how)
    with stage() as here:
        here.graph.add({"driver": "file", "node-name": "src", "filename": str(source)})
        options = {"discard": discard, "detect-zeroes": detect}
        here.graph.add({"driver": "file", "node-name": "dst", "filename": str(target), **options})
        job = mirror.start(
            here.graph, here.jobs, job_id="j", device="src", target="dst", sync="full"
        )
        wait_ready(job)
        job.complete()
        wait_end(job)
        assert job.error is None
    assert source.read_bytes() == target.read_bytes()
    stays_full = how == "full" and discard == "ignore"
    assert target.stat().st_blocks * 512 == (SIZE if stays_full else DATA)


def test_nothing_is_quick(tmp_path: Path) -> None:
    """8 TiB of nothing: no map of the disk is ever made."""
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(8 << 40)
    with stage() as here:
        for name in ("a", "b"):
            file_options = {"driver": "file", "filename": str(tmp_path / name)}
            here.graph.add({"driver": "raw", "node-name": name, "file": file_options})
        job = mirror.start(here.graph, here.jobs, job_id="j", device="a", target="b", sync="full")
        assert job.wait_for_status("ready", timeout=5) == "ready"
        assert (job.current, job.total) == (0, 0)
        job.complete()
        wait_end(job)
    assert (tmp_path / "b").stat().st_blocks == 0


@pytest.mark.parametrize("format", ["raw", "qed"])
def test_zeroes_that_are_stored_are_not_stored_again(tmp_path: Path, format: str) -> None:
    source, target = tmp_path / "source.raw", tmp_path / "target"
    source.write_bytes(bytes(SIZE - DATA) + os.urandom(DATA))
    blocklayer.create(target, format=format, size=SIZE)
    with stage() as here:
        here.graph.add({"driver": "file", "node-name": "src", "filename": str(source)})
        file_options = {"driver": "file", "filename": str(target)}
        here.graph.add({"driver": format, "node-name": "dst", "file": file_options})
        job = mirror.start(
            here.graph, here.jobs, job_id="j", device="src", target="dst", sync="full"
        )
        wait_ready(job)
        assert snapshot(here.graph.find("dst")) == source.read_bytes()
        assert job.current == DATA
    assert target.stat().st_blocks * 512 <= DATA + 320 * KiB
