"""Transactions whose actions are about the same things: all of them, or none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from tests.qmp.daemons import Conversation, conversation
from tests.qmp.scripts import action

MIB = 1 << 20
BUSY = "Bitmap 'bm' is currently in use by another operation and cannot be used"


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Conversation]:
    """Nodes s and t; 64 KiB of s are marked in bm, others in `other`."""
    with conversation(tmp_path) as talk:
        for name in ("s", "t", "u", "v"):
            talk.do("blockdev-add", driver="memory", node_name=name, size=MIB)
        for name, offset in (("bm", 128), ("other", 512)):
            talk.do("block-dirty-bitmap-add", node="s", name=name)
            line = f'qemu-io s "write -P 7 {offset}k 64k"'
            assert "ops" in talk.do("human-monitor-command", command_line=line)
            if name == "bm":
                talk.do("block-dirty-bitmap-disable", node="s", name="bm")
        talk.do("block-dirty-bitmap-enable", node="s", name="bm")
        yield talk


def backup(**more: Any) -> dict[str, Any]:
    data = {"job_id": "j", "device": "s", "target": "t", "sync": "incremental", "bitmap": "bm"}
    return action("blockdev-backup", **{**data, **more})


def on_bitmap(verb: str, **more: Any) -> dict[str, Any]:
    return action(f"block-dirty-bitmap-{verb}", node="s", **more)


def bitmaps(talk: Conversation) -> dict[str, tuple[int, bool, bool]]:
    """How much is marked, whether it records, whether it is busy."""
    nodes = talk.do("query-named-block-nodes")
    found = next(each for each in nodes if each["node-name"] == "s").get("dirty-bitmaps", [])
    return {each["name"]: (each["count"], each["recording"], each["busy"]) for each in found}


def length_of_backup(talk: Conversation, **more: Any) -> int:
    """What one backup has to copy by the bitmap."""
    talk.do("transaction", actions=[backup(**more)])
    return int(talk.event("BLOCK_JOB_COMPLETED", device="j")["len"])


SECONDS = {
    "clear": on_bitmap("clear", name="bm"),
    "remove": on_bitmap("remove", name="bm"),
    "disable": on_bitmap("disable", name="bm"),
    "enable": on_bitmap("enable", name="bm"),
    "merge into": on_bitmap("merge", target="bm", bitmaps=["other"]),
    "merge from": on_bitmap("merge", target="other", bitmaps=["bm"]),
    "back up": backup(job_id="k", target="u"),
}


@pytest.mark.parametrize("second", SECONDS)
def test_the_bitmap_of_a_backup_is_taken(talk: Conversation, second: str) -> None:
    """What comes after the backup in its own transaction cannot change it any more."""
    before = bitmaps(talk)
    words = talk.refused("transaction", actions=[backup(), SECONDS[second]])
    assert words == BUSY
    assert bitmaps(talk) == before == {"bm": (65536, True, False), "other": (65536, True, False)}
    assert talk.do("query-jobs") == []
    assert length_of_backup(talk) == 65536


@pytest.mark.parametrize("mode", ["individual", "grouped"])
def test_an_aborted_transaction_gives_the_bitmap_back(talk: Conversation, mode: str) -> None:
    """At once: whoever tries again finds it free."""
    properties = {"completion-mode": mode}
    for _ in range(20):
        words = talk.refused("transaction", actions=[backup(), action("abort")],
                             properties=properties)  # fmt: skip
        assert words == "Transaction aborted using Abort action"
        assert bitmaps(talk)["bm"] == (65536, True, False)
    assert length_of_backup(talk) == 65536


def test_the_order_counts(talk: Conversation) -> None:
    """A bitmap that is cleared, made or merged into before the backup is used as it is then."""
    actions = [
        on_bitmap("add", name="n", disabled=True),
        on_bitmap("merge", target="n", bitmaps=["bm", "other"]),
        backup(bitmap="n"),
        on_bitmap("clear", name="bm"),
    ]
    talk.do("transaction", actions=actions)
    assert talk.event("BLOCK_JOB_COMPLETED", device="j")["len"] == 2 * 65536
    assert {name: count for name, (count, *_) in bitmaps(talk).items()} == {
        "bm": 0,
        "n": 0,
        "other": 65536,
    }
    talk.do("transaction", actions=[on_bitmap("clear", name="other"), backup(bitmap="other")])
    assert talk.event("BLOCK_JOB_COMPLETED", device="j")["len"] == 0


def test_a_backup_that_cannot_begin_changes_no_bitmap(talk: Conversation) -> None:
    """It fails when everything else has been done already: that is undone."""
    before = bitmaps(talk)
    changes = [
        on_bitmap("clear", name="bm"),
        on_bitmap("disable", name="other"),
        on_bitmap("add", name="new"),
    ]
    backups = [
        backup(sync="full", bitmap=None, filter_node_name="f", speed=1),
        backup(job_id="k", device="u", target="v", sync="full", bitmap=None, filter_node_name="f"),
    ]
    for each in backups:
        del each["data"]["bitmap"]
    words = talk.refused("transaction", actions=[*changes, *backups])
    assert words == "Could not create node: Duplicate nodes with node-name='f'"
    assert bitmaps(talk) == before
    assert talk.do("query-jobs") == []


def test_a_bitmap_that_was_removed_is_what_it_was(talk: Conversation) -> None:
    """Also after what was done with it before in the same transaction."""
    before = bitmaps(talk)
    changes = [
        on_bitmap("merge", target="bm", bitmaps=["other"]),
        on_bitmap("disable", name="bm"),
        on_bitmap("remove", name="bm"),
        on_bitmap("add", name="bm"),
    ]
    talk.refused("transaction", actions=[*changes, action("abort")])
    assert list(bitmaps(talk).items()) == list(before.items())


def overlay(talk: Conversation, name: str, **more: Any) -> None:
    blocklayer.create(talk.folder / name, format="qed", size=MIB)
    file = {"driver": "file", "filename": name}
    talk.do("blockdev-add", driver="qed", node_name=name, file=file, **more)


def backing_files(talk: Conversation) -> dict[str, str]:
    """What lies below each image."""
    nodes = talk.do("query-named-block-nodes")
    return {each["node-name"]: each["image"].get("backing-filename", "")
            for each in nodes if each["drv"] == "qed"}  # fmt: skip


def test_a_snapshot_of_a_layer(talk: Conversation) -> None:
    """What lies over it would lie over what is written from now on."""
    overlay(talk, "z", backing="s")
    overlay(talk, "o", backing=None)
    snapshot = action("blockdev-snapshot", node="s", overlay="o")
    made = action(
        "blockdev-snapshot-sync", node_name="s", snapshot_file="new", snapshot_node_name="new"
    )
    (talk.folder / "new").write_bytes(b"is here already")
    before = backing_files(talk)
    for each in (snapshot, made):
        words = talk.refused(each["type"], **each["data"])
        assert words == "Node 's' is busy: node is used as backing hd of 'z'"
    assert backing_files(talk) == before
    assert (talk.folder / "new").read_bytes() == b"is here already"
    talk.do("blockdev-del", node_name="z")
    words = talk.refused("transaction", actions=[snapshot, made])
    assert words == "Node 's' is busy: node is used as backing hd of 'o'"
    assert backing_files(talk) == {"o": before["o"]}
    words = talk.refused(
        "blockdev-snapshot-sync", node_name="s", snapshot_file="new2", snapshot_node_name="t"
    )
    assert words == "New overlay node-name already in use"
    assert not (talk.folder / "new2").exists()
    talk.do("transaction", actions=[snapshot])


def test_a_name_is_for_who_comes_first(talk: Conversation) -> None:
    """The name of a filter, and of an overlay: the other one cannot be had, and nothing is left."""
    overlay(talk, "o", backing=None)
    before = backing_files(talk)
    made = action(
        "blockdev-snapshot-sync", node_name="s", snapshot_file="new", snapshot_node_name="f"
    )
    begin = backup(device="u", target="v", sync="full", filter_node_name="f")
    del begin["data"]["bitmap"]
    for actions, words in (
        ([begin, made], "New overlay node-name already in use"),
        ([made, begin], "Could not create node: Duplicate nodes with node-name='f'"),
    ):
        assert talk.refused("transaction", actions=actions) == words
        assert backing_files(talk) == before
        assert not (talk.folder / "new").exists()
        assert talk.do("query-jobs") == []
    talk.do("transaction", actions=[action("blockdev-snapshot", node="s", overlay="o")])


@pytest.mark.parametrize("mode", ["individual", "grouped"])
def test_a_snapshot_goes_with_the_jobs_on_it(talk: Conversation, mode: str) -> None:
    """One backup has begun on the overlay, another one cannot: clients stay where they were."""
    overlay(talk, "o", backing=None)
    before = backing_files(talk)
    nbd = str(talk.folder / "nbd")
    talk.do("nbd-server-start", addr={"type": "unix", "data": {"path": nbd}})
    talk.do("block-export-add", type="nbd", id="e", node_name="s", writable=True)
    snapshot = action("blockdev-snapshot", node="s", overlay="o")
    backups = [
        backup(device="o", sync="full", filter_node_name="f", auto_dismiss=False),
        backup(job_id="k", device="u", target="v", sync="full", filter_node_name="f"),
    ]
    for each in backups:
        del each["data"]["bitmap"]
    properties = {"completion-mode": mode}
    actions = [snapshot, *backups] if mode == "individual" else backups
    if mode == "grouped":
        talk.do("blockdev-snapshot", **snapshot["data"])
        before = backing_files(talk)
    for _ in range(5):
        words = talk.refused("transaction", actions=actions, properties=properties)
        assert words == "Could not create node: Duplicate nodes with node-name='f'"
        assert talk.do("query-jobs") == []
        assert backing_files(talk) == before
    with blocklayer.open(f"nbd+unix:///s?socket={nbd}", mode="r+", format="raw") as disk:
        assert disk.read(128 << 10, 65536) == b"\7" * 65536
        disk.write(0, b"n" * 512)
    line = f'qemu-io {"s" if mode == "individual" else "o"} "read -P 0x6e 0 512"'
    assert "failed" not in talk.do("human-monitor-command", command_line=line)


def test_drive_backups_leave_no_file(talk: Conversation) -> None:
    """Neither the one that has begun nor the one that cannot."""
    drives = [
        action("drive-backup", device="s", job_id=name, target=f"{name}.img", format=kind,
               sync=sync, **more)
        for name, kind, sync, more in (
            ("a", "qed", "none", {"filter_node_name": "f"}),
            ("b", "raw", "full", {}),
            ("c", "qed", "full", {"filter_node_name": "f"}),
        )
    ]  # fmt: skip
    graph = talk.do("x-debug-query-block-graph")
    words = talk.refused("transaction", actions=drives)
    assert words == "Could not create node: Duplicate nodes with node-name='f'"
    assert not list(talk.folder.glob("*.img"))
    assert talk.do("query-jobs") == []
    assert talk.do("x-debug-query-block-graph") == graph
