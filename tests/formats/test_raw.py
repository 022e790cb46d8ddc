# SPDX-License-Identifier: Apache-2.0
"""The raw format: windows, odd files, and guests that would like it to be another format."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import (
    CreateError,
    FormatError,
    InvalidArgument,
    IoError,
    NotSupported,
    OpenError,
    OutOfRange,
)
from blocklayer.base.units import SECTOR, KiB, MiB
from blocklayer.core.batch import Request
from blocklayer.core.disk import Disk
from blocklayer.core.drivers import foreign_signature, probe_signature
from blocklayer.core.node import Node
from blocklayer.core.opening import Opener, OpenFlags
from blocklayer.testing.exercise import Exercise
from blocklayer.testing.liar import GARBAGE, Liar
from blocklayer.testing.model import ModelDisk
from blocklayer.testing.recorder import Recorder
from tests.support.crew import run_together
from tests.support.graphs import check, create, memory, open_disk, snapshot

SIZE = 3 * MiB


# --- a byte array on any storage ---


@pytest.mark.parametrize(
    "lies",
    [
        {},
        {"granularity": 1},
        {"knows_holes": False},
        {"zeroes": 0.0},
        {"zeroes": 1.0},
        {"alignment": 512},
        {"alignment": 4096, "garbles": False},
    ],
)
def test_a_raw_disk_is_a_byte_array(seed: int, lies: dict[str, Any]) -> None:
    bytewise = lies.get("granularity") == 1
    size = 64 * KiB if bytewise else SIZE
    liar = Liar(memory(size=size), rng=random.Random(seed), **lies)
    with open_disk(liar, "raw") as disk:
        model = ModelDisk(size)
        model.expects_merged = not bytewise
        Exercise(disk, model, seed=seed, grain=4 * KiB, size_max=size + 64 * KiB).run(150)


def test_on_a_device(seed: int) -> None:
    """Which cannot be resized and is not zero when it is new."""
    node = memory(size=MiB)
    node.writev(0, [memoryview(GARBAGE * (MiB // len(GARBAGE)))])
    create(Liar(node, fixed=True), "raw", size=MiB)
    disk = open_disk(Liar(node, fixed=True, rng=random.Random(seed)), "raw")
    model = ModelDisk(MiB)
    model.settle(0, disk.read(0, MiB))
    Exercise(disk, model, seed=seed, grain=4 * KiB).run(150)
    with pytest.raises(NotSupported):
        disk.resize(2 * MiB)
    assert disk.size == MiB
    disk.close()


@pytest.mark.parametrize("cache", ["writeback", "writethrough", "none", "directsync", "unsafe"])
def test_on_a_file(tmp_path: Path, seed: int, cache: str) -> None:
    path = tmp_path / "raw"
    blocklayer.create(path, size=SIZE)

    def reopen() -> Disk:
        return blocklayer.open(path, mode="r+", format="raw", discard="unmap", cache=cache)

    exercise = Exercise(
        reopen(), ModelDisk(SIZE), seed=seed, grain=4 * KiB, reopen=reopen, size_max=4 * MiB
    )
    exercise.run(100)
    exercise.disk.close()
    assert path.read_bytes() == bytes(exercise.model.content)


# --- sizes ---


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 1000])
def test_files_of_odd_lengths_are_whole_sectors(tmp_path: Path, length: int) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * length)
    size = -(-length // SECTOR) * SECTOR
    with blocklayer.open(path, mode="r+", format="raw") as disk:
        assert disk.size == size
        assert disk.read(0, size) == (b"x" * length).ljust(size, b"\0")
        assert path.stat().st_size == length
        if size > length:
            disk.write(size - 1, b"y")
            assert disk.read(length, size - length) == bytes(size - length - 1) + b"y"
            assert path.stat().st_size == size


def test_zeroing_and_discarding_the_tail_of_an_odd_file(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 1000)
    with blocklayer.open(path, mode="r+", format="raw", discard="unmap") as disk:
        disk.discard(512, 512)
        disk.write_zeroes(900, 124)
        assert disk.read(900, 124) == bytes(124)
    for node_size in (1000, 1024):
        node = memory(size=node_size)
        with open_disk(node, "raw") as disk:
            disk.discard(512, 512)
        assert node.size == node_size


def test_resizing() -> None:
    node = memory(size=MiB)
    with open_disk(node, "raw") as disk:
        disk.write(MiB - 4, b"last")
        disk.resize(MiB + 100)
        assert (disk.size, node.size) == (MiB + SECTOR, MiB + 100)
        assert disk.read(MiB - 4, 104) == b"last" + bytes(100)
        disk.resize(MiB - 2)
        disk.resize(2 * MiB)
        assert disk.read(MiB - 4, 10) == b"la" + bytes(8)
        with pytest.raises(OutOfRange):
            disk.resize(1 << 63)


# --- windows ---


def windowed(node: Node, **options: object) -> Disk:
    tree = {"driver": "raw", "file": node, **options}
    return Disk(Opener(OpenFlags(read_only=False)).open_options(tree), discard="unmap")


@pytest.mark.parametrize(("offset", "size"), [(0, 64 * KiB), (700, 64 * KiB), (MiB, None)])
def test_a_window_is_a_disk_of_its_own(seed: int, offset: int, size: int | None) -> None:
    node = memory(size=2 * MiB)
    node.writev(0, [memoryview(b"\xee" * 2 * MiB)])
    options = {"offset": offset} | ({} if size is None else {"size": size})
    disk = windowed(node, **options)
    length = MiB if size is None else size
    assert disk.size == length
    assert disk.info() == {"offset": offset, "size": length}
    model = ModelDisk(length)
    model.settle(0, b"\xee" * length)
    Exercise(disk, model, seed=seed, grain=4 * KiB).run(150)
    if size is not None:
        with pytest.raises(NotSupported, match="Cannot resize fixed-size raw disks"):
            disk.resize(2 * length)
    disk.close()
    content = snapshot(node)
    assert content[:offset] == b"\xee" * offset
    assert content[offset : offset + length] == bytes(model.content)
    assert set(content[offset + length :]) <= {0xEE}


@pytest.mark.parametrize("offset", [700, 4 * KiB])
def test_a_window_without_an_end_grows_and_shrinks_its_file(offset: int) -> None:
    node = memory(size=MiB)
    node.writev(0, [memoryview(b"\xee" * MiB)])
    disk = windowed(node, offset=offset)
    disk.resize(2 * MiB)
    assert (disk.size, node.size) == (2 * MiB, 2 * MiB + offset)
    assert disk.info() == {"offset": offset, "size": 2 * MiB}
    assert disk.read(MiB, MiB) == bytes(MiB)
    disk.write(2 * MiB - 512, b"\xdd" * 512)
    disk.resize(512)
    disk.close()
    assert snapshot(node) == b"\xee" * (offset + 512)


def test_a_window_of_text(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(MiB))
    options = {"driver": "raw", "file": str(tmp_path / "raw"), "offset": "64k", "size": "128K"}
    with blocklayer.open(options, mode="r+") as disk:
        disk.write(0, b"data")
        disk.write(128 * KiB - 1, b"x")
        with pytest.raises(OutOfRange):
            disk.read(128 * KiB, 1)
    assert (tmp_path / "raw").read_bytes()[64 * KiB :][:4] == b"data"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"offset": MiB + 1}, "behind the end"),
        ({"offset": 512, "size": MiB}, "must lie within"),
        ({"size": 2 * MiB}, "must lie within"),
        ({"size": 1000}, "multiple of 512"),
        ({"offset": -1}, "offset"),
        ({"size": "some"}, "size"),
    ],
)
def test_windows_that_cannot_be(options: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        windowed(memory(size=MiB), **options)


# --- guessed formats ---

SIGNATURES = {
    "qed": b"QED\0",
    "qcow2": b"QFI\xfb\0\0\0\3",
    "vmdk": b"KDMV",
    "vhdx": b"vhdxfile",
    "luks": b"LUKS\xba\xbe",
}

Attack = Callable[[Disk, bytes], object]


def in_two_parts(disk: Disk, signature: bytes) -> None:
    disk.write(2, signature[2:])
    disk.write(0, signature[:2])


def by_zeroing(disk: Disk, signature: bytes) -> None:
    """Signatures with zeroes in them: write all but those, and let zeroing do the rest."""
    disk.write(0, signature.replace(b"\0", b"\1"))
    for place in (place for place, byte in enumerate(signature) if not byte):
        disk.write_zeroes(place, 1)
    if b"\0" not in signature:
        disk.write(0, signature)


ATTACKS: dict[str, Attack] = {
    "write": lambda disk, signature: disk.write(0, signature),
    "as a bytearray": lambda disk, signature: disk.write(0, bytearray(signature)),
    "with a tail": lambda disk, signature: disk.write(0, signature + bytes(64 * KiB)),
    "in a batch": lambda disk, signature: disk.write_many([(0, signature), (MiB, b"x")]),
    "in a batch of parts": lambda disk, signature: disk.write_many(
        [(0, signature[:1]), (1, signature[1:])]
    ),
    "in two parts": in_two_parts,
    "by zeroing": by_zeroing,
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", SIGNATURES)
def test_a_guest_cannot_turn_its_disk_into_another_format(
    tmp_path: Path, attack: str, name: str
) -> None:
    path = tmp_path / "guessed"
    path.write_bytes(b"\xff" * SIZE)
    signature = SIGNATURES[name]
    with blocklayer.open(path, mode="r+") as disk:
        assert disk.format == "raw"
        with pytest.raises(IoError) as caught:
            ATTACKS[attack](disk, signature)
        assert caught.value.errno == 1
        assert "the format was guessed" in str(caught.value)
        disk.write(0, b"something else")
        disk.write(SECTOR, signature)
    head = path.read_bytes()[:512]
    assert probe_signature(head) is None
    assert foreign_signature(head) is None


def test_a_batch_tells_which_request_it_was(tmp_path: Path) -> None:
    path = tmp_path / "guessed"
    path.write_bytes(bytes(SIZE))
    with blocklayer.open(path, mode="r+") as disk:
        good, bad = Request.write(MiB, b"fine"), Request.write(0, SIGNATURES["qed"])
        disk.submit([bad, good])
        assert isinstance(bad.error, IoError)
        assert good.error is None
        assert disk.read(MiB, 4) == b"fine"


def test_two_threads_cannot_do_it_together(tmp_path: Path) -> None:
    """Each part is harmless; whoever comes second is judged by what is there by then."""
    path = tmp_path / "guessed"
    for _ in range(50):
        path.write_bytes(b"\xff" * 4096)
        with blocklayer.open(path, mode="r+") as disk:
            refused: list[int] = []

            def attack(
                offset: int, part: bytes, disk: Disk = disk, refused: list[int] = refused
            ) -> None:
                try:
                    disk.write(offset, part)
                except IoError:
                    refused.append(offset)

            run_together(
                lambda attack=attack: attack(0, b"QE"),  # type: ignore[misc]
                lambda attack=attack: attack(2, b"D\0"),  # type: ignore[misc]
            )
            assert len(refused) == 1
        assert probe_signature(path.read_bytes()[:512]) is None


@pytest.mark.parametrize("name", SIGNATURES)
def test_whoever_names_the_format_may_write_what_he_likes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "named"
    path.write_bytes(bytes(SIZE))
    with blocklayer.open(path, mode="r+", format="raw") as disk:
        disk.write(0, SIGNATURES[name])
    assert path.read_bytes().startswith(SIGNATURES[name])
    if name != "qed":
        with pytest.raises(OpenError, match=f"looks like {name}"):
            blocklayer.open(path)
    with blocklayer.open(path, format="raw") as disk:
        assert disk.read(0, 4) == SIGNATURES[name][:4]


# --- creating, checking ---


@pytest.mark.parametrize(("mode", "full"), [("off", False), ("falloc", True), ("full", True)])
def test_new_files(tmp_path: Path, mode: str, full: bool) -> None:
    path = tmp_path / "new"
    blocklayer.create(path, size="1000k", preallocation=mode)
    status = path.stat()
    assert status.st_size == 1000 * KiB
    assert (status.st_blocks * 512 >= 1000 * KiB) == full
    assert not any(path.read_bytes())


def test_new_files_that_cannot_be(tmp_path: Path) -> None:
    refused: list[dict[str, Any]] = [
        {"preallocation": "metadata"},
        {"backing": "x", "check_backing": False},
    ]
    for options in refused:
        with pytest.raises(CreateError):
            blocklayer.create(tmp_path / "new", size=MiB, **options)
    assert not list(tmp_path.iterdir())


def test_there_is_nothing_to_check_or_to_empty() -> None:
    node = memory(size=MiB)
    with pytest.raises(NotSupported):
        check(node, format="raw")
    with open_disk(node, "raw") as disk:
        for action in ("make_empty", "change_backing"):
            arguments = () if action == "make_empty" else ("x", None)
            with pytest.raises(NotSupported):
                getattr(disk.node, action)(*arguments)


def test_requests_pass_unchanged() -> None:
    recorder = Recorder(memory(size=MiB))
    with open_disk(recorder, "raw") as disk:
        disk.write(77, b"x" * 1000)
        disk.read(5, 3)
        disk.write_zeroes(1, 2)
        disk.discard(3, 4)
        disk.flush()
        assert recorder.take() == [
            *(("write", 77, 1000), ("read", 5, 3), ("zero", 1, 2), ("discard", 3, 4)),
            ("flush", 0, 0),
        ]


def test_a_file_shorter_than_a_signature(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"QED\0")
    with blocklayer.open(path) as disk:
        assert (disk.format, disk.size) == ("raw", SECTOR)
    path.write_bytes(b"QED\0" + bytes(60))
    with pytest.raises(OpenError) as caught:
        blocklayer.open(path)
    assert isinstance(caught.value.__cause__, FormatError)
