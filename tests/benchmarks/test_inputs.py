# SPDX-License-Identifier: Apache-2.0
"""What the benches read and write: the same bytes each time, in the announced shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import parse
from benchmarks.bench_allocate import patterns, sum_of_timings
from benchmarks.images import RUN_MAX, SHARES, Content, Images, allocated_mib, mixed_runs, sha256
from benchmarks.machine import cpu_model, filesystem_of
from benchmarks.patterns import Pattern, batches, fill_of, random_blocks, write_expected

KiB = 1024
MiB = 1024 * KiB


@pytest.mark.parametrize("size", [1 * MiB, 64 * MiB + 4 * KiB, 2048 * MiB])
def test_mixed_runs_cover_the_image(size: int) -> None:
    end = 0
    for piece in mixed_runs(size, seed=1):
        assert piece.offset == end
        assert 0 < piece.length <= RUN_MAX
        end += piece.length
    assert end == size


def test_mixed_runs_have_their_shares() -> None:
    size = 2048 * MiB
    for content in Content:
        length = sum(p.length for p in mixed_runs(size, seed=1) if p.content is content)
        assert length / size == pytest.approx(SHARES[content], abs=0.01)


def test_images_are_the_same_each_time(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        images = Images(tmp_path / name)
        digests.add((sha256(images.random(2 * MiB)), sha256(images.mixed(8 * MiB))))
    assert len(digests) == 1


def test_a_mixed_image_has_holes_and_written_zeroes(tmp_path: Path) -> None:
    path = Images(tmp_path).mixed(64 * MiB)
    assert path.stat().st_size == 64 * MiB
    assert 0.4 * 64 < allocated_mib(path) < 0.65 * 64


def test_patterns_write_every_place_once() -> None:
    for pattern in patterns(quick=False).values():
        offsets = pattern.offsets()
        assert len(set(offsets)) == len(offsets) == pattern.count
        assert all(0 <= o <= pattern.virtual - pattern.size for o in offsets)
        assert all(o % pattern.size == 0 for o in offsets)
        if pattern.step is None:
            assert len({o // pattern.cluster for o in offsets}) == pattern.count


def test_expected_image(tmp_path: Path) -> None:
    pattern = Pattern("x", size=4, count=3, virtual=64, cluster=8, step=8)
    write_expected(tmp_path / "image", pattern)
    content = (tmp_path / "image").read_bytes()
    assert content == (b"\1" * 4 + bytes(4) + b"\2" * 4 + bytes(4) + b"\3" * 4).ljust(64, b"\0")


def test_no_request_writes_zeroes() -> None:
    assert {fill_of(number) for number in range(1000)} == set(range(1, 256))


def test_random_blocks_are_all_different() -> None:
    offsets = random_blocks(size=64 * KiB, block=4 * KiB, count=16, seed=1)
    assert sorted(offsets) == list(range(0, 64 * KiB, 4 * KiB))


def test_batches() -> None:
    assert batches([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


def test_timings_of_qemu_io() -> None:
    text = "4096,1,0:00:00.00,1642024.934,400.000\n4096,1,0:00:00.00,4656757.414,100.000\nrest\n"
    assert sum_of_timings(text) == pytest.approx(0.0125)


def test_the_json_option_takes_its_file_apart() -> None:
    arguments = parse(["convert", "--output=json", "out.json", "--quick"])
    assert arguments.output == ["json", "out.json"]
    assert arguments.names == ["convert"]
    with pytest.raises(SystemExit):
        parse(["--output=yaml", "out"])


def test_the_machine_is_read_from_proc() -> None:
    text = "processor : 0\nmodel name\t: Some CPU\nflags\t\t: fpu hypervisor sse\n"
    assert cpu_model(text) == "Some CPU (virtual machine)"
    mounts = (
        "1 0 8:1 / / rw,relatime - ext4 /dev/vda rw\n"
        "2 1 0:5 / /dev/shm rw,nosuid shared:1 - tmpfs tmpfs rw\n"
    )
    assert filesystem_of(Path("/dev/shm/x"), mounts) == "tmpfs on tmpfs (rw,nosuid)"
    assert filesystem_of(Path("/dev/shmoo"), mounts) == "ext4 on /dev/vda (rw,relatime)"
