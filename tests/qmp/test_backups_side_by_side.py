"""Several backups of one disk that is written to: with QEMU's storage daemon, and with ours."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from tests.qmp.daemons import OURS, QEMUS, Conversation
from tests.support import needs

SIZE = 1 << 20
GRAIN = 1 << 16
JOBS = ("u", "v", "w")


def backup(target: str, sync: str = "none", **more: Any) -> dict[str, Any]:
    return {"job-id": target, "device": "s", "target": target, "sync": sync, **more}


def write_some(folder: Path, model: bytearray, chooser: random.Random) -> set[int]:
    """A client of the export writes; the granules that it changes."""
    touched: set[int] = set()
    with blocklayer.open(f"nbd+unix:///s?socket={folder}/nbd", mode="r+", format="raw") as disk:
        for _ in range(4):
            offset = chooser.randrange(SIZE)
            data = chooser.randbytes(min(chooser.randrange(1, 100_000), SIZE - offset))
            disk.write(offset, data)
            model[offset : offset + len(data)] = data
            touched |= set(range(offset // GRAIN, (offset + len(data) - 1) // GRAIN + 1))
    return touched


def expected(kept: bytes, granules: set[int]) -> bytes:
    """What a target that was empty has of a moment."""
    found = bytearray(SIZE)
    for number in granules:
        place = slice(number * GRAIN, (number + 1) * GRAIN)
        found[place] = kept[place]
    return bytes(found)


@needs("qemu-storage-daemon")
@pytest.mark.parametrize("program", [OURS, QEMUS])
@pytest.mark.parametrize("order", list(itertools.permutations(JOBS)))
def test_every_target_has_its_moment(
    tmp_path: Path, program: tuple[str, ...], order: tuple[str, ...]
) -> None:
    """One is a whole copy; of others there is what was overwritten since; they end in an order."""
    chooser = random.Random(5)
    model = bytearray(chooser.randbytes(SIZE))
    (tmp_path / "s.raw").write_bytes(model)
    with Conversation(tmp_path, program) as talk:
        for name in ("s", "t", *JOBS):
            if name != "s":
                (tmp_path / f"{name}.raw").write_bytes(bytes(SIZE))
            file = {"driver": "file", "filename": f"{name}.raw"}
            talk.do("blockdev-add", driver="raw", node_name=name, file=file)
        talk.do("nbd-server-start", addr={"type": "unix", "data": {"path": "nbd"}})
        talk.do("block-export-add", type="nbd", id="e", node_name="s", writable=True)
        first = bytes(model)
        kinds = (backup("t", "full"), backup("u"))
        talk.do("transaction", actions=[{"type": "blockdev-backup", "data": d} for d in kinds])
        touched = {"u": write_some(tmp_path, model, chooser)}
        kept = {"t": first, "u": first}
        for name in ("v", "w"):
            kept[name] = bytes(model)
            talk.ask("blockdev-backup", backup(name))
            touched[name] = write_some(tmp_path, model, chooser)
            touched["u"] |= touched[name]
        touched["v"] |= touched["w"]
        talk.event("BLOCK_JOB_COMPLETED", device="t")
        for number, name in enumerate(order):
            talk.do("block-job-cancel", device=name)
            talk.event("BLOCK_JOB_CANCELLED", device=name)
            more = write_some(tmp_path, model, chooser)
            for left in order[number + 1 :]:
                touched[left] |= more
    assert (tmp_path / "s.raw").read_bytes() == model
    assert (tmp_path / "t.raw").read_bytes() == first
    for name in JOBS:
        assert (tmp_path / f"{name}.raw").read_bytes() == expected(kept[name], touched[name]), name
