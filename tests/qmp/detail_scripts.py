"""Conversations about details: limits of backups, jobs that an error has stopped, roots."""

from __future__ import annotations

from typing import Any

from tests.qmp.job_scripts import mirror, qed, raw, status, wait
from tests.qmp.scripts import NODES, Step, file, null, step, unix

STOPPED = "BLOCK_JOB_ERROR"


def backup(**more: Any) -> Step:
    """Of s to t, as job j."""
    return step(
        "blockdev-backup", **{"job_id": "j", "device": "s", "target": "t", "sync": "full", **more}
    )


def perf(**limits: Any) -> Step:
    return backup(x_perf={name.replace("_", "-"): value for name, value in limits.items()})


BACKUP_LIMITS = [
    raw("base.raw", "s"),
    raw("t.raw", "t"),
    null("small", read_only=True),
    perf(max_workers=0),
    perf(max_workers=-1),
    perf(max_workers=1 << 31),
    perf(max_workers="1"),
    perf(max_chunk=-1),
    perf(max_chunk=-1, max_workers=0),
    perf(max_chunk=1),
    perf(max_chunk=65535, use_copy_range=True),
    perf(foo=1),
    backup(target="s", x_perf={"max-workers": 0}),
    backup(sync="incremental", x_perf={"max-workers": 0}),
    backup(filter_node_name="s", x_perf={"max-chunk": 1}),
    backup(speed=-1, x_perf={"max-chunk": 1}),
    step(
        "drive-backup",
        job_id="j",
        device="s",
        target="n",
        sync="full",
        format="raw",
        x_perf={"max-workers": 0},
    ),
    perf(max_workers=1, max_chunk=65536, use_copy_range=True),
    wait("BLOCK_JOB_COMPLETED", device="j"),
    perf(max_workers=(1 << 31) - 1, max_chunk=0),
    wait("BLOCK_JOB_COMPLETED", device="j"),
]


def failing_once(node: str, name: str, operation: str) -> Step:
    """A file of which one request fails."""
    rule = {"event": "none", "iotype": operation, "once": True, "immediately": True}
    return step(
        "blockdev-add",
        driver="blkdebug",
        node_name=node,
        image=file(name),
        inject_error=[{**rule, "errno": 5}],
    )


def stopped(job: Step) -> list[Step]:
    """A job that stops at an error: nothing is done, all of it is left, and then it goes on."""
    return [
        job,
        wait(STOPPED, device="j"),
        status("j", "paused"),
        step("query-block-jobs"),
        step("query-jobs"),
        step("job-resume", id="j"),
    ]


SOURCE_STOPS_BACKUP = [
    failing_once("s", "base.raw", "read"),
    raw("t.raw", "t"),
    *stopped(backup(on_source_error="stop")),
    wait("BLOCK_JOB_COMPLETED", device="j"),
]

TARGET_STOPS_BACKUP = [
    raw("base.raw", "s"),
    failing_once("t", "t.raw", "write"),
    *stopped(backup(on_target_error="stop")),
    wait("BLOCK_JOB_COMPLETED", device="j"),
]

ERROR_STOPS_STREAM = [
    failing_once("base", "base.raw", "read"),
    qed("t.qed", "t", backing="base"),
    *stopped(step("block-stream", job_id="j", device="t", on_error="stop")),
    wait("BLOCK_JOB_COMPLETED", device="j"),
]

LAYER = {"driver": "raw", "node-name": "layer", "file": file("base.raw", "lf")}

ROOTS = [
    qed("top.qed", "top", backing=LAYER),
    null("n"),
    *(
        each
        for device in ("layer", "lf", "zz")
        for each in (
            mirror(device=device, target="n"),
            step(
                "drive-mirror", job_id="j", device=device, target="new", sync="full", format="raw"
            ),
            step("block-commit", job_id="j", device=device),
        )
    ),
    mirror(device="top", target="layer"),
    mirror(device="n", target="layer"),
    mirror(device="n", target="n"),
    mirror(device="top", target="n"),
    wait("BLOCK_JOB_READY", device="j"),
    mirror(device="top", target="n", job_id="k"),
    step("block-commit", job_id="j", device="top"),
    step("job-cancel", id="j"),
    status("j", "null"),
]


def export(**more: Any) -> Step:
    return step("block-export-add", **{"type": "nbd", "id": "e", "node_name": "n", **more})


IOTHREADS = [
    null("n", read_only=True),
    step("object-add", qom_type="iothread", id="t"),
    step("object-add", qom_type="secret", id="s", data="x"),
    export(iothread="nope"),
    export(iothread="t"),
    step("nbd-server-start", addr=unix("nbd.sock")),
    export(iothread="nope"),
    export(iothread="s"),
    export(iothread="nope", node_name="zz"),
    export(iothread="nope", writable=True),
    export(iothread="nope", id="1 x"),
    export(iothread="t"),
    export(iothread="nope"),
    step("query-block-exports"),
]


def blkdebug(**more: Any) -> Step:
    return step("blockdev-add", driver="blkdebug", node_name="b", image="n", **more)


OPTIONS = [
    null("n", latency_ns=0),
    step("blockdev-add", driver="null-aio", node_name="a", size=1 << 20, latency_ns=5),
    step("blockdev-add", driver="null-co", node_name="z", latency_ns=-5),
    step("blockdev-add", driver="null-co", node_name="z", latency_ns=1 << 64),
    step("blockdev-add", driver="null-co", node_name="z", latency_ns="5"),
    blkdebug(align=513),
    blkdebug(align=512, max_transfer=513),
    blkdebug(align=512, opt_write_zero=3),
    blkdebug(opt_discard=4, max_discard=6),
    blkdebug(max_write_zero=(1 << 31) - 1),
    step(
        "blockdev-add",
        **file("v.raw", "v", **{"drop-cache": False, "aio-max-batch": 4}),
        x_check_cache_dropped=True,
    ),
    step("blockdev-add", **file("u.raw", "u", **{"drop-cache": 1})),
    NODES,
    blkdebug(align=512, max_transfer=4096, opt_discard=4096, max_discard=8192),
]

DETAIL_SCRIPTS = {
    "options": OPTIONS,
    "iothreads": IOTHREADS,
    "roots": ROOTS,
    "limits of backups": BACKUP_LIMITS,
    "the source stops a backup": SOURCE_STOPS_BACKUP,
    "the target stops a backup": TARGET_STOPS_BACKUP,
    "an error stops a stream": ERROR_STOPS_STREAM,
}
