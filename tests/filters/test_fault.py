# SPDX-License-Identifier: Apache-2.0
"""The fault filter: rules on requests and events, and requests that wait."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import (
    BlocklayerError,
    InvalidArgument,
    IoError,
    NotSupported,
    OpenError,
)
from blocklayer.base.units import SECTOR, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.node import NO_FALLBACK
from blocklayer.core.opening import Opener, OpenFlags
from blocklayer.core.padding import Padded
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import (
    BLOCK_STATUS,
    DISCARD,
    EVENTS,
    FLUSH,
    IO_TYPES,
    READ,
    TRUNCATE,
    WRITE,
    WRITE_ZEROES,
    InjectError,
    SetState,
    parse_rules,
)
from blocklayer.testing.recorder import Recorder
from tests.support.crew import in_thread
from tests.support.graphs import memory, open_disk, snapshot
from tests.support.qed_image import CLUSTER, QedImage

SIZE = MiB


def attempt(action: Callable[[], object]) -> int:
    """The errno of an action, 0 if it works."""
    try:
        action()
    except BlocklayerError as error:
        return error.errno
    return 0


def requests(fault: FaultNode) -> dict[str, Callable[[], object]]:
    """One request of each type."""
    return {
        READ: lambda: fault.readv(0, [memoryview(bytearray(SECTOR))]),
        WRITE: lambda: fault.writev(0, [memoryview(bytes(SECTOR))]),
        WRITE_ZEROES: lambda: fault.zero(0, SECTOR),
        DISCARD: lambda: fault.discard(0, SECTOR),
        FLUSH: fault.flush,
        BLOCK_STATUS: lambda: fault.map(0, SECTOR),
        TRUNCATE: lambda: fault.truncate(SIZE),
    }


def write(fault: FaultNode, sector: int = 0, sectors: int = 1) -> int:
    data = memoryview(b"x" * (sectors * SECTOR))
    return attempt(lambda: fault.writev(sector * SECTOR, [data]))


@pytest.fixture
def fault() -> FaultNode:
    return FaultNode(memory(size=SIZE))


# --- requests ---


def test_without_rules_everything_passes_and_is_counted(fault: FaultNode) -> None:
    for action in requests(fault).values():
        action()
    assert fault.requests == dict.fromkeys(IO_TYPES, 1)
    assert fault.size == SIZE
    assert fault.grows_zeroed


@pytest.mark.parametrize("iotype", IO_TYPES)
def test_a_rule_for_one_type(fault: FaultNode, iotype: str) -> None:
    fault.add_rule(InjectError(iotypes=frozenset({iotype}), errno=errno.ENOSPC))
    for name, action in requests(fault).items():
        assert attempt(action) == (errno.ENOSPC if name == iotype else 0), name


def test_a_rule_that_names_no_type_is_about_moving_data(fault: FaultNode) -> None:
    fault.add_rule(InjectError())
    failed = {name for name, action in requests(fault).items() if attempt(action) == errno.EIO}
    assert failed == {READ, WRITE, WRITE_ZEROES, DISCARD, FLUSH}


def test_the_error_says_where(fault: FaultNode) -> None:
    fault.add_rule(InjectError(errno=errno.ENOSPC))
    with pytest.raises(IoError) as caught:
        fault.writev(SECTOR, [memoryview(bytes(10)), memoryview(bytes(20))])
    error = caught.value
    assert (error.operation, error.offset, error.length) == ("write", SECTOR, 30)
    assert error.reason == "No space left on device"


def test_not_supported_is_said_as_drivers_say_it(fault: FaultNode) -> None:
    """So that falling back can be tested."""
    fault.add_rule(InjectError(errno=errno.ENOTSUP, iotypes=frozenset({WRITE_ZEROES})))
    with pytest.raises(NotSupported):
        fault.zero(0, SECTOR, NO_FALLBACK)


@pytest.mark.parametrize(
    ("sector", "sectors", "fails"), [(0, 3, False), (0, 4, True), (3, 1, True), (4, 9, False)]
)
def test_a_sector(fault: FaultNode, sector: int, sectors: int, fails: bool) -> None:
    fault.add_rule(InjectError(sector=3))
    assert bool(write(fault, sector, sectors)) == fails
    assert attempt(fault.flush) == 0


@pytest.mark.parametrize(
    ("offset", "length", "fails"),
    [(1535, 1, False), (1535, 2, True), (1600, 10, True), (2047, 1, True), (2048, 1, False)],
)
def test_a_part_of_a_sector(fault: FaultNode, offset: int, length: int, fails: bool) -> None:
    """A sector that is bad is bad wherever in it a request begins."""
    fault.add_rule(InjectError(sector=3))
    data = memoryview(bytes(length))
    assert bool(attempt(lambda: fault.writev(offset, [data]))) == fails


def test_the_first_sector_is_not_that_of_a_flush(fault: FaultNode) -> None:
    fault.add_rule(InjectError(sector=0))
    assert attempt(fault.flush) == 0
    assert write(fault) == errno.EIO


def test_once(fault: FaultNode) -> None:
    fault.add_rule(InjectError(once=True, iotypes=frozenset({WRITE})))
    assert attempt(fault.flush) == 0
    assert [write(fault), write(fault)] == [errno.EIO, 0]


@pytest.mark.parametrize("once", [True, False])
def test_the_nth(fault: FaultNode, once: bool) -> None:
    fault.add_rule(InjectError(nth=3, once=once, iotypes=frozenset({WRITE, FLUSH})))
    fails = [bool(write(fault)), bool(attempt(fault.flush)), *(bool(write(fault)) for _ in "123")]
    assert fails == [False, False, True, not once, not once]


@pytest.mark.parametrize(
    ("progress", "expected"), [("none", 0), ("half", 4 * SECTOR), ("all", 8 * SECTOR)]
)
def test_how_much_of_a_failed_write_happens(fault: FaultNode, progress: str, expected: int) -> None:
    fault.add_rule(InjectError(progress=progress))
    assert write(fault, 0, 8) == errno.EIO
    assert snapshot(fault.child)[: 9 * SECTOR] == b"x" * expected + bytes(9 * SECTOR - expected)


def test_half_of_a_write_ends_with_a_sector(fault: FaultNode) -> None:
    fault.add_rule(InjectError(progress="half"))
    for offset, length in ((100, 1000), (0, 600), (511, 2), (700, 100)):
        attempt(lambda at=offset, n=length: fault.writev(at, [memoryview(b"x" * n)]))  # type: ignore[misc]
        content = snapshot(fault.child)
        assert content[offset - 1 : offset] in (b"", b"\0", b"x")
        done = len(content[: content.rfind(b"x") + 1])
        assert done % SECTOR == 0
        fault.child.zero(0, SIZE)


def test_zeroing_and_resizing_may_happen_all_the_same(fault: FaultNode) -> None:
    write(fault)
    types = frozenset({WRITE_ZEROES, TRUNCATE})
    fault.add_rule(InjectError(iotypes=types, progress="all"))
    assert attempt(lambda: fault.zero(0, SECTOR))
    assert attempt(lambda: fault.truncate(3 * SECTOR))
    assert snapshot(fault.child) == bytes(3 * SECTOR)


def test_rules_can_be_taken_away(fault: FaultNode) -> None:
    fault.add_rule(InjectError())
    assert write(fault)
    fault.clear_rules()
    assert not write(fault)


# --- events ---


def announce(fault: FaultNode, event: str) -> None:
    fault.on_event(fault, event, {})


def test_an_event_makes_the_next_requests_fail(fault: FaultNode) -> None:
    fault.add_rule(InjectError("l2_update", iotypes=frozenset({WRITE})))
    assert not write(fault)
    announce(fault, "l1_update")
    assert not write(fault)
    announce(fault, "l2_update")
    assert not attempt(fault.flush)
    assert write(fault)
    assert write(fault)


def test_another_event_s_rules_replace_those_of_the_first(fault: FaultNode) -> None:
    fault.add_rule(InjectError("l2_update", errno=errno.EIO))
    fault.add_rule(InjectError("l1_update", errno=errno.ENOSPC, once=True))
    announce(fault, "l2_update")
    announce(fault, "cow_read")
    assert write(fault) == errno.EIO
    announce(fault, "l1_update")
    assert write(fault) == errno.ENOSPC
    assert write(fault) == 0


def test_at_the_event_itself(fault: FaultNode) -> None:
    fault.add_rule(InjectError("l2_update", immediately=True, once=True, nth=2))
    announce(fault, "l2_update")
    with pytest.raises(IoError, match="l2_update"):
        announce(fault, "l2_update")
    announce(fault, "l2_update")
    assert not write(fault)


def test_writes_announce_themselves(fault: FaultNode) -> None:
    for event, action in (
        ("pwritev", lambda: fault.writev(0, [memoryview(bytes(1))])),
        ("pwritev_zero", lambda: fault.zero(0, 1)),
        ("pwritev_done", fault.flush),
    ):
        fault.add_rule(InjectError(event, once=True))
        if event == "pwritev_done":
            assert not write(fault)
        assert attempt(action), event


def test_an_error_of_0_lets_a_request_pass(fault: FaultNode) -> None:
    fault.add_rule(InjectError(errno=0, sector=1))
    fault.add_rule(InjectError())
    assert write(fault, 1) == 0
    assert write(fault, 0) == errno.EIO


def test_states(fault: FaultNode) -> None:
    """The second write, and only it."""
    fault.add_rule(SetState("pwritev", state=1, new_state=2))
    fault.add_rule(InjectError("pwritev", state=2, once=True))
    assert [write(fault), write(fault), write(fault)] == [0, errno.EIO, 0]
    assert fault.state == 2


def test_an_event_sees_the_state_in_which_it_came(fault: FaultNode) -> None:
    for state in (1, 2, 3):
        fault.add_rule(SetState("flush_to_disk", state=state, new_state=state + 1))
    fault.add_rule(InjectError(state=3))
    results = []
    for _ in range(3):
        announce(fault, "flush_to_disk")
        results.append(bool(write(fault)))
    assert results == [False, True, False]


def test_events_reach_a_stack_of_filters() -> None:
    """From the format through what stands between: recorder, padding, another fault filter."""
    image = QedImage(MiB)
    lower = FaultNode(image.node, [InjectError("l2_update", once=True)])
    upper = FaultNode(lower)
    upper.limits.request_alignment = 512
    with open_disk(Recorder(Padded(upper))) as disk:
        assert attempt(lambda: disk.write(0, b"x")) == errno.EIO
        disk.write(0, b"y")
        assert disk.read(0, 1) == b"y"


def test_a_read_that_padding_needs_fails_the_write() -> None:
    for event in ("pwritev_rmw_head", "pwritev_rmw_tail"):
        fault = FaultNode(memory(size=SIZE), [InjectError(event, iotypes=frozenset({READ}))])
        fault.limits.request_alignment = 4096
        padded = Padded(fault)
        data = memoryview(b"x" * 5000)
        offset = 100 if event.endswith("head") else 0
        with pytest.raises(IoError, match="read failed"):
            padded.writev(offset, [data])
        assert snapshot(fault.child) == bytes(SIZE)


# --- break points ---


def test_a_request_waits_until_it_is_resumed(fault: FaultNode) -> None:
    fault.add_break("pwritev", "A")
    thread = in_thread(lambda: write(fault))
    assert fault.wait_break("A", 10)
    assert fault.is_suspended("A")
    assert snapshot(fault.child)[0] == 0
    assert not write(fault, 1)  # one break point, one request
    fault.resume("A")
    thread.join(10)
    assert not thread.is_alive()
    assert not fault.is_suspended("A")
    assert snapshot(fault.child)[0] == ord("x")


def test_one_tag_for_several(fault: FaultNode) -> None:
    fault.add_break("pwritev", "A")
    fault.add_break("pwritev_zero", "A")
    threads = [in_thread(lambda: write(fault)), in_thread(lambda: fault.zero(0, 1))]
    while fault.requests or len(fault._suspended) < 2:
        threading.Event().wait(0.001)
    fault.resume("A")
    assert fault.is_suspended("A")
    fault.resume("A")
    for thread in threads:
        thread.join(10)
    assert not fault.is_suspended("A")


def test_removing_a_break_point(fault: FaultNode) -> None:
    fault.add_break("pwritev", "A")
    fault.remove_break("A")
    assert not write(fault)
    fault.add_break("pwritev", "B")
    thread = in_thread(lambda: write(fault))
    assert fault.wait_break("B", 10)
    fault.remove_break("B")
    thread.join(10)
    assert not thread.is_alive()


def test_break_points_that_are_not_there(fault: FaultNode) -> None:
    with pytest.raises(InvalidArgument, match="no event 'nonsense'"):
        fault.add_break("nonsense", "A")
    for action in (fault.resume, fault.remove_break):
        with pytest.raises(InvalidArgument, match="the tag 'A'"):
            action("A")
    assert not fault.wait_break("A", 0)
    assert not fault.is_suspended("A")


def test_an_allocation_can_be_held_at_its_table(fault: FaultNode) -> None:
    """Two requests in an order that is chosen: what break points are for."""
    image = QedImage(MiB)
    fault = FaultNode(image.node)
    with open_disk(fault) as disk:
        disk.write(5 * CLUSTER, b"x")
        fault.add_break("l2_update", "A")
        thread = in_thread(lambda: disk.write(0, b"slow"))
        assert fault.wait_break("A", 10)
        assert disk.read(0, 4) == bytes(4)
        fault.resume("A")
        thread.join(10)
        assert disk.read(0, 4) == b"slow"


# --- options ---


def parsed(**options: Any) -> list[Any]:
    left = {name.replace("_", "-"): value for name, value in options.items()}
    rules = parse_rules(left)
    assert not left
    return rules


def test_rules_from_options() -> None:
    rules = parsed(
        inject_error=[
            {"event": "read_aio", "errno": 28, "sector": 7, "once": True, "state": 2},
            {"event": "none", "iotype": "flush", "immediately": "on", "nth": 4},
            {"iotype": "write", "progress": "half", "sector": -1},
        ],
        set_state=[{"event": "l2_load", "state": 1, "new_state": 5}],
    )
    first, second, third, last = rules
    assert (first.event, first.errno, first.sector, first.once, first.state) == (
        *("read_aio", 28, 7, True, 2),
    )
    assert (second.event, second.iotypes, second.immediately, second.nth) == (
        *("none", {"flush"}, True, 4),
    )
    assert (third.iotypes, third.progress, third.sector) == ({"write"}, "half", None)
    assert (last.event, last.state, last.new_state) == ("l2_load", 1, 5)


def test_rules_from_a_command_line() -> None:
    """Where lists are numbers as keys, and everything is text."""
    inject = {"1": {"event": "l1_update"}, "0": {"event": "l2_update", "errno": "0x1c", "nth": "2"}}
    one, two = parsed(inject_error=inject)
    assert (one.event, one.errno, one.nth, two.event) == ("l2_update", 28, 2, "l1_update")


def test_rules_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text(
        '# a comment\n[inject-error]\nevent = "l2_update"\nerrno = "28"\nonce = "on"\n\n'
        '[set-state]\n  event = "pwritev"\nstate="1"\nnew_state = "2"\n'
        '[inject-error]\nevent = "cow_read"\n'
    )
    one, two, three = parsed(config=str(path))
    assert (one.event, one.errno, one.once) == ("l2_update", 28, True)
    assert (two.event, three.event, three.new_state) == ("cow_read", "pwritev", 2)


@pytest.mark.parametrize("text", ["event = x", "[inject-error]\nevent = x", "[other]\n", "\xff"])
def test_files_that_are_wrong(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidArgument):
        parsed(config=str(path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inject-error": [{"event": "nonsense"}]}, "no event 'nonsense'"),
        ({"set-state": [{"event": "nonsense", "new_state": 1}]}, "no event 'nonsense'"),
        ({"inject-error": [{"iotype": "nonsense"}]}, "no I/O type 'nonsense'"),
        ({"inject-error": [{"sektor": 1}]}, "Invalid parameter 'sektor'"),
        ({"inject-error": [{"errno": "many"}]}, "'errno' expects a number"),
        ({"inject-error": [{"errno": -5}]}, "not negative"),
        ({"inject-error": [{"nth": 0}]}, "counts from 1"),
        ({"inject-error": [{"once": "perhaps"}]}, "expects 'on' or 'off'"),
        ({"inject-error": [{"progress": "most"}]}, "Invalid progress 'most'"),
        ({"inject-error": "all"}, "expected: array"),
        ({"inject-error": [1]}, "expected: array"),
        ({"config": "missing/file"}, "Could not read"),
        ({"align": 1000}, "Cannot meet constraints with align 1000"),
        ({"align": 4096, "max-transfer": 512}, "Cannot meet constraints"),
        ({"colour": "red"}, "Invalid parameter 'colour'"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes(SIZE))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InvalidArgument, match=words):
        Opener(OpenFlags(read_only=False)).open_options(
            {"driver": "blkdebug", "image": str(path), **options}
        )
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_a_child() -> None:
    with pytest.raises(InvalidArgument, match='must be specified for "file"'):
        Opener(OpenFlags()).open_options({"driver": "fault"})


@pytest.mark.parametrize(("driver", "role"), [("blkdebug", "image"), ("fault", "file")])
def test_by_name(tmp_path: Path, driver: str, role: str) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes(SIZE))
    options = {
        "driver": "raw",
        "file": {
            "driver": driver,
            role: {"driver": "file", "filename": str(path)},
            "inject-error": [{"event": "write_aio", "sector": 2, "errno": 28, "once": True}],
        },
    }
    with blocklayer.open("json:" + json.dumps(options), mode="r+") as disk:
        disk.write(0, b"fine")
        with pytest.raises(IoError, match="No space left on device"):
            disk.write(2 * SECTOR, b"not")
        disk.write(2 * SECTOR, b"again")
        assert disk.read(2 * SECTOR, 5) == b"again"


def test_a_failure_while_opening_is_an_open_error(tmp_path: Path) -> None:
    path = tmp_path / "image.qed"
    blocklayer.create(path, format="qed", size=SIZE)
    tree = {"driver": "qed", "file": {"driver": "fault", "file": str(path)}}
    tree["file"]["inject-error"] = [{"iotype": "read"}]  # type: ignore[index]
    with pytest.raises(OpenError, match="Failed to read QED header"):
        blocklayer.open(tree)


def test_limits_are_kept_by_those_above() -> None:
    recorder = Recorder(memory(size=SIZE))
    options = {"driver": "fault", "file": recorder, "align": 4096, "max-transfer": 8192}
    disk = Disk(Opener(OpenFlags(read_only=False)).open_options(options))
    disk.write(5000, b"x" * 20000)
    assert disk.read(4999, 20002) == b"\0" + b"x" * 20000 + b"\0"
    for verb, offset, length in recorder.take("read", "write"):
        assert not offset % 4096, verb
        assert 0 < length <= 8192
        assert not length % 4096
    disk.close()


def test_events_have_the_field_s_names() -> None:
    assert {"none", "l1_update", "pwritev_rmw_after_tail", "cluster_alloc_space"} <= EVENTS
    assert len(EVENTS) == 48 + 2
