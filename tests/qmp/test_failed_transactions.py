"""Transactions of which a part fails, in any order: nothing has happened, and no write is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.core.graph import Entry, Graph
from blocklayer.qmp.daemon import Daemon
from blocklayer.qmp.dispatch import Session
from blocklayer.testing.model import ModelDisk
from tests.jobs.test_fleecing import threads

SIZE = 1 << 18
DISKS, TARGETS, OVERLAYS = ["s", "u"], ["t", "v", "w"], ["o", "p"]
BITMAPS = ["x", "y", "z"]
TRANSACTIONS = 300


class Scene:
    """A daemon with two disks that are written to, targets, images to lie over, and bitmaps."""

    def __init__(self, folder: Path) -> None:
        self.daemon = Daemon()
        self.graph: Graph = self.daemon.context.graph
        self.session = Session(self.daemon.context)
        self.do("qmp_capabilities")
        for name in (*DISKS, *TARGETS):
            self.do("blockdev-add", **{"driver": "memory", "node-name": name, "size": SIZE})
        for name in OVERLAYS:
            path = folder / f"{name}.qed"
            blocklayer.create(path, format="qed", size=SIZE)
            file = {"driver": "file", "filename": str(path)}
            node = {"driver": "qed", "node-name": name, "file": file, "backing": None}
            self.do("blockdev-add", **node)
        for node_name in DISKS:
            for name in BITMAPS[:2]:
                self.do("block-dirty-bitmap-add", node=node_name, name=name, granularity=4096)
        self.disks = [self.graph.open_disk(name, writable=True) for name in DISKS]
        self.models = [ModelDisk(SIZE) for _ in DISKS]

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.session.answer({"execute": command, "arguments": arguments})
        return answer

    def do(self, command: str, **arguments: Any) -> None:
        answer = self.ask(command, **arguments)
        assert "return" in answer, answer

    def write(self, number: int, chooser: random.Random) -> None:
        """What a guest does."""
        offset = chooser.randrange(SIZE)
        data = chooser.randbytes(min(chooser.randrange(1, 9000), SIZE - offset))
        self.disks[number].write(offset, data)
        self.models[number].write(offset, data)

    def require_content(self) -> None:
        for disk, model in zip(self.disks, self.models, strict=True):
            model.require(0, disk.read(0, SIZE))

    def state(self) -> dict[str, Any]:
        """All that there is, but for what bitmaps mark."""
        jobs = [job.info() for job in self.daemon.context.jobs.all()]
        nodes = {entry.name: self._entry(entry) for entry in self.graph.named()}
        return {"jobs": jobs, "made": list(self.daemon.context.made), **nodes}

    def _entry(self, entry: Entry) -> dict[str, Any]:
        node, graph = entry.node, self.graph
        return {
            "node": (id(node), node.driver, node.read_only, entry.owned, repr(entry.settings)),
            "in the way": (list(entry.blocked.values()), len(entry.vouched_by)),
            "disks": [id(disk) for disk in entry.disks],
            "uses": [repr(use) for use in graph.uses(node)],
            "below": [(edge.role, graph.name_of(edge.child)) for edge in graph.children(node)],
            "top": graph.name_of(graph.top_of(node)),
            "bitmaps": [(each.name, each.enabled, each.busy) for each in self._bitmaps(entry)],
        }

    def _bitmaps(self, entry: Entry) -> list[Any]:
        return [] if entry.node.hooks is None else list(entry.node.hooks.bitmaps.values())

    def marked(self) -> dict[str, set[int]]:
        """The granules that bitmaps mark."""
        return {
            f"{entry.name}.{each.name}": {
                place
                for offset, length in each.runs()
                for place in range(offset, offset + length, 4096)
            }
            for entry in self.graph.named()
            for each in self._bitmaps(entry)
        }

    def settle(self) -> None:
        """After a transaction that was possible: its jobs end."""
        assert self.daemon.context.jobs.end_all(30)


@contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    made = Scene(folder)
    try:
        yield made
    finally:
        made.daemon.close()


class Author:
    """Makes up actions that are possible now and then."""

    def __init__(self, chooser: random.Random, folder: Path) -> None:
        self.chooser = chooser
        self.folder = folder

    def backup(self, *, aborted: bool) -> dict[str, Any]:
        choose = self.chooser.choice
        # An overlay may be what a guest writes to by then: nobody else may really do so.
        targets = [*TARGETS, *TARGETS, *OVERLAYS] if aborted else TARGETS
        more: dict[str, Any] = choose(
            [
                {"sync": "full"},
                {"sync": "none"},
                {"sync": "incremental", "bitmap": choose(BITMAPS)},
                {
                    "sync": choose(["full", "bitmap"]),
                    "bitmap": choose(BITMAPS),
                    "bitmap-mode": choose(["on-success", "always", "never"]),
                },
            ]
        )
        name = {"filter-node-name": "f"} if self.chooser.random() < 0.3 else {}
        return {
            "job-id": choose("abc"),
            "device": choose([*DISKS, *OVERLAYS]),
            "target": choose(targets),
            "auto-dismiss": choose([True, False]),
            **name,
            **more,
        }

    def action(self, *, grouped: bool, aborted: bool) -> dict[str, Any]:
        choose = self.chooser.choice
        bitmap = {"node": choose(DISKS), "name": choose(BITMAPS)}
        verb = choose(["add", "remove", "clear", "enable", "disable"])
        drive = {"device": choose(DISKS), "job-id": choose("abc"), "format": choose(["qed", "raw"]),
                 "target": f"{self.folder}/drive", "sync": choose(["full", "none"])}  # fmt: skip
        snapshot = {"node-name": choose(DISKS), "snapshot-file": str(self.folder / "made"),
                    "snapshot-node-name": choose("fg"), "format": "qed"}  # fmt: skip
        merged = {"node": bitmap["node"], "target": choose(BITMAPS), "bitmaps": [choose(BITMAPS)]}
        jobs = [("blockdev-backup", self.backup(aborted=aborted))] * 3 + [("drive-backup", drive)]
        others = [
            (f"block-dirty-bitmap-{verb}", bitmap),
            ("block-dirty-bitmap-merge", merged),
            ("blockdev-snapshot", {"node": choose(DISKS), "overlay": choose(OVERLAYS)}),
            ("blockdev-snapshot-sync", snapshot),
        ]
        kind, data = choose(jobs if grouped else jobs + others)
        return {"type": kind, "data": data}


def require_that_failures_leave_nothing(
    here: Scene, folder: Path, chooser: random.Random, count: int, *, busy: bool
) -> int:
    """So many transactions that fail, or until one does not; how many have."""
    author = Author(chooser, folder)
    for number in range(count):
        grouped = chooser.random() < 0.4
        aborted = chooser.random() < 0.9
        actions = [
            author.action(grouped=grouped, aborted=aborted) for _ in range(chooser.randrange(1, 5))
        ]
        if aborted:
            actions.append({"type": "abort", "data": {}})
        mode = {"completion-mode": "grouped" if grouped else "individual"}
        before, marked, files = here.state(), here.marked(), set(folder.iterdir())
        answer = here.ask("transaction", actions=actions, properties=mode)
        if "return" in answer:
            return number
        assert not answer["error"]["desc"].startswith(("Internal", "internal")), actions
        assert here.state() == before, actions
        assert set(folder.iterdir()) == files, actions
        now = here.marked()
        assert now.keys() == marked.keys()
        for name in marked:
            assert marked[name] <= now[name] if busy else marked[name] == now[name], actions
        if not busy:
            for disk in range(len(DISKS)):
                here.write(disk, chooser)
    return count


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("busy", [True, False])
def test_nothing_is_left(rng: random.Random, tmp_path: Path, part: int, busy: bool) -> None:
    chooser = random.Random(rng.random() + part)
    left = TRANSACTIONS
    while left > 0:
        folder = tmp_path / str(left)
        folder.mkdir()
        with scene(folder) as here:
            guests = [lambda chooser, n=n: here.write(n, chooser) for n in range(len(DISKS))]
            with threads(*(guests if busy else [])):
                left -= 1 + require_that_failures_leave_nothing(
                    here, folder, chooser, left, busy=busy
                )
            here.settle()
            here.require_content()


def test_backups_that_have_begun_are_taken_back(tmp_path: Path) -> None:
    """Each number of them, before whatever fails; so often that a guest is always in between."""
    chooser = random.Random(1)
    with scene(tmp_path) as here:
        guests = [lambda chooser, n=n: here.write(n, chooser) for n in range(len(DISKS))]
        with threads(*guests):
            for count in [1, 2, 3] * 30:
                actions: list[dict[str, Any]] = [
                    {"type": "blockdev-snapshot", "data": {"node": "s", "overlay": "o"}},
                    *(
                        {
                            "type": "blockdev-backup",
                            "data": {"job-id": name, "device": chooser.choice("ou"),
                                     "target": target, "sync": "full"},
                        }
                        for name, target in zip("abc"[:count], TARGETS, strict=False)
                    ),
                    {"type": "abort", "data": {}},
                ]  # fmt: skip
                before = here.state()
                answer = here.ask("transaction", actions=actions)
                assert answer["error"]["desc"] == "Transaction aborted using Abort action"
                assert here.state() == before
        here.require_content()
