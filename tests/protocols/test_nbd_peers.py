# SPDX-License-Identifier: Apache-2.0
"""The `nbd` protocol on the servers of others: what it reads, writes and maps is what is there."""

import errno
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import IoError, NotSupported, OpenError, ReadOnly
from blocklayer.base.options import OptionTree
from blocklayer.base.units import GiB, KiB, MiB
from blocklayer.core.batch import Request
from blocklayer.core.disk import Disk
from blocklayer.testing.exercise import Exercise
from blocklayer.testing.model import ModelDisk
from tests.support import needs
from tests.support.nbd_servers import Peer, nbdkit, qemu_nbd, running

SIZE = 6 * MiB


def opened(peer: Peer, mode: str = "r+", **options: object) -> Disk:
    tree: OptionTree = {
        "driver": "nbd",
        "server": {"type": "unix", "path": str(peer.socket)},
        **options,
    }
    return blocklayer.open({"driver": "raw", "file": tree}, mode=mode, discard="unmap")


# --- every verb, on servers of every kind -------------------------------------------------------

SERVERS = {
    "memory": ("memory", f"{SIZE}"),
    "no structured replies": ("--no-sr", "memory", f"{SIZE}"),
    "newstyle that is not fixed": ("--mask-handshake=0", "memory", f"{SIZE}"),
    "whole blocks": (
        "--filter=blocksize-policy",
        *("memory", f"{SIZE}", "blocksize-minimum=4096", "blocksize-preferred=4096"),
        *("blocksize-maximum=65536", "blocksize-error-policy=error"),
    ),
    "no zeroing": ("--filter=nozero", "memory", f"{SIZE}"),
    "zeroing that is not fast": ("--filter=nozero", "memory", f"{SIZE}", "fastzeromode=slow"),
    "no extents": ("--filter=noextents", "memory", f"{SIZE}"),
    "no flush, emulated FUA": ("--filter=fua", "memory", f"{SIZE}", "fuamode=force"),
    "slow": ("--filter=delay", "memory", f"{SIZE}", "rdelay=1ms", "wdelay=1ms"),
    "odd blocks": ("--filter=blocksize-policy", "memory", f"{SIZE}", "blocksize-preferred=1M"),
}


@needs("nbdkit")
@pytest.mark.parametrize("arguments", SERVERS.values(), ids=SERVERS)
def test_random_requests(arguments: tuple[str, ...], tmp_path: Path, seed: int) -> None:
    with (
        running(nbdkit(tmp_path / "s", *arguments), tmp_path / "s") as peer,
        opened(peer) as disk,
    ):
        Exercise(disk, ModelDisk(SIZE), seed=seed, length_max=256 * KiB).run(250)


@needs("qemu-nbd", "qemu-img")
@pytest.mark.parametrize("format_name", ["raw", "qed"])
def test_random_requests_to_qemu(format_name: str, tmp_path: Path, seed: int) -> None:
    image = tmp_path / "image"
    blocklayer.create(image, format=format_name, size=SIZE)
    command = qemu_nbd(tmp_path / "s", image, "-f", format_name, "--discard=unmap")
    model = ModelDisk(SIZE)
    with running(command, tmp_path / "s") as peer:
        with opened(peer) as disk:
            Exercise(disk, model, seed=seed).run(250)
        with blocklayer.open(peer.uri, format="raw") as disk:
            model.check(disk)


@needs("nbdkit")
def test_odd_sizes(tmp_path: Path) -> None:
    """Sector based disks have a tail that the export has not: it is zero, and stays so."""
    with (
        running(nbdkit(tmp_path / "s", "memory", "1000"), tmp_path / "s") as peer,
        opened(peer) as disk,
    ):
        assert disk.size == 1024
        disk.write(0, b"x" * 1000)
        assert disk.read(990, 34) == b"x" * 10 + bytes(24)
        disk.write_zeroes(998, 26)
        assert disk.read(996, 28) == b"xx" + bytes(26)
        with pytest.raises(IoError) as failure:
            disk.write(996, b"y" * 28)
        assert failure.value.errno == errno.ENOSPC


@needs("nbdkit")
def test_an_old_server(tmp_path: Path) -> None:
    with (
        running(nbdkit(tmp_path / "s", "-o", "memory", "1M"), tmp_path / "s") as peer,
        blocklayer.open(peer.uri, format="raw", cache="unsafe", mode="r+") as disk,
    ):
        disk.write(4096, b"old")
        assert disk.read(4095, 5) == b"\0old\0"
    # (nbdkit 1.32 refuses flushes of oldstyle clients although it offers them.)


@needs("nbdkit")
def test_large_requests_are_cut_and_put_together(tmp_path: Path, rng: random.Random) -> None:
    with (
        running(nbdkit(tmp_path / "s", "memory", "256M"), tmp_path / "s") as peer,
        opened(peer) as disk,
    ):
        data = rng.randbytes(1 << 20) * 80
        disk.write(12345, data)
        assert disk.read(12345, len(data)) == data
        disk.write_zeroes(0, disk.size)
        assert not any(extent.data for extent in disk.extents())


@needs("nbdkit")
def test_huge_exports(tmp_path: Path) -> None:
    """Zeroing and looking reach further than 32 bits."""
    size = (1 << 63) - (1 << 20)
    with (
        running(nbdkit(tmp_path / "s", "memory", str(size)), tmp_path / "s") as peer,
        opened(peer) as disk,
    ):
        disk.write(1 << 60, b"far")
        disk.write_zeroes(0, 8 * GiB, unmap=True)
        found = [e for e in disk.extents(1 << 60, 1 << 20) if e.data]
        assert [(e.offset, e.length) for e in found] == [(1 << 60, 32 * KiB)]


# --- many at a time -----------------------------------------------------------------------------


@needs("nbdkit")
@pytest.mark.parametrize("connections", [1, 4])
def test_many_threads(connections: int, tmp_path: Path, seed: int) -> None:
    threads, share = 6, MiB
    command = nbdkit(tmp_path / "s", "--filter=delay", "memory", f"{threads}M", "rdelay=1ms")
    failures: list[BaseException] = []

    with running(command, tmp_path / "s") as peer, opened(peer, connections=connections) as disk:

        def work(number: int) -> None:
            rng = random.Random(seed + number)
            model = bytearray(share)
            try:
                for _ in range(60):
                    offset = rng.randrange(share - 40000)
                    data = rng.randbytes(rng.randrange(1, 40000))
                    if rng.random() < 0.5:
                        disk.write(number * share + offset, data)
                        model[offset : offset + len(data)] = data
                    else:
                        found = disk.read(number * share + offset, len(data))
                        assert found == model[offset : offset + len(data)]
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert failures == []


@needs("nbdkit")
def test_a_batch_is_in_flight_together(tmp_path: Path) -> None:
    """Forty requests that take 50 ms each are not two seconds."""
    command = nbdkit(tmp_path / "s", "-t", "64", "--filter=delay", "memory", "8M")
    command += ["rdelay=50ms", "wdelay=50ms"]
    with running(command, tmp_path / "s") as peer, opened(peer) as disk:
        writes = [Request.write(n * 65536, b"%05d" % n) for n in range(40)]
        started = time.monotonic()
        disk.submit(writes)
        reads = [Request.read(n * 65536, 5) for n in range(40)]
        disk.submit(reads)
        assert time.monotonic() - started < 3
        assert [request.result for request in reads] == [b"%05d" % n for n in range(40)]


# --- what servers tell --------------------------------------------------------------------------


@needs("nbdkit")
def test_extents_are_those_of_the_server(tmp_path: Path) -> None:
    command = nbdkit(tmp_path / "s", "sparse-random", "64M", "seed=7", "percent=30")
    with running(command, tmp_path / "s") as peer, opened(peer, "r") as disk:
        rows = list(disk.extents())
        assert sum(row.length for row in rows) == disk.size
        assert any(row.data for row in rows)
        assert any(row.zero for row in rows)
        for row in rows:
            assert row.data or row.zero
            assert row.host_offset == row.offset
            if row.zero:
                assert not any(disk.read(row.offset, min(row.length, 65536)))


@needs("nbdkit")
def test_a_map_is_not_older_than_a_write(tmp_path: Path) -> None:
    with (
        running(nbdkit(tmp_path / "s", "memory", "4M"), tmp_path / "s") as peer,
        opened(peer) as disk,
    ):
        walk = disk.extents()
        assert next(walk).zero
        disk.write(2 * MiB, b"new")
        assert any(row.data for row in disk.extents(MiB, 3 * MiB))
        disk.write_zeroes(0, 4 * MiB, unmap=True)
        assert all(row.zero for row in disk.extents())


@needs("qemu-nbd", "qemu-img")
def test_a_dirty_bitmap_instead_of_allocation(tmp_path: Path) -> None:
    image = tmp_path / "i.qcow2"
    for command in (
        ["create", "-q", "-f", "qcow2", str(image), "1M"],
        ["bitmap", "--add", "-g", "65536", str(image), "b"],
    ):
        subprocess.run(["qemu-img", *command], check=True)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write 128k 64k", str(image)],
        check=True,
        capture_output=True,
    )
    command = qemu_nbd(tmp_path / "s", image, "-f", "qcow2", "-r", "-B", "b")
    with running(command, tmp_path / "s") as peer:
        name = "qemu:dirty-bitmap:b"
        with opened(peer, "r", **{"x-dirty-bitmap": name}) as disk:
            dirty = [row for row in disk.extents() if not row.data]
            assert [(row.offset, row.length, row.zero) for row in dirty] == [
                (128 * KiB, 64 * KiB, False)
            ]
        with pytest.raises(OpenError, match="metadata context 'qemu:dirty-bitmap:c'"):
            opened(peer, "r", **{"x-dirty-bitmap": "qemu:dirty-bitmap:c"})


@needs("nbdkit")
def test_zeroing_that_would_be_slow_is_refused(tmp_path: Path) -> None:
    command = nbdkit(tmp_path / "s", "--filter=nozero", "memory", "1M", "fastzeromode=slow")
    with running(command, tmp_path / "s") as peer, opened(peer) as disk:
        disk.write(0, b"x" * 65536)
        with pytest.raises(NotSupported):
            disk.write_zeroes(0, 65536, no_fallback=True)
        assert disk.read(0, 1) == b"x"
        disk.write_zeroes(0, 65536)
        assert disk.read(0, 65536) == bytes(65536)


@needs("nbdkit")
def test_fast_zeroing_of_more_than_one_command_is_whole(tmp_path: Path) -> None:
    # The server zeroes fast in its first block alone; the first command's answer counts.
    command = nbdkit(tmp_path / "s", "--filter=blocksize-policy", "memory", "8M")
    command += ["blocksize-minimum=1", "blocksize-preferred=4096", "blocksize-maximum=1M"]
    with running(command, tmp_path / "s") as peer, opened(peer) as disk:
        disk.write(0, b"x" * MiB * 8)
        disk.write_zeroes(4096, 6 * MiB, no_fallback=True)
        content = disk.read(0, 8 * MiB)
        assert content == b"x" * 4096 + bytes(6 * MiB) + b"x" * (2 * MiB - 4096)


@needs("nbdkit")
def test_fast_zeroing_where_commands_have_no_limit(tmp_path: Path) -> None:
    # One command is asked to be fast, and it is whole blocks: one that was refused or wrong behind
    # it would come too late.
    command = nbdkit(tmp_path / "s", "--filter=blocksize-policy", "eval")
    fast_at_0 = 'case ",$5," in *,fast,*) [ $4 = 0 ] || { echo EOPNOTSUPP >&2; exit 1; } ;; esac'
    command += ["get_size=echo 8G", "pread=exit 1", "pwrite=exit 1", f"zero={fast_at_0}"]
    command += ["can_write=exit 0", "can_zero=exit 0", "can_fast_zero=exit 0"]
    command += ["blocksize-minimum=4096", "blocksize-preferred=4096"]
    command += ["blocksize-maximum=4294967295", "blocksize-error-policy=error"]
    with running(command, tmp_path / "s") as peer, opened(peer) as disk:
        disk.write_zeroes(0, 6 * GiB, no_fallback=True)
        with pytest.raises(NotSupported):
            disk.write_zeroes(4096, 6 * GiB, no_fallback=True)


# --- refusals -----------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Peer]:
    command = nbdkit(tmp_path / "s", "--filter=error", "memory", "1M")
    command += ["error-pwrite=ENOSPC", "error-pwrite-rate=100%", "error-pread=EIO"]
    command += ["error-pread-rate=100%"]
    with running(command, tmp_path / "s") as peer:
        yield peer


@needs("nbdkit")
def test_errors_of_the_server(broken: Peer) -> None:
    with opened(broken) as disk:
        with pytest.raises(IoError, match="No space left on device") as failure:
            disk.write(4096, b"x")
        assert failure.value.errno == errno.ENOSPC
        assert (failure.value.operation, failure.value.offset) == ("write", 4096)
        with pytest.raises(IoError) as failure:
            disk.read(0, 1)
        assert failure.value.errno == errno.EIO
        requests = [Request.read(0, 1), Request.flush(), Request.write(0, b"x")]
        disk.submit(requests)
        assert [request.error is None for request in requests] == [False, True, False]


@needs("nbdkit")
def test_what_does_not_open(tmp_path: Path) -> None:
    with running(nbdkit(tmp_path / "s", "-r", "memory", "1M"), tmp_path / "s") as peer:
        with pytest.raises(OpenError, match="request on write denied") as failure:
            opened(peer, "r+")
        assert failure.value.errno == errno.EACCES
        with opened(peer, "r") as disk, pytest.raises(ReadOnly, match="request on write denied"):
            disk.reopen("r+")
    with pytest.raises(OpenError, match=r"Failed to connect to .*: Connection refused"):
        blocklayer.open(peer.uri)
    with pytest.raises(OpenError, match=r"Failed to connect to .*: No such file or directory"):
        blocklayer.open("nbd+unix:///?socket=/nowhere/to/be/found")
    with pytest.raises(OpenError, match=r"Failed to connect to '127\.0\.0\.1:1'"):
        blocklayer.open("nbd://127.0.0.1:1")


@needs("qemu-nbd", "qemu-img")
def test_an_export_that_is_not_there(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MiB))
    command = qemu_nbd(tmp_path / "s", image, "-f", "raw", "-x", "disk")
    with running(command, tmp_path / "s") as peer:
        with pytest.raises(OpenError) as failure:
            opened(peer, "r", export="other")
        assert "Requested export not available\nserver reported: export 'other' not" in str(
            failure.value
        )
        with opened(peer, "r", export="disk") as disk:
            assert disk.size == MiB


# --- as any other disk --------------------------------------------------------------------------


@needs("nbdkit")
def test_converting_to_and_from_an_export(tmp_path: Path) -> None:
    source, back = tmp_path / "source.qed", tmp_path / "back.qed"
    blocklayer.create(source, format="qed", size=8 * MiB)
    with blocklayer.open(source, mode="r+") as disk:
        disk.write(MiB, b"some data" * 1000)
        disk.write(7 * MiB, b"at the end")
    with running(nbdkit(tmp_path / "s", "memory", "8M"), tmp_path / "s") as peer:
        blocklayer.convert(source, peer.uri, format="raw")
        assert blocklayer.compare(source, peer.uri, second_format="raw")
        blocklayer.convert(peer.uri, back, source_format="raw", format="qed")
        assert blocklayer.compare(source, back)
        with blocklayer.open(back) as disk:
            assert sum(row.length for row in disk.extents() if row.data) <= 256 * KiB


@needs("nbdkit")
def test_an_export_as_backing_file(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qed"
    command = nbdkit(tmp_path / "s", "pattern", "4M")
    with running(command, tmp_path / "s") as peer:
        blocklayer.create(overlay, format="qed", backing=peer.uri, backing_format="raw")
        with blocklayer.open(overlay, mode="r+") as disk:
            assert disk.size == 4 * MiB
            assert disk.read(MiB, 8) == MiB.to_bytes(8, "big")
            disk.write(MiB, b"new data")
            assert disk.read(MiB, 16) == b"new data" + (MiB + 8).to_bytes(8, "big")


@needs("nbdkit")
def test_qed_on_an_export(tmp_path: Path, seed: int) -> None:
    image = tmp_path / "image.qed"
    blocklayer.create(image, format="qed", size=4 * MiB)
    with blocklayer.open(image, mode="r+") as disk:
        disk.write(0, b"x" * 4 * MiB)
    command = nbdkit(tmp_path / "s", "file", str(image))
    with running(command, tmp_path / "s") as peer, blocklayer.open(peer.uri, mode="r+") as disk:
        assert disk.format == "qed"
        model = ModelDisk(4 * MiB)
        model.write(0, b"x" * 4 * MiB)
        Exercise(disk, model, seed=seed).run(60)
    assert not blocklayer.check(image).corruptions
