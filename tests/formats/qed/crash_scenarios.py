# SPDX-License-Identifier: Apache-2.0
"""What a QED image is doing when it crashes: short sessions that reach every order of writes.

A scenario prepares an image, starts recording, and uses the disk through a `Guest`. Sizes are given
in clusters (`c`) and in the span of an L2 table, so that each runs with every geometry.
"""

import time
from collections.abc import Callable

import pytest

from blocklayer.base.errors import IoError
from blocklayer.base.units import SECTOR
from blocklayer.core import io as core_io
from blocklayer.core.batch import Request
from blocklayer.core.checking import Repair
from blocklayer.core.disk import Disk
from blocklayer.core.opening import OpenFlags
from blocklayer.formats.qed import driver
from blocklayer.formats.qed.driver import QedNode
from blocklayer.testing.crash import SectorDisk
from blocklayer.testing.crash_guest import Guest, stamp
from tests.formats.qed.crash_lab import Lab, fail_at, interleave, set_entry

Scenario = Callable[[Lab], None]
SCENARIOS: dict[str, Scenario] = {}
GROUPS: dict[str, list[str]] = {}


def scenario(group: str) -> Callable[[Scenario], Scenario]:
    def add(run: Scenario) -> Scenario:
        assert run.__name__ not in SCENARIOS
        SCENARIOS[run.__name__] = run
        GROUPS.setdefault(group, []).append(run.__name__)
        return run

    return add


# --- allocating ---------------------------------------------------------------------------------


@scenario("allocating")
def first_allocation(lab: Lab) -> None:
    """A new L2 table and its first cluster, filled only in part."""
    lab.create(4 * lab.c)
    guest = lab.start()
    lab.write(lab.c + 100, 700)
    guest.flush()
    guest.close()


@scenario("allocating")
def first_whole_cluster(lab: Lab) -> None:
    lab.create(4 * lab.c)
    guest = lab.start()
    lab.write(0, lab.c)
    guest.close()


@scenario("allocating")
def allocations_in_one_table(lab: Lab) -> None:
    lab.create(9 * lab.c)
    guest = lab.start()
    lab.write(0, 512, "a")
    lab.write(5 * lab.c + 1000, 900, "b")
    guest.flush()
    lab.write(3 * lab.c + lab.c // 2, lab.c, "c")  # two clusters, each in part
    lab.write(8 * lab.c - 512, 512, "d")
    lab.write(3 * lab.c, 512, "e")  # in place, while its allocation is not flushed
    guest.flush()
    lab.write(lab.c, lab.c, "f")
    guest.close()


@scenario("allocating")
def allocations_without_flush(lab: Lab) -> None:
    """Everything is at stake at once."""
    lab.create(6 * lab.c)
    guest = lab.start()
    for number, tag in enumerate("abcd"):
        lab.write(number * lab.c + 512 * number, 600, tag)
    guest.close()


@scenario("allocating")
def second_and_third_table(lab: Lab) -> None:
    lab.create(2 * lab.span + 4 * lab.c)
    guest = lab.start()
    lab.write(0, 512, "a")
    lab.write(lab.span, 512, "b")
    guest.flush()
    lab.write(2 * lab.span - 512, 1024, "c")  # across the border of two tables
    lab.write(lab.span + lab.c, 512, "d")
    guest.close()


@scenario("allocating")
def entries_in_two_sectors(lab: Lab) -> None:
    """One update of a table that can be torn: 64 entries fill a sector."""
    lab.create(80 * lab.c)
    with lab.prepared() as disk:
        disk.write(70 * lab.c, stamp("old", 70 * lab.c, 512))
    guest = lab.start()
    guest.write_many(
        [(number * lab.c, stamp("new", number * lab.c, 512)) for number in (62, 63, 64, 65)]
    )
    guest.close()


@scenario("allocating")
def last_cluster_is_cut(lab: Lab) -> None:
    """The disk ends inside of a cluster."""
    lab.add_backing("base", 3 * lab.c)
    lab.create(2 * lab.c + 1024, "base")
    guest = lab.start()
    lab.write(2 * lab.c + 512, 512)
    guest.close()


@scenario("allocating")
def partial_trailing_cluster(lab: Lab) -> None:
    """A crash before has left half a cluster of garbage where the next one is allocated."""
    lab.create(4 * lab.c)
    with lab.prepared() as disk:
        disk.write(0, stamp("old", 0, 512))
    lab.add_garbage(3 * SECTOR)
    guest = lab.start()
    lab.write(lab.c + 512, 512)
    guest.flush()
    lab.write(2 * lab.c + 512, 512)
    guest.close()


@scenario("allocating")
def partial_trailing_cluster_becomes_table(lab: Lab) -> None:
    lab.create(lab.span + 4 * lab.c)
    lab.add_garbage(3 * SECTOR)
    guest = lab.start()
    guest.write_zeroes(0, 2 * lab.c)
    lab.write(lab.span + 512, 512)
    guest.close()


@scenario("allocating")
def overlay_with_partial_trailing_cluster(lab: Lab) -> None:
    lab.add_backing("base", 2 * lab.c)
    lab.create(4 * lab.c, "base")
    with lab.prepared() as disk:
        disk.write(0, stamp("old", 0, 512))
    lab.add_garbage(3 * SECTOR)
    guest = lab.start()
    lab.write(3 * lab.c + 512, 512)
    lab.write(lab.c + 512, 512)
    guest.close()


# --- overlays -----------------------------------------------------------------------------------


def _overlay(lab: Lab, backing_size: int) -> None:
    """Clusters whose head and tail are copied up, in a new table and in an old one."""
    lab.add_backing("base", backing_size)
    lab.create(4 * lab.c, "base")
    guest = lab.start()
    lab.write(lab.c + 700, 100, "a")
    lab.write(2 * lab.c + lab.c // 2, lab.c, "b")
    guest.flush()
    lab.write(300, 512, "c")
    guest.write(lab.c, stamp("d", lab.c, 512), fua=True)
    guest.close()


@scenario("overlays")
def overlay_over_shorter(lab: Lab) -> None:
    _overlay(lab, 2 * lab.c + lab.c // 2 + 512)


@scenario("overlays")
def overlay_over_equal(lab: Lab) -> None:
    _overlay(lab, 4 * lab.c)


@scenario("overlays")
def overlay_over_longer(lab: Lab) -> None:
    _overlay(lab, 6 * lab.c)


@scenario("overlays")
def overlay_with_second_table(lab: Lab) -> None:
    lab.add_backing("base", 2 * lab.c)
    lab.create(lab.span + 4 * lab.c, "base")
    guest = lab.start()
    lab.write(lab.c + 512, 512, "a")
    lab.write(lab.span - 512, 1024, "b")
    guest.close()


@scenario("overlays")
def copy_on_read(lab: Lab) -> None:
    """Clusters are copied up without a guest's write: nothing it sees may ever change."""
    lab.add_backing("base", 3 * lab.c - 512)
    lab.create(4 * lab.c, "base")
    with lab.prepared() as disk:
        disk.write(2 * lab.c, stamp("old", 2 * lab.c, 512))
    guest = lab.start()
    core_io.copy_up(lab.node, 100, 2 * lab.c)
    lab.write(lab.c + 512, 512)
    guest.close()


@scenario("overlays")
def zero_cluster_over_backing(lab: Lab) -> None:
    """What surrounds the data is zero, not what is below."""
    lab.add_backing("base", 4 * lab.c)
    lab.create(4 * lab.c, "base")
    with lab.prepared() as disk:
        disk.write_zeroes(lab.c, 2 * lab.c)
    guest = lab.start()
    lab.write(lab.c + 512, 512, "a")
    lab.write(3 * lab.c - 512, 1024, "b")  # a zero cluster's end and a new cluster's head
    guest.close()


# --- in place -----------------------------------------------------------------------------------


@scenario("placed")
def overwrite_in_place(lab: Lab) -> None:
    lab.create(4 * lab.c)
    with lab.prepared() as disk:
        disk.write(512, stamp("old", 512, 2 * lab.c))
    guest = lab.start()
    lab.write(lab.c - 700, 1400, "a")
    lab.write(lab.c - 512, 512, "b")
    guest.flush()
    lab.write(lab.c - 512, 1024, "c")
    guest.close()


# --- zeroing and discarding ---------------------------------------------------------------------


@scenario("zeroes")
def zeroes_without_backing(lab: Lab) -> None:
    """Unaligned, over allocated and unallocated clusters, with a new table for zeroes alone."""
    lab.create(lab.span + 6 * lab.c)
    with lab.prepared() as disk:
        disk.write(lab.c, stamp("old", lab.c, 2 * lab.c))
    guest = lab.start()
    guest.write_zeroes(lab.c + 700, 1000)
    guest.write_zeroes(2 * lab.c - 512, 3 * lab.c)
    guest.write_zeroes(lab.span, lab.c)
    guest.flush()
    lab.write(3 * lab.c + 512, 512)
    guest.close()


@scenario("zeroes")
def zeroes_over_backing(lab: Lab) -> None:
    lab.add_backing("base", 5 * lab.c)
    lab.create(6 * lab.c, "base")
    guest = lab.start()
    guest.write_zeroes(lab.c, 2 * lab.c)
    guest.write_zeroes(3 * lab.c + 300, 1000)
    guest.flush()
    lab.write(2 * lab.c + 512, 512)
    guest.write_zeroes(lab.c - 512, lab.c + 1024, unmap=True)
    guest.close()


@scenario("zeroes")
def zeroes_in_new_table_over_backing(lab: Lab) -> None:
    lab.add_backing("base", lab.span + 2 * lab.c, first=lab.span - 2 * lab.c)
    lab.create(lab.span + 4 * lab.c, "base")
    guest = lab.start()
    guest.write_zeroes(lab.span - lab.c, 2 * lab.c)
    lab.write(lab.span + 512, 512)
    guest.close()


@scenario("zeroes")
def zeroes_that_allocate(lab: Lab) -> None:
    lab.add_backing("base", 3 * lab.c)
    lab.create(4 * lab.c, "base")
    guest = lab.start()
    guest.write_zeroes(lab.c - 512, lab.c + 1024, allocate=True)
    guest.close()


@scenario("zeroes")
def discard(lab: Lab) -> None:
    lab.create(6 * lab.c)
    with lab.prepared() as disk:
        disk.write(0, stamp("old", 0, 3 * lab.c))
    guest = lab.start()
    guest.discard(lab.c, 3 * lab.c)
    lab.write(lab.c, 512, "a")
    guest.flush()
    lab.write(lab.c + 1024, 512, "b")
    guest.discard(0, lab.c)
    guest.write_zeroes(2 * lab.c, lab.c, unmap=True)
    guest.close()


# --- batches ------------------------------------------------------------------------------------


def _batch(lab: Lab) -> None:
    guest = lab.start()
    places = (0, lab.c, 3 * lab.c + 512, lab.span, lab.span + lab.c, 5 * lab.c)
    guest.write_many([(place, stamp("batch", place, 512)) for place in places])
    guest.flush()
    guest.write_many([(place, stamp("more", place, 512)) for place in (2 * lab.c, 2 * lab.c + 512)])
    guest.close()


@scenario("batches")
def batch(lab: Lab) -> None:
    """New clusters in an old and in a new table, and one in place, in one commit."""
    lab.create(lab.span + 6 * lab.c)
    with lab.prepared() as disk:
        disk.write(5 * lab.c, stamp("old", 5 * lab.c, 1024))
    _batch(lab)


@scenario("batches")
def batch_over_backing(lab: Lab) -> None:
    lab.add_backing("base", 6 * lab.c)
    lab.create(lab.span + 6 * lab.c, "base")
    with lab.prepared() as disk:
        disk.write(5 * lab.c, stamp("old", 5 * lab.c, 1024))
    _batch(lab)


@scenario("batches")
def batch_with_gaps(lab: Lab) -> None:
    """Gaps within a cluster may be filled with zeroes, but only where zeroes are what is there."""
    lab.add_backing("base", 3 * lab.c)
    lab.create(6 * lab.c, "base")
    with lab.prepared() as disk:
        disk.write_zeroes(lab.c, lab.c)
    guest = lab.start()
    places = [cluster * lab.c + step for cluster in (0, 1, 4) for step in (0, 1536)]
    guest.write_many([(place, stamp("batch", place, 512)) for place in places])
    guest.close()


@scenario("batches")
def batch_in_two_new_tables(lab: Lab) -> None:
    lab.add_backing("base", 2 * lab.c)
    lab.create(lab.span + 6 * lab.c, "base")
    guest = lab.start()
    places = (512, lab.span + 512)
    guest.write_many([(place, stamp("batch", place, 512)) for place in places])
    guest.close()


@scenario("batches")
def batch_in_more_new_tables_than_are_made_at_once(lab: Lab) -> None:
    lab.add_backing("base", 2 * lab.c)
    lab.create(3 * lab.span + 6 * lab.c, "base")
    with lab.prepared() as disk:
        disk.write(2 * lab.span, stamp("old", 2 * lab.span, 512))
    guest = lab.start()
    places = (512, lab.span + 512, 2 * lab.span + lab.c, 3 * lab.span)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "NEW_SLICES_MAX", 2)
        guest.write_many([(place, stamp("batch", place, 512)) for place in places])
    guest.close()


def _mixed(lab: Lab) -> None:
    """Writes, zeroes, a discard and a flush in one batch, whose ranges do not overlap."""
    guest = lab.start()
    guest.submit(
        [
            Request.write(512, stamp("mixed", 512, 1024)),
            Request.write_zeroes(2 * lab.c - 512, lab.c + 1024),
            Request.discard(5 * lab.c, lab.c),
            Request.flush(),
            Request.write(lab.span + 512, stamp("mixed", lab.span + 512, 512), fua=True),
            Request.write(4 * lab.c, stamp("mixed", 4 * lab.c, lab.c)),
        ]
    )
    guest.close()


@scenario("batches")
def mixed_batch(lab: Lab) -> None:
    lab.create(lab.span + 7 * lab.c)
    with lab.prepared() as disk:
        disk.write(5 * lab.c, stamp("old", 5 * lab.c, 1024))
        disk.write(2 * lab.c, stamp("old", 2 * lab.c, 512))
    _mixed(lab)


@scenario("batches")
def mixed_batch_over_backing(lab: Lab) -> None:
    lab.add_backing("base", 6 * lab.c)
    lab.create(lab.span + 7 * lab.c, "base")
    _mixed(lab)


@scenario("batches")
def detected_zeroes(lab: Lab) -> None:
    """One write of data, whole clusters of zeroes, and data."""
    lab.add_backing("base", 6 * lab.c)
    lab.create(7 * lab.c, "base")
    lab.detect_zeroes = "unmap"
    with lab.prepared() as disk:
        disk.write(2 * lab.c, stamp("old", 2 * lab.c, 512))
    guest = lab.start()
    head, tail = stamp("head", lab.c + 512, 512), stamp("tail", 4 * lab.c, 512)
    guest.write(lab.c + 512, head + bytes(3 * lab.c - 1024) + tail)
    guest.close()


# --- size and backing file ----------------------------------------------------------------------


def _grow(lab: Lab, size: int, new: int) -> None:
    lab.add_backing("base", 6 * lab.c)
    lab.create(size, "base")
    with lab.prepared() as disk:
        disk.write(512, stamp("old", 512, 512))
    guest = lab.start()
    lab.write(lab.c, 512, "a")
    guest.resize(new)
    lab.write(new - 512, 512, "b")
    guest.close()


@scenario("header")
def grow_over_longer_backing(lab: Lab) -> None:
    """The old end is inside of a cluster that the backing file covers."""
    _grow(lab, 2 * lab.c + 1024, 5 * lab.c)


@scenario("header")
def grow_at_cluster_end(lab: Lab) -> None:
    _grow(lab, 2 * lab.c, 7 * lab.c + 512)


@scenario("header")
def grow_without_backing(lab: Lab) -> None:
    lab.create(lab.c + 1024)
    with lab.prepared() as disk:
        disk.write(lab.c, stamp("old", lab.c, 1024))
    guest = lab.start()
    guest.resize(lab.c + 2048)
    guest.resize(3 * lab.c)
    lab.write(2 * lab.c - 512, 1024)
    guest.close()


@scenario("header")
def shrink(lab: Lab) -> None:
    lab.create(lab.span + 4 * lab.c)
    with lab.prepared() as disk:
        disk.write(0, stamp("old", 0, 3 * lab.c))
        disk.write(lab.span, stamp("old", lab.span, 512))
    guest = lab.start()
    lab.write(lab.c + 512, 512, "a")
    guest.resize(lab.c + 1024)
    guest.close()


@scenario("header")
def shrink_and_grow_over_backing(lab: Lab) -> None:
    """What was cut off must not come back, neither from here nor from below."""
    lab.add_backing("base", 4 * lab.c)
    lab.create(4 * lab.c, "base")
    with lab.prepared() as disk:
        disk.write(2 * lab.c + 512, stamp("old", 2 * lab.c + 512, 512))
    guest = lab.start()
    guest.resize(lab.c + 512)
    guest.resize(4 * lab.c)
    lab.write(3 * lab.c, 512)
    guest.close()


def _rename(lab: Lab, old: str, new: str) -> None:
    """The same content under another name."""
    lab.add_backing(old, 3 * lab.c)
    lab.backings[new] = lab.backings[old]
    lab.create(4 * lab.c, old)
    guest = lab.start()
    lab.write(lab.c + 512, 512, "a")
    guest.change_backing(new, "raw")
    lab.write(2 * lab.c + 512, 512, "b")
    guest.change_backing(old, "raw")
    guest.close()


@scenario("header")
def rename_backing(lab: Lab) -> None:
    _rename(lab, "old", "new")


@scenario("header")
def rename_backing_to_longer(lab: Lab) -> None:
    """The new name crosses sectors."""
    _rename(lab, "old", "n" * 1500)


@scenario("header")
def rename_long_backing(lab: Lab) -> None:
    """The old name crosses sectors, and there is just room for both."""
    _rename(lab, "o" * 1900, "n" * 2100)


@scenario("header")
def rename_with_names_too_long_for_both(lab: Lab) -> None:
    """The L1 table moves, so that the new name finds room beside the old one."""
    _rename(lab, "o" * 2500, "n" * 2600)


@scenario("header")
def rename_three_times(lab: Lab) -> None:
    lab.add_backing("base", 3 * lab.c)
    names = ["b" * 1500, "c" * 1000, "d" * 2500, "e" * 700, "f"]
    for name in names:
        lab.backings[name] = lab.backings["base"]
    lab.create(4 * lab.c, names[0])
    guest = lab.start()
    for name in names[1:]:
        guest.change_backing(name, "raw")
    guest.close()


@scenario("header")
def remove_backing(lab: Lab) -> None:
    """Clusters of the backing file vanish with its name, all at once."""
    lab.add_backing("base", 3 * lab.c)
    lab.create(4 * lab.c, "base")
    guest = lab.start()
    lab.write(lab.c, lab.c, "a")
    vanishing = {
        sector: bytes(SECTOR)
        for sector in lab.backings["base"].sectors
        if not lab.c <= sector * SECTOR < 2 * lab.c
    }
    guest.change_backing(None, content=vanishing)
    lab.node.attach_backing(None)
    lab.write(2 * lab.c + 512, 512, "b")
    guest.close()


@scenario("header")
def add_backing(lab: Lab) -> None:
    """An image becomes an overlay: its clusters without a place show what is below."""
    lab.add_backing("base", 3 * lab.c)
    lab.create(4 * lab.c)
    guest = lab.start()
    lab.write(lab.c, lab.c, "a")
    appearing = {
        sector: content
        for sector, content in lab.backings["base"].sectors.items()
        if not lab.c <= sector * SECTOR < 2 * lab.c
    }
    guest.change_backing("base", "raw", appearing)
    lab.node.attach_backing(SectorDisk(lab.backings["base"], read_only=True))
    lab.write(2 * lab.c + 512, 512, "b")
    guest.close()


@scenario("header")
def make_empty(lab: Lab) -> None:
    lab.add_backing("base", 2 * lab.c)
    lab.create(lab.span + 4 * lab.c, "base")
    with lab.prepared() as disk:
        disk.write(512, stamp("old", 512, 1024))
        disk.write(lab.span, stamp("old", lab.span, 512))
    guest = lab.start()
    lab.write(3 * lab.c, 512)
    base = lab.backings["base"].sectors
    touched = [1, 2, 3 * lab.c // SECTOR, lab.span // SECTOR]
    below = {sector: base.get(sector, bytes(SECTOR)) for sector in touched}
    guest.change(below, lab.node.make_empty)
    lab.write(lab.c + 512, 512)
    guest.close()


# --- NEED_CHECK ---------------------------------------------------------------------------------


@scenario("dirty")
def idle_between_allocations(lab: Lab) -> None:
    """The image is marked clean while it is open, and marked again."""
    lab.create(4 * lab.c)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "NEED_CHECK_IDLE_SECONDS", 0.0)
        guest = lab.start()
        for number in range(3):
            lab.write(number * lab.c + 512, 512, f"{number}")
            deadline = time.monotonic() + 10
            while lab.node.needs_check:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        guest.close()


@scenario("dirty")
def reopen_read_only_and_back(lab: Lab) -> None:
    lab.create(4 * lab.c)
    guest = lab.start()
    lab.write(512, 512, "a")
    guest.disk.reopen("r")
    guest.disk.reopen("r+")
    lab.write(lab.c + 512, 512, "b")
    guest.close()


@scenario("dirty")
def open_dirty(lab: Lab) -> None:
    """Entries that point behind the end of the file, and clusters that nobody references."""
    lab.create(80 * lab.c)
    with lab.prepared() as disk:
        disk.write(0, stamp("old", 0, 512))
        disk.write(2 * lab.c, stamp("old", 2 * lab.c, 1024))
        disk.write(3 * lab.c, stamp("leaked", 3 * lab.c, 1024))
    with lab.edited(dirty=True) as node:
        end = node.file_end
        set_entry(node, 3 * lab.c, 0)
        for number, place in enumerate((lab.c, 5 * lab.c, 70 * lab.c)):
            set_entry(node, place, end + number * lab.c)
    lab.add_garbage(3 * SECTOR)
    guest = lab.start()
    lab.write(lab.c + 512, 512, "a")
    lab.write(6 * lab.c + 512, 512, "b")
    guest.close()


# --- check and repair ---------------------------------------------------------------------------


def _repair(lab: Lab, repair: Repair) -> None:
    """Record a check with repair of an image that is opened for it alone."""
    lab.storage = lab.recorder()
    reader = lab.open(SectorDisk(lab.image, read_only=True), True)
    node = QedNode(lab.storage, OpenFlags(read_only=False, check=True))
    if node.backing_filename is not None:
        node.attach_backing(SectorDisk(lab.backings[node.backing_filename], read_only=True))
    lab.guest = Guest(Disk(node), lab.storage, reader)
    assert node.check(repair).clean
    lab.guest.close()


@scenario("repair")
def repair_entries(lab: Lab) -> None:
    """Entries that point nowhere, in a table and in the L1 table, are cleared."""
    lab.create(lab.span + 80 * lab.c)
    with lab.prepared() as disk:
        disk.write(0, stamp("old", 0, 512))
        disk.write(lab.span, stamp("old", lab.span, 512))
    with lab.edited(dirty=True) as node:
        set_entry(node, lab.c, 1 << 40)
        set_entry(node, 70 * lab.c, lab.c + 512)
        node.tables.write_l1_entry(2, 1 << 41)
    lab.damaged = True
    _repair(lab, Repair(leaks=True, errors=True))


@scenario("repair")
def repair_shared_clusters(lab: Lab) -> None:
    lab.create(6 * lab.c)
    with lab.prepared() as disk:
        disk.write(0, stamp("shared", 0, 1024))
        disk.write(lab.c, stamp("leaked", lab.c, 1024))
        disk.write(3 * lab.c, stamp("own", 3 * lab.c, 512))
    with lab.edited() as node:
        shared = node.map(0, 1)[3]
        set_entry(node, lab.c, shared)
        set_entry(node, 4 * lab.c, shared)
    lab.damaged = True
    _repair(lab, Repair(leaks=True, errors=True))


@scenario("repair")
def repair_shared_table(lab: Lab) -> None:
    lab.create(lab.span + 6 * lab.c)
    with lab.prepared() as disk:
        disk.write(0, stamp("shared", 0, 1024))
        disk.write(2 * lab.c, stamp("shared", 2 * lab.c, 512))
        disk.write_zeroes(3 * lab.c, lab.c)
    with lab.edited() as node:
        node.tables.write_l1_entry(1, node.tables.l1_entry(0))
    lab.damaged = True
    _repair(lab, Repair(leaks=True, errors=True))


@scenario("repair")
def repair_leaks(lab: Lab) -> None:
    """Data clusters move into holes in the middle, and the file is cut."""
    lab.create(10 * lab.c)
    with lab.prepared() as disk:
        for number in range(8):
            disk.write(number * lab.c, stamp(f"old{number}", number * lab.c, 512))
    with lab.edited() as node:
        for number in (1, 2, 5):
            set_entry(node, number * lab.c, 0)
    _repair(lab, Repair(leaks=True))


@scenario("repair")
def repair_leaks_before_tables(lab: Lab) -> None:
    """A table has to move; where no hole is large enough for it, clusters make room."""
    lab.create(2 * lab.span + 4 * lab.c)
    with lab.prepared() as disk:
        for number in range(8):
            disk.write(number * lab.c, stamp(f"old{number}", number * lab.c, 512))
        disk.write(lab.span, stamp("second", lab.span, 512))
        disk.write(2 * lab.span, stamp("third", 2 * lab.span, 512))
    with lab.edited() as node:
        for number in (0, 2, 3, 5, 7):
            set_entry(node, number * lab.c, 0)
        set_entry(node, lab.span, 0)
    _repair(lab, Repair(leaks=True))


@scenario("repair")
def repair_and_go_on(lab: Lab) -> None:
    """New clusters stand where old ones were cut off."""
    lab.create(10 * lab.c)
    with lab.prepared() as disk:
        for number in range(4):
            disk.write(number * lab.c, stamp(f"old{number}", number * lab.c, lab.c))
    with lab.edited() as node:
        for number in (0, 1):
            set_entry(node, number * lab.c, 0)
    guest = lab.start()
    lab.node.check(Repair(leaks=True))
    lab.write(6 * lab.c + 512, 512, "a")
    lab.write(7 * lab.c + 512, 512, "b")
    guest.close()


# --- failures -----------------------------------------------------------------------------------


def _failing(lab: Lab, kind: str, number: int, *, done: bool) -> None:
    """A batch fails half way, and its space is used again."""
    guest = lab.start()
    lab.write(512, 512, "a")
    fail_at(lab, kind, number, done=done)
    with pytest.raises(IoError):
        guest.write_many(
            [(place, stamp("failed", place, lab.c)) for place in (lab.c, 3 * lab.c, 5 * lab.c)]
        )
    lab.storage.before = lab.storage.after = None
    lab.write(2 * lab.c + 512, 512, "b")
    lab.write(3 * lab.c + 512, 512, "c")
    guest.close()


def _add_failing(kind: str, number: int, *, done: bool, backing: bool) -> None:
    def run(lab: Lab) -> None:
        if backing:
            lab.add_backing("base", 4 * lab.c)
        lab.create(8 * lab.c, "base" if backing else None)
        _failing(lab, kind, number, done=done)

    how = "done" if done else "not_done"
    run.__name__ = f"failing_{kind}_{number}_{how}{'_over_backing' if backing else ''}"
    scenario("failures")(run)


for _done in (False, True):
    for _backing in (False, True):
        for _number in (1, 3, 4):
            _add_failing("write", _number, done=_done, backing=_backing)
    _add_failing("flush", 1, done=_done, backing=True)


# --- two threads --------------------------------------------------------------------------------


Pair = Callable[[Lab], tuple[Callable[[], None], Callable[[], None]]]
PAIRS: dict[str, Pair] = {}


def pair(prepare: Pair) -> Pair:
    PAIRS[prepare.__name__] = prepare
    return prepare


def run_pair(lab: Lab, name: str, pause: int) -> bool:
    """Two threads at work, see `interleave`; then a flush by a third."""
    first, second = PAIRS[name](lab)
    reached = interleave(lab, first, second, pause)
    lab.guest.flush()
    lab.guest.close()
    return reached


def _two_writes(lab: Lab, one: int, two: int) -> tuple[Callable[[], None], Callable[[], None]]:
    guest = lab.start()

    def second() -> None:
        lab.write(two, 700, "second")
        guest.flush()

    return lambda: lab.write(one, 700, "first"), second


@pair
def both_make_the_table(lab: Lab) -> tuple[Callable[[], None], Callable[[], None]]:
    lab.create(4 * lab.c)
    return _two_writes(lab, 512, lab.c + 512)


@pair
def both_make_the_table_of_an_overlay(lab: Lab) -> tuple[Callable[[], None], Callable[[], None]]:
    lab.add_backing("base", 3 * lab.c)
    lab.create(4 * lab.c, "base")
    return _two_writes(lab, 512, lab.c + 512)


@pair
def same_cluster_of_an_overlay(lab: Lab) -> tuple[Callable[[], None], Callable[[], None]]:
    lab.add_backing("base", 3 * lab.c)
    lab.create(4 * lab.c, "base")
    return _two_writes(lab, lab.c, lab.c + 2048)


@pair
def old_and_new_table_of_an_overlay(lab: Lab) -> tuple[Callable[[], None], Callable[[], None]]:
    lab.add_backing("base", 3 * lab.c)
    lab.create(lab.span + 4 * lab.c, "base")
    with lab.prepared() as disk:
        disk.write(2 * lab.c, stamp("old", 2 * lab.c, 512))
    return _two_writes(lab, 512, lab.span + 512)


@pair
def write_and_zeroes(lab: Lab) -> tuple[Callable[[], None], Callable[[], None]]:
    lab.create(6 * lab.c)
    guest = lab.start()

    def second() -> None:
        guest.write_zeroes(2 * lab.c, 2 * lab.c)
        lab.write(3 * lab.c + 512, 512, "second")
        guest.flush()

    return lambda: lab.write(lab.c - 512, 1024, "first"), second


@pair
def two_batches_of_an_overlay(lab: Lab) -> tuple[Callable[[], None], Callable[[], None]]:
    lab.add_backing("base", 3 * lab.c)
    lab.create(lab.span + 6 * lab.c, "base")
    guest = lab.start()

    def batch_at(tag: str, places: list[int]) -> None:
        guest.write_many([(place, stamp(tag, place, 512)) for place in places])

    return (
        lambda: batch_at("first", [512, 2 * lab.c, lab.span]),
        lambda: batch_at("second", [lab.c + 512, 3 * lab.c, lab.span + lab.c]),
    )
