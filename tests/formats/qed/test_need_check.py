# SPDX-License-Identifier: Apache-2.0
"""The bit that says that the tables may be wrong: when it is set, when it goes, when it stays."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from blocklayer.base.errors import IoError
from blocklayer.base.units import MiB
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import FLUSH, WRITE, InjectError
from blocklayer.formats.qed import driver
from blocklayer.formats.qed.layout import F_BACKING_FILE, F_NEED_CHECK
from blocklayer.testing.recorder import Recorder
from tests.support.graphs import ALL, LEAKS, NO_REPAIR, memory, open_disk, tree
from tests.support.qed_image import CLUSTER, QedImage, qed
from tests.support.waiting import wait_until


@pytest.fixture
def image() -> QedImage:
    return QedImage(8 * MiB)


def marked(image: QedImage) -> bool:
    return bool(image.header.features & F_NEED_CHECK)


def damage(image: QedImage) -> None:
    """Two entries that share a cluster: opening does not mend that."""
    with image.open() as disk:
        disk.write(0, b"a" * 3 * CLUSTER)
    image.set_l2(CLUSTER, image.l2(0))
    image.set_header(features=F_NEED_CHECK)


# --- set and cleared ---


def test_the_first_allocation_sets_it_and_closing_clears_it(image: QedImage) -> None:
    with image.open() as disk:
        assert not marked(image)
        disk.read(0, MiB)
        disk.flush()
        assert not marked(image)
        disk.write(0, b"x")
        assert marked(image)
        assert qed(disk).info()["dirty-flag"] is True
        disk.flush()
        assert marked(image)
    assert not marked(image)
    with image.open() as disk:
        disk.write(0, b"in place")
        assert not marked(image)
        disk.write_zeroes(5 * CLUSTER, CLUSTER)
        assert marked(image)
    assert not marked(image)


def test_an_image_over_another_never_has_it(image: QedImage) -> None:
    overlay = QedImage(8 * MiB, backing_file="base", backing_fmt="qed")
    recorder = Recorder(overlay.node, events=True)
    with open_disk(recorder, backing=image.tree()) as disk:
        disk.write(0, b"x")
        disk.write(5 * MiB, b"x")
        disk.write_zeroes(CLUSTER, MiB)
        assert overlay.header.features == F_BACKING_FILE
    assert not [r for r in recorder.requests if "need_check" in r.verb]


def test_it_is_on_disk_before_anything_else_is(image: QedImage) -> None:
    recorder = Recorder(image.node, events=True)
    with open_disk(recorder) as disk:
        recorder.take()
        disk.write(0, b"x")
        verbs = [r.verb for r in recorder.take() if r.verb != "read"]
        assert verbs[:3] == ["event:need_check_set", "write", "flush"]
        disk.write(MiB, b"x")
        assert "event:need_check_set" not in [r.verb for r in recorder.take()]


def test_reading_only_leaves_a_dirty_image_alone(image: QedImage) -> None:
    with image.open() as disk:
        disk.write(0, b"x")
    image.set_header(features=F_NEED_CHECK)
    image.set_l2(CLUSTER, 5)
    before = image.content
    with image.open(read_only=True) as disk:
        assert disk.read(0, 1) == b"x"
        assert qed(disk).info()["dirty-flag"] is True
    assert image.check(NO_REPAIR).corruptions == 1
    assert image.content == before
    with image.open(read_only=True) as disk:
        disk.reopen("r+")
        assert not marked(image)
        assert image.l2(CLUSTER) == 0


def test_opening_a_dirty_image_mends_it(image: QedImage) -> None:
    with image.open() as disk:
        disk.write(0, b"x" * 3 * CLUSTER)
    size = image.node.size
    image.set_l2(CLUSTER, size + 5 * CLUSTER)
    image.set_l2(2 * CLUSTER, 12345)
    image.set_header(features=F_NEED_CHECK)
    with image.open() as disk:
        assert not marked(image)
        assert disk.read(0, 3 * CLUSTER) == b"x" * CLUSTER + bytes(2 * CLUSTER)
        # What the entries mapped may still be there.
        assert image.node.size >= size
    assert not image.check().corruptions


def test_opening_a_dirty_image_cuts_what_a_crash_left_behind_it(image: QedImage) -> None:
    with image.open() as disk:
        disk.write(0, b"x" * 3 * CLUSTER)
    size = image.node.size
    image.node.truncate(size + 7 * CLUSTER)
    image.set_header(features=F_NEED_CHECK)
    with image.open() as disk:
        assert not marked(image)
        assert disk.read(0, 3 * CLUSTER) == b"x" * 3 * CLUSTER
        assert image.node.size < size + 7 * CLUSTER
    assert image.check().clean


def test_an_image_that_cannot_be_checked_is_not_opened_for_writing(image: QedImage) -> None:
    """An entry that was not seen may point behind the end, where new clusters go."""
    with image.open() as disk:
        disk.write(0, b"x")
    image.set_header(features=F_NEED_CHECK)
    before = image.content
    rule = InjectError(event="none", iotypes=frozenset({"read"}), sector=image.l1(0) // 512)
    with pytest.raises(IoError, match="not closed cleanly, and checking it failed"):
        open_disk(FaultNode(image.node, [rule]))
    assert image.content == before
    with open_disk(FaultNode(image.node, [rule]), read_only=True) as disk:
        assert disk.size == 8 * MiB


# --- kept ---


def test_an_image_with_damage_left_keeps_it(
    image: QedImage, caplog: pytest.LogCaptureFixture
) -> None:
    damage(image)
    with image.open() as disk:
        assert "is damaged: 1 corruptions remain" in caplog.text
        assert marked(image)
        disk.write(MiB, b"more")
        disk.flush()
    assert marked(image)
    assert image.check(LEAKS).corruptions == 1
    assert marked(image)
    result = image.check(ALL)
    assert (result.corruptions, result.corruptions_fixed) == (0, 1)
    assert not marked(image)
    with image.open() as disk:
        disk.write(0, b"b")
        assert disk.read(CLUSTER, 1) == b"a"


def test_damage_that_is_found_later_marks_the_image_for_the_next_opening(image: QedImage) -> None:
    """The bit was set by an allocation; a check finds damage; closing must not clear the bit."""
    damage(image)
    image.set_header(features=0)
    with image.open() as disk:
        disk.write(MiB, b"allocates")
        assert qed(disk).check(LEAKS).corruptions == 1
    assert marked(image)


def test_an_update_that_failed_keeps_it(image: QedImage) -> None:
    rule = InjectError("l2_update", once=True, iotypes=frozenset({WRITE}))
    with open_disk(FaultNode(image.node, [rule])) as disk:
        with pytest.raises(IoError):
            disk.write(0, b"x")
        disk.write(0, b"y")
    assert marked(image)
    with image.open() as disk:
        assert not marked(image)
        assert disk.read(0, 1) == b"y"


def test_a_close_that_cannot_clear_it_says_so(image: QedImage) -> None:
    fault = FaultNode(image.node)
    disk = open_disk(fault)
    disk.write(0, b"x")
    fault.add_rule(InjectError(iotypes=frozenset({FLUSH})))
    with pytest.raises(IoError):
        disk.close()
    assert marked(image)
    with image.open() as disk:
        assert disk.read(0, 1) == b"x"


# --- idle ---


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> float:
    """A disk is idle after this time."""
    monkeypatch.setattr(driver, "NEED_CHECK_IDLE_SECONDS", 0.05)
    return 0.05


def test_the_time_is_that_of_the_field() -> None:
    assert driver.NEED_CHECK_IDLE_SECONDS == 5.0


def test_an_idle_disk_is_clean(image: QedImage, soon: float) -> None:
    recorder = Recorder(image.node, events=True)
    with open_disk(recorder) as disk:
        disk.write(0, b"x")
        recorder.take()
        wait_until(lambda: not marked(image))
        wait_until(lambda: len(recorder.requests) >= 4)
        verbs = [r.verb for r in recorder.take() if r.verb != "read"]
        assert verbs == ["flush", "event:need_check_clear", "write", "flush"]
        # And dirty again when it must be.
        disk.write(MiB, b"y")
        assert marked(image)
        wait_until(lambda: not marked(image))


def test_allocations_put_it_off(image: QedImage, soon: float) -> None:
    with image.open() as disk:
        for turn in range(20):
            disk.write(turn * CLUSTER, b"x")
            assert marked(image)
            time.sleep(soon / 5)
        wait_until(lambda: not marked(image))


def test_an_allocation_that_takes_long_is_not_idleness(image: QedImage, soon: float) -> None:
    fault = FaultNode(image.node)
    with open_disk(fault) as disk:
        disk.write(0, b"x")
        fault.add_break("write_aio", "slow")
        writer = threading.Thread(target=disk.write, args=(MiB, b"y"))
        writer.start()
        assert fault.wait_break("slow", 10)
        time.sleep(4 * soon)
        assert marked(image)
        fault.resume("slow")
        writer.join()
        wait_until(lambda: not marked(image))


def test_a_damaged_disk_is_never_idle(image: QedImage, soon: float) -> None:
    damage(image)
    with image.open() as disk:
        disk.write(MiB, b"x")
        time.sleep(4 * soon)
        assert marked(image)


def test_idleness_that_fails_is_reported_by_the_next_flush(image: QedImage, soon: float) -> None:
    fault = FaultNode(image.node)
    disk = open_disk(fault)
    disk.write(0, b"x")
    rule = InjectError(iotypes=frozenset({FLUSH}))
    fault.add_rule(rule)
    wait_until(lambda: rule.seen > 0)
    assert marked(image)
    with pytest.raises(IoError):
        disk.flush()
    fault.clear_rules()
    disk.write(MiB, b"y")
    disk.close()
    # It may be set for nothing, but it is not cleared for nothing.
    with image.open() as disk:
        assert disk.read(MiB, 1) == b"y"


def test_reopening_and_closing_end_the_timer(image: QedImage) -> None:
    before = set(threading.enumerate())

    def ours() -> set[threading.Thread]:
        """Threads of earlier tests may end meanwhile."""
        return set(threading.enumerate()) - before

    with image.open() as disk:
        disk.write(0, b"x")
        assert len(ours()) == 1
        disk.reopen("r")
        assert not marked(image)
        wait_until(lambda: not ours())
        disk.reopen("r+")
        disk.write(MiB, b"x")
        assert marked(image)
    wait_until(lambda: not ours())


def test_the_timer_does_not_keep_a_forgotten_disk_alive(image: QedImage) -> None:
    def forget() -> None:
        open_disk(image.node).write(0, b"x")
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed disk"):
        forget()
    assert not marked(image)


def test_a_chain_has_no_timers_below_its_top(image: QedImage, soon: float) -> None:
    below = memory("below", MiB)
    overlay = QedImage(MiB, backing_file="below", backing_fmt="raw")
    before = set(threading.enumerate())
    with overlay.open(tree(below, "raw")) as disk:
        disk.write(0, b"x")
        assert set(threading.enumerate()) <= before
