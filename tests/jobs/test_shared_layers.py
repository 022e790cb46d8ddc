# SPDX-License-Identifier: Apache-2.0
"""Layers that other chains use as well: a commit below them must not change what those read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import InvalidArgument
from blocklayer.base.units import KiB, MiB
from blocklayer.jobs import backup, commit, mirror, stream
from blocklayer.jobs.job import Job
from tests.jobs.scenes import Stage, stage, wait_end
from tests.support.graphs import snapshot

CHAIN = ("a", "b", "c", "s")
KINDS: dict[str, dict[str, Any]] = {"active": {}, "intermediate": {"top_node": "c"}}


class Layers:
    """a <- b <- c <- s, each with some data of its own; others can be put over any of them."""

    def __init__(self, here: Stage, folder: Path) -> None:
        self.here, self.graph, self.folder = here, here.graph, folder
        below: str | None = None
        for number, name in enumerate(CHAIN):
            self.make(name)
            with blocklayer.open(folder / name, mode="r+") as disk:
                disk.write(number * MiB, name.encode() * 64 * KiB)
            self.add(name, below)
            below = name

    def make(self, name: str) -> None:
        blocklayer.create(self.folder / name, format="qed", size=4 * MiB)

    def add(self, name: str, below: str | None) -> None:
        file = {"driver": "file", "filename": str(self.folder / name)}
        self.graph.add({"driver": "qed", "node-name": name, "backing": below, "file": file})

    def over(self, below: str, name: str = "z") -> None:
        """Another image over a layer."""
        self.make(name)
        self.add(name, below)

    def commit(self, **more: Any) -> Job:
        options = {"device": "s", "base_node": "a", "job_id": "j", **more}
        return commit.start(self.graph, self.here.jobs, **options)

    def content(self, name: str) -> bytes:
        return snapshot(self.graph.find(name))


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[Layers]:
    with stage() as here:
        yield Layers(here, tmp_path)


def conflict(node: str, what: str, who: str, role: str, holds: str) -> str:
    return (
        f"Permission conflict on node '{node}': permissions '{what}' are both required by {who}"
        f" (uses node '{node}' as '{role}' child) and unshared by commit job 'j' (uses node"
        f" '{node}' as '{holds}' child)."
    )


def refusal(of: Any) -> str:
    with pytest.raises(InvalidArgument) as caught:
        of()
    return str(caught.value)


def over_words(layer: str, name: str = "z") -> str:
    what, role = ("backing", "target") if layer == "a" else ("read", "intermediate node")
    return conflict(layer, f"consistent {what}", f"node '{name}'", "backing", role)


REFUSED = [
    (kind, layer) for kind in KINDS for layer in "abc" if (kind, layer) != ("intermediate", "c")
]


@pytest.mark.parametrize(("kind", "layer"), REFUSED)
def test_others_lie_over_a_layer(layers: Layers, kind: str, layer: str) -> None:
    """It would change below them: refused, and nothing has happened."""
    layers.over(layer)
    before = {name: layers.content(name) for name in (*CHAIN, "z")}
    with layers.graph.open_disk("z"):
        assert refusal(lambda: layers.commit(**KINDS[kind])) == over_words(layer)
    assert {name: layers.content(name) for name in (*CHAIN, "z")} == before
    assert not layers.here.jobs.all()
    wait_done(layers.commit(**KINDS[kind]))  # nobody reads it now


def wait_done(job: Job) -> None:
    if job.wait_for_status("ready") == "ready":
        job.complete()
    wait_end(job)
    assert job.error is None


@pytest.mark.parametrize("kind", KINDS)
def test_others_read_a_layer(layers: Layers, kind: str) -> None:
    """An export of a layer in between."""
    with layers.graph.open_disk("b", user="export 'e'"):
        words = conflict("b", "consistent read", "export 'e'", "root", "intermediate node")
        assert refusal(lambda: layers.commit(**KINDS[kind])) == words


@pytest.mark.parametrize("kind", KINDS)
def test_others_come_later(layers: Layers, kind: str) -> None:
    """While the commit runs nobody can begin to read what it changes."""
    layers.over("b", "early")
    job = layers.commit(speed=1, **KINDS[kind])
    words = conflict("b", "consistent read", "export 'e'", "root", "intermediate node")
    assert refusal(lambda: layers.graph.open_disk("b", user="export 'e'")) == words
    assert refusal(lambda: layers.graph.open_disk("early")) == over_words("b", "early")
    for layer in "ab":
        assert refusal(lambda layer=layer: layers.over(layer, f"{layer}2")) == over_words(
            layer, f"{layer}2"
        )
    jobs = layers.here.jobs
    layers.here.graph.add({"driver": "memory", "node-name": "t", "size": 4 * MiB})
    for start in (mirror.start, backup.start):
        words = refusal(
            lambda start=start: start(
                layers.graph, jobs, device="early", target="t", sync="full", job_id="k"
            )
        )
        assert words == over_words("b", "early")
    assert [each.id for each in jobs.all()] == ["j"]
    job.cancel(force=True)
    wait_end(job)
    layers.graph.open_disk("early").close()
    layers.over("b")
    layers.graph.open_disk("z").close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [mirror.start, backup.start])
def test_a_job_reads_a_layer(layers: Layers, kind: str, start: Any) -> None:
    """A job reads its source, whether anybody else does or not."""
    layers.over("b")
    layers.graph.add({"driver": "memory", "node-name": "t", "size": 4 * MiB})
    other = start(
        layers.graph, layers.here.jobs, device="z", target="t", sync="full", job_id="k", speed=1
    )
    assert refusal(lambda: layers.commit(**KINDS[kind])) == over_words("b")
    other.cancel(force=True)
    wait_end(other)
    wait_done(layers.commit(**KINDS[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_who_may_stay(layers: Layers, kind: str) -> None:
    """Readers of the chain's top and of the base itself, and changes of the graph elsewhere."""
    before = layers.content("s")
    layers.over("s")
    layers.over("s", "y")
    with layers.graph.open_disk("z") as over, layers.graph.open_disk("a"):
        job = layers.commit(speed=1, **KINDS[kind])
        layers.graph.reopen([{"driver": "qed", "node-name": "y", "backing": None}])
        layers.graph.reopen([{"driver": "qed", "node-name": "y", "backing": "z"}])
        with layers.graph.open_disk("s") as top:
            job.set_speed(0)
            wait_done(job)
            assert over.read(0, over.size) == top.read(0, top.size) == before


def test_over_the_top_of_the_layers(layers: Layers) -> None:
    """An intermediate commit keeps what is read through its uppermost layer."""
    layers.over("c")
    before = layers.content("z")
    with layers.graph.open_disk("z") as over:
        job = layers.commit(top_node="c", speed=1)
        assert over.read(0, over.size) == before
        job.set_speed(0)
        wait_done(job)
        assert over.read(0, over.size) == before


def test_what_was_left_out_is_in_nobodys_way(layers: Layers) -> None:
    """Layers that a commit or a stream has left out may stay open while the base changes."""
    before = layers.content("s")
    wait_done(layers.commit(top_node="c", base_node="b"))
    job = stream.start(layers.graph, layers.here.jobs, device="s", job_id="u", base_node="a")
    wait_end(job)
    assert job.error is None
    wait_done(layers.commit())
    assert layers.content("a") == before


def test_into_the_own_backing_image(layers: Layers) -> None:
    """A mirror is no commit: what it reads would change under it."""
    words = refusal(
        lambda: mirror.start(
            layers.graph, layers.here.jobs, device="s", target="a", sync="full", job_id="j"
        )
    )
    assert words == "Node 'a' is busy: node is used as backing hd of 'b'"
    assert not layers.here.jobs.all()
