# SPDX-License-Identifier: Apache-2.0
"""`blockdev-reopen` around an image that a stream writes to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import InvalidArgument
from blocklayer.base.units import KiB, MiB
from blocklayer.core.graph import Graph
from blocklayer.jobs import stream
from blocklayer.jobs.job import Job
from tests.jobs.scenes import PATIENCE, Stage, stage, wait_end


def layer(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    """Options of an image, with all that lies below it."""
    file = {"driver": "file", "filename": str(folder / f"{name}.qed")}
    return {"driver": "qed", "node-name": name, "file": file, **more}


@pytest.fixture
def streaming(tmp_path: Path) -> Iterator[tuple[Stage, Job]]:
    """top over mid over base, opened as one tree; a stream into mid waits to be finalized."""
    below: Path | None = None
    for number, name in enumerate(["base", "mid", "top"]):
        path = tmp_path / f"{name}.qed"
        blocklayer.create(path, format="qed", size=MiB, backing=below)
        with blocklayer.open(path, mode="r+") as disk:
            disk.write(number * 64 * KiB, bytes([number + 1]) * 64 * KiB)
        below = path
    tree = layer(tmp_path, "mid", backing=layer(tmp_path, "base"))
    with stage() as here:
        here.graph.add(layer(tmp_path, "top", backing=tree))
        job = stream.start(here.graph, here.jobs, device="mid", job_id="j", auto_finalize=False)
        assert job.wait_for_status("pending", timeout=PATIENCE) == "pending"
        yield here, job


def top_alone(graph: Graph, folder: Path) -> None:
    graph.reopen([layer(folder, "top", backing=None)])


def test_what_a_job_writes_to_stays_open(streaming: tuple[Stage, Job], tmp_path: Path) -> None:
    here, job = streaming
    top_alone(here.graph, tmp_path)
    assert "mid" in here.graph.names
    job.finalize()
    assert wait_end(job).error is None
    assert set(here.graph.names) & {"base", "mid", "top"} == {"top"}  # nobody wants the others
    with blocklayer.open(tmp_path / "mid.qed") as disk:
        assert disk.read(0, 64 * KiB) == b"\x01" * 64 * KiB
    assert blocklayer.info(tmp_path / "mid.qed").backing_filename is None


def test_a_cancelled_job_lets_go(streaming: tuple[Stage, Job], tmp_path: Path) -> None:
    here, job = streaming
    top_alone(here.graph, tmp_path)
    job.cancel()
    wait_end(job)
    assert set(here.graph.names) & {"base", "mid", "top"} == {"top"}


def test_what_a_job_writes_to_cannot_become_read_only(
    streaming: tuple[Stage, Job], tmp_path: Path
) -> None:
    here, job = streaming
    options = layer(tmp_path, "mid", backing="base")
    words = "Cannot make block node read-only, there is a writer on it"
    with pytest.raises(InvalidArgument, match=words):
        here.graph.reopen([{**options, "read-only": True}])
    here.graph.reopen([options])
    job.finalize()
    assert wait_end(job).error is None
