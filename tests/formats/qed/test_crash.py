# SPDX-License-Identifier: Apache-2.0
"""After any crash a QED image opens, holds what was promised, and repair makes it clean.

Every scenario is recorded once; then everything that a crash at any moment may leave is recovered
and compared. The proofs that this finds mistakes stand at the end.
"""

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence

import pytest

from blocklayer.base.errors import BlocklayerError, FormatError
from blocklayer.core.checking import Repair
from blocklayer.core.disk import Disk
from blocklayer.core.node import WritePlan
from blocklayer.core.opening import OpenFlags
from blocklayer.formats.qed import resize
from blocklayer.formats.qed.driver import QedNode
from blocklayer.formats.qed.header import write_header
from blocklayer.formats.qed.layout import F_NEED_CHECK
from blocklayer.ops import create as create_op
from blocklayer.testing.crash import CrashDisk, CrashState, Effort, SectorDisk, crash_states
from blocklayer.testing.crash_explore import Exploration, explore
from blocklayer.testing.crash_guest import Guest, read_content
from tests.conftest import COUNTED
from tests.formats.qed.crash_scenarios import GROUPS, PAIRS, SCENARIOS, Lab, run_pair

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
    return f"{geometry[0] // 1024}k×{geometry[1]}"


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
