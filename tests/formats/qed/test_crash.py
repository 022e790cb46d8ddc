# SPDX-License-Identifier: Apache-2.0
"""After any crash a QED image opens, holds what was promised, and repair makes it clean.

Every scenario is recorded once; then everything that a crash at any moment may leave is recovered
and compared. The proofs that this finds mistakes stand at the end.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from blocklayer.base.errors import FormatError
from blocklayer.core.checking import Repair
from blocklayer.core.disk import Disk
from blocklayer.core.node import Node, WritePlan
from blocklayer.core.opening import OpenFlags
from blocklayer.formats.qed import resize
from blocklayer.formats.qed.driver import QedNode
from blocklayer.formats.qed.layout import F_NEED_CHECK
from blocklayer.ops import create as create_op
from blocklayer.ops.commit import commit
from blocklayer.testing.crash import CrashDisk, SectorDisk, Snapshot
from blocklayer.testing.crash_content import Content, read_content
from blocklayer.testing.crash_explore import Exploration, explore
from blocklayer.testing.crash_guest import stamp
from blocklayer.testing.crash_states import CrashState, Effort, crash_states
from tests.conftest import COUNTED
from tests.formats.qed.crash_lab import Lab
from tests.formats.qed.crash_scenarios import (
    GROUPS,
    PAIRS,
    SCENARIOS,
    run_pair,
)

GEOMETRIES = ((4096, 1), (4096, 4), (65536, 1), (65536, 4))
"""Bytes in a cluster, clusters in a table."""

SMALL, LARGE = 4096, 65536

EFFORT = {
    SMALL: Effort(),
    LARGE: Effort(exhaustive=64, torn=8, samples=4, places=2),
}
"""Large clusters differ in torn pieces of data only, and are slower."""

FEW = Effort(exhaustive=64, torn=8, samples=4, places=2)
"""For what is repeated in many variants."""

LONG = Effort(exhaustive=4096, torn=4096, samples=400, places=32)

LEAST = {
    "allocating": {SMALL: 2500, LARGE: 400},
    "overlays": {SMALL: 4000, LARGE: 300},
    "placed": {SMALL: 20, LARGE: 10},
    "zeroes": {SMALL: 2500, LARGE: 200},
    "batches": {SMALL: 4000, LARGE: 300},
    "header": {SMALL: 6000, LARGE: 500},
    "dirty": {SMALL: 80, LARGE: 80},
    "repair": {SMALL: 1000, LARGE: 100},
    "failures": {SMALL: 3000, LARGE: 2000},
}
"""Different states that each group of scenarios has to lead to, with one geometry."""


def ids(geometry: tuple[int, int]) -> str:
    return f"{geometry[0] // 1024}kx{geometry[1]}"


def crash(lab: Lab, rng: random.Random, effort: Effort) -> Exploration:
    return explore(lab.storage, lab.guest, lab.open, rng, effort, damaged=lab.damaged)


def run(name: str, geometry: tuple[int, int], rng: random.Random, effort: Effort) -> Exploration:
    lab = Lab(*geometry)
    SCENARIOS[name](lab)
    return crash(lab, rng, effort)


class Tally:
    """Counts states and collects what went wrong."""

    def __init__(self) -> None:
        self.states = 0
        self.violations: list[str] = []

    def add(self, name: str, found: Exploration) -> None:
        self.states += found.states
        self.violations += [f"--- {name}: {violation}" for violation in found.violations]

    def settle(self, request: pytest.FixtureRequest, least: int) -> None:
        request.node.user_properties.append((COUNTED, self.states))
        assert not self.violations, "\n".join(["", *self.violations])
        assert self.states >= least


def test_enough_states_are_demanded() -> None:
    assert sum(sum(sizes.values()) * 2 for sizes in LEAST.values()) >= 30_000
    assert LEAST.keys() == GROUPS.keys()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=ids)
@pytest.mark.parametrize("group", GROUPS)
def test_crash_anywhere(
    group: str, geometry: tuple[int, int], rng: random.Random, request: pytest.FixtureRequest
) -> None:
    tally = Tally()
    effort = FEW if group == "failures" else EFFORT[geometry[0]]
    for name in GROUPS[group]:
        tally.add(name, run(name, geometry, rng, effort))
    tally.settle(request, LEAST[group][geometry[0]])


@pytest.mark.long
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=ids)
@pytest.mark.parametrize("name", SCENARIOS)
def test_crash_anywhere_with_more_effort(
    name: str, geometry: tuple[int, int], rng: random.Random, request: pytest.FixtureRequest
) -> None:
    tally = Tally()
    tally.add(name, run(name, geometry, rng, LONG))
    tally.settle(request, 1)


# --- two threads --------------------------------------------------------------------------------


def crash_in_pairs(
    name: str, geometry: tuple[int, int], rng: random.Random, effort: Effort
) -> Tally:
    """Stop the first thread before each of its operations in turn, and let the second run."""
    tally = Tally()
    pause, reached = 1, True
    while reached:
        lab = Lab(*geometry)
        reached = run_pair(lab, name, pause)
        tally.add(f"{name}, paused at {pause}", crash(lab, rng, effort))
        pause += 1
    assert pause > 5
    return tally


@pytest.mark.parametrize("name", PAIRS)
def test_crash_while_two_threads_write(
    name: str, rng: random.Random, request: pytest.FixtureRequest
) -> None:
    crash_in_pairs(name, (SMALL, 1), rng, FEW).settle(request, 100)


@pytest.mark.long
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=ids)
@pytest.mark.parametrize("name", PAIRS)
def test_crash_while_two_threads_write_with_more_effort(
    name: str, geometry: tuple[int, int], rng: random.Random, request: pytest.FixtureRequest
) -> None:
    crash_in_pairs(name, geometry, rng, LONG).settle(request, 100)


# --- a crash after a crash ----------------------------------------------------------------------


def sample(lab: Lab, rng: random.Random, count: int) -> Iterator[CrashState]:
    """Different states that a crash of this session may leave."""
    states = {state.snapshot.key: state for state in crash_states(lab.storage, Effort(), rng)}
    yield from rng.sample(list(states.values()), min(count, len(states)))


def second_life(lab: Lab, state: CrashState, *, repair: bool) -> Lab:
    """What is left after a crash is used again, or repaired, and crashes again."""
    again = Lab(lab.c, lab.table)
    again.backings = lab.backings
    again.image = state.snapshot
    guest = again.start()
    if repair:
        again.node.check(Repair(leaks=True, errors=True))
    for cluster in (0, 1, 3):
        again.write(cluster * again.c + 512, 512, f"again {cluster}")
    guest.flush()
    again.write(2 * again.c + 512, 512, "again 2")
    guest.close()
    return again


SECOND_LIVES = (
    "allocations_in_one_table",
    "allocations_without_flush",
    "overlay_over_shorter",
    "partial_trailing_cluster",
    "batch_over_backing",
    "failing_write_3_done",
    "repair_leaks",
    "open_dirty",
)


def crash_again(
    name: str, geometry: tuple[int, int], rng: random.Random, count: int, effort: Effort
) -> Tally:
    tally = Tally()
    lab = Lab(*geometry)
    SCENARIOS[name](lab)
    for state in sample(lab, rng, count):
        again = second_life(lab, state, repair=rng.random() < 0.5)
        tally.add(f"{name}, {state.describe(lab.storage.operations)}", crash(again, rng, effort))
    return tally


@pytest.mark.parametrize("name", SECOND_LIVES)
def test_crash_again(name: str, rng: random.Random, request: pytest.FixtureRequest) -> None:
    crash_again(name, (SMALL, 1), rng, 12, FEW).settle(request, 100)


@pytest.mark.long
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=ids)
@pytest.mark.parametrize("name", SECOND_LIVES)
def test_crash_again_with_more_effort(
    name: str, geometry: tuple[int, int], rng: random.Random, request: pytest.FixtureRequest
) -> None:
    crash_again(name, geometry, rng, 200, Effort()).settle(request, 1000)


# --- creation -----------------------------------------------------------------------------------


def old_image(cluster: int) -> SectorDisk:
    """An image with data in it, whose place is taken by a new one."""
    lab = Lab(cluster, 1)
    lab.create(5 * cluster)
    with lab.prepared() as disk:
        disk.write(0, b"old" * 1000)
        disk.write(3 * cluster, b"old" * 1000)
    return SectorDisk(lab.image)


def garbage() -> SectorDisk:
    disk = SectorDisk()
    disk.writev(0, [memoryview(bytes(range(1, 256)) * 257)])
    return disk


OCCUPIED: dict[str, Callable[[], SectorDisk]] = {
    "nothing": SectorDisk,
    "garbage": garbage,
    "image": lambda: old_image(4096),
    "image with other clusters": lambda: old_image(8192),
}


@pytest.mark.parametrize("backing", [None, "base", "b" * 3000], ids=["alone", "short", "long"])
@pytest.mark.parametrize("before", OCCUPIED)
def test_crash_while_creating(
    before: str,
    backing: str | None,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """What opens as QED is the new image as a whole, or the old one as it was."""
    old = OCCUPIED[before]()
    storage = CrashDisk(old.snapshot())
    monkeypatch.setattr(create_op, "_open_storage", lambda target, locking: storage)
    path = tmp_path / "disk.qed"
    path.touch()
    create_op.create(
        path,
        format="qed",
        size=8192,
        backing=backing,
        backing_format="raw",
        check_backing=False,
        cluster_size=4096,
        table_size=1,
    )
    storage.flush()
    new = QedNode(SectorDisk(storage.snapshot(), read_only=True), OpenFlags())
    complete = [read_content(new)]
    if "image" in before:
        complete.append(read_content(QedNode(old, OpenFlags())))
    tally = Tally()
    for state in crash_states(storage, Effort(), rng):
        tally.states += 1
        node_storage = SectorDisk(state.snapshot, read_only=True)
        try:
            node = QedNode(node_storage, OpenFlags())
        except FormatError:
            assert state.first < storage.moment
            continue
        sound = not node.check(Repair()).corruptions
        if not sound or read_content(node) not in complete:
            tally.violations.append(state.describe(storage.operations))
    tally.settle(request, 5)


# --- two images at once -------------------------------------------------------------------------


def chain(overlay: Node, base: Node, *, read_only: bool) -> QedNode:
    """An overlay over another image."""
    node = QedNode(overlay, OpenFlags(read_only=read_only))
    node.attach_backing(QedNode(base, OpenFlags()))
    node.activate()
    return node


def chain_content(overlay: Snapshot, base: Snapshot) -> Content:
    storages = (SectorDisk(image, read_only=True) for image in (overlay, base))
    return read_content(chain(*storages, read_only=True))


def recovered(image: Snapshot) -> Snapshot:
    """An image after it was opened for writing, and repaired."""
    storage = SectorDisk(image)
    node = QedNode(storage, OpenFlags(read_only=False))
    node.activate()
    assert not node.check(Repair()).corruptions
    assert node.check(Repair(leaks=True, errors=True)).clean
    node.close()
    return storage.snapshot()


def make_chain(cluster: int) -> tuple[Snapshot, Snapshot]:
    """An overlay and its smaller base: clusters in both, in one, in none."""
    lab = Lab(cluster, 1)
    lab.create(5 * cluster + 1024)
    with lab.prepared() as disk:
        disk.write(0, stamp("base", 0, 2 * cluster + 512))
    base = lab.image
    lab.create(8 * cluster, "base")
    storage = SectorDisk(lab.image)
    overlay = chain(storage, SectorDisk(base, read_only=True), read_only=False)
    with Disk(overlay) as disk:
        disk.write(cluster + 700, stamp("overlay", 0, 1000))
        disk.write_zeroes(2 * cluster, cluster)
        disk.write(4 * cluster + 512, stamp("overlay", 0, 512))
        disk.write(6 * cluster, stamp("overlay", 0, cluster))
    return storage.snapshot(), base


def test_crash_while_committing(rng: random.Random, request: pytest.FixtureRequest) -> None:
    """What the overlay reads as never changes: it is emptied when all is safe in the base."""
    overlay_image, base_image = make_chain(SMALL)
    overlay, base = CrashDisk(overlay_image, name="overlay"), CrashDisk(base_image, name="base")
    moments = []
    overlay.after = lambda operation: moments.append(base.moment)
    commit({"driver": "qed", "file": overlay, "backing": {"driver": "qed", "file": base}})
    safe = min(moments)
    assert all(operation.kind == "flush" for operation in base.operations[safe - 1 :])

    expected = chain_content(overlay_image, base_image)
    seen: set[int] = set()
    for state in crash_states(base, Effort(), rng):
        if state.snapshot.key not in seen:
            seen.add(state.snapshot.key)
            for left in (state.snapshot, recovered(state.snapshot)):
                problem = state.describe(base.operations)
                assert chain_content(overlay_image, left) == expected, problem
    for state in crash_states(overlay, Effort(), rng):
        if state.snapshot.key not in seen:
            seen.add(state.snapshot.key)
            for left in (state.snapshot, recovered(state.snapshot)):
                problem = state.describe(overlay.operations)
                assert chain_content(left, base.snapshot()) == expected, problem
    request.node.user_properties.append((COUNTED, len(seen)))
    assert len(seen) >= 500


# --- the only place where the promise is broken -------------------------------------------------


# --- the proofs bite ----------------------------------------------------------------------------

NEEDED = {
    "first_allocation": {1, 2},
    "entries_in_two_sectors": {0},
    "allocations_in_one_table": {1, 2, 3},
    "overlay_over_shorter": {0, 1, 2, 3, 4},
    "batch_in_two_new_tables": {0},
    "partial_trailing_cluster": {1, 2},
    "grow_over_longer_backing": {0, 1},
    "rename_backing": {0, 1},
    "remove_backing": {0, 1},
    "idle_between_allocations": {1, 4},
    "repair_shared_clusters": {0, 1},
    "repair_leaks": {1},
}
"""Flushes, by number, without which a crash breaks the promise."""


@pytest.mark.parametrize("name", NEEDED)
def test_a_flush_that_is_left_out_is_found(name: str, rng: random.Random) -> None:
    for number in NEEDED[name]:
        lab = Lab(SMALL, 1)
        lab.ignored_flushes = {number}
        SCENARIOS[name](lab)
        assert crash(lab, rng, FEW).violations, f"nobody misses flush {number}"


class NeverDirty(QedNode):
    """Allocates without a word in the header."""

    def _begin_allocation(self) -> None:
        self._uncommitted += 1


class CleanTooEarly(QedNode):
    """Says that all is well before what was written is there for certain."""

    def _clear_need_check(self) -> None:
        self._update_header(features=self.header.features & ~F_NEED_CHECK)
        self._marked_by_us = False
        self.file.flush()


class EntryBeforeTable(QedNode):
    """Points the L1 entry to a table that is written afterwards."""

    def _commit_new_tables(self, groups: dict[int, list[WritePlan]]) -> None:
        self.tables.write_l1_entry(next(iter(groups)), self.file_end)
        self.file.flush()
        super()._commit_new_tables(groups)


class EntryBeforeData(QedNode):
    """Makes clusters visible and then asks for the flush."""

    def _commit_to_table(self, l1_index: int, plans: list[WritePlan]) -> None:
        super()._commit_to_table(l1_index, plans)
        super().flush()

    def flush(self) -> None:
        if not self._lock.locked() and not self.committing:
            super().flush()

    def commit_writes(self, plans: Sequence[WritePlan]) -> None:
        self.committing = True
        try:
            super().commit_writes(plans)
        finally:
            self.committing = False

    committing = False


class NoCopyUp(QedNode):
    """Forgets what is below, around a partial write."""

    def plan_write(self, offset: int, length: int) -> WritePlan:
        plan = super().plan_write(offset, length)
        plan.copy_head = plan.copy_tail = False
        return plan


class TrimsWithoutFlush(QedNode):
    """Uses space behind a cut that is not certain yet."""

    def _allocate(self, length: int, *, extend: bool) -> tuple[int, bool]:
        host = self.file_end
        if self.file.size > host:
            self.file.truncate(host)
        self._cut = False
        return super()._allocate(length, extend=extend)


MUTANTS = (
    (NeverDirty, "allocations_in_one_table"),
    (NeverDirty, "entries_in_two_sectors"),
    (CleanTooEarly, "idle_between_allocations"),
    (EntryBeforeTable, "first_allocation"),
    (EntryBeforeTable, "overlay_with_second_table"),
    (EntryBeforeData, "overlay_over_equal"),
    (NoCopyUp, "overlay_over_equal"),
    (TrimsWithoutFlush, "partial_trailing_cluster"),
    (TrimsWithoutFlush, "failing_write_3_done"),
)


@pytest.mark.parametrize(("mutant", "name"), MUTANTS)
def test_a_wrong_order_is_found(mutant: type[QedNode], name: str, rng: random.Random) -> None:
    lab = Lab(SMALL, 1, mutant)
    SCENARIOS[name](lab)
    assert crash(lab, rng, FEW).violations


def _shrink_tables_first(node: QedNode, size: int) -> None:
    resize._clear_entries(node, node.geometry.cluster_up(size))
    node.file.flush()
    node.set_image_size(size)


def _grow_header_first(node: QedNode, size: int) -> None:
    old = node.size
    node.set_image_size(size)
    node.size = old
    _grow(node, size)


_grow = resize.grow


@pytest.mark.parametrize(
    ("function", "mutant", "name"),
    [
        ("shrink", _shrink_tables_first, "shrink"),
        ("grow", _grow_header_first, "grow_at_cluster_end"),
    ],
)
def test_a_wrong_order_of_resizing_is_found(
    function: str,
    mutant: Callable[[QedNode, int], None],
    name: str,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resize, function, mutant)
    lab = Lab(SMALL, 1)
    SCENARIOS[name](lab)
    assert crash(lab, rng, FEW).violations
