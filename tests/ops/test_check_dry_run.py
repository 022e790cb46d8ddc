# SPDX-License-Identifier: Apache-2.0
"""A dry run changes nothing, and tells exactly what the repair then does: byte by byte."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import blocklayer
from blocklayer.core.checking import CheckResult
from blocklayer.core.node import FormatNode
from blocklayer.core.opening import Opener, OpenFlags
from blocklayer.core.rehearsal import PAGE, Rehearsal
from blocklayer.ops import check as operation
from blocklayer.protocols.memory import MemoryNode

CLUSTER = 4096
ROUNDS = 40

ODD = (0, 1, 7, CLUSTER, 2 * CLUSTER, 1 << 20, 1 << 40, (1 << 64) - CLUSTER)


def build(path: Path, rng: random.Random) -> None:
    """Some clusters in several tables, and leaks where the disk was shrunk and grown."""
    table_size = rng.choice((1, 1, 2, 4))
    span = table_size * CLUSTER // 8 * CLUSTER
    blocklayer.create(
        path, format="qed", size=4 * span, cluster_size=CLUSTER, table_size=table_size
    )
    with blocklayer.open(path, mode="r+", format="qed") as disk:
        for _ in range(rng.randrange(2, 60)):
            start = rng.randrange(4 * span // CLUSTER - 4) if rng.random() < 0.3 else 0
            cluster = start or rng.randrange(4) * (span // CLUSTER) + rng.randrange(30)
            data = rng.randbytes(CLUSTER) * rng.randrange(1, 4)
            disk.write(cluster * CLUSTER, data)


def damage(path: Path, rng: random.Random) -> None:
    """Wrong entries, entries taken from elsewhere, space that nobody refers to."""
    with path.open("r+b") as file:
        content = file.read()
        places = [
            place
            for place in range(CLUSTER, len(content), 8)
            if 0 < int.from_bytes(content[place : place + 8], "little") < len(content)
        ]
        entries = [content[place : place + 8] for place in places]
        for _ in range(rng.choice((0, 1, 1, 2, 5, 20))):
            file.seek(rng.choice(places) if rng.random() < 0.8 else rng.randrange(512, 1024) * 8)
            odd = rng.choice(ODD).to_bytes(8, "little")
            file.write(rng.choice(entries) if rng.random() < 0.6 else odd)
        if rng.random() < 0.5:
            file.seek(0, 2)
            file.write(rng.randbytes(rng.randrange(1, 6 * CLUSTER)))
        if rng.random() < 0.3:
            file.seek(16)
            file.write((2).to_bytes(8, "little"))  # NEED_CHECK
        if rng.random() < 0.1:
            file.truncate(rng.randrange(len(content) // 2, len(content)))


def told(result: CheckResult) -> dict[str, object]:
    """Everything but the plan."""
    return {**vars(result), "plan": None}


@pytest.mark.parametrize("repair", ["leaks", "all", "none"])
def test_what_is_told_is_what_is_done(tmp_path: Path, rng: random.Random, repair: str) -> None:
    done = 0
    for number in range(ROUNDS):
        path = tmp_path / str(number)
        build(path, rng)
        damage(path, rng)
        before = path.read_bytes()
        try:
            planned = blocklayer.check(path, format="qed", repair=repair, dry_run=True)
        except blocklayer.BlocklayerError as error:
            with pytest.raises(type(error)):
                blocklayer.check(path, format="qed", repair=repair)
            continue
        assert path.read_bytes() == before, "nothing changes"
        after = rehearsed(path, repair)
        result = blocklayer.check(path, format="qed", repair=repair)
        assert told(planned) == told(result)
        assert after == path.read_bytes()
        assert planned.plan is not None
        assert planned.plan.size == len(before)
        assert planned.plan.size_after == len(after)
        assert planned.plan.afterwards == blocklayer.check(path, format="qed")
        done += 1
    assert done > ROUNDS // 2


def rehearsed(path: Path, repair: str) -> bytes:
    """The file's bytes as the rehearsal leaves them."""
    flags = OpenFlags(check=True, backing_chain=False)
    node = Opener(flags).open_name(str(path), "qed")
    try:
        assert isinstance(node, FormatNode)
        storage = Rehearsal(node.file, node.cluster_size)
        how = operation.How(operation.REPAIRS[repair])
        operation.rehearse(node, flags, how, storage)
        content = bytearray(storage.size)
        storage.readv(0, [memoryview(content)])
        return bytes(content)
    finally:
        node.close()


def test_what_is_moved_is_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size="64M")
    with blocklayer.open(path, mode="r+", format="qed") as disk:
        for cluster in range(512):
            disk.write(cluster << 16, bytes([1 + cluster % 255]) * (1 << 16))
    with path.open("r+b") as file:  # entries of the first clusters: the rest has to move
        file.seek(1 << 16)
        file.seek(int.from_bytes(file.read(8), "little"))
        file.write(bytes(8 * 200))
    flags = OpenFlags(check=True)
    node = Opener(flags).open_name(str(path), "qed")
    assert isinstance(node, FormatNode)
    storage = Rehearsal(node.file, node.cluster_size)
    result = operation.rehearse(node, flags, operation.How(operation.REPAIRS["leaks"]), storage)
    node.close()
    assert result.plan is not None
    assert result.plan.copied >= 200 << 16
    assert result.leaks_fixed == 200
    pages = sum(map(len, storage._pages.values()))
    assert pages * PAGE < 1 << 20


def test_an_image_in_use_and_one_that_may_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size="1M")
    with path.open("ab") as file:
        file.write(bytes(3 << 16))
    path.chmod(0o444)
    with blocklayer.open(path, format="qed"):
        result = blocklayer.check(path, repair="all", dry_run=True)
    assert (result.leaks, result.leaks_fixed) == (0, 3)
    result = blocklayer.check(path, repair="all", dry_run=True, force_share=True)
    assert result.leaks_fixed == 3


def test_the_rehearsal_is_a_file_like_any_other(rng: random.Random) -> None:
    """Random writes, zeroes, copies and truncations, against a byte array."""
    unit = 2 * PAGE
    for _ in range(60):
        child = MemoryNode(rng.randrange(1, 20 * unit), read_only=False)
        first = rng.randbytes(child.size)
        child.writev(0, [memoryview(first)])
        storage = Rehearsal(child, unit)
        model = bytearray(first)
        for _ in range(30):
            change(storage, model, rng, unit)
            assert storage.size == len(model)
            content = bytearray(len(model))
            if content:
                storage.readv(0, [memoryview(content)])
            assert content == model
        kept = bytearray(child.size)
        child.readv(0, [memoryview(kept)])
        assert kept == first


def change(storage: Rehearsal, model: bytearray, rng: random.Random, unit: int) -> None:
    verb = rng.choice(("write", "zero", "copy", "truncate"))
    if verb == "truncate":
        size = rng.randrange(24) * unit
        storage.truncate(size)
        model[size:] = bytes(max(0, size - len(model)))
        return
    offset = rng.randrange(len(model) + 1)
    length = rng.randrange(1, 3 * unit)
    if verb == "copy":
        units = len(model) // unit
        if units < 4:
            return
        source, target = rng.randrange(units // 2), rng.randrange(units // 2, units)
        count = rng.randrange(1, min(units // 2, units - target) + 1)
        data = model[source * unit : (source + count) * unit]
        if source + count > target:
            return
        storage.copy_within(source * unit, target * unit, count * unit)
        offset = target * unit
    elif verb == "zero":
        data = bytearray(length)
        storage.zero(offset, length)
    else:
        data = bytearray(rng.randbytes(length))
        storage.writev(offset, [memoryview(data)])
    model[offset : offset + len(data)] = data
