"""Conversations about jobs, held with our daemon and with QEMU's.

Between commands the scripts wait for events: ``wait("BLOCK_JOB_READY", device="j")``. When all is
said, the events of both daemons are compared as well, in their order.
"""

from __future__ import annotations

from typing import Any

from tests.qmp.scripts import NODES, Step, action, file, null, step

WAIT = "(wait)"


def wait(event: str, **members: Any) -> Step:
    """Until there is such an event."""
    return WAIT, {"event": event, "members": members}


def status(job: str, wanted: str) -> Step:
    return wait("JOB_STATUS_CHANGE", id=job, status=wanted)


def raw(name: str, node: str) -> Step:
    return step("blockdev-add", driver="raw", node_name=node, file=file(name))


def qed(name: str, node: str, **more: Any) -> Step:
    return step("blockdev-add", driver="qed", node_name=node, file=file(name), **more)


def mirror(**more: Any) -> Step:
    """Of s to t, as job j."""
    return step(
        "blockdev-mirror", **{"job_id": "j", "device": "s", "target": "t", "sync": "full", **more}
    )


SOURCE_AND_TARGET = [raw("base.raw", "s"), raw("t.raw", "t")]

MISTAKES = [
    *SOURCE_AND_TARGET,
    null("small"),
    null("ro", read_only=True),
    mirror(device="zz"),
    mirror(target="zz"),
    mirror(target="s"),
    mirror(job_id="1 j"),
    mirror(sync="bitmap"),
    mirror(granularity=5),
    mirror(granularity=1 << 27),
    mirror(speed=-1),
    mirror(replaces="zz"),
    mirror(filter_node_name="s"),
    step("job-pause", id="zz"),
    step("job-resume", id="zz"),
    step("job-cancel", id="zz"),
    step("job-complete", id="zz"),
    step("job-finalize", id="zz"),
    step("job-dismiss", id="zz"),
    step("block-job-pause", device="zz"),
    step("block-job-resume", device="zz"),
    step("block-job-cancel", device="zz"),
    step("block-job-complete", device="zz"),
    step("block-job-finalize", id="zz"),
    step("block-job-dismiss", id="zz"),
    step("block-job-set-speed", device="zz", speed=1),
    step("block-commit", job_id="c", device="zz"),
    step("block-stream", job_id="c", device="zz"),
    step("block-stream", job_id="c", device="s", bottom="s", base_node="t"),
    step("block-stream", job_id="c", device="s", bottom="s", base="t.raw"),
    step("blockdev-backup", job_id="c", device="zz", target="t", sync="full"),
    step("blockdev-backup", job_id="c", device="s", target="zz", sync="full"),
    step("blockdev-backup", job_id="c", device="s", target="t", sync="incremental"),
    step("blockdev-backup", job_id="c", device="s", target="t", sync="bitmap", bitmap="b"),
    step("blockdev-create", job_id="c", options={"driver": "null-co"}),
    step("query-jobs"),
]

MIRROR = [
    *SOURCE_AND_TARGET,
    mirror(),
    wait("BLOCK_JOB_READY", device="j"),
    mirror(),
    mirror(job_id="k"),
    step("query-jobs"),
    step("blockdev-del", node_name="s"),
    step("blockdev-del", node_name="t"),
    step("block_resize", node_name="s", size=1 << 21),
    step("job-dismiss", id="j"),
    step("job-finalize", id="j"),
    step("job-resume", id="j"),
    step("block-job-set-speed", device="j", speed=-5),
    step("block-job-set-speed", device="j", speed=1 << 20),
    step("job-pause", id="j"),
    status("j", "standby"),
    step("job-pause", id="j"),
    step("query-jobs"),
    step("job-resume", id="j"),
    status("j", "ready"),
    step("block-job-complete", device="j"),
    status("j", "null"),
    step("query-jobs"),
    step("query-block-jobs"),
    step("blockdev-del", node_name="s"),
    step("blockdev-del", node_name="t"),
]

COMPLETE_WHILE_PAUSED = [
    *SOURCE_AND_TARGET,
    mirror(),
    wait("BLOCK_JOB_READY", device="j"),
    step("job-pause", id="j"),
    status("j", "standby"),
    step("job-complete", id="j"),
    step("job-resume", id="j"),
    status("j", "null"),
]

CANCEL = [
    *SOURCE_AND_TARGET,
    mirror(),
    wait("BLOCK_JOB_READY", device="j"),
    step("block-job-cancel", device="j"),
    status("j", "null"),
    mirror(),
    wait("BLOCK_JOB_READY", device="j"),
    step("block-job-cancel", device="j", force=True),
    status("j", "null"),
    mirror(speed=1),
    step("job-cancel", id="j"),
    status("j", "null"),
    step("query-jobs"),
]

BY_HAND = [
    *SOURCE_AND_TARGET,
    mirror(auto_finalize=False, auto_dismiss=False),
    wait("BLOCK_JOB_READY", device="j"),
    step("job-finalize", id="j"),
    step("job-complete", id="j"),
    wait("BLOCK_JOB_PENDING", id="j"),
    step("query-jobs"),
    step("job-complete", id="j"),
    step("job-pause", id="j"),
    step("block-job-finalize", id="j"),
    status("j", "concluded"),
    step("query-jobs"),
    step("job-cancel", id="j"),
    step("job-finalize", id="j"),
    mirror(),
    step("block-job-dismiss", id="j"),
    step("job-dismiss", id="j"),
]

BACKUP = [
    *SOURCE_AND_TARGET,
    step("block-dirty-bitmap-add", node="s", name="b"),
    step("blockdev-backup", job_id="j", device="s", target="t", sync="full"),
    status("j", "null"),
    step("blockdev-backup", job_id="j", device="s", target="s", sync="full"),
    step(
        "blockdev-backup",
        job_id="j",
        device="s",
        target="t",
        sync="incremental",
        bitmap="b",
        auto_dismiss=False,
    ),
    status("j", "concluded"),
    step("query-jobs"),
    step("job-dismiss", id="j"),
    step("transaction", actions=[
        action("blockdev-backup", **{"job-id": "j", "device": "s", "target": "t", "sync": "full"}),
        action("abort"),
    ]),
    step("query-jobs"),
]  # fmt: skip


def back_up(job: str, target: str, **more: Any) -> dict[str, Any]:
    """An action: of s to another node."""
    named = {"job_id": job, "device": "s", "target": target, "sync": "full"}
    return action("blockdev-backup", **{**named, **more})


def both(*actions: dict[str, Any], mode: str = "individual") -> Step:
    return step("transaction", actions=list(actions), properties={"completion-mode": mode})


BACKUPS_OF_ONE = [
    *SOURCE_AND_TARGET,
    raw("u.raw", "u"),
    raw("v.raw", "v"),
    step("block-dirty-bitmap-add", node="s", name="b"),
    step("blockdev-backup", job_id="j", device="s", target="t", sync="none"),
    status("j", "running"),
    step("blockdev-backup", job_id="j", device="s", target="u", sync="none"),
    step("blockdev-backup", job_id="k", device="s", target="t", sync="none"),
    step("blockdev-backup", job_id="k", device="t", target="v", sync="none"),
    step("blockdev-backup", job_id="k", device="s", target="u", sync="none"),
    status("k", "running"),
    mirror(job_id="m", target="v"),
    step("blockdev-del", node_name="t"),
    step("blockdev-backup", job_id="l", device="s", target="v", sync="full"),
    status("l", "null"),
    step("query-jobs"),
    step("blockdev-del", node_name="s"),
    step("block-job-cancel", device="j"),
    status("j", "null"),
    step("blockdev-backup", job_id="j", device="s", target="t", sync="incremental", bitmap="b"),
    status("j", "null"),
    step("block-job-cancel", device="k"),
    status("k", "null"),
    both(back_up("j", "t", sync="none"), back_up("k", "u", sync="none")),
    status("k", "running"),
    step("block-job-cancel", device="k"),
    status("k", "null"),
    step("block-job-cancel", device="j"),
    status("j", "null"),
    step("blockdev-del", node_name="t"),
    step("blockdev-del", node_name="s"),
]

# No two jobs of a group are taken back: QEMU 7.2 hangs then.
FAILED_TRANSACTIONS = [
    *SOURCE_AND_TARGET,
    raw("u.raw", "u"),
    raw("v.raw", "v"),
    qed("t.qed", "o", backing=None),
    step("block-dirty-bitmap-add", node="s", name="b"),
    NODES,
    both(
        action("block-dirty-bitmap-clear", node="s", name="b"),
        back_up("j", "t", filter_node_name="f"),
        back_up("k", "u", device="v", filter_node_name="f"),
    ),
    both(
        back_up("j", "t", filter_node_name="f"),
        back_up("k", "u", device="v", filter_node_name="f"),
        mode="grouped",
    ),
    both(back_up("j", "t"), back_up("k", "t", device="u")),
    both(back_up("j", "t"), back_up("k", "u", device="t")),
    both(back_up("j", "t"), back_up("k", "u"), back_up("l", "v"), action("abort")),
    both(back_up("j", "t"), back_up("k", "u", device="v"), action("abort")),
    both(back_up("j", "t"), action("abort"), mode="grouped"),
    both(back_up("j", "t", auto_dismiss=False, auto_finalize=False), action("abort")),
    both(
        action("blockdev-snapshot", node="s", overlay="o"),
        back_up("j", "t", device="o"),
        back_up("k", "zz"),
    ),
    both(
        back_up("j", "t", filter_node_name="f"),
        action("blockdev-snapshot-sync", **{"node-name": "u", "snapshot-file": "new.qed",
               "snapshot-node-name": "f", "format": "qed"}),
    ),
    step("query-jobs"),
    NODES,
    step("blockdev-backup", job_id="m", device="s", target="t", sync="full"),
    status("m", "null"),
    step("blockdev-backup", job_id="l", device="s", target="t", sync="full", filter_node_name="u"),
]  # fmt: skip

CHAIN_JOBS = [
    qed("top.qed", "top"),
    step("block-stream", job_id="j", device="top", base_node="zz"),
    step("block-commit", job_id="j", device="top", top_node="zz"),
    step("block-stream", job_id="j", device="top"),
    status("j", "null"),
    step("block-stream", job_id="j", device="top"),
    status("j", "null"),
    raw("t.raw", "t"),
    step("block-stream", job_id="j", device="t"),
    status("j", "null"),
    NODES,
]

COMMIT = [
    step("blockdev-add", driver="raw", node_name="base", file=file("base.raw"), read_only=True),
    qed("top.qed", "top", backing="base"),
    step("block-commit", job_id="j", device="top"),
    wait("BLOCK_JOB_READY", device="j"),
    step("job-complete", id="j"),
    status("j", "null"),
    step("query-jobs"),
]

CREATE = [
    raw("t.raw", "t"),
    step("blockdev-create", job_id="j", options={"driver": "qed", "file": "t", "size": 1 << 20}),
    status("j", "concluded"),
    step("query-jobs"),
    step("query-block-jobs"),
    step("blockdev-create", job_id="j", options={"driver": "qed", "file": "t", "size": 1 << 20}),
    step("job-dismiss", id="j"),
    step("blockdev-create", job_id="j", options={"driver": "qed", "file": "zz", "size": 1 << 20}),
    status("j", "concluded"),
    step("query-jobs"),
    step("job-dismiss", id="j"),
    step(
        "blockdev-create",
        job_id="j",
        options={"driver": "file", "filename": "new.raw", "size": 12345},
    ),
    status("j", "concluded"),
    step("job-dismiss", id="j"),
    step(
        "blockdev-create",
        job_id="j",
        options={"driver": "file", "filename": "nowhere/new.raw", "size": 12345},
    ),
    status("j", "concluded"),
    step("query-jobs"),
    step("job-dismiss", id="j"),
    step("blockdev-create", job_id="1 j", options={"driver": "qed", "file": "t", "size": 1}),
]

JOB_SCRIPTS = {
    "mistakes": MISTAKES,
    "mirror": MIRROR,
    "complete while paused": COMPLETE_WHILE_PAUSED,
    "cancel": CANCEL,
    "by hand": BY_HAND,
    "backup": BACKUP,
    "backups of one": BACKUPS_OF_ONE,
    "failed transactions": FAILED_TRANSACTIONS,
    "stream": CHAIN_JOBS,
    "commit": COMMIT,
    "create": CREATE,
}
