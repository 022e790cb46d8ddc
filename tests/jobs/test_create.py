# SPDX-License-Identifier: Apache-2.0
"""Images made in nodes that hold something already."""

from __future__ import annotations

from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.jobs import create
from tests.jobs.scenes import stage, wait_end


@pytest.mark.parametrize("raw", [False, True])
def test_nothing_of_the_old_content_is_left(tmp_path: Path, raw: bool) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"junk" * (256 * KiB))
    with stage() as here:
        file = {"driver": "file", "node-name": "f", "filename": str(path)}
        here.graph.add(file)
        if raw:
            here.graph.add({"driver": "raw", "node-name": "r", "file": "f"})
        options = {"driver": "qed", "file": "r" if raw else "f", "size": MiB}
        job = wait_end(create.start(here.graph, here.jobs, job_id="j", options=options))
        assert job.error is None
    assert blocklayer.check(str(path)).clean
    with blocklayer.open(str(path), mode="r+") as disk:
        assert not any(disk.read(0, MiB))
        disk.write(MiB // 2, b"new")
        assert disk.read(MiB // 2, 4) == b"new\0"
