"""Jobs steered through QEMU's client library; qemu-img looks at what they leave."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from tests.qmp.daemons import Conversation, conversation
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-io")

MIB = 1 << 20


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Conversation]:
    with conversation(tmp_path) as found:
        yield found


def make(folder: Path, *lines: str) -> None:
    for line in lines:
        subprocess.run(["qemu-img", "create", "-q", *line.split()], cwd=folder, check=True)


def same(folder: Path, *words: str) -> bool:
    """What qemu-img compare finds."""
    done = subprocess.run(["qemu-img", "compare", "-U", *words], cwd=folder, check=False,
                          capture_output=True)  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def fill(talk: Conversation, node: str, *commands: str) -> None:
    for command in commands:
        line = f'qemu-io {node} "{command}"'
        printed = talk.do("human-monitor-command", command_line=line)
        assert "ops" in printed, printed


def add(talk: Conversation, driver: str, node: str, name: str, **more: Any) -> None:
    file = {"driver": "file", "filename": name}
    talk.do("blockdev-add", driver=driver, node_name=node, file=file, **more)


def source(talk: Conversation, driver: str = "raw") -> None:
    """Node s, of 4 MiB with some data."""
    make(talk.folder, f"-f {driver} s.img 4M")
    add(talk, driver, "s", "s.img")
    fill(talk, "s", "write -P 1 0 1M", "write -P 2 2M 64k", "write -P 3 3M 512")


def ended(talk: Conversation, job: str) -> None:
    talk.event("JOB_STATUS_CHANGE", id=job, status="null")


@pytest.mark.parametrize("driver", ["raw", "qed"])
def test_a_mirror_takes_the_place_of_its_source(talk: Conversation, driver: str) -> None:
    source(talk, driver)
    make(talk.folder, f"-f {driver} t.img 4M")
    add(talk, driver, "t", "t.img", discard="unmap")
    nbd = str(talk.folder / "nbd")
    talk.do("nbd-server-start", addr={"type": "unix", "data": {"path": nbd}})
    talk.do("block-export-add", type="nbd", id="e", node_name="s", name="x", writable=True)
    talk.do("blockdev-mirror", job_id="j", device="s", target="t", sync="full")
    talk.event("BLOCK_JOB_READY", device="j", type="mirror")
    write = ["qemu-io", "-f", "raw", "-c", "write -P 7 1M 128k", f"nbd+unix:///x?socket={nbd}"]
    subprocess.run(write, check=True, capture_output=True, timeout=60)
    talk.do("block-job-change", id="j", type="mirror", **{"copy-mode": "write-blocking"})
    subprocess.run(write, check=True, capture_output=True, timeout=60)
    (job,) = talk.do("query-block-jobs")
    assert job["ready"] is True
    assert job["io-status"] == "ok"
    talk.do("block-job-complete", device="j")
    ended(talk, "j")
    assert same(talk.folder, "-f", driver, "-F", driver, "s.img", "t.img")
    # From now on the export's clients write to the target.
    (export,) = talk.do("query-block-exports")
    assert export["node-name"] == "t"
    write[4] = "write -P 8 1M 128k"
    subprocess.run(write, check=True, capture_output=True, timeout=60)
    assert not same(talk.folder, "-f", driver, "-F", driver, "s.img", "t.img")
    talk.do("blockdev-del", node_name="s")


def test_a_drive_is_mirrored_to_a_file_that_is_made(talk: Conversation) -> None:
    source(talk)
    talk.do("drive-mirror", job_id="j", device="s", target="t.qed", format="qed", sync="full",
            node_name="t")  # fmt: skip
    talk.event("BLOCK_JOB_READY", device="j")
    talk.do("block-job-cancel", device="j")
    ended(talk, "j")
    assert same(talk.folder, "-f", "raw", "-F", "qed", "s.img", "t.qed")
    names = [each["node-name"] for each in talk.do("query-named-block-nodes")]
    assert "t" not in names
    words = talk.refused("drive-mirror", job_id="1 j", device="s", target="u.raw", sync="full")
    assert words == "Invalid job ID '1 j'"
    assert not (talk.folder / "u.raw").exists()
    wrong = {"job_id": "j", "device": "s", "target": "u.raw", "sync": "full", "granularity": 3}
    talk.refused("drive-mirror", **wrong)
    assert not (talk.folder / "u.raw").exists()
    talk.do("drive-mirror", job_id="j", device="s", target="t.qed", format="qed", sync="full",
            mode="existing")  # fmt: skip
    talk.event("BLOCK_JOB_READY", device="j")
    talk.do("block-job-complete", device="j")
    ended(talk, "j")
    fill(talk, "s", "read -P 1 0 1M")


def test_a_backup_is_of_one_moment(talk: Conversation) -> None:
    source(talk)
    for name in ("t.img", "before.img"):
        make(talk.folder, f"-f raw {name} 4M")
    before = (talk.folder / "s.img").read_bytes()
    add(talk, "raw", "t", "t.img")
    talk.do("blockdev-backup", job_id="j", device="s", target="t", sync="full", speed=MIB,
            auto_dismiss=False)  # fmt: skip
    fill(talk, "s", "write -P 9 3M 512k", "write -P 9 0 64k")
    talk.do("block-job-set-speed", device="j", speed=0)
    talk.event("JOB_STATUS_CHANGE", id="j", status="concluded")
    assert talk.do("query-jobs")[0].get("error") is None
    talk.do("job-dismiss", id="j")
    assert (talk.folder / "t.img").read_bytes() == before


def test_incremental_backups_with_transactions(talk: Conversation) -> None:
    """A bitmap begins where a full backup ends, and each backup moves it on."""
    source(talk)
    make(talk.folder, "-f raw t.img 4M")
    add(talk, "raw", "t", "t.img")
    backup = {"job-id": "j", "device": "s", "target": "t"}
    talk.do(
        "transaction",
        actions=[
            {"type": "block-dirty-bitmap-add", "data": {"node": "s", "name": "b"}},
            {"type": "blockdev-backup", "data": {**backup, "sync": "full"}},
        ],
    )
    assert talk.event("BLOCK_JOB_COMPLETED", device="j")["len"] == 4 * MIB
    ended(talk, "j")
    for pattern in (4, 5):
        fill(talk, "s", f"write -P {pattern} {pattern * 512}k 64k")
        talk.do("blockdev-backup", job_id="j", device="s", target="t", sync="incremental",
                bitmap="b")  # fmt: skip
        assert talk.event("BLOCK_JOB_COMPLETED", device="j")["len"] == 65536
        ended(talk, "j")
    assert (talk.folder / "s.img").read_bytes() == (talk.folder / "t.img").read_bytes()


def test_a_transaction_is_one_moment_for_bitmap_and_backup(
    talk: Conversation, rng: random.Random
) -> None:
    """While clients write: what the backup has not, the bitmap has."""
    source(talk)
    make(talk.folder, "-f raw t.img 4M")
    add(talk, "raw", "t", "t.img")
    nbd = str(talk.folder / "nbd")
    talk.do("nbd-server-start", addr={"type": "unix", "data": {"path": nbd}})
    talk.do("block-export-add", type="nbd", id="e", node_name="s", writable=True)
    talk.do("block-dirty-bitmap-add", node="s", name="b", granularity=512)
    over = threading.Event()

    def write(seed: int) -> None:
        mine = random.Random(seed)
        with blocklayer.open(f"nbd+unix:///s?socket={nbd}", mode="r+", format="raw") as disk:
            while not over.is_set():
                disk.write(mine.randrange(0, 4 * MIB - 4096), mine.randbytes(mine.randrange(4096)))

    writers = [threading.Thread(target=write, args=(rng.random(),)) for _ in range(2)]
    for writer in writers:
        writer.start()
    bitmap = {"type": "block-dirty-bitmap-clear", "data": {"node": "s", "name": "b"}}
    backup = {"job-id": "j", "device": "s", "target": "t", "sync": "full"}
    for _ in range(5):
        talk.do("transaction", actions=[bitmap, {"type": "blockdev-backup", "data": backup}])
        ended(talk, "j")
    over.set()
    for writer in writers:
        writer.join(30)
    talk.do("blockdev-backup", job_id="j", device="s", target="t", sync="incremental", bitmap="b")
    ended(talk, "j")
    assert (talk.folder / "s.img").read_bytes() == (talk.folder / "t.img").read_bytes()


@pytest.mark.parametrize("driver", ["raw", "qed"])
def test_a_killed_daemon_leaves_its_source_whole(
    tmp_path: Path, driver: str, rng: random.Random
) -> None:
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        with Conversation(folder, killed=True) as talk:
            source(talk, driver)
            talk.do("human-monitor-command", command_line="qemu-io s flush")
            make(folder, f"-f {driver} t.img 4M")
            add(talk, driver, "t", "t.img")
            mode, speed = rng.choice(["background", "write-blocking"]), rng.choice([0, MIB])
            options = {"job_id": "j", "device": "s", "target": "t", "sync": "full"}
            talk.do("blockdev-mirror", **options, speed=speed, copy_mode=mode)
            time.sleep(rng.random() / 20)
        io = ["qemu-io", "-f", driver, "s.img"]
        for pattern, place in ((1, "0 1M"), (2, "2M 64k"), (3, "3M 512"), (0, "1M 1M")):
            io += ["-c", f"read -P {pattern} {place}"]
        done = subprocess.run(io, cwd=folder, check=True, capture_output=True, timeout=60)
        assert b"failed" not in done.stdout
        if driver == "qed":
            check = ["qemu-img", "check", "-f", "qed", "s.img"]
            found = subprocess.run(check, cwd=folder, check=False, capture_output=True)
            assert found.returncode in (0, 3), found  # 3: leaked clusters


def test_grouped_jobs_fail_together(talk: Conversation) -> None:
    source(talk)
    make(talk.folder, "-f raw t.img 4M", "-f raw small.img 4M")
    add(talk, "raw", "t", "t.img")
    talk.do("blockdev-add", driver="blkdebug", node_name="bad",
            image={"driver": "file", "filename": "small.img"},
            inject_error=[{"iotype": "write", "errno": 5}])  # fmt: skip
    actions = [
        {
            "type": "blockdev-backup",
            "data": {"job-id": job, "device": device, "target": target, "sync": "full", **more},
        }
        for job, device, target, more in (("a", "s", "t", {"speed": 1}), ("b", "r", "bad", {}))
    ]
    make(talk.folder, "-f raw r.img 4M")
    add(talk, "raw", "r", "r.img")
    fill(talk, "r", "write -P 1 0 1M")
    talk.do("transaction", actions=actions, properties={"completion-mode": "grouped"})
    assert "error" in talk.event("BLOCK_JOB_COMPLETED", device="b")
    talk.event("BLOCK_JOB_CANCELLED", device="a")
    ended(talk, "a")
    assert talk.do("query-jobs") == []


def test_an_aborted_transaction_leaves_no_job(talk: Conversation) -> None:
    source(talk)
    make(talk.folder, "-f raw t.img 4M")
    add(talk, "raw", "t", "t.img")
    names = {each["node-name"] for each in talk.do("query-named-block-nodes")}
    backup = {"job-id": "j", "device": "s", "target": "t", "sync": "full"}
    words = talk.refused(
        "transaction",
        actions=[
            {"type": "block-dirty-bitmap-add", "data": {"node": "s", "name": "b"}},
            {"type": "blockdev-backup", "data": backup},
            {"type": "blockdev-snapshot", "data": {"node": "s", "overlay": "nowhere"}},
        ],
    )
    assert words == "Cannot find device='nowhere' nor node-name='nowhere'"
    assert talk.do("query-jobs") == []
    after = talk.do("query-named-block-nodes")
    assert {each["node-name"] for each in after} == names
    assert not any("dirty-bitmaps" in each for each in after)
    fill(talk, "s", "write -P 1 0 512")


def test_an_aborted_transaction_takes_its_snapshots_back(talk: Conversation) -> None:
    source(talk, "qed")
    make(talk.folder, "-f qed over.img 4M")
    add(talk, "qed", "over", "over.img", backing=None)
    snapshot = {"type": "blockdev-snapshot", "data": {"node": "s", "overlay": "over"}}
    made = {
        "type": "blockdev-snapshot-sync",
        "data": {"node-name": "over", "snapshot-file": "new.qed", "snapshot-node-name": "new"},
    }
    abort = {"type": "abort", "data": {}}
    talk.refused("transaction", actions=[snapshot, made, abort])
    assert not (talk.folder / "new.qed").exists()
    fill(talk, "s", "write -P 9 0 64k", "read -P 9 0 64k")
    export(talk, "s")
    talk.do("transaction", actions=[snapshot, made])
    fill(talk, "new", "read -P 9 0 64k", "write -P 4 0 64k", "read -P 4 0 64k")
    fill(talk, "s", "read -P 9 0 64k")


def export(talk: Conversation, node: str) -> None:
    """Somebody uses the node from now on."""
    nbd = {"type": "unix", "data": {"path": str(talk.folder / "nbd")}}
    talk.do("nbd-server-start", addr=nbd)
    talk.do("block-export-add", type="nbd", id="e", node_name=node, writable=True)


def test_backups_by_snapshots_one_after_the_other(talk: Conversation) -> None:
    """The overlay goes with its last user, though nobody removes it by name."""
    source(talk)
    export(talk, "s")
    for number in range(2):
        talk.do("blockdev-snapshot-sync", node_name="s", snapshot_file="snap.qed", format="qed",
                snapshot_node_name="snap")  # fmt: skip
        fill(talk, "snap", f"write -P {number + 10} 1M 64k")
        subprocess.run(["cp", "s.img", f"backup{number}"], cwd=talk.folder, check=True)
        talk.do("block-commit", job_id="j", device="snap")
        talk.event("BLOCK_JOB_READY", device="j", type="commit")
        talk.do("block-job-complete", device="j")
        ended(talk, "j")
        names = [each["node-name"] for each in talk.do("query-named-block-nodes")]
        assert "snap" not in names
        (talk.folder / "snap.qed").unlink()
        fill(talk, "s", f"read -P {number + 10} 1M 64k")
    assert not same(talk.folder, "-f", "raw", "-F", "raw", "backup0", "backup1")


def test_a_chain_is_streamed_and_committed(talk: Conversation) -> None:
    make(talk.folder, "-f qed base.qed 4M", "-f qed -b base.qed -F qed mid.qed",
         "-f qed -b mid.qed -F qed top.qed")  # fmt: skip
    io = ["qemu-io", "-f", "qed", "-c", "write -P 1 0 1M", "base.qed"]
    subprocess.run(io, cwd=talk.folder, check=True, capture_output=True)
    io[4:] = ["write -P 2 512k 1M", "mid.qed"]
    subprocess.run(io, cwd=talk.folder, check=True, capture_output=True)
    content = talk.folder / "content.raw"
    convert = ["qemu-img", "convert", "-f", "qed", "-O", "raw", "top.qed", str(content)]
    subprocess.run(convert, cwd=talk.folder, check=True)
    base = {"driver": "file", "filename": "base.qed"}
    middle = {"driver": "file", "filename": "mid.qed"}
    talk.do("blockdev-add", driver="qed", node_name="base", file=base, read_only=True)
    talk.do("blockdev-add", driver="qed", node_name="mid", file=middle, backing="base",
            read_only=True)  # fmt: skip
    add(talk, "qed", "top", "top.qed", backing="mid")
    talk.do("block-stream", job_id="j", device="top", base_node="base")
    ended(talk, "j")
    talk.do("blockdev-del", node_name="mid")
    assert same(talk.folder, "-f", "qed", "-F", "raw", "top.qed", "content.raw")
    talk.do("block-commit", job_id="j", device="top")
    talk.event("BLOCK_JOB_READY", device="j", type="commit")
    talk.do("block-job-complete", device="j")
    ended(talk, "j")
    assert same(talk.folder, "-f", "qed", "-F", "raw", "base.qed", "content.raw")


def test_images_are_created_by_jobs(talk: Conversation) -> None:
    file = {"driver": "file", "filename": "new.qed", "size": 0}
    talk.do("blockdev-create", job_id="f", options=file)
    talk.event("JOB_STATUS_CHANGE", id="f", status="concluded")
    talk.do("job-dismiss", id="f")
    talk.do("blockdev-add", driver="file", filename="new.qed", node_name="f")
    options = {"driver": "qed", "file": "f", "size": 8 * MIB, "cluster-size": 4096}
    talk.do("blockdev-create", job_id="q", options=options)
    talk.event("JOB_STATUS_CHANGE", id="q", status="concluded")
    (job,) = talk.do("query-jobs")
    assert (job["type"], job.get("error")) == ("create", None)
    assert talk.do("query-block-jobs") == []
    talk.do("job-dismiss", id="q")
    talk.do("blockdev-add", driver="qed", file="f", node_name="q")
    (node,) = [n for n in talk.do("query-named-block-nodes") if n["node-name"] == "q"]
    assert node["image"]["cluster-size"] == 4096
    assert node["image"]["virtual-size"] == 8 * MIB


def test_verbs_of_jobs(talk: Conversation) -> None:
    source(talk)
    make(talk.folder, "-f raw t.img 4M")
    add(talk, "raw", "t", "t.img")
    talk.do("blockdev-mirror", job_id="j", device="s", target="t", sync="full", speed=65536,
            auto_finalize=False, auto_dismiss=False)  # fmt: skip
    talk.do("job-pause", id="j")
    talk.event("JOB_STATUS_CHANGE", id="j", status="paused")
    talk.do("job-resume", id="j")
    talk.do("block-job-pause", device="j")
    talk.do("block-job-resume", device="j")
    talk.do("block-job-set-speed", device="j", speed=0)
    talk.event("BLOCK_JOB_READY", device="j")
    talk.do("job-complete", id="j")
    assert talk.event("BLOCK_JOB_PENDING") == {"type": "mirror", "id": "j"}
    talk.do("job-finalize", id="j")
    talk.event("JOB_STATUS_CHANGE", id="j", status="concluded")
    talk.do("block-job-dismiss", id="j")
    assert talk.do("query-jobs") == []
    talk.do("blockdev-mirror", job_id="k", device="t", target="s", sync="full", speed=1)
    talk.do("job-cancel", id="k")
    talk.event("BLOCK_JOB_CANCELLED", device="k")
    assert talk.refused("block-job-change", id="k", type="mirror", **{"copy-mode": "background"})


def test_the_daemon_ends_while_jobs_run(tmp_path: Path, rng: random.Random) -> None:
    with conversation(tmp_path) as talk:
        source(talk)
        make(talk.folder, "-f raw t.img 4M", "-f raw u.img 4M")
        add(talk, "raw", "t", "t.img")
        add(talk, "raw", "u", "u.img")
        before = (tmp_path / "s.img").read_bytes()
        kind = rng.choice(["mirror", "backup"])
        talk.do(f"blockdev-{kind}", job_id="j", device="s", target="t", sync="full", speed=65536)
        if rng.random() < 0.5:
            talk.do("job-pause", id="j")
        talk.do("quit")
        assert talk.process.wait(30) == 0
    assert (tmp_path / "s.img").read_bytes() == before


@pytest.mark.parametrize("mode", ["individual", "grouped"])
def test_a_job_of_a_transaction_that_cannot_begin(talk: Conversation, mode: str) -> None:
    """The ones that have begun end, and the monitor answers."""
    source(talk)
    make(talk.folder, *(f"-f raw {name}.img 4M" for name in ("r", "t", "u")))
    for name in ("r", "t", "u"):
        add(talk, "raw", name, f"{name}.img")
    actions = [
        {
            "type": "blockdev-backup",
            "data": {"job-id": job, "device": device, "target": target, "sync": "full", "speed": 1}
            | {"filter-node-name": "f"},
        }
        for job, device, target in (("a", "s", "t"), ("b", "r", "u"))
    ]
    words = talk.refused("transaction", actions=actions, properties={"completion-mode": mode})
    assert "Duplicate nodes with node-name='f'" in words
    assert talk.do("query-jobs") == []
    for name in ("s", "r", "t", "u"):
        talk.do("blockdev-del", node_name=name)
