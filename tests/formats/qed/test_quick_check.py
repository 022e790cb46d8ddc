# SPDX-License-Identifier: Apache-2.0
"""The quick look at a whole image: it agrees with the careful check, or says nothing."""

from __future__ import annotations

import random
import sys
import threading
from array import array

import pytest

from blocklayer.base.errors import Cancelled, IoError
from blocklayer.base.progress import CancelToken, Progress, Watch
from blocklayer.base.units import KiB, MiB
from blocklayer.core.checking import CheckResult
from blocklayer.core.node import Node
from blocklayer.formats.qed import quick_check, tally
from blocklayer.formats.qed.careful_check import Checker
from blocklayer.formats.qed.header import read_bytes
from blocklayer.formats.qed.quick_check import look
from tests.support.graphs import NO_REPAIR
from tests.support.qed_image import CLUSTER, QedImage, qed

SIZE = 5 * MiB + 3 * KiB
SPAN = 2 * MiB
"""Guest bytes that a table of one cluster maps."""


@pytest.fixture(params=["lanes", "array"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of counting, in chunks of less than a table."""
    if request.param == "array":
        pytest.importorskip("numpy")
    worth = 0 if request.param == "array" else 1 << 62
    monkeypatch.setattr(tally, "ARRAY_WORTH_CLUSTERS", worth)
    for each in (tally.LaneTally, tally.ArrayTally):
        monkeypatch.setattr(each, "chunk_bytes", 2 * KiB)
    return str(request.param)


def used_image(rng: random.Random) -> QedImage:
    image = QedImage(SIZE)
    with image.open() as disk:
        for _ in range(rng.randrange(1, 40)):
            offset = rng.randrange(0, SIZE // CLUSTER) * CLUSTER
            length = min(SIZE - offset, rng.randrange(1, 9) * CLUSTER)
            if rng.random() < 0.2:
                disk.write_zeroes(offset, length)
            else:
                disk.write(offset, b"x" * length)
    return image


def both(image: QedImage) -> tuple[CheckResult | None, CheckResult]:
    """What the quick look says, and the careful check."""
    with image.open(read_only=True) as disk:
        node = qed(disk)
        checker = Checker(node, NO_REPAIR)
        careful = checker.scan()
        checker.count_leaks()
        return look(node), careful


def assert_agree(image: QedImage) -> bool:
    """They say the same, or the quick look says nothing; whether it says something."""
    quick, careful = both(image)
    if quick is not None:
        assert careful.clean
        assert quick == careful
    return quick is not None


def test_flawless_images(kind: str, rng: random.Random) -> None:
    for _ in range(60):
        assert assert_agree(used_image(rng))


def entries_worth_trying(image: QedImage, rng: random.Random) -> list[int]:
    end = len(image.content)
    some = image.l1(rng.randrange(3) * SPAN)
    inside = rng.randrange(0, end // CLUSTER) * CLUSTER
    return [0, 1, 2, CLUSTER - 1, CLUSTER, some, inside, inside + 512, end, end - CLUSTER, 2**63]


def test_damaged_images(kind: str, rng: random.Random) -> None:
    """Each wrong entry is seen, and none is seen where there is none."""
    flawless = 0
    for _ in range(300):
        image = used_image(rng)
        for _ in range(rng.randrange(1, 3)):
            guest = rng.randrange(0, 3 * SPAN // CLUSTER) * CLUSTER
            value = rng.choice(entries_worth_trying(image, rng))
            if rng.random() < 0.3 or not image.l1(guest):
                image.set_l1(guest, value)
            elif image.l1(guest) % CLUSTER == 0 and image.l1(guest) < len(image.content):
                image.set_l2(guest, value)
        flawless += assert_agree(image)
    assert 3 < flawless < 250


def test_clusters_behind_the_end_of_the_disk(kind: str) -> None:
    image = used_image(random.Random(1))
    with image.open() as disk:
        disk.write(SIZE - 1, b"x")
    image.set_header(image_size=SIZE - 2 * CLUSTER)
    assert not assert_agree(image)


def test_a_file_of_absurd_length_is_left_to_the_careful_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = used_image(random.Random(1))
    monkeypatch.setattr(quick_check, "CLUSTERS_MAX", 2)
    assert both(image)[0] is None


def test_numpy_is_used_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    large = 1 << 22
    for few in (100, 1 << 20):  # importing numpy would take longer than all the rest
        assert isinstance(tally.make_tally(few, CLUSTER), tally.LaneTally)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "numpy", None)
        assert isinstance(tally.make_tally(large, CLUSTER), tally.LaneTally)
    pytest.importorskip("numpy")
    assert isinstance(tally.make_tally(large, CLUSTER), tally.ArrayTally)
    assert isinstance(tally.make_tally(1 << 31, CLUSTER), tally.LaneTally)


# --- single bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster_size", [4 * KiB, 64 * KiB, 128 * KiB], ids=str)
def test_every_bit_of_an_entry_matters(kind: str, cluster_size: int, rng: random.Random) -> None:
    """Numbers are taken out of entries in several ways: none overlooks a bit."""
    size = 40 * cluster_size
    image = QedImage(size, cluster_size=cluster_size)
    with image.open() as disk:
        for index in rng.sample(range(40), 9):
            disk.write(index * cluster_size, b"x")
        disk.write_zeroes(3 * cluster_size, cluster_size)
    table = image.l1(0)
    used = [index for index in range(40) if image.l2(index * cluster_size) > 1]
    zero = 3
    assert assert_agree(image)
    for index in (used[0], used[-1], zero, 39):
        guest = index * cluster_size
        right = image.l2(guest)
        for bit in range(64):
            image.set_l2(guest, right ^ 1 << bit)
            # Only an entry of nothing can become one of a zero cluster, and the other way round.
            harmless = right in (0, 1) and bit == 0
            assert assert_agree(image) is harmless, (index, bit)
        image.set_l2(guest, right)
    assert table == image.l1(0)
    assert assert_agree(image)


# --- counting -----------------------------------------------------------------------------------


def expected_count(
    tables: list[list[int]], clusters: int, cluster_size: int
) -> tuple[int, int, int] | None:
    """Allocated, fragmented and different clusters, one entry after the other; None: a doubt."""
    allocated = fragmented = 0
    different = {0}
    for entries in tables:
        last = None
        for entry in entries:
            if entry in (0, 1):
                continue
            number, rest = divmod(entry, cluster_size)
            if rest or number >= clusters:
                return None
            allocated += 1
            fragmented += last is not None and number != last + 1
            different.add(number)
            last = number
    return allocated, fragmented, len(different)


def count_with(
    counter: tally.Tally, tables: list[list[int]], chunk: int
) -> tuple[int, int, int] | None:
    counter.add_run(0, 1)
    try:
        for entries in tables:
            last = tally.NONE
            for start in range(0, len(entries), chunk):
                data = bytearray(array("Q", entries[start : start + chunk]).tobytes())
                last = counter.add_entries(data, last)
        return counter.allocated, counter.fragmented, counter.distinct
    except tally.Doubt:
        return None


def random_table(rng: random.Random, lanes: int, clusters: int, cluster_size: int) -> list[int]:
    """Runs, holes of any length, and clusters here and there."""
    entries: list[int] = []
    while len(entries) < lanes:
        choice = rng.random()
        if choice < 0.4:
            first = rng.choice((1, rng.randrange(1, clusters), clusters - 1))
            run = min(rng.choice((1, 1, 2, 9)), clusters - first)
            for number in range(first, first + run):
                entries += [number * cluster_size] + [0] * rng.choice((0, 0, 0, 1, 2))
        elif choice < 0.9:
            entries += [0] * rng.choice((1, 1, 2, 3, 4, 6, 7, 8, 9, 16, 40))
        elif choice < 0.95:
            entries += [1] * rng.choice((1, 1, 3))
        else:
            # What looks like the number before it, or after it, but is none.
            entries += [cluster_size, 2 * cluster_size]
    return entries[:lanes]


def damaged(rng: random.Random, tables: list[list[int]], clusters: int, cluster_size: int) -> None:
    entries = rng.choice(tables)
    index = rng.randrange(len(entries))
    entries[index] = rng.choice(
        (
            entries[index] ^ 1 << rng.randrange(64),
            clusters * cluster_size,
            (clusters - 1) * cluster_size,
            ((1 << 31) - 1) * cluster_size % (1 << 64),
            ((1 << 31) - 2) * cluster_size % (1 << 64),
            (1 << 64) - cluster_size,
            (1 << 64) - 1,
            2,
        )
    )


@pytest.mark.parametrize("cluster_bits", [12, 13, 16, 17, 24, 26])
@pytest.mark.parametrize("counting", ["lanes", "array"])
def test_counting(counting: str, cluster_bits: int, rng: random.Random) -> None:
    """As one entry after the other is counted, whatever the entries and wherever they are cut."""
    if counting == "array":
        pytest.importorskip("numpy")
    cluster_size = 1 << cluster_bits
    agreed = doubts = 0
    for _ in range(250):
        most = (tally.CLUSTERS_MAX, 2000, 30, 3)[1 if counting == "array" else 0 :]
        clusters = rng.choice(most)
        lanes = rng.choice((1, 2, 8, 60, 200))
        tables = [random_table(rng, lanes, clusters, cluster_size) for _ in range(3)]
        if rng.random() < 0.4:
            damaged(rng, tables, clusters, cluster_size)
        make = tally.LaneTally if counting == "lanes" else tally.ArrayTally
        counter = make(clusters, cluster_size)
        chunk = rng.choice((1, 2, 3, 7, 64, 200))
        expected = expected_count(tables, clusters, cluster_size)
        assert count_with(counter, tables, chunk) == expected
        agreed += expected is not None
        doubts += expected is None
    assert agreed > 50
    assert doubts > 30


# --- threads ------------------------------------------------------------------------------------


def many_tables() -> QedImage:
    image = QedImage(40 * SPAN)
    with image.open() as disk:
        for number in range(40):
            disk.write(number * SPAN + number * CLUSTER, b"x")
    return image


def reads_meet(monkeypatch: pytest.MonkeyPatch, failing: bool) -> set[str]:
    """The first tables are read by two threads at once; the names of all that read one."""
    names: set[str] = set()
    meeting = threading.Barrier(2, timeout=60)

    def read(file: Node, offset: int, length: int) -> bytearray:
        name = threading.current_thread().name
        if name not in names:
            names.add(name)
            meeting.wait()
            if failing and threading.current_thread() is not threading.main_thread():
                raise IoError("the table is gone", file.filename)
        return read_bytes(file, offset, length)

    monkeypatch.setattr(quick_check, "read_bytes", read)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(tally, "ARRAY_WORTH_CLUSTERS", 0)
    return names


def test_two_threads_look_at_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy")
    image = many_tables()
    names = reads_meet(monkeypatch, failing=False)
    assert assert_agree(image)
    assert len(names) == 2
    image.set_l2(39 * SPAN, image.l2(0))
    names.clear()
    assert not assert_agree(image)


def test_what_fails_in_another_thread_fails_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy")
    image = many_tables()
    before = threading.active_count()
    reads_meet(monkeypatch, failing=True)
    with (
        image.open(read_only=True) as disk,
        pytest.raises(IoError, match="the table is gone"),
    ):
        look(qed(disk))
    assert threading.active_count() <= before


def test_a_look_that_is_cancelled_ends_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy")
    image = many_tables()
    before = threading.active_count()
    reads_meet(monkeypatch, failing=False)
    token = CancelToken()
    seen: list[int] = []

    def stop(progress: Progress) -> None:
        seen.append(progress.done)
        if progress.done:
            token.cancel()

    with image.open(read_only=True) as disk:
        node = qed(disk)
        node.watch = Watch(stop, token)
        with pytest.raises(Cancelled):
            look(node)
    assert seen[-1] < 40 * SPAN
    assert threading.active_count() <= before
