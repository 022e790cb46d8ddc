# SPDX-License-Identifier: Apache-2.0
"""QED on storage that fails: the n-th request, for every n, of everything that changes an image.

After each failure: somebody was told, nothing acknowledged is lost, and the next opening finds an
image that is consistent, or that says it is not and is mended by being opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from blocklayer.base.errors import BlocklayerError
from blocklayer.base.units import SECTOR, KiB, MiB
from blocklayer.core import events
from blocklayer.core import io as core_io
from blocklayer.core.batch import Request
from blocklayer.core.checking import Repair
from blocklayer.core.disk import Disk
from blocklayer.core.node import Node
from blocklayer.filters import fault_rules
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import (
    BLOCK_STATUS,
    CHANGING,
    FLUSH,
    IO_TYPES,
    READ,
    InjectError,
)
from blocklayer.formats.qed import driver
from blocklayer.formats.qed.driver import QedNode
from blocklayer.formats.qed.layout import F_NEED_CHECK, Header
from blocklayer.testing.model import ModelDisk
from blocklayer.testing.recorder import Recorder
from tests.support.graphs import ALL, LEAKS, check, create, memory, open_disk, snapshot, tree

CLUSTER = 4 * KiB
SPAN = 2 * MiB
"""Guest bytes that one table of one cluster maps."""
SIZE = 2 * SPAN + 9 * CLUSTER + 5 * SECTOR
RUNS_MAX = 400
"""More requests than any scenario has."""


@dataclass
class World:
    """Images as bytes, and what the uppermost has to read as."""

    overlay: bytes
    base: bytes | None
    model: ModelDisk


class Actor:
    """Does things to a disk whose storage may fail; the model follows."""

    def __init__(self, world: World, rule: InjectError | None, where: str) -> None:
        self.model = world.model
        self.file = stored(world.overlay, "overlay")
        self.base = stored(world.base, "base") if world.base is not None else None
        self.alternatives: list[ModelDisk] = []
        self.failures: list[BlocklayerError] = []
        self.told = 0
        """Failures that were told in another way than by raising."""
        self.fault: FaultNode | None = None
        self.rule = rule
        top: Node = self.file
        below: Node | None = self.base
        if rule is not None and where == "overlay":
            top = self.fault = FaultNode(top, [rule])
        elif rule is not None:
            assert below is not None
            below = self.fault = FaultNode(below, [rule])
        self.top, self.below = top, below
        self.disk: Disk | None = None

    def attempt(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except BlocklayerError as error:
            self.failures.append(error)
            return False
        return True

    def open(self) -> bool:
        def opening() -> None:
            backing = tree(self.below) if self.below is not None else None
            self.disk = open_disk(self.top, backing=backing)

        return self.attempt(opening)

    @property
    def node(self) -> QedNode:
        assert self.disk is not None
        assert isinstance(self.disk.node, QedNode)
        return self.disk.node

    # --- what scenarios do ----------------------------------------------------------------------

    def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        disk, model = self.disk, self.model
        assert disk is not None
        if self.attempt(lambda: disk.write(offset, data, fua=fua)):
            model.write(offset, data)
        else:
            model.maybe_write(offset, data)

    def submit(self, writes: list[tuple[int, bytes]]) -> None:
        """A batch: each write has a result of its own."""
        assert self.disk is not None
        requests = [Request.write(offset, data) for offset, data in writes]
        self.disk.submit(requests)
        for request in requests:
            if request.error is None:
                self.model.write(request.offset, request.data)
            else:
                self.failures.append(request.error)
                self.model.maybe_write(request.offset, request.data)

    def submit_mixed(self, requests: list[Request]) -> None:
        """A batch of any kinds whose ranges do not overlap."""
        assert self.disk is not None
        self.disk.submit(requests)
        for request in requests:
            done = request.error is None
            if request.error is not None:
                self.failures.append(request.error)
            if request.kind == "write":
                (self.model.write if done else self.model.maybe_write)(request.offset, request.data)
            elif request.kind == "write_zeroes" and done:
                self.model.write_zeroes(request.offset, request.length)
            elif request.kind in ("write_zeroes", "discard"):
                self.model.maybe_zero(request.offset, request.length)
            elif request.result is not None and done:
                self.model.require(request.offset, request.result)

    def copy_up(self, offset: int, length: int) -> None:
        """What copy-on-read does: nothing that anybody sees."""
        self.attempt(lambda: core_io.copy_up(self.node, offset, length))

    def zero(self, offset: int, length: int, **flags: bool) -> None:
        disk = self.disk
        assert disk is not None
        if self.attempt(lambda: disk.write_zeroes(offset, length, **flags)):
            self.model.write_zeroes(offset, length)
        else:
            self.model.maybe_zero(offset, length)

    def discard(self, offset: int, length: int) -> None:
        disk = self.disk
        assert disk is not None
        self.attempt(lambda: disk.discard(offset, length))
        self.model.maybe_zero(offset, length)

    def flush(self) -> None:
        assert self.disk is not None
        self.attempt(self.disk.flush)

    def read(self, offset: int, length: int) -> None:
        disk = self.disk
        assert disk is not None
        self.attempt(lambda: self.model.require(offset, disk.read(offset, length)))

    def resize(self, size: int) -> None:
        disk, model = self.disk, self.model
        assert disk is not None
        if self.attempt(lambda: disk.resize(size)):
            model.resize(size)
        elif disk.size == size:
            self.alternatives.append(model.overlay())
            model.resize(size)
        else:
            # Storage that fails for good can leave the new size in the header.
            self.alternatives.append(model.overlay(size))

    def check(self, repair: Repair) -> None:
        def checking() -> None:
            result = self.node.check(repair)
            self.told += result.check_errors

        self.attempt(checking)

    def change_backing(self, name: str | None) -> None:
        self.attempt(lambda: self.node.change_backing(name, "qed" if name else None))

    def make_empty(self) -> None:
        """Reads as what lies below, or as before."""
        disk = self.disk
        assert disk is not None
        assert self.base is not None
        with open_disk(self.base, read_only=True) as below:
            shown = below.read(0, below.size)[: self.model.size]
        shown += bytes(self.model.size - len(shown))
        if self.attempt(self.node.make_empty):
            self.model.settle(0, shown)
        else:
            self.model.maybe_write(0, shown)

    def close(self) -> None:
        if self.disk is not None:
            self.attempt(self.disk.close)


def stored(content: bytes, name: str) -> Node:
    node = memory(name)
    node.writev(0, [memoryview(content)])
    return node


def noise(length: int, salt: int) -> bytes:
    return bytes((i * 7 + salt) % 255 + 1 for i in range(1024)) * (length // 1024) + bytes(
        [salt % 255 + 1]
    ) * (length % 1024)


# --- worlds ---


def empty_world() -> World:
    node = memory()
    create(node, size=SIZE, cluster_size=CLUSTER, table_size=1)
    return World(snapshot(node), None, ModelDisk(SIZE))


def used_world() -> World:
    """Some clusters here and there, zero clusters, two tables."""
    world = empty_world()
    actor = Actor(world, None, "overlay")
    assert actor.open()
    actor.write(0, noise(3 * CLUSTER, 1))
    actor.write(10 * CLUSTER + 100, noise(5 * CLUSTER, 2))
    actor.zero(20 * CLUSTER, 4 * CLUSTER)
    actor.write(SPAN + 7, noise(CLUSTER, 3))
    actor.write(SIZE - 3 * SECTOR, noise(3 * SECTOR, 4))
    actor.close()
    return World(snapshot(actor.file), None, actor.model)


def overlay_world() -> World:
    """An empty overlay over a used image that is shorter."""
    base = used_world()
    node = memory()
    size = SIZE + SPAN // 2
    create(node, size=size, cluster_size=CLUSTER, table_size=1, backing_file="base")
    return World(snapshot(node), base.overlay, base.model.overlay(size))


def used_overlay_world() -> World:
    world = overlay_world()
    actor = Actor(world, None, "overlay")
    assert actor.open()
    actor.write(CLUSTER + 5, noise(CLUSTER, 5))
    actor.zero(10 * CLUSTER, 2 * CLUSTER)
    actor.write(SPAN - 9, noise(40, 6))
    actor.close()
    return World(snapshot(actor.file), world.base, actor.model)


def long_backing_world() -> World:
    """An overlay that shows less than there is below."""
    base = used_world()
    size = 11 * CLUSTER + SECTOR
    node = memory()
    create(node, size=size, cluster_size=CLUSTER, table_size=1, backing_file="base")
    return World(snapshot(node), base.overlay, base.model.overlay(size))


def leaking_world() -> World:
    """Holes between the clusters in use, and clusters of nobody at the end."""
    world = used_world()
    node = stored(world.overlay, "leaking")
    with open_disk(node) as disk:
        for offset in (5, 30, 31, 40):
            disk.write(offset * CLUSTER, noise(CLUSTER, offset))
            world.model.write(offset * CLUSTER, noise(CLUSTER, offset))
        qed = disk.node
        assert isinstance(qed, QedNode)
        for offset in (0, 11, 30):
            clear_entry(qed, offset * CLUSTER)
            world.model.settle(offset * CLUSTER, bytes(CLUSTER))
    node.truncate(node.size + 3 * CLUSTER)
    return World(snapshot(node), None, world.model)


def clear_entry(node: QedNode, offset: int, value: int = 0) -> None:
    """Change an L2 entry behind the driver's back."""
    geometry = node.geometry
    table = node.tables.l1_entry(geometry.l1_index(offset))
    place = table + 8 * geometry.l2_index(offset)
    node.file.writev(place, [memoryview(value.to_bytes(8, "little"))])
    node.tables.forget()


def damaged_world() -> World:
    """Entries that point nowhere, and two that share a cluster; NEED_CHECK is set."""
    world = used_world()
    node = stored(world.overlay, "damaged")
    with open_disk(node) as disk:
        qed = disk.node
        assert isinstance(qed, QedNode)
        shared = qed.map(12 * CLUSTER, 1)[3]
        clear_entry(qed, 5 * CLUSTER, 1 << 40)
        world.model.settle(5 * CLUSTER, bytes(CLUSTER))
        clear_entry(qed, 6 * CLUSTER, 7)
        clear_entry(qed, 7 * CLUSTER, shared)
        world.model.settle(7 * CLUSTER, world.model.read(12 * CLUSTER, CLUSTER))
    set_need_check(node)
    return World(snapshot(node), None, world.model)


def set_need_check(node: Node) -> None:
    header = read_header(node)
    header.features |= F_NEED_CHECK
    node.writev(0, [memoryview(header.pack())])


def read_header(node: Node) -> Header:
    return Header.unpack_from(snapshot(node)[: Header.SIZE])


def dirty_world() -> World:
    """What a crash leaves: NEED_CHECK, an entry behind the end of the file, and leaks."""
    world = used_world()
    node = stored(world.overlay, "dirty")
    with open_disk(node) as disk:
        qed = disk.node
        assert isinstance(qed, QedNode)
        clear_entry(qed, 5 * CLUSTER, qed.file_end + 4 * CLUSTER)
    node.truncate(node.size + 2 * CLUSTER)
    set_need_check(node)
    return World(snapshot(node), None, world.model)


# --- scenarios ---


def first_allocation(actor: Actor) -> None:
    actor.write(3 * CLUSTER + 100, noise(CLUSTER, 9))
    actor.read(0, 8 * CLUSTER)
    actor.write(3 * CLUSTER + 200, noise(300, 10))
    actor.flush()
    actor.write(2 * CLUSTER, noise(4 * CLUSTER, 11), fua=True)


def new_table(actor: Actor) -> None:
    actor.write(2 * SPAN - 2 * CLUSTER - 50, noise(4 * CLUSTER, 12))
    actor.write(2 * SPAN + 9, noise(20, 13))


def overlay_partial(actor: Actor) -> None:
    actor.write(100, noise(200, 14))
    actor.write(2 * CLUSTER - 100, noise(CLUSTER, 15))
    actor.write(21 * CLUSTER + 5, noise(CLUSTER, 16))
    actor.write(SIZE - SECTOR + 5, noise(2 * CLUSTER, 17))
    actor.read(0, SIZE + 4 * CLUSTER)


def batch(actor: Actor) -> None:
    actor.submit(
        [
            (CLUSTER - 10, noise(20, 18)),
            (2 * CLUSTER, noise(CLUSTER, 19)),
            (2 * CLUSTER + 100, noise(50, 20)),
            (30 * CLUSTER + 1, noise(5, 21)),
            (SPAN - 5, noise(CLUSTER, 22)),
            (2 * SPAN + 1, noise(CLUSTER, 23)),
        ]
    )
    actor.flush()


def mixed_batch(actor: Actor) -> None:
    actor.submit_mixed(
        [
            Request.write(CLUSTER - 10, noise(20, 31)),
            Request.write_zeroes(4 * CLUSTER + 5, 3 * CLUSTER),
            Request.discard(11 * CLUSTER, 2 * CLUSTER),
            Request.read(20 * CLUSTER, 2 * CLUSTER),
            Request.flush(),
            Request.write(SPAN - 5, noise(CLUSTER, 32), fua=True),
            Request.write_zeroes(2 * SPAN, CLUSTER, unmap=True),
            Request.write(30 * CLUSTER, noise(CLUSTER, 33) + bytes(CLUSTER) + noise(9, 34)),
        ]
    )


def copying(actor: Actor) -> None:
    actor.copy_up(100, 2 * CLUSTER)
    actor.write(CLUSTER + 17, noise(100, 35))
    actor.flush()
    actor.copy_up(9 * CLUSTER, 20 * CLUSTER)
    actor.read(0, SIZE)


def zeroes(actor: Actor) -> None:
    actor.zero(0, 2 * CLUSTER)
    actor.zero(11 * CLUSTER + 17, 3 * CLUSTER)
    actor.zero(40 * CLUSTER, 3 * CLUSTER + 1)
    actor.zero(50 * CLUSTER, 2 * CLUSTER, allocate=True)
    actor.zero(SPAN - CLUSTER, 2 * CLUSTER, unmap=True)
    actor.zero(2 * SPAN, CLUSTER)
    actor.write(2 * SPAN + 100, noise(100, 24))


def discards(actor: Actor) -> None:
    actor.discard(0, 2 * CLUSTER)
    actor.discard(11 * CLUSTER + 3, 4 * CLUSTER)


def grow(actor: Actor) -> None:
    actor.resize(actor.model.size + SECTOR)
    actor.resize(actor.model.size + 2 * SPAN)
    actor.write(actor.model.size - 100, noise(100, 25))


def shrink(actor: Actor) -> None:
    actor.resize(SPAN + 2 * SECTOR)
    actor.resize(12 * CLUSTER + SECTOR)
    actor.resize(SPAN + SPAN // 2)


def repair_all(actor: Actor) -> None:
    actor.check(ALL)
    actor.write(60 * CLUSTER, noise(100, 26))


def repair_leaks(actor: Actor) -> None:
    actor.check(LEAKS)
    actor.write(60 * CLUSTER, noise(100, 27))


def change_backing(actor: Actor) -> None:
    actor.change_backing("other")
    actor.change_backing("a much longer name than before")
    actor.write(60 * CLUSTER, noise(100, 28))
    actor.change_backing("base")


def emptying(actor: Actor) -> None:
    actor.make_empty()
    actor.write(CLUSTER, noise(100, 29))


def open_and_write(actor: Actor) -> None:
    actor.write(70 * CLUSTER, noise(10, 30))


SCENARIOS: dict[str, tuple[Callable[[], World], Callable[[Actor], None]]] = {
    "first allocation": (empty_world, first_allocation),
    "new table": (used_world, new_table),
    "overlay": (overlay_world, overlay_partial),
    "used overlay": (used_overlay_world, overlay_partial),
    "batch": (used_world, batch),
    "batch on an overlay": (overlay_world, batch),
    "mixed batch": (used_world, mixed_batch),
    "mixed batch on an overlay": (used_overlay_world, mixed_batch),
    "copy on read": (overlay_world, copying),
    "copy on read of a used overlay": (used_overlay_world, copying),
    "zeroes": (used_world, zeroes),
    "zeroes on an overlay": (used_overlay_world, zeroes),
    "discard": (used_world, discards),
    "grow": (used_world, grow),
    "grow over a longer backing file": (long_backing_world, grow),
    "shrink": (used_world, shrink),
    "shrink an overlay": (used_overlay_world, shrink),
    "compact": (leaking_world, repair_leaks),
    "repair": (damaged_world, repair_all),
    "change of the backing file": (used_overlay_world, change_backing),
    "empty": (used_overlay_world, emptying),
    "dirty": (dirty_world, open_and_write),
    "new table on a dirty image": (dirty_world, new_table),
}


def injections(iotypes: frozenset[str], *, once: bool, progress: str) -> Iterator[InjectError]:
    for nth in count(1):
        yield InjectError(iotypes=iotypes, nth=nth, once=once, progress=progress)


def play(world: World, act: Callable[[Actor], None], rule: InjectError | None, where: str) -> Actor:
    actor = Actor(fresh_copy(world), rule, where)
    if actor.open():
        act(actor)
    actor.close()
    return actor


def fresh_copy(world: World) -> World:
    return World(world.overlay, world.base, world.model.overlay())


def examine(actor: Actor) -> None:
    """The image after a failure, on storage that works again."""
    found = check(actor.file)
    marked = bool(read_header(actor.file).features & F_NEED_CHECK)
    assert not found.check_errors, found.problems
    assert marked or not found.corruptions, found.problems
    # Opening mends what is wrong.
    backing = tree(actor.base) if actor.base is not None else None
    disk = open_disk(actor.file, backing=backing)
    try:
        models = [model for model in [actor.model, *actor.alternatives] if model.size == disk.size]
        assert models, f"{disk.size} bytes"
        for model in models[:-1]:
            try:
                model.check(disk)
            except AssertionError:
                continue
            break
        else:
            models[-1].check(disk)
    finally:
        disk.close()
    found = check(actor.file)
    assert read_header(actor.file).features & F_NEED_CHECK or not found.corruptions
    repaired = check(actor.file, ALL)
    assert not repaired.corruptions
    assert not repaired.leaks
    assert check(actor.file).clean


def enumerate_failures(
    name: str,
    iotypes: frozenset[str],
    *,
    once: bool,
    progress: str = "none",
    where: str = "overlay",
) -> None:
    make, act = SCENARIOS[name]
    world = make()
    for rule in injections(iotypes, once=once, progress=progress):
        actor = play(world, act, rule, where)
        assert actor.fault is not None
        try:
            if rule.seen < rule.nth:
                assert not actor.failures
                assert rule.nth > 1, "nothing was tried"
                return
            assert actor.failures or actor.told, "the failure was kept secret"
            examine(actor)
        except AssertionError as error:
            error.add_note(f"{name}: the request number {rule.nth} of {sorted(iotypes)} failed")
            raise
        assert rule.nth < RUNS_MAX


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_are_right_without_failures(name: str) -> None:
    make, act = SCENARIOS[name]
    actor = play(make(), act, None, "overlay")
    assert not actor.failures
    examine(actor)


@pytest.mark.parametrize("progress", ["none", "half", "all"])
@pytest.mark.parametrize("once", [True, False], ids=["once", "for good"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_change_fails(name: str, once: bool, progress: str) -> None:
    enumerate_failures(name, CHANGING, once=once, progress=progress)


@pytest.mark.parametrize("once", [True, False], ids=["once", "for good"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_read_fails(name: str, once: bool) -> None:
    enumerate_failures(name, frozenset({READ, BLOCK_STATUS}), once=once)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if "overlay" in name])
def test_every_read_of_the_backing_file_fails(name: str) -> None:
    enumerate_failures(name, frozenset({READ}), once=True, where="base")


@pytest.mark.parametrize("name", ["first allocation", "used overlay", "batch", "shrink", "compact"])
def test_every_flush_fails(name: str) -> None:
    """Alone, so that the number in a failure is that of the flush."""
    enumerate_failures(name, frozenset({FLUSH}), once=True)


# --- events ---

EVENTS = (
    *("l1_update", "l2_load", "l2_update", "need_check_set", "need_check_clear"),
    *("flush_to_os", "flush_to_disk", "read_aio", "write_aio", "cow_write", "read_backing_aio"),
)


def announced(name: str) -> set[str]:
    """Events of a scenario in which nothing fails."""
    make, act = SCENARIOS[name]
    actor = Actor(fresh_copy(make()), None, "overlay")
    recorder = actor.top = Recorder(actor.top, events=True)
    assert actor.open()
    act(actor)
    actor.close()
    return {r.verb.removeprefix("event:") for r in recorder.requests if r.verb.startswith("event:")}


def test_the_scenarios_meet_every_event() -> None:
    met = set().union(*map(announced, SCENARIOS))
    assert met == set(EVENTS)


def test_every_event_in_the_source_is_known() -> None:
    """To the fault filter, and to these tests."""
    package = Path(driver.__file__).parents[2]
    sources = [*package.glob("core/*.py"), *package.glob("formats/**/*.py")]
    text = "\n".join(source.read_text("utf-8") for source in sources)
    found = set(re.findall(r'(?:sink\(\s*\w+,|_announce\()\s*"(\w+)"', text))
    assert found | {"l1_update", "l2_update"} == set(EVENTS)
    assert found <= fault_rules.EVENTS
    assert found | {"l1_update", "l2_update"} == {*events.EVENTS["qed"]}
    assert {*events.EVENTS["raw"]} <= {*EVENTS}


@pytest.mark.parametrize("immediately", [True, False], ids=["at once", "at the request"])
@pytest.mark.parametrize("event", EVENTS)
def test_a_failure_at_every_event(event: str, immediately: bool) -> None:
    met = 0
    for name, (make, act) in SCENARIOS.items():
        for nth in count(1):
            rule = InjectError(event, once=True, immediately=immediately, nth=nth)
            if not immediately:
                # The n-th request after the event's first announcement.
                rule.iotypes = frozenset(IO_TYPES) - {BLOCK_STATUS}
            actor = play(make(), act, rule, "overlay")
            if rule.seen < nth or nth > 3:
                break
            met += 1
            assert actor.failures or actor.told, f"{name}: a failure was kept secret"
            examine(actor)
    assert met
