# SPDX-License-Identifier: Apache-2.0
"""Others at work below a mirror's source; and what is replaced may be another node meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.units import MiB
from blocklayer.core.filter import FilterNode
from blocklayer.jobs import mirror
from blocklayer.protocols.memory import MemoryNode
from tests.jobs.scenes import Stage, wait_end, wait_ready
from tests.jobs.scenes import stage as new_stage
from tests.support.graphs import snapshot

CONFLICT = "'write' are both required"


@pytest.fixture
def stage() -> Iterator[Stage]:
    with new_stage() as made:
        yield made


class Plain(FilterNode):
    """Does nothing."""

    driver = "plain"


def memory(stage: Stage, name: str) -> None:
    stage.put(name, MemoryNode(MiB, read_only=False, name=name))


def filtered(stage: Stage, name: str, below: str) -> None:
    stage.put(name, Plain(stage.graph.find(below)))


def test_nobody_writes_past_a_mirror(stage: Stage) -> None:
    """It would not see what they write, and the target would not have it."""
    graph = stage.graph
    memory(stage, "s")
    memory(stage, "t")
    graph.add({"driver": "raw", "node-name": "r", "file": "s"})
    with graph.open_disk("s", writable=True), pytest.raises(InvalidArgument, match=CONFLICT):
        mirror.start(graph, stage.jobs, device="r", target="t", sync="full")
    assert stage.jobs.all() == []
    job = mirror.start(graph, stage.jobs, device="r", target="t", sync="full")
    with pytest.raises(InvalidArgument, match=CONFLICT):
        graph.open_disk("s", writable=True)
    with graph.open_disk("r", writable=True) as one, graph.open_disk("r", writable=True) as other:
        wait_ready(job)
        one.write(0, b"1" * 512)
        other.write(512, b"2" * 512)
        job.complete()
        wait_end(job)
        assert one.read(0, 1024) == other.read(0, 1024) == b"1" * 512 + b"2" * 512
    assert snapshot(graph.find("t"))[:1024] == b"1" * 512 + b"2" * 512
    graph.open_disk("s", writable=True).close()


def test_what_is_replaced_is_looked_at_again(stage: Stage) -> None:
    graph = stage.graph
    for name in ("s", "t", "other"):
        memory(stage, name)
    filtered(stage, "low", "s")
    filtered(stage, "middle", "low")
    filtered(stage, "high", "middle")
    job = mirror.start(
        graph,
        stage.jobs,
        device="high",
        target="t",
        sync="full",
        replaces="low",
        auto_dismiss=False,
    )
    wait_ready(job)
    graph.reopen([{"driver": "plain", "node-name": "middle", "file": "s"}])
    graph.remove("low")
    filtered(stage, "low", "other")
    with graph.open_disk("low", writable=True) as disk:
        disk.write(0, b"x" * 512)
        job.complete()
        wait_end(job)
        assert job.error is not None
        assert job.error.startswith("Cannot replace 'low' by a node mirrored from 'high'")
        assert disk.read(0, 512) == b"x" * 512
