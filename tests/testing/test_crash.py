# SPDX-License-Identifier: Apache-2.0
"""Storage that crashes, and what its user may find: against examples worked out by hand."""

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from blocklayer.base.errors import FormatError, IoError, NotSupported
from blocklayer.base.extent import DATA, ZERO
from blocklayer.base.units import SECTOR
from blocklayer.core.checking import CheckResult, Problem, Repair
from blocklayer.core.disk import Disk
from blocklayer.core.node import FormatNode, Mapped, Node
from blocklayer.testing.crash import CrashDisk, SectorDisk, Snapshot
from blocklayer.testing.crash_content import Content, read_content
from blocklayer.testing.crash_explore import VIOLATIONS_KEPT, Exploration, explore
from blocklayer.testing.crash_guest import Guest, stamp
from blocklayer.testing.crash_states import CrashState, Effort, crash_states, subsets

ALL = Effort(exhaustive=1 << 12, torn=1 << 12, samples=0)


def sector(letter: str) -> bytes:
    return letter.encode() * SECTOR


def write(disk: Node, number: int, letters: str) -> None:
    """Whole sectors, a letter each."""
    disk.writev(number * SECTOR, [memoryview(b"".join(map(sector, letters)))])


def read(disk: Node, offset: int, length: int) -> bytes:
    data = bytearray(b"?" * length)
    disk.readv(offset, [memoryview(data)])
    return bytes(data)


def letters(snapshot: Snapshot) -> str:
    """A snapshot with a letter for each sector, `.` for zeroes."""
    count = -(-snapshot.size // SECTOR)
    contents = (snapshot.sectors.get(number, b".") for number in range(count))
    return "".join(chr(content[0]) for content in contents)


def holding(letters: str) -> CrashDisk:
    """A disk with one sector a letter, none of them at stake."""
    disk = SectorDisk()
    write(disk, 0, letters)
    return CrashDisk(disk.snapshot())


def lost_power(disk: CrashDisk) -> set[str]:
    """What the disk may hold after a power failure at any moment."""
    states = crash_states(disk, ALL, random.Random(0))
    return {letters(state.snapshot) for state in states if not state.killed}


def killed(disk: CrashDisk) -> list[str]:
    states = crash_states(disk, ALL, random.Random(0))
    return [letters(state.snapshot) for state in states if state.killed]


# --- storage ------------------------------------------------------------------------------------


def test_storage_is_a_byte_array(rng: random.Random) -> None:
    disk, model = SectorDisk(Snapshot({}, 3000)), bytearray(3000)
    for _ in range(400):
        offset, length = rng.randrange(6000), rng.randint(1, 2500)
        verb = rng.choice(["write", "zero", "discard", "truncate", "read"])
        if verb == "write":
            data = rng.randbytes(length)
            disk.writev(offset, [memoryview(data)[:7], memoryview(data)[7:]])
            model.extend(bytes(max(0, offset + length - len(model))))
            model[offset : offset + length] = data
        elif verb == "zero":
            disk.zero(offset, length)
            model.extend(bytes(max(0, offset + length - len(model))))
            model[offset : offset + length] = bytes(length)
        elif verb == "discard":
            disk.discard(offset, length)
            end = min(offset + length, len(model))
            model[offset:end] = bytes(max(0, end - offset))
        elif verb == "truncate":
            disk.truncate(offset)
            del model[offset:]
            model.extend(bytes(offset - len(model)))
        assert disk.size == len(model)
        assert read(disk, 0, len(model) + 600) == model + bytes(600)
        assert read(disk, offset, length) == (model + bytes(9000))[offset : offset + length]


def test_map_tells_holes() -> None:
    disk = SectorDisk()
    write(disk, 2, "ab")
    write(disk, 4, "c")
    disk.truncate(1 << 40)
    assert disk.map(100, 5000)[:2] == (ZERO, 2 * SECTOR - 100)
    assert disk.map(2 * SECTOR, 10 * SECTOR)[:2] == (DATA, 3 * SECTOR)
    assert disk.map(2 * SECTOR + 1, 10)[:2] == (DATA, 10)
    assert disk.map(5 * SECTOR, 1 << 39)[:2] == (ZERO, 1 << 39)
    assert disk.map(0, 1 << 39)[:2] == (ZERO, 2 * SECTOR)


def test_snapshots_are_equal_by_content(tmp_path: Path) -> None:
    disk, other = SectorDisk(), SectorDisk()
    write(disk, 0, "ab")
    write(other, 0, "xb")
    write(other, 0, "a")
    assert disk.snapshot().key == other.snapshot().key
    other.truncate(5 * SECTOR)
    assert disk.snapshot().key != other.snapshot().key
    other.snapshot().save(tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == sector("a") + sector("b") + bytes(3 * SECTOR)


def test_a_device_keeps_its_size() -> None:
    disk = SectorDisk(Snapshot({}, 4 * SECTOR), growable=False)
    assert not disk.grows_zeroed
    disk.truncate(SECTOR)
    assert disk.size == 4 * SECTOR
    with pytest.raises(NotSupported):
        disk.truncate(5 * SECTOR)
    with pytest.raises(IoError):
        write(disk, 4, "a")
    with pytest.raises(IoError):
        disk.zero(3 * SECTOR, 2 * SECTOR)


def test_read_only_storage_refuses() -> None:
    disk = SectorDisk(Snapshot({}, 4 * SECTOR), read_only=True)
    changes: list[Callable[[], None]] = [
        lambda: write(disk, 0, "a"),
        lambda: disk.zero(0, SECTOR),
        lambda: disk.discard(0, SECTOR),
        lambda: disk.truncate(0),
    ]
    for change in changes:
        with pytest.raises(IoError):
            change()
    disk.flush()


# --- what a crash may leave ---------------------------------------------------------------------


def test_killed_is_every_prefix() -> None:
    disk = CrashDisk()
    write(disk, 0, "ab")
    disk.flush()
    write(disk, 1, "cd")
    disk.truncate(SECTOR)
    assert killed(disk) == ["", "ab", "ab", "acd", "a"]


def test_power_loss_takes_any_subset_of_what_is_not_flushed() -> None:
    disk = CrashDisk()
    write(disk, 0, "abc")
    disk.flush()
    write(disk, 0, "x")
    write(disk, 1, "y")
    write(disk, 2, "z")
    assert lost_power(disk) >= {a + b + c for a in "ax" for b in "by" for c in "cz"}
    disk.flush()
    write(disk, 0, "q")
    states = lost_power(disk)
    assert {"xyz", "qyz"} <= states
    assert "qbc" not in states
    assert "qbz" not in states


def test_writes_are_torn_between_sectors() -> None:
    disk = CrashDisk()
    write(disk, 0, "ab")
    disk.flush()
    write(disk, 0, "xy")
    assert {"ab", "xb", "ay", "xy"} <= lost_power(disk)


def test_the_older_of_two_writes_may_be_there_alone() -> None:
    disk = CrashDisk()
    write(disk, 0, "a")
    disk.flush()
    write(disk, 0, "b")
    write(disk, 0, "c")
    assert {"a", "b", "c"} <= lost_power(disk)


def test_a_part_of_a_sector_is_written_with_the_rest_of_it() -> None:
    disk = CrashDisk()
    write(disk, 0, "a")
    disk.writev(0, [memoryview(b"b" * 100)])
    disk.writev(200, [memoryview(b"c" * 100)])
    contents = {
        state.snapshot.sectors.get(0, bytes(SECTOR))
        for state in crash_states(disk, ALL, random.Random(0))
    }
    first, second = b"b" * 100 + b"a" * 412, b"b" * 100 + b"a" * 100 + b"c" * 100 + b"a" * 212
    assert contents == {bytes(SECTOR), sector("a"), first, second}


def test_a_write_behind_a_lost_truncate_makes_the_file_longer() -> None:
    disk = CrashDisk()
    write(disk, 0, "a")
    disk.flush()
    disk.truncate(6 * SECTOR)
    write(disk, 3, "b")
    assert {"a", "a.....", "a..b", "a..b.."} <= lost_power(disk)


def test_a_torn_write_ends_the_file_where_its_last_sector_is() -> None:
    disk = CrashDisk()
    write(disk, 0, "abc")
    assert {"", "a", "ab", ".b", "..c"} <= lost_power(disk)
    half = CrashDisk()
    half.writev(0, [memoryview(b"x" * (SECTOR + 100))])
    sizes = {state.snapshot.size for state in crash_states(half, ALL, random.Random(0))}
    assert sizes == {0, SECTOR, SECTOR + 100}


def test_what_was_cut_off_comes_back_if_the_cut_is_lost() -> None:
    disk = holding("abc")
    disk.truncate(SECTOR)
    disk.truncate(4 * SECTOR)
    assert lost_power(disk) == {"abc", "a", "abc.", "a..."}


def test_a_cut_takes_with_it_what_was_overwritten_before() -> None:
    """Zeroing may be lost where the cut after it is not: the old bytes are gone all the same."""
    disk = holding("abc")
    disk.zero(SECTOR, 2 * SECTOR)
    disk.truncate(SECTOR)
    disk.truncate(2 * SECTOR)
    assert lost_power(disk) == {"abc", "a.c", "ab.", "a..", "a", "a.", "ab"}


def test_zero_and_discard_are_torn_too() -> None:
    disk = CrashDisk()
    write(disk, 0, "abcd")
    disk.flush()
    disk.zero(0, 2 * SECTOR)
    disk.discard(2 * SECTOR, 2 * SECTOR)
    assert {"abcd", ".bcd", "..cd", "ab.d", "...."} <= lost_power(disk)


def test_zeroing_behind_the_end_is_a_change_of_size_first() -> None:
    disk = CrashDisk()
    disk.zero(0, 4 * SECTOR)
    assert [operation.kind for operation in disk.operations] == ["truncate"]
    write(disk, 1, "a")
    disk.zero(SECTOR, 5 * SECTOR)
    assert [operation.kind for operation in disk.operations[2:]] == ["truncate", "zero"]


def test_what_is_ignored_does_not_count_as_flushed() -> None:
    disk = CrashDisk()
    disk.ignored = {1}
    for letter in "abc":
        write(disk, 0, letter)
        disk.flush()
    assert disk.flushes == 3
    assert [operation.kind for operation in disk.operations].count("flush") == 2
    assert "a" in lost_power(disk)


def test_hooks_make_operations_fail_done_or_not() -> None:
    disk = CrashDisk()

    def fail(*_: object) -> None:
        raise IoError("injected", "crash")

    disk.before = fail
    with pytest.raises(IoError):
        write(disk, 0, "a")
    disk.before, disk.after = None, fail
    with pytest.raises(IoError):
        write(disk, 0, "b")
    assert killed(disk) == ["", "b"]


def test_moments_say_when_a_crash_can_leave_a_state() -> None:
    disk = CrashDisk()
    write(disk, 0, "a")
    disk.flush()
    write(disk, 1, "b")
    write(disk, 2, "c")
    disk.flush()
    states = [s for s in crash_states(disk, ALL, random.Random(0)) if not s.killed]
    moments = {(letters(s.snapshot), s.first, s.last) for s in states}
    assert {("", 0, 1), ("a", 1, 1), ("a", 2, 4), ("ab", 3, 4), ("a.c", 4, 4)} <= moments
    assert ("abc", 5, 5) in moments


def test_states_are_described() -> None:
    disk = CrashDisk()
    write(disk, 0, "abc")
    disk.truncate(SECTOR)
    disk.flush()
    texts = [s.describe(disk.operations) for s in crash_states(disk, ALL, random.Random(0))]
    assert any("write 0x600 bytes at 0x0: sectors 101" in text for text in texts)
    assert any("truncate to 0x200: lost" in text for text in texts)
    assert "killed after 3 operations, the last of them: flush" in texts
    assert "killed after 0 operations, the last of them: nothing" in texts


def test_subsets_are_all_or_structured() -> None:
    rng = random.Random(0)
    assert sorted(subsets(4, 16, 8, 0, rng)) == list(range(16))
    some = set(subsets(20, 16, 20, 5, rng))
    full = (1 << 20) - 1
    assert {0, full, 1, 1 << 19, full ^ 1 << 7, 0b111, full ^ 0b111, 0b1110, full ^ 0b1110} <= some
    few = list(subsets(1000, 16, 3, 5, rng))
    assert len(few) < 100
    assert all(0 <= mask < 1 << 1000 for mask in few)


# --- what the guest may find ----------------------------------------------------------------------


class Plain(FormatNode):
    """A format without metadata: the bytes of the disk are those of the file."""

    driver = "plain"
    cluster_size = 4 * SECTOR
    dirty = False
    damage: Sequence[Problem] = ()
    unreadable: Sequence[int] = ()

    def __init__(self, file: Node, *, read_only: bool) -> None:
        super().__init__(file, read_only=read_only)
        self.size = file.size

    def map(self, offset: int, length: int) -> Mapped:
        first, last = offset // self.cluster_size, (offset + length - 1) // self.cluster_size
        if any(first <= cluster <= last for cluster in self.unreadable):
            raise FormatError("unreadable", self.filename)
        return DATA, length, self.file, offset

    def place(self, offset: int, length: int) -> tuple[Node, int, int]:
        return self.file, offset, length

    def truncate(self, size: int, preallocation: str = "off") -> None:
        self.file.truncate(size)
        self.size = size

    def check(self, repair: Repair) -> CheckResult:
        result = CheckResult(self.filename, self.driver)
        for problem in self.damage:
            result.report(problem)
        return result

    def info(self) -> dict[str, object]:
        return {"dirty-flag": self.dirty}


def open_plain(storage: Node, read_only: bool) -> Plain:
    return Plain(storage, read_only=read_only)


def record(letters: str) -> tuple[CrashDisk, Guest]:
    """A disk with one sector a letter, and its user."""
    storage = holding(letters)
    guest = Guest(Disk(open_plain(storage, read_only=False), discard="unmap"), storage)
    return storage, guest


def content(letters: str) -> Content:
    numbered = enumerate(letters)
    sectors = {number: sector(letter) for number, letter in numbered if letter != "."}
    return Content((len(letters) * SECTOR, None), sectors)


def allowed(guest: Guest, moment: int, among: Iterable[str], *, kill: bool = False) -> set[str]:
    """The contents of `among` that a crash at a moment may leave."""
    views = guest.views(moment, moment, kill)
    return {
        text for text in among if all(guest.judge(view, content(text)) is None for view in views)
    }


def test_what_is_written_may_be_there_and_what_is_flushed_must() -> None:
    storage, guest = record("aa")
    guest.write(0, sector("b"))
    written = storage.moment
    guest.flush()
    flushed = storage.moment
    guest.write(0, sector("c"))
    guest.close()
    among = ["aa", "ba", "ca", "xa", "bx"]
    assert allowed(guest, 0, among) == {"aa"}
    assert allowed(guest, written, among) == {"aa", "ba"}
    assert allowed(guest, flushed, among) == {"ba"}
    assert allowed(guest, flushed + 1, among) == {"ba", "ca"}
    assert allowed(guest, storage.moment, among) == {"ca"}


def test_killed_processes_have_what_they_were_told() -> None:
    storage, guest = record("a")
    guest.write(0, sector("b"))
    assert allowed(guest, storage.moment, "ab", kill=True) == {"b"}
    assert allowed(guest, storage.moment, "ab") == {"a", "b"}
    guest.close()


def test_fua_is_a_flush_of_this_request_alone() -> None:
    storage, guest = record("aa")
    guest.write(0, sector("b"))
    guest.write(SECTOR, sector("c"), fua=True)
    among = ["aa", "ba", "ac", "bc"]
    assert allowed(guest, storage.moment, among) == {"ac", "bc"}
    guest.close()


def test_parts_of_sectors_add_up() -> None:
    storage, guest = record("a")
    guest.write(0, b"b" * 100)
    guest.write(50, b"c" * 100)
    view = guest.views(storage.moment, storage.moment, False)[0]
    found = content("a")
    for bytes_found in (sector("a"), b"b" * 100 + b"a" * 412, b"b" * 50 + b"c" * 100 + b"a" * 362):
        found.sectors[0] = bytes_found
        assert guest.judge(view, found) is None
    found.sectors[0] = b"a" * 50 + b"c" * 100 + b"a" * 362
    assert guest.judge(view, found) is not None
    guest.close()


def test_discarded_sectors_may_keep_their_bytes() -> None:
    storage, guest = record("aaa")
    guest.write(0, sector("b"))
    guest.discard(100, 3 * SECTOR - 100)
    guest.flush()
    assert allowed(guest, storage.moment, ["baa", ".aa", "b..", "aaa", "..."]) == {
        "baa",
        ".aa",
        "b..",
        "...",
    }
    guest.write(0, sector("c"))
    guest.flush()
    assert allowed(guest, storage.moment, ["baa", ".aa", "caa", "c.."]) == {"caa", "c.."}
    guest.close()


def test_a_failed_request_may_be_done_for_ever() -> None:
    storage, guest = record("aa")

    def fail(*_: object) -> None:
        raise IoError("injected", "crash")

    storage.before = fail
    with pytest.raises(IoError):
        guest.write(0, sector("b"))
    storage.before = None
    guest.write(SECTOR, sector("c"))
    guest.flush()
    assert allowed(guest, storage.moment, ["aa", "ba", "ac", "bc"]) == {"ac", "bc"}
    guest.write(0, sector("d"))
    guest.flush()
    assert allowed(guest, storage.moment, ["ac", "bc", "dc"]) == {"dc"}
    guest.close()


def test_a_size_comes_with_its_content() -> None:
    storage, guest = record("aaa")
    guest.resize(SECTOR)
    small = storage.moment
    guest.resize(2 * SECTOR)
    guest.flush()
    assert allowed(guest, small, ["aaa", "a", "a.", "a.."]) == {"aaa", "a"}
    assert allowed(guest, storage.moment, ["aaa", "a", "a.", "aa"]) == {"a."}
    guest.close()


def test_a_missed_flush_is_looked_for_at_every_later_moment() -> None:
    storage, guest = record("a")
    storage.ignored = {0}
    guest.write(0, sector("b"))
    guest.flush()
    views = guest.views(0, storage.moment, False)
    verdicts = [guest.judge(view, content("a")) is None for view in views]
    assert verdicts == [True, False]
    guest.close()


def test_stamps_differ_everywhere() -> None:
    data = stamp("tag", 0, 4096)
    assert stamp("tag", 100, 300) == data[100:400]
    sectors = {data[start : start + SECTOR] for start in range(0, 4096, SECTOR)}
    assert len(sectors) == 8
    assert stamp("other", 0, 32) != data[:32]


def test_reading_finds_what_cannot_be_read() -> None:
    disk = SectorDisk()
    write(disk, 0, "aaaabbbbcccc.")
    node = open_plain(disk, read_only=True)
    node.unreadable = [1]
    found = read_content(node)
    assert found.unreadable == [(4 * SECTOR, 8 * SECTOR)]
    assert sorted(found.sectors) == [0, 1, 2, 3, 8, 9, 10, 11, 12]
    node.unreadable = []
    whole = read_content(node)
    assert found.same_where_readable(whole)
    assert not whole.same_where_readable(found)
    whole.sectors[0] = sector("x")
    assert not found.same_where_readable(whole)


# --- exploring ----------------------------------------------------------------------------------


def run(
    session: Callable[[Guest], None],
    open_image: Callable[[Node, bool], Plain] = open_plain,
    ignored: Iterable[int] = (),
) -> Exploration:
    storage, guest = record("aaaa")
    storage.ignored = set(ignored)
    session(guest)
    guest.close()
    return explore(storage, guest, open_image, random.Random(0))


def two_writes(guest: Guest) -> None:
    guest.write(0, sector("b") * 2)
    guest.flush()
    guest.write(SECTOR, sector("c") * 2)


def test_a_format_without_metadata_keeps_the_promise() -> None:
    result = run(two_writes)
    assert result.violations == []
    # aaaa, and b and c over it: three more each.
    assert result.states == 7
    assert result.candidates > result.states


def test_a_flush_that_does_nothing_is_found() -> None:
    violation = run(two_writes, ignored=[0]).violations[0]
    assert violation.startswith("opening read-only: Violation: guest sector 0 (offset 0x0) is")
    assert "power lost after" in violation


def test_few_violations_are_kept() -> None:
    def fail(storage: Node, read_only: bool) -> Plain:
        raise FormatError("does not open", "crash")

    result = run(two_writes, fail)
    assert len(result.violations) == VIOLATIONS_KEPT
    assert "opening read-only: FormatError: does not open" in result.violations[0]


def opened(when: Callable[[bool], bool], **fields: object) -> Callable[[Node, bool], Plain]:
    """Opens images that are out of order where `when(read_only)` says so."""

    def open_image(storage: Node, read_only: bool) -> Plain:
        node = open_plain(storage, read_only)
        if when(read_only):
            for name, value in fields.items():
                setattr(node, name, value)
        return node

    return open_image


def always(read_only: bool) -> bool:
    return True


def reading(read_only: bool) -> bool:
    return read_only


def writing(read_only: bool) -> bool:
    return not read_only


@pytest.mark.parametrize(
    ("when", "fields", "phase"),
    [
        (writing, {"damage": [Problem("corruption", "bad")]}, "checking"),
        (writing, {"damage": [Problem("error", "bad")]}, "checking"),
        (writing, {"damage": [Problem("leak", "bad")]}, "repairing"),
        (reading, {"damage": [Problem("leak", "bad")]}, "opening again"),
        (reading, {"dirty": True}, "opening again"),
        (reading, {"unreadable": [0]}, "opening read-only"),
        (always, {"unreadable": [0], "dirty": True}, "opening read-only"),
        (writing, {"unreadable": [0]}, "opening read-write"),
        (writing, {"size": SECTOR}, "opening read-write"),
        (reading, {"size": SECTOR}, "opening read-only"),
    ],
)
def test_each_phase_is_looked_at(
    when: Callable[[bool], bool], fields: dict[str, object], phase: str
) -> None:
    violation = run(two_writes, opened(when, **fields)).violations[0]
    assert violation.startswith(f"{phase}: ")


def test_a_dirty_image_may_be_unreadable_where_it_is_written() -> None:
    """Until it is opened for writing, and only as long as the write is not flushed."""

    def half_done(storage: Node, read_only: bool) -> Plain:
        node = open_plain(storage, read_only)
        assert isinstance(storage, SectorDisk)
        if read_only and letters(storage.snapshot()) == "aaba":
            node.unreadable, node.dirty = [0], True
        return node

    storage, guest = record("aaaa")
    guest.write(2 * SECTOR, sector("b"))
    moment = storage.moment
    guest.write(2 * SECTOR, sector("c"))
    guest.flush()
    guest.close()
    half = next(s for s in crash_states(storage, ALL, random.Random(0)) if s.first == moment)
    assert isinstance(half, CrashState)
    views = guest.views(moment, moment, False)
    seen = read_content(half_done(SectorDisk(half.snapshot), True))
    assert seen.unreadable
    assert all(guest.judge(view, seen) is None for view in views)
    last = guest.views(storage.moment, storage.moment, False)
    assert all(guest.judge(view, seen) is not None for view in last)
