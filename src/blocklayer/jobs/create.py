# SPDX-License-Identifier: Apache-2.0
"""Create: a new file, or a new image in a node that is there already."""

from __future__ import annotations

from contextlib import suppress

from blocklayer.base.errors import BlocklayerError, InvalidArgument, NotSupported
from blocklayer.base.options import OptionTree
from blocklayer.core import drivers
from blocklayer.jobs.job import Job

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.core.graph import Graph
    from blocklayer.core.node import Node
    from blocklayer.jobs.manager import Jobs


class CreateJob(Job):
    """Its result is looked at with `query-jobs`, so it stays until it is dismissed."""

    type = "create"
    is_block_job = False

    def __init__(self, graph: Graph, jobs: Jobs, job_id: str, options: OptionTree) -> None:
        self.graph = graph
        self.options = options
        super().__init__(jobs, job_id, auto_dismiss=False)

    def run(self) -> None:
        """Create. Raises what went wrong."""
        self.set_remaining(1)
        options = dict(self.options)
        name = options.pop("driver", None)
        try:
            if name == "file":
                _create_file(options)
            else:
                _create_image(self.graph, name, options)
        finally:  # a failure is no less progress: nothing is left to do
            self.advance(1)


def _create_file(options: OptionTree) -> None:
    from blocklayer.ops.create import create

    filename, size = options.pop("filename"), options.pop("size")
    if "preallocation" in options and options["preallocation"] == "off":
        del options["preallocation"]
    named = {key.replace("-", "_"): value for key, value in options.items()}
    try:
        create(filename, format="raw", size=size, **named)
    except BlocklayerError as error:
        raise InvalidArgument(error.message) from error


def _create_image(graph: Graph, name: object, options: OptionTree) -> None:
    driver = drivers.load(name)
    if driver.create is None or driver.resolve is None:
        raise InvalidArgument(f"Driver '{name}' does not support blockdev-create")
    renamed = {"backing-file": "backing_file", "backing-fmt": "backing_fmt"}
    file = options.pop("file", None)
    made = {renamed.get(key, key.replace("-", "_")): value for key, value in options.items()}
    resolved = driver.resolve(made)
    node: Node
    if isinstance(file, str):
        node = graph.find(file)
        with graph.open_disk(node, writable=True, resizes=True, user="create job") as disk:
            _write_image(driver, disk.node, resolved)
        return
    if not isinstance(file, dict):
        raise InvalidArgument("Parameter 'file' is missing")
    node = graph.add(file)
    try:
        with graph.open_disk(node, writable=True, resizes=True, user="create job") as disk:
            _write_image(driver, disk.node, resolved)
    finally:
        graph.remove(graph.name_of(node))


def _write_image(driver: drivers.Driver, storage: Node, resolved: dict[str, Any]) -> None:
    assert driver.create is not None
    if storage.size:  # what it holds must not show in tables
        with suppress(NotSupported):  # of a fixed size: the driver knows whether it can use that
            storage.truncate(0)
            storage.flush()
    driver.create(storage, resolved)


def start(graph: Graph, jobs: Jobs, *, job_id: str, options: OptionTree) -> CreateJob:
    """Create what `options` (of `blockdev-create`) describe, in the background."""
    drivers.load(options.get("driver"))
    job = CreateJob(graph, jobs, job_id, options)
    job.start()
    return job
