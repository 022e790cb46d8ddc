"""drive-backup: blockdev-backup to an image that is named by its file."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import blocklayer
from blocklayer.core.node import FormatNode
from tests.qmp.daemons import Conversation, conversation
from tests.support import needs

MIB = 1 << 20

pytestmark = needs("qemu-img")


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Conversation]:
    with conversation(tmp_path) as talk:
        (tmp_path / "base.raw").write_bytes(b"b" * MIB)
        make = ["qemu-img", "create", "-q", "-f", "qed", "-b", "base.raw", "-F", "raw", "top.qed"]
        subprocess.run(make, cwd=tmp_path, check=True)
        file = {"driver": "file", "filename": "top.qed"}
        talk.do("blockdev-add", driver="qed", node_name="s", file=file)
        nbd = str(tmp_path / "nbd")
        talk.do("nbd-server-start", addr={"type": "unix", "data": {"path": nbd}})
        talk.do("block-export-add", type="nbd", id="e", node_name="s", writable=True)
        yield talk


def write(talk: Conversation, offset: int, data: bytes) -> None:
    uri = f"nbd+unix:///s?socket={talk.folder}/nbd"
    with blocklayer.open(uri, mode="r+", format="raw") as disk:
        disk.write(offset, data)


def ended(talk: Conversation) -> None:
    talk.event("JOB_STATUS_CHANGE", id="j", status="null")


def test_what_is_made_for_each_mode(talk: Conversation) -> None:
    write(talk, 0, b"t" * 65536)
    job = {"job_id": "j", "device": "s"}
    for sync, name, below in (
        ("full", "full.qed", None),
        ("top", "upper.qed", talk.folder / "base.raw"),
    ):
        talk.do("drive-backup", **job, target=name, sync=sync)
        ended(talk)
        with blocklayer.open(str(talk.folder / name)) as disk:
            assert disk.read(0, MIB) == b"t" * 65536 + b"b" * (MIB - 65536)
            assert isinstance(disk.node, FormatNode)
            found = disk.node.backing_filename
            assert (found and Path(found)) == below
    assert [each["node-name"] for each in talk.do("query-named-block-nodes")
            if each["drv"] == "qed"] == ["s"]  # fmt: skip


def test_without_a_sync_the_image_lies_over_the_disk_in_use(talk: Conversation) -> None:
    """Fleecing with one command: the node's name is told by the list of nodes."""
    write(talk, 0, b"t" * 65536)
    talk.do("drive-backup", job_id="j", device="s", target="f.qed", sync="none")
    (name,) = [
        each["node-name"]
        for each in talk.do("query-named-block-nodes")
        if each["drv"] == "qed" and each["image"]["filename"] == "f.qed"
    ]
    talk.do("block-export-add", type="nbd", id="f", node_name=name, name="f")
    write(talk, 60000, b"new" * 5000)
    with blocklayer.open(f"nbd+unix:///f?socket={talk.folder}/nbd", format="raw") as disk:
        assert disk.read(0, MIB) == b"t" * 65536 + b"b" * (MIB - 65536)
    talk.do("block-export-del", id="f", mode="hard")
    talk.do("block-job-cancel", device="j")
    ended(talk)
    assert len(talk.do("query-named-block-nodes")) == 4


def test_what_fails_leaves_nothing(talk: Conversation) -> None:
    job = {"job_id": "j", "device": "s", "target": "x.raw", "format": "raw", "sync": "full"}
    before = talk.do("query-named-block-nodes")
    talk.refused("drive-backup", **{**job, "job_id": "1 j"})
    talk.refused("drive-backup", **{**job, "bitmap": "nix", "bitmap_mode": "always"})
    talk.refused("drive-backup", **{**job, "sync": "none"})
    talk.refused("drive-backup", **{**job, "sync": "top"})
    data = {key.replace("_", "-"): value for key, value in job.items()}
    backup = {"type": "drive-backup", "data": data}
    abort = {"type": "abort", "data": {}}
    talk.refused("transaction", actions=[backup, abort])
    second = {"type": "drive-backup", "data": {**data, "job-id": "1 k"}}
    talk.refused("transaction", actions=[backup, second],
                 properties={"completion-mode": "grouped"})  # fmt: skip
    assert talk.do("query-jobs") == []
    assert not (talk.folder / "x.raw").exists()
    assert talk.do("query-named-block-nodes") == before
