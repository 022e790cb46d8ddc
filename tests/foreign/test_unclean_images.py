# SPDX-License-Identifier: Apache-2.0
"""Images whose writer was killed, on either side: both read the same, and repair to the same."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.formats.qed.layout import F_NEED_CHECK, Header
from tests.foreign import qemu, views
from tests.foreign.operations import Generator, Operation
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-io")

SIZE = 4 * MiB + 512
CLUSTER = 16 * KiB

Interrupt = Callable[[Path, list[Operation]], None]
"""Do requests to an image, and die over the last one."""


def kill_qemu_between_requests(path: Path, requests: list[Operation]) -> None:
    with qemu.session(path) as session:
        for request in requests[:-1]:
            session.tell(request.command)
        session.kill()


def kill_qemu_in_a_request(path: Path, requests: list[Operation]) -> None:
    with qemu.session(path) as session:
        for request in requests[:-1]:
            session.tell(request.command)
        session.send(requests[-1].command)
        time.sleep(0.0005 * (len(requests) % 4))
        session.kill()


def abort_qemu(path: Path, requests: list[Operation]) -> None:
    with qemu.session(path) as session:
        for request in requests[:-1]:
            session.tell(request.command)
        # What `abort` does, without a core file left behind.
        session.send(f"sigraise {signal.SIGKILL}")
        session.process.wait(qemu.TIMEOUT)


VICTIM = """
import os, signal, sys
import blocklayer
from tests.foreign.operations import Operation
disk = blocklayer.open(sys.argv[1], mode="r+")
for request in eval(sys.stdin.read()):
    request.tell_disk(disk)
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_us(path: Path, requests: list[Operation]) -> None:
    victim = subprocess.run(
        [sys.executable, "-c", VICTIM, path],
        input=repr(requests[:-1]),
        encoding="utf-8",
        cwd=Path(__file__).parents[2],
        timeout=qemu.TIMEOUT,
        check=False,
    )
    assert victim.returncode == -signal.SIGKILL


INTERRUPTS = [kill_qemu_between_requests, kill_qemu_in_a_request, abort_qemu, kill_us]


def is_marked(path: Path) -> bool:
    """Whether NEED_CHECK is on disk."""
    with path.open("rb") as file:
        return bool(Header.unpack_from(file.read(Header.SIZE)).features & F_NEED_CHECK)


def open_and_close(path: Path) -> None:
    """What repairs an image that was left unclean."""
    blocklayer.open(path, mode="r+").close()


def have_qemu_open_and_close(path: Path) -> None:
    qemu.io(path, "read -q 0 512")


def copy_of(path: Path, name: str) -> Path:
    return Path(shutil.copy(path, path.with_name(name)))


def unclean(
    path: Path, rng: random.Random, interrupt: Interrupt, *, backing: Path | None = None
) -> tuple[bytes, Operation]:
    """An image whose writer was killed; what was acknowledged, and the last request."""
    qemu.create(path, SIZE, backing=backing, cluster_size=CLUSTER)
    generator = Generator(rng, SIZE, CLUSTER, over_backing=backing is not None)
    writes = [r for r in generator.many(60) if r.verb in ("write", "write_zeroes")]
    model = bytearray(SIZE if backing is None else views.content(backing).ljust(SIZE, b"\0"))
    for request in writes[:-1]:
        request.tell_bytes(model)
    interrupt(path, writes)
    return bytes(model), writes[-1]


@pytest.mark.parametrize("interrupt", INTERRUPTS)
@pytest.mark.parametrize("over_backing", [False, True], ids=["alone", "overlay"])
def test_killed_writers(
    tmp_path: Path, rng: random.Random, interrupt: Interrupt, over_backing: bool
) -> None:
    backing = tmp_path / "backing" if over_backing else None
    if backing is not None:
        qemu.create(backing, SIZE - MiB)
        qemu.io(backing, f"write -P 99 0 {SIZE - MiB}")
    path = tmp_path / "image"
    acknowledged, last = unclean(path, rng, interrupt, backing=backing)
    assert is_marked(path) is not over_backing
    assert blocklayer.info(path).dirty_flag is not over_backing

    # Reading repairs nothing and sees everything.
    before = path.read_bytes()
    seen = views.assert_same(path)
    assert views.check(path) == qemu.check(path)
    assert path.read_bytes() == before
    assert seen[: last.offset] == acknowledged[: last.offset]
    assert seen[last.end :] == acknowledged[last.end :]

    # Opening to write repairs.
    theirs = copy_of(path, "theirs")
    open_and_close(path)
    have_qemu_open_and_close(theirs)
    assert views.assert_same(path, expected=seen) == views.assert_same(theirs)
    for repaired in (path, theirs):
        assert not is_marked(repaired)
        found = views.check(repaired)
        assert found == qemu.check(repaired)
        assert not found.corruptions
    if not over_backing:
        assert views.check(path).leaks == 0


def test_many_writes_in_flight(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "image"
    qemu.create(path, SIZE, cluster_size=CLUSTER)
    for _ in range(5):
        with qemu.session(path) as session:
            for _ in range(rng.randrange(1, 30)):
                offset = rng.randrange(SIZE - 100 * KiB)
                count = rng.randrange(1, 100 * KiB)
                session.tell(f"aio_write -q -P {rng.randrange(1, 256)} {offset} {count}")
            session.kill()
        seen = views.assert_same(path)
        assert views.check(path) == qemu.check(path)
        theirs = copy_of(path, "theirs")
        open_and_close(path)
        have_qemu_open_and_close(theirs)
        views.assert_clean(path)
        qemu.compare(path, theirs)
        views.assert_same(path, expected=seen)


# A file system may forget the end of the file, and lose what entries point to.


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """An image that is marked, and whose last clusters never reached the disk."""
    path = tmp_path / "cut"
    qemu.create(path, SIZE, cluster_size=CLUSTER)
    with qemu.session(path) as session:
        for cluster in range(10):
            session.tell(f"write -q -P {cluster + 1} {cluster * 3 * CLUSTER} {CLUSTER}")
        session.kill()
    os.truncate(path, path.stat().st_size - 3 * CLUSTER - 512)
    return path


def lost() -> bytes:
    """What is to be read of it: the last four clusters as before their writes."""
    model = bytearray(SIZE)
    for cluster in range(6):
        start = cluster * 3 * CLUSTER
        model[start : start + CLUSTER] = bytes([cluster + 1]) * CLUSTER
    return bytes(model)


def test_what_is_lost_is_an_error_until_repaired(cut: Path) -> None:
    place = 9 * 3 * CLUSTER
    refused = qemu.try_io(cut, f"read {place} 512", options=["-r"])
    assert "read failed: Invalid argument" in refused.output
    with blocklayer.open(cut) as disk:
        with pytest.raises(blocklayer.TruncatedImage):
            disk.read(place, 512)
        assert disk.read(0, place - 10 * CLUSTER) == lost()[: place - 10 * CLUSTER]
    found = views.check(cut)
    assert found == qemu.check(cut)
    assert found.corruptions == 4


def test_opening_repairs_to_the_same(cut: Path) -> None:
    theirs = copy_of(cut, "theirs")
    open_and_close(cut)
    have_qemu_open_and_close(theirs)
    for path in (cut, theirs):
        views.assert_same(path, expected=lost())
        views.assert_clean(path)
        assert not is_marked(path)


def test_check_repairs_to_the_same(cut: Path) -> None:
    theirs = copy_of(cut, "theirs")
    ours = views.check(cut, repair="all")
    assert ours.corruptions_fixed == qemu.check(theirs, repair="all").corruptions_fixed == 4
    for path in (cut, theirs):
        views.assert_same(path, expected=lost())
        views.assert_clean(path)
        assert not is_marked(path)


def test_repairing_leaks_repairs_nothing_else(cut: Path) -> None:
    """DEFECT: to QEMU, `-r leaks` means everything."""
    theirs = copy_of(cut, "theirs")
    before = cut.read_bytes()
    ours = views.check(cut, repair="leaks")
    assert (ours.corruptions, ours.corruptions_fixed) == (4, 0)
    assert cut.read_bytes() == before
    assert qemu.check(theirs, repair="leaks").corruptions_fixed == 4


def test_damage_that_stays_keeps_the_mark(tmp_path: Path) -> None:
    """DEFECT: QEMU clears the mark of an image that it could not repair."""
    ours = tmp_path / "ours"
    qemu.create(ours, SIZE, cluster_size=CLUSTER)
    qemu.io(ours, f"write -P 1 0 {4 * CLUSTER}")
    share_a_cluster(ours)
    set_mark(ours)
    theirs = copy_of(ours, "theirs")
    have_qemu_open_and_close(theirs)
    open_and_close(ours)
    assert not is_marked(theirs)
    assert is_marked(ours)
    assert views.check(ours) == qemu.check(ours) == qemu.check(theirs)
    assert views.check(ours).corruptions == 1
    # DEFECT: QEMU cannot give both references a cluster of their own.
    assert qemu.check(theirs, repair="all").corruptions == 1
    assert views.check(ours, repair="all").corruptions_fixed == 1
    views.assert_clean(ours)
    assert not is_marked(ours)
    qemu.compare(ours, theirs)


def set_mark(path: Path) -> None:
    with path.open("rb+") as file:
        header = Header.unpack_from(file.read(Header.SIZE))
        file.seek(0)
        file.write(header.replace(features=header.features | F_NEED_CHECK).pack())


def share_a_cluster(path: Path) -> None:
    """Make the second entry of the first L2 table a copy of the first one."""
    with path.open("rb+") as file:
        header = Header.unpack_from(file.read(Header.SIZE))
        file.seek(header.l1_table_offset)
        table = int.from_bytes(file.read(8), "little")
        file.seek(table)
        entry = file.read(8)
        file.seek(table + 8)
        file.write(entry)
