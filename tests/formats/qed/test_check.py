# SPDX-License-Identifier: Apache-2.0
"""What check finds, how it counts, and what repair makes of it."""

from __future__ import annotations

import pytest

from blocklayer.base.errors import NotSupported
from blocklayer.base.units import MiB
from blocklayer.core.checking import Repair
from blocklayer.core.node import PROBLEMS_KEPT
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import READ, InjectError
from blocklayer.formats.qed.cluster_map import ClusterMap
from blocklayer.formats.qed.layout import F_NEED_CHECK
from tests.support.graphs import ALL, LEAKS, NO_REPAIR, check, create, memory, open_disk
from tests.support.qed_image import CLUSTER, QedImage, qed

SPAN = 2 * MiB
ERRORS = Repair(errors=True)


@pytest.fixture
def image() -> QedImage:
    """Two tables; three clusters under the first, one under the second."""
    image = QedImage(3 * SPAN)
    with image.open() as disk:
        disk.write(0, b"a" * CLUSTER)
        disk.write(CLUSTER, b"b" * CLUSTER)
        disk.write(9 * CLUSTER, b"c" * CLUSTER)
        disk.write(SPAN, b"d" * CLUSTER)
        disk.write_zeroes(SPAN + CLUSTER, 7 * CLUSTER)
    return image


def read(image: QedImage, cluster: int) -> bytes:
    with image.open(read_only=True) as disk:
        return disk.read(cluster * CLUSTER, CLUSTER)


# --- clean images ---


def test_counts_of_a_clean_image(image: QedImage) -> None:
    before = image.content
    result = image.check()
    assert result.clean
    assert result.total_clusters == 3 * SPAN // CLUSTER
    assert result.allocated_clusters == 4
    assert result.fragmented_clusters == 1  # the second cluster: the table stands between
    assert result.problems == []
    assert image.content == before


@pytest.mark.parametrize("clusters", [4093, 4094, 4095, 4096, 4097, 8190])
def test_no_false_leaks_in_a_file_of_very_many_clusters(clusters: int) -> None:
    """The file has as many clusters as a cluster has bytes, or about so."""
    node = memory()
    create(node, size=64 * MiB, cluster_size=CLUSTER, table_size=16)
    fixed = node.size // CLUSTER + 16
    with open_disk(node) as disk:
        disk.write(0, bytes([1]) * CLUSTER * (clusters - fixed))
    assert node.size == clusters * CLUSTER
    result = check(node)
    assert result.clean
    assert result.allocated_clusters == clusters - fixed
    assert result.fragmented_clusters == 0


def test_repairing_a_clean_image_changes_nothing(image: QedImage) -> None:
    before = image.content
    for repair in (LEAKS, ERRORS, ALL):
        assert image.check(repair).clean
        assert image.content == before


def test_repair_clears_the_mark_of_an_image_that_is_fine(image: QedImage) -> None:
    image.set_header(features=F_NEED_CHECK)
    assert image.check(NO_REPAIR).clean
    assert image.header.features == F_NEED_CHECK
    assert image.check(ALL).clean
    assert image.header.features == 0


def test_an_image_that_is_open_can_be_checked(image: QedImage) -> None:
    with image.open() as disk:
        disk.write(20 * CLUSTER, b"more")
        assert qed(disk).check(NO_REPAIR).clean
        assert qed(disk).check(ALL).clean
        disk.write(21 * CLUSTER, b"more")
    assert image.check().clean


# --- entries that cannot be ---

IMPOSSIBLE = [7, CLUSTER // 2, CLUSTER, 1 << 20, 1 << 40, (1 << 64) - CLUSTER, (1 << 64) - 1]


@pytest.mark.parametrize("value", IMPOSSIBLE)
def test_a_data_entry_that_cannot_be_is_cleared(image: QedImage, value: int) -> None:
    image.set_l2(CLUSTER, value)
    lost = 1
    result = image.check()
    assert (result.corruptions, result.leaks, result.check_errors) == (1, lost, 0)
    [corruption] = [p for p in result.problems if p.kind == "corruption"]
    assert "L2 entry 1 of table 0 (guest offset 0x1000)" in corruption.message
    assert f"{value:#x}" in corruption.message
    assert corruption.offset == image.l2_place(CLUSTER)
    result = image.check(ERRORS)
    assert (result.corruptions, result.corruptions_fixed, result.leaks) == (0, 1, lost)
    assert image.l2(CLUSTER) == 0
    assert read(image, 1) == bytes(CLUSTER)
    assert read(image, 0) == b"a" * CLUSTER


@pytest.mark.parametrize("value", [1, *IMPOSSIBLE])
def test_a_table_entry_that_cannot_be_is_cleared(image: QedImage, value: int) -> None:
    image.set_l1(SPAN, value)
    result = image.check()
    assert (result.corruptions, result.leaks) == (1, 2)
    assert "L1 entry 1" in result.problems[0].message
    assert result.problems[0].offset == image.l1_place(SPAN)
    result = image.check(ALL)
    assert (result.corruptions_fixed, result.leaks_fixed) == (1, 0)
    assert (result.corruptions, result.leaks) == (0, 2)
    assert image.check(LEAKS).leaks_fixed == 2
    assert image.check().clean
    assert read(image, SPAN // CLUSTER) == bytes(CLUSTER)
    assert read(image, 9) == b"c" * CLUSTER


def test_a_table_that_reaches_behind_the_end_of_the_file() -> None:
    image = QedImage(SPAN, table_size=4)
    with image.open() as disk:
        disk.write(0, b"x")
    image.node.truncate(image.node.size - CLUSTER)
    result = image.check()
    assert result.corruptions == 1
    assert "reaches behind the end of the file" in result.problems[0].message
    assert image.check(ALL).corruptions == 0
    assert image.check(LEAKS).clean
    assert image.check().clean


def test_leaks_alone_are_repaired_when_that_is_all_that_is_asked_for(image: QedImage) -> None:
    """And not even they, while something is wrong: what looks unused may be needed to mend it."""
    image.set_l2(CLUSTER, 12345)
    before = image.content
    result = image.check(LEAKS)
    assert (result.corruptions, result.corruptions_fixed) == (1, 0)
    assert image.l2(CLUSTER) == 12345
    assert image.content[CLUSTER:] == before[CLUSTER:]


# --- what is referenced twice ---


def test_a_cluster_that_two_entries_share(image: QedImage) -> None:
    image.set_l2(9 * CLUSTER, image.l2(0))
    result = image.check()
    assert (result.corruptions, result.leaks) == (1, 1)
    assert "referenced more than once" in result.problems[0].message
    assert "guest offset 0x9000" in result.problems[0].message
    result = image.check(ALL)
    assert (result.corruptions, result.corruptions_fixed) == (0, 1)
    assert image.check().clean
    with image.open() as disk:
        assert disk.read(9 * CLUSTER, CLUSTER) == b"a" * CLUSTER
        disk.write(9 * CLUSTER, b"!")
        assert disk.read(0, CLUSTER) == b"a" * CLUSTER


def test_a_cluster_that_many_entries_share_is_counted_once_for_each_but_one(
    image: QedImage,
) -> None:
    for cluster in range(20, 30):
        image.set_l2(cluster * CLUSTER, image.l2(0))
    assert image.check().corruptions == 10
    result = image.check(ALL)
    assert result.corruptions_fixed == 10
    assert image.check().clean
    assert all(read(image, cluster) == b"a" * CLUSTER for cluster in range(20, 30))


def test_a_table_that_two_entries_share(image: QedImage) -> None:
    image.set_l1(2 * SPAN, image.l1(0))
    result = image.check()
    assert result.corruptions == 1
    assert "L1 entry 2" in result.problems[0].message
    assert "referenced more than once" in result.problems[0].message
    result = image.check(ALL)
    assert (result.corruptions, result.corruptions_fixed) == (0, 1)
    assert image.check().clean
    first = 2 * SPAN // CLUSTER
    assert [read(image, first + n)[:1] for n in (0, 1, 2, 9)] == [b"a", b"b", b"\0", b"c"]
    with image.open() as disk:
        disk.write(0, b"!")
        assert disk.read(2 * SPAN, 1) == b"a"


def test_scanning_goes_on_behind_a_shared_table(image: QedImage) -> None:
    image.set_l1(SPAN, image.l1(0))
    image.set_l1(2 * SPAN, 12345)
    result = image.check()
    assert result.corruptions == 2


def test_a_data_entry_that_points_to_a_table(image: QedImage) -> None:
    """To its own table or another's: a copy of it is given, the table stays what it is."""
    for table in (image.l1(0), image.l1(SPAN)):
        image.set_l2(30 * CLUSTER, table)
        assert image.check().corruptions >= 1
        assert image.check(ALL).corruptions == 0
        assert image.check().clean
        assert [read(image, n)[:1] for n in (0, 1, 9)] == [b"a", b"b", b"c"]
        assert read(image, SPAN // CLUSTER) == b"d" * CLUSTER


def test_a_table_entry_that_points_to_data(image: QedImage) -> None:
    """The bytes of a cluster are taken for entries: all of them are impossible."""
    image.set_l1(2 * SPAN, image.l2(0))
    assert image.check().corruptions > 0
    assert image.check(ALL).corruptions == 0
    assert image.check().clean
    assert [read(image, n)[:1] for n in (1, 9, SPAN // CLUSTER)] == [b"b", b"c", b"d"]
    assert read(image, 0) == b"a" * CLUSTER


# --- behind the end of the disk ---


def test_entries_behind_the_end_of_the_disk_are_leaks(image: QedImage) -> None:
    image.set_header(image_size=SPAN)
    result = image.check()
    assert (result.corruptions, result.leaks) == (0, 1)
    assert "behind the end of the disk" in result.problems[0].message
    size = image.node.size
    result = image.check(LEAKS)
    assert (result.leaks, result.corruptions) == (0, 0)
    assert result.leaks_fixed > 0
    assert image.node.size < size
    assert image.check().clean
    assert [read(image, n)[:1] for n in (0, 1, 9)] == [b"a", b"b", b"c"]


# --- leaks ---


def test_leaks_are_counted_in_clusters_and_described_in_runs(image: QedImage) -> None:
    end = image.node.size
    image.node.truncate(end + 5 * CLUSTER)
    image.set_l2(CLUSTER, 0)
    result = image.check()
    assert result.leaks == 6
    assert len(result.problems) == 2
    assert result.problems[1].offset == end
    assert "5 leaked clusters" in result.problems[1].message
    result = image.check(LEAKS)
    assert (result.leaks, result.leaks_fixed) == (0, 6)
    assert all(problem.fixed for problem in result.problems)
    assert image.node.size == end - CLUSTER


def test_no_image_fills_memory_with_problems() -> None:
    image = QedImage(SPAN * 8, table_size=8)
    with image.open() as disk:
        disk.write(0, b"x")
    image.put(image.l1(0), b"\7" * 8 * 4000)
    result = image.check()
    assert result.corruptions == 4000
    assert len(result.problems) == PROBLEMS_KEPT
    assert image.check(ALL).corruptions_fixed == 4000
    assert image.check(LEAKS).clean


@pytest.mark.parametrize("repair", [NO_REPAIR, LEAKS, ERRORS, ALL])
def test_what_is_not_described_is_counted_and_mended_all_the_same(repair: Repair) -> None:
    """A few descriptions, or all of them: nothing else differs."""
    results = []
    contents = []
    for problems_max in (2, None):
        image = QedImage(SPAN + 40 * CLUSTER)
        with image.open() as disk:
            disk.write(0, b"x" * 30 * CLUSTER)
            disk.write(SPAN, b"y" * 30 * CLUSTER)
        end = image.node.size
        for cluster in range(0, 5 * CLUSTER, CLUSTER):
            entry = image.l2(cluster)
            image.set_l2(cluster, end + cluster)
            image.set_l2(cluster + 5 * CLUSTER, entry + 7)
            image.set_l2(cluster + 10 * CLUSTER, image.l2(20 * CLUSTER))
            # And behind the end of the disk.
            image.set_l2(SPAN + 50 * CLUSTER + cluster, image.l2(SPAN + cluster))
            image.set_l2(SPAN + 60 * CLUSTER + cluster, 9)
        result = image.check(repair, problems_max=problems_max)
        results.append(result)
        contents.append(image.content)
    some, every = results
    assert (len(some.problems), some.more, every.more) == (2, True, False)
    assert contents[0] == contents[1]
    for name in ("corruptions", "corruptions_fixed", "leaks", "leaks_fixed", "check_errors"):
        assert getattr(some, name) == getattr(every, name), name
    assert every.corruptions + every.corruptions_fixed >= 15


# --- what cannot be read ---


@pytest.mark.parametrize("repair", [NO_REPAIR, ALL])
def test_a_table_that_cannot_be_read_is_an_error_and_not_corruption(
    image: QedImage, repair: Repair
) -> None:
    image.node.truncate(image.node.size + CLUSTER)
    image.set_header(features=F_NEED_CHECK)
    rule = InjectError(iotypes=frozenset({READ}), sector=image.l1(SPAN) // 512)
    result = check(FaultNode(image.node, [rule]), repair)
    assert (result.corruptions, result.check_errors) == (0, 1)
    assert "Cannot read L2 table 1" in result.problems[0].message
    # What was not seen may need the clusters that look leaked.
    assert result.leaks == result.leaks_fixed == 0
    assert image.header.features == F_NEED_CHECK


def test_raw_images_have_nothing_to_check() -> None:
    with pytest.raises(NotSupported, match="does not support checks"):
        check(memory("raw", MiB), format="raw")


# --- the map of clusters ---


def test_the_map_of_clusters() -> None:
    used = ClusterMap(20000)
    assert used.last_used() == -1
    assert list(used.free_runs()) == [(0, 20000)]
    assert used.mark(5) == 0
    assert used.mark(4, 3) == 1
    assert used.mark(4090, 20) == 0
    assert used.mark(19999) == 0
    assert used.used == 3 + 20 + 1
    runs = [(0, 4), (7, 4083), (4110, 15889)]
    assert list(used.free_runs()) == runs
    assert list(used.free_runs(end=9)) == [(0, 4), (7, 2)]
    assert used.last_used() == 19999
    used.unmark(19999)
    assert used.last_used() == 4109
    used.unmark(4, 3)
    assert list(used.free_runs(end=5000)) == [(0, 4090), (4110, 890)]


def test_the_map_of_clusters_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blocklayer.formats.qed.cluster_map._PAGES_MAX", 4)
    used = ClusterMap(1 << 50)
    for page in range(4):
        used.mark(page << 30)
    with pytest.raises(NotSupported, match="too scattered"):
        used.mark(4 << 30)
