# SPDX-License-Identifier: Apache-2.0
"""Commit and stream along chains, while a guest goes on writing."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.jobs import commit, stream
from blocklayer.jobs.job import Job
from blocklayer.testing.model import ModelDisk
from tests.jobs.scenes import Stage, stage, wait_end, wait_ready
from tests.support.refusals import refusal

SIZE = 4 * MiB
SIZES = {"base": SIZE - 2 * MiB, "mid": SIZE - MiB, "top": SIZE}
"""Each layer is longer than the one below."""


class Chain:
    """base <- mid <- top, with a guest on top."""

    def __init__(self, here: Stage, folder: Path, sizes: dict[str, int]) -> None:
        self.here, self.folder = here, folder
        below: Path | None = None
        self.model = ModelDisk(0)
        chooser = random.Random(5)
        for name, size in sizes.items():
            path = folder / f"{name}.qed"
            blocklayer.create(path, format="qed", size=size, backing=below, cluster_size=16 * KiB)
            self.model = self.model.overlay(size)
            with blocklayer.open(path, mode="r+") as disk:
                for _ in range(12):
                    offset = chooser.randrange(size - 9000)
                    data = chooser.randbytes(chooser.randrange(1, 9000))
                    disk.write(offset, data)
                    self.model.write(offset, data)
            below = path
        lower: str | None = None
        for name in sizes:
            options: dict[str, Any] = {"driver": "qed", "node-name": name, "backing": lower}
            options["file"] = {"driver": "file", "filename": str(folder / f"{name}.qed")}
            here.graph.add(options)
            lower = name
        self.disk = here.graph.open_disk("top", writable=True)
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._guest, daemon=True)
        self._thread.start()

    def _guest(self) -> None:
        chooser = random.Random(6)
        try:
            while not self._over.is_set():
                offset = chooser.randrange(SIZE - 9000)
                data = chooser.randbytes(chooser.randrange(1, 9000))
                if chooser.random() < 0.2:
                    self.disk.write_zeroes(offset, len(data))
                    self.model.write_zeroes(offset, len(data))
                else:
                    self.disk.write(offset, data)
                    self.model.write(offset, data)
                self.model.require(offset, self.disk.read(offset, len(data)))
                self._over.wait(0.001)
        except BaseException as error:
            self._failure = error

    def stop_guest(self) -> None:
        self._over.set()
        self._thread.join(20)
        if self._failure is not None:
            raise self._failure

    def layers(self) -> list[str]:
        graph = self.here.graph
        return [graph.name_of(node) for node in graph.backing_chain(graph.find("top"))]

    def finish(self, name: str) -> None:
        """The guest sees what it wrote, before and after everything is opened anew."""
        self.stop_guest()
        self.model.require(0, self.disk.read(0, SIZE))
        self.disk.close()
        self.here.graph.close()
        path = self.folder / f"{name}.qed"
        with blocklayer.open(path) as disk:
            self.model.require(0, disk.read(0, SIZE))
        result = blocklayer.check(path)
        assert (result.corruptions, result.leaks) == (0, 0)


@pytest.fixture(params=["growing", "shrinking"])
def chain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chain]:
    sizes = SIZES
    if request.param == "shrinking":  # the layer in the middle is shorter than the base
        sizes = {"base": SIZE, "mid": SIZE - 2 * MiB, "top": SIZE}
    with stage() as here:
        made = Chain(here, tmp_path, sizes)
        try:
            yield made
        finally:
            made._over.set()
            made._thread.join(20)


def succeed(job: Job) -> None:
    wait_end(job)
    assert job.error is None
    assert not job.cancelled


def test_active_commit(chain: Chain) -> None:
    job = commit.start(chain.here.graph, chain.here.jobs, job_id="c", device="top")
    wait_ready(job)
    job.complete()
    succeed(job)
    assert chain.here.graph.name_of(chain.disk.node) == "base"
    chain.finish("base")


def test_active_commit_one_layer(chain: Chain) -> None:
    options = {"job_id": "c", "device": "top", "base_node": "mid"}
    job = commit.start(chain.here.graph, chain.here.jobs, **options)  # type: ignore[arg-type]
    wait_ready(job)
    job.complete()
    succeed(job)
    assert chain.here.graph.name_of(chain.disk.node) == "mid"
    chain.finish("mid")


@pytest.mark.parametrize("force", [False, True])
def test_a_cancelled_active_commit_changes_nothing_above(chain: Chain, force: bool) -> None:
    graph = chain.here.graph
    job = commit.start(graph, chain.here.jobs, job_id="c", device="top")
    wait_ready(job)
    job.cancel(force=force)
    wait_end(job)
    assert chain.layers() == ["top", "mid", "base"]
    assert graph.name_of(chain.disk.node) == "top"
    chain.finish("top")


def test_intermediate_commit(chain: Chain) -> None:
    options = {"job_id": "c", "device": "top", "top_node": "mid", "base_node": "base"}
    job = commit.start(chain.here.graph, chain.here.jobs, **options)  # type: ignore[arg-type]
    succeed(job)
    assert chain.layers() == ["top", "base"]
    chain.finish("top")
    with blocklayer.open(chain.folder / "top.qed") as disk:
        assert disk.backing is not None
        assert disk.backing.filename == str(chain.folder / "base.qed")


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, ["top"]),
        ({"base_node": "base"}, ["top", "base"]),
        ({"bottom": "mid"}, ["top", "base"]),
        ({"bottom": "top"}, ["top", "mid", "base"]),
        ({"base_node": "mid"}, ["top", "mid", "base"]),
    ],
)
def test_stream(chain: Chain, options: dict[str, str], layers: list[str]) -> None:
    job = stream.start(chain.here.graph, chain.here.jobs, job_id="s", device="top", **options)  # type: ignore[arg-type]
    succeed(job)
    assert job.current == job.total == SIZE
    assert chain.layers() == layers
    chain.finish("top")


def test_stream_into_the_middle(chain: Chain) -> None:
    job = stream.start(chain.here.graph, chain.here.jobs, job_id="s", device="mid")
    succeed(job)
    assert chain.layers() == ["top", "mid"]
    assert chain.here.graph.find("mid").read_only is False
    chain.finish("top")


def test_a_cancelled_stream(chain: Chain) -> None:
    graph, jobs = chain.here.graph, chain.here.jobs
    job = stream.start(graph, jobs, job_id="s", device="top", speed=100_000)
    job.cancel()
    wait_end(job)
    assert chain.layers() == ["top", "mid", "base"]
    chain.finish("top")


def test_who_is_busy(chain: Chain) -> None:
    graph, jobs = chain.here.graph, chain.here.jobs
    job = stream.start(graph, jobs, job_id="s", device="top", base_node="base", speed=1000)
    words = "Node 'mid' is busy: block device is in use by block job: stream"
    assert refusal(lambda: commit.start(graph, jobs, job_id="c", device="mid")) == words
    job.cancel()
    wait_end(job)
    words = "'top' is not in this backing file chain"
    assert refusal(lambda: commit.start(graph, jobs, device="mid", base_node="top")) == words
    options: Any
    for options, words in (
        ({"top_node": "nix"}, "Cannot find device='' nor node-name='nix'"),
        ({"base_node": "top"}, "cannot commit an image into itself"),
        ({"base": "zz"}, "Can't find 'zz' in the backing chain"),
        ({"top": "zz"}, "Top image file zz not found"),
        ({"backing_file": "x"}, "'backing-file' specified, but 'top' is the active layer"),
    ):
        assert refusal(partial(commit.start, graph, jobs, device="top", **options)) == words
    for options, words in (
        ({"base": "zz"}, "Can't find 'zz' in the backing chain"),
        ({"base_node": "top"}, "Node 'top' is not a backing image of 'top'"),
        (
            {"base": "a", "base_node": "b"},
            "'base' and 'base-node' cannot be specified at the same time",
        ),
        ({"backing_file": "x"}, "backing file specified, but streaming the entire chain"),
    ):
        assert refusal(partial(stream.start, graph, jobs, device="top", **options)) == words
    assert jobs.all() == []
    chain.finish("top")
