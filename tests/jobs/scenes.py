# SPDX-License-Identifier: Apache-2.0
"""Graphs with jobs, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from blocklayer.core.graph import Graph
from blocklayer.core.graph_options import Settings
from blocklayer.core.node import Node
from blocklayer.jobs.job import Job
from blocklayer.jobs.manager import Jobs

PATIENCE = 30.0


class Stage:
    """A graph, its jobs, and what was heard of them."""

    def __init__(self) -> None:
        self.graph, self.jobs = Graph(), Jobs()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.jobs.add_listener(lambda name, data: self.events.append((name, dict(data))))

    def put(self, name: str, node: Node, discard: str = "unmap", detect: str = "off") -> Node:
        """A node under a name."""
        return self.graph.add_node(node, name, Settings(discard, detect))


@contextmanager
def stage() -> Iterator[Stage]:
    """A stage that is cleared at the end."""
    made = Stage()
    try:
        yield made
    finally:
        assert made.jobs.end_all(PATIENCE), "a job hangs"
        made.graph.close()


def wait_ready(job: Job) -> None:
    """Until it is ready."""
    assert job.wait_for_status("ready", timeout=PATIENCE) == "ready", job.info()


def wait_end(job: Job) -> Job:
    """Until it has ended."""
    assert job.wait(PATIENCE), job.info()
    return job
