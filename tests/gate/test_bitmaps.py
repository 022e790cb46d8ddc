# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps: exactly the granules that were touched, whoever writes, however it ends."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import BlocklayerError, InvalidArgument, OutOfRange
from blocklayer.base.units import GiB, KiB, MiB, TiB
from blocklayer.core import few_bits
from blocklayer.core.batch import Request
from blocklayer.core.bitmap import Bitmap, DirtyBitmap
from blocklayer.core.disk import Disk
from blocklayer.filters import fault_rules
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import InjectError
from tests.support.graphs import create, memory, open_disk, open_node, tree

GRANULE = 512
GRANULARITIES = [1 << shift for shift in range(9, 32)]


@pytest.fixture(autouse=True, params=["few", "many"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds for the bits of small disks, and for those of large ones."""
    if request.param == "many":
        monkeypatch.setattr(few_bits, "FEW", 0)


def marked(bitmap: Bitmap) -> set[int]:
    """Granules, by number."""
    shift = bitmap.granularity
    found = set[int]()
    for offset, length in bitmap.runs():
        assert offset % shift == 0
        assert length > 0
        found |= set(range(offset // shift, -(-(offset + length) // shift)))
    assert bitmap.count == len(found) * shift
    return found


# --- granularity and rounding ---------------------------------------------------------------------


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_granularity(granularity: int) -> None:
    size = 10 * granularity + 512
    bitmap = Bitmap(size, granularity)
    bitmap.set(granularity - 1, 2)
    assert list(bitmap.runs()) == [(0, 2 * granularity)]
    bitmap.set(size - 1, 1)
    assert list(bitmap.runs()) == [(0, 2 * granularity), (10 * granularity, 512)]
    assert bitmap.count == 3 * granularity
    assert bitmap.is_set(0)
    assert not bitmap.is_set(2 * granularity)
    bitmap.clear(1, 2 * granularity)
    assert list(bitmap.runs()) == [(0, granularity), (10 * granularity, 512)]


@pytest.mark.parametrize("granularity", [0, 1, 256, 511, 513, 1000, 65535, 4 * GiB, -512])
def test_other_granularities_are_refused(granularity: int) -> None:
    with pytest.raises(InvalidArgument, match="power of 2 from 512 to 2147483648"):
        Bitmap(MiB, granularity)
    with open_disk(memory(size=MiB), "raw") as disk:
        with pytest.raises(InvalidArgument):
            disk.add_bitmap("b", granularity)
        assert disk.bitmaps == {}


SIZE = 6 * GRANULE + 100
EDGES = [e for b in range(0, SIZE + 1, GRANULE) for e in (b - 1, b, b + 1) if 0 <= e <= SIZE]
EDGES += [SIZE - 1, SIZE]
RANGES = sorted({(start, end) for start in EDGES for end in EDGES if start <= end})


def test_marking_many_is_marking_each(rng: random.Random) -> None:
    """What lies outside the disk is left out."""
    spans = [(rng.choice(EDGES), bytes(rng.choice([0, 1, 511, 512, 1500]))) for _ in range(3)]
    one, many = Bitmap(SIZE, GRANULE), Bitmap(SIZE, GRANULE)
    for _ in range(300):
        for offset, data in spans:
            one.set(offset, min(len(data), SIZE - offset))
        outside = [(SIZE, b"x"), (SIZE + GRANULE, bytes(GRANULE)), (-1, b"x"), (-GRANULE, b"xyz")]
        many.set_each([*outside, *spans])
        assert marked(many) == marked(one)
        if rng.randrange(3) == 0:
            one.clear()
            many.clear()
        offset, length = rng.choice(EDGES), rng.choice([0, 1, 511, 512, 1500])
        spans = [*spans[1:], (offset, bytes(length))]


def test_marking_rounds_wide() -> None:
    for start, end in RANGES:
        bitmap = Bitmap(SIZE, GRANULE)
        bitmap.set(start, end - start)
        assert marked(bitmap) == {byte // GRANULE for byte in range(start, end)}


def test_clearing_rounds_narrow() -> None:
    granules = range(-(-SIZE // GRANULE))
    for start, end in RANGES:
        bitmap = Bitmap(SIZE, GRANULE)
        bitmap.set(0, SIZE)
        bitmap.clear(start, end - start)
        covered = set(range(start, end))
        assert marked(bitmap) == {
            granule
            for granule in granules
            if not covered.issuperset(range(granule * GRANULE, min((granule + 1) * GRANULE, SIZE)))
        }


def test_questions_about_ranges() -> None:
    for first, last in product(range(7), repeat=2):
        bitmap = Bitmap(SIZE, GRANULE)
        bitmap.set(first * GRANULE, max(last - first, 0) * GRANULE)
        painted = marked(bitmap)
        for start, end in RANGES:
            if start == end:
                continue
            touched = {byte // GRANULE for byte in (*range(start, end, GRANULE), end - 1)}
            assert bitmap.all_set(start, end - start) == (touched <= painted)
        for granule in range(7):
            assert bitmap.is_set(granule * GRANULE) == (granule in painted)


def test_any_marks_and_clears(rng: random.Random) -> None:
    for _ in range(30):
        size = rng.randrange(1, 200 * GRANULE)
        bitmap = Bitmap(size, GRANULE)
        painted: set[int] = set()
        for _ in range(40):
            start = rng.randrange(size)
            length = rng.randrange(size - start + 1)
            if rng.random() < 0.6:
                bitmap.set(start, length)
                painted |= {byte // GRANULE for byte in range(start, start + length)}
            else:
                bitmap.clear(start, length)
                first, last = -(-start // GRANULE), (start + length) // GRANULE
                last = -(-size // GRANULE) if start + length == size else last
                painted -= set(range(first, last))
            assert marked(bitmap) == painted
        bitmap.clear()
        assert marked(bitmap) == set()


def test_runs_from_any_place() -> None:
    bitmap = Bitmap(100 * GRANULE, GRANULE)
    for first, count in [(3, 2), (10, 1), (50, 49)]:
        bitmap.set(first * GRANULE, count * GRANULE)
    assert list(bitmap.runs(5 * GRANULE)) == [(10 * GRANULE, GRANULE), (50 * GRANULE, 49 * GRANULE)]
    assert next(bitmap.runs(4 * GRANULE)) == (4 * GRANULE, GRANULE)
    assert list(bitmap.runs(99 * GRANULE)) == []
    assert list(bitmap.runs(60 * GRANULE)) == [(60 * GRANULE, 39 * GRANULE)]


def test_a_pebibyte_costs_what_is_dirty() -> None:
    bitmap = Bitmap(1024 * TiB, 64 * KiB)
    bitmap.set(0, 1024 * TiB)
    assert list(bitmap.runs()) == [(0, 1024 * TiB)]
    assert bitmap.count == 1024 * TiB
    bitmap.clear(512 * TiB, 64 * KiB)
    assert [length for _, length in bitmap.runs()] == [512 * TiB, 512 * TiB - 64 * KiB]


# --- merging, resizing ----------------------------------------------------------------------------


@pytest.mark.parametrize(("mine", "theirs"), list(product([512, 1024, 4096], repeat=2)))
def test_merging_marks_everything_that_either_marks(
    rng: random.Random, mine: int, theirs: int
) -> None:
    size = 40 * 4096 + 700
    one, other = Bitmap(size, mine), Bitmap(size, theirs)
    dirty = bytearray(size)
    for bitmap in (one, other):
        for _ in range(5):
            start = rng.randrange(size)
            length = rng.randrange(1, 3000)
            bitmap.set(start, min(length, size - start))
    for bitmap in (one, other):
        for offset, length in bitmap.runs():
            dirty[offset : offset + length] = b"\1" * length
    before = marked(other)
    one.merge(other)
    assert marked(one) == {byte // mine for byte in range(size) if dirty[byte]}
    assert marked(other) == before
    one.merge(one)
    assert marked(one) == {byte // mine for byte in range(size) if dirty[byte]}


def test_bitmaps_of_other_sizes_are_not_merged() -> None:
    bitmap, longer = Bitmap(10 * GRANULE, GRANULE), Bitmap(11 * GRANULE, GRANULE)
    longer.set(10 * GRANULE, GRANULE)
    for one, other in ((bitmap, longer), (longer, bitmap)):
        with pytest.raises(InvalidArgument, match="incompatible and can't be merged"):
            one.merge(other)
    assert marked(bitmap) == set()
    assert marked(longer) == {10}


def test_resizing() -> None:
    bitmap = Bitmap(10 * GRANULE, GRANULE)
    bitmap.set(0, 10 * GRANULE)
    bitmap.resize(4 * GRANULE + 1)
    assert marked(bitmap) == {0, 1, 2, 3, 4}
    assert list(bitmap.runs()) == [(0, 4 * GRANULE + 1)]
    bitmap.resize(20 * GRANULE)
    assert marked(bitmap) == {0, 1, 2, 3, 4}
    bitmap.set(19 * GRANULE, 1)
    bitmap.resize(0)
    assert marked(bitmap) == set()
    bitmap.resize(20 * GRANULE)
    assert marked(bitmap) == set()


def test_resizing_from_small_to_large_and_back(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind of the bits changes on the way; bitmaps of one size have one kind."""
    monkeypatch.setattr(few_bits, "FEW", 10)
    bitmap, painted = Bitmap(5 * GRANULE, GRANULE), set[int]()
    for _ in range(200):
        granules = rng.randrange(21)
        bitmap.resize(granules * GRANULE)
        painted = {granule for granule in painted if granule < granules}
        for granule in rng.sample(range(granules), granules // 4):
            bitmap.set(granule * GRANULE, 1)
            painted.add(granule)
        assert marked(bitmap) == painted
        other = Bitmap(granules * GRANULE, GRANULE)
        other.merge(bitmap)
        assert marked(other) == painted
        other.clear(0, 3 * GRANULE)
        bitmap.keep_only(other)
        painted -= {0, 1, 2}
        assert marked(bitmap) == painted


def test_a_disk_resizes_its_bitmaps() -> None:
    with open_disk(memory(size=10 * KiB), "raw") as disk:
        bitmap = disk.add_bitmap("b", 512)
        disk.write(0, b"x" * 10 * KiB)
        disk.resize(4 * KiB)
        assert (bitmap.size, marked(bitmap)) == (4 * KiB, set(range(8)))
        disk.resize(20 * KiB)
        assert (bitmap.size, marked(bitmap)) == (20 * KiB, set(range(8)))
        disk.write(19 * KiB, b"x")
        assert marked(bitmap) == {*range(8), 38}


# --- names ----------------------------------------------------------------------------------------


def test_names() -> None:
    with open_disk(memory(size=MiB), "raw") as disk:
        one, two = disk.add_bitmap("one"), disk.add_bitmap("two", 512, enabled=False)
        assert disk.bitmaps == {"one": one, "two": two}
        assert (one.name, one.granularity, one.enabled) == ("one", 64 * KiB, True)
        with pytest.raises(InvalidArgument, match="Bitmap already exists: one"):
            disk.add_bitmap("one")
        with pytest.raises(InvalidArgument, match="name cannot be empty"):
            disk.add_bitmap("")
        with pytest.raises(InvalidArgument, match="more than 1023 bytes"):
            disk.add_bitmap("ü" * 512)
        disk.add_bitmap("x" * 1023)
        disk.remove_bitmap("one")
        with pytest.raises(InvalidArgument, match="Dirty bitmap 'one' not found"):
            disk.remove_bitmap("one")
        disk.write(0, b"x")
        assert marked(one) == set()
        assert disk.add_bitmap("one") is not one


def test_disabled_bitmaps_record_nothing() -> None:
    with open_disk(memory(size=MiB), "raw") as disk:
        on, off = disk.add_bitmap("on", 512), disk.add_bitmap("off", 512, enabled=False)
        disk.write(0, b"x")
        assert (marked(on), marked(off)) == ({0}, set())
        on.enabled, off.enabled = False, True
        disk.write(512, b"x")
        assert (marked(on), marked(off)) == ({0}, {1})
        off.set(5 * 512, 1)
        on.set(6 * 512, 1)
        assert (marked(on), marked(off)) == ({0, 6}, {1, 5})


# --- what marks -----------------------------------------------------------------------------------


def qed_disk(*, detect_zeroes: str = "off") -> Disk:
    node = memory()
    create(node, size=MiB, cluster_size=4 * KiB)
    return Disk(open_node(tree(node)), discard="unmap", detect_zeroes=detect_zeroes)


@pytest.mark.parametrize("detect", ["off", "on"])
def test_every_verb_that_changes_marks(detect: str) -> None:
    with qed_disk(detect_zeroes=detect) as disk:
        bitmap = disk.add_bitmap("b", 512)

        def taken() -> set[int]:
            found = marked(bitmap)
            bitmap.clear()
            return found

        disk.write(511, b"xx")
        assert taken() == {0, 1}
        disk.write(1024, bytes(512))
        assert taken() == {2}
        disk.write_many([(0, b"x"), (5000, b"y" * 600)])
        assert taken() == {0, 9, 10}
        disk.write_zeroes(1024, 1024)
        assert taken() == {2, 3}
        disk.write_zeroes(8192, 1, unmap=True)
        assert taken() == {16}
        disk.discard(100, 1000)
        assert taken() == {0, 1, 2}
        disk.submit(
            [
                Request.write(0, b"x"),
                Request.write_zeroes(512, 512),
                Request.discard(1024, 512),
                Request.read(4096, 512),
                Request.flush(),
                Request.write(MiB, b"x"),
                Request.write(2048, b""),
            ]
        )
        assert taken() == {0, 1, 2}
        disk.read(0, MiB)
        disk.flush()
        disk.write(600, b"")
        disk.write_zeroes(600, 0)
        with pytest.raises(OutOfRange):
            disk.write(MiB, b"x")
        assert taken() == set()


def test_an_ignored_discard_marks_nothing() -> None:
    with Disk(open_node(tree(memory(size=MiB), "raw"))) as disk:
        bitmap = disk.add_bitmap("b", 512)
        disk.discard(0, MiB)
        disk.submit([Request.discard(0, MiB)])
        assert marked(bitmap) == set()


def test_failed_writes_mark_too() -> None:
    """They may have changed bytes."""
    fault = FaultNode(memory(size=MiB))
    with open_disk(fault, "raw") as disk:
        bitmap = disk.add_bitmap("b", 512)
        fault.add_rule(InjectError(iotypes=fault_rules.CHANGING))
        verbs: list[Callable[[], None]] = [
            lambda: disk.write(0, b"x"),
            lambda: disk.write_many([(1024, b"x"), (4096, b"x")]),
            lambda: disk.write_zeroes(8192, 512),
            lambda: disk.discard(16384, 512),
        ]
        for verb in verbs:
            with pytest.raises(BlocklayerError):
                verb()
        batch = [Request.write(32768, b"x"), Request.write_zeroes(65536, 512)]
        disk.submit(batch)
        assert all(request.error is not None for request in batch)
        assert marked(bitmap) == {0, 2, 8, 16, 32, 64, 128}
        fault.clear_rules()


def test_bitmaps_of_many_granularities_at_once(rng: random.Random) -> None:
    with qed_disk() as disk:
        bitmaps = [disk.add_bitmap(str(g), g) for g in (512, 4096, 65536)]
        for _ in range(40):
            offset = rng.randrange(MiB - 9000)
            disk.write(offset, rng.randbytes(rng.randrange(1, 9000)))
        fine = marked(bitmaps[0])
        for bitmap in bitmaps[1:]:
            assert marked(bitmap) == {g * 512 // bitmap.granularity for g in fine}


def test_two_disks_on_one_node(tmp_path: Path) -> None:
    """Bitmaps belong to the node: whoever writes is seen, also past an inline path."""
    path = tmp_path / "disk.raw"
    blocklayer.create(path, format="raw", size=MiB)
    with blocklayer.open(path, mode="r+", format="raw") as one:
        two = Disk(one.node, owns_node=False)
        two.write(0, b"x")
        bitmap = one.add_bitmap("b", 512)
        assert two.bitmaps == {"b": bitmap}
        two.write(512, b"x")
        one.write(1024, b"x")
        assert marked(bitmap) == {1, 2}
        two.remove_bitmap("b")
        assert one.bitmaps == {}
        one.write(2048, b"x")
        assert marked(bitmap) == {1, 2}


def test_many_threads() -> None:
    """No mark is lost while others mark, clear other granules and look."""
    size = 8 * MiB
    with open_disk(memory(size=size), "raw") as disk:
        bitmap = disk.add_bitmap("b", 512)
        other = DirtyBitmap("other", size, 4096)
        written: list[set[int]] = []
        stop = threading.Event()

        def write(number: int) -> None:
            rng = random.Random(number)
            granules = set[int]()
            for _ in range(1500):
                granule = rng.randrange(size // 512) // 4 * 4 + number
                disk.write(granule * 512, b"x")
                granules.add(granule)
            written.append(granules)

        def look() -> None:
            while not stop.is_set():
                assert all(length > 0 for _, length in bitmap.runs())
                other.merge(bitmap)

        writers = [threading.Thread(target=write, args=(n,)) for n in range(3)]
        looker = threading.Thread(target=look)
        for thread in (*writers, looker):
            thread.start()
        for number in range(1000):
            bitmap.clear((number * 4 + 3) * 512, 512)
        for thread in writers:
            thread.join()
        stop.set()
        looker.join()
        assert len(written) == 3
        assert marked(bitmap) == set.union(*written)
        other.merge(bitmap)
        assert marked(other) == {granule // 8 for granule in marked(bitmap)}
