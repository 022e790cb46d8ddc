"""Conversations about who may use what, held with our daemon and with QEMU's."""

from __future__ import annotations

from typing import Any

from tests.qmp.job_scripts import qed, raw, status, wait
from tests.qmp.scripts import Step, action, file, null, step, unix

SERVER = step("nbd-server-start", addr=unix("nbd.sock"))


def export(identity: str, node: str, **more: object) -> Step:
    return step("block-export-add", type="nbd", id=identity, node_name=node, name=identity, **more)


FLEECING = [
    SERVER,
    raw("base.raw", "src"),
    export("g", "src", writable=True),
    step("block-dirty-bitmap-add", node="src", name="b"),
    export("x0", "src", bitmaps=["b"]),
    qed("t.qed", "tmp", backing="src"),
    step("block-dirty-bitmap-add", node="tmp", name="own", disabled=True),
    step("transaction", actions=[
        action("block-dirty-bitmap-add", node="src", name="next"),
        action("block-dirty-bitmap-add", node="src", name="cp", disabled=True),
        action("block-dirty-bitmap-merge", node="src", target="cp", bitmaps=["b"]),
        action("block-dirty-bitmap-disable", node="src", name="b"),
        action("blockdev-backup", **{"job-id": "j", "device": "src", "target": "tmp",
                                     "sync": "none", "filter-node-name": "flt"}),
    ]),
    export("x1", "tmp", bitmaps=["b"]),
    export("x2", "tmp", bitmaps=["b"]),
    export("x3", "tmp", bitmaps=["next"]),
    export("x4", "tmp", bitmaps=[{"node": "src", "name": "cp"}]),
    export("x5", "tmp", bitmaps=[{"node": "zz", "name": "cp"}]),
    export("x6", "tmp", bitmaps=[{"node": "src", "name": "zz"}]),
    export("x7", "tmp", bitmaps=["zz"]),
    export("x8", "tmp", bitmaps=["own", "own"]),
    export("x9", "tmp", writable=True),
    step("nbd-server-add", device="tmp", name="n", bitmap="next"),
    step("block-dirty-bitmap-remove", node="src", name="b"),
    step("block-dirty-bitmap-clear", node="src", name="cp"),
    step("block-dirty-bitmap-enable", node="src", name="cp"),
    step("block-dirty-bitmap-merge", node="src", target="cp", bitmaps=["next"]),
    step("block-dirty-bitmap-merge", node="src", target="next", bitmaps=["b"]),
    step("query-block-exports"),
    step("query-jobs"),
    step("blockdev-del", node_name="tmp"),
    step("blockdev-del", node_name="src"),
    qed("top.qed", "other", backing="src"),
    step("block-export-del", id="x1"),
    step("block-dirty-bitmap-remove", node="src", name="b"),
    step("block-job-cancel", device="j"),
    status("j", "null"),
    step("query-block-exports"),
    step("nbd-server-stop"),
    step("blockdev-del", node_name="tmp"),
    step("blockdev-del", node_name="src"),
    step("blockdev-del", node_name="other"),
    step("blockdev-del", node_name="src"),
]  # fmt: skip

BACKUP_TARGETS = [
    SERVER,
    raw("base.raw", "src"),
    export("g", "src", writable=True),
    raw("t.raw", "r"),
    step(
        "blockdev-backup",
        job_id="j",
        device="src",
        target="r",
        sync="none",
        filter_node_name="flt",
    ),
    export("r", "r"),
    export("w", "r", writable=True),
    qed("t.qed", "over", backing="r"),
    export("o", "over", writable=True),
    step("query-block-exports"),
    step("job-cancel", id="j"),
    status("j", "null"),
]

WRITERS_BELOW = [
    SERVER,
    raw("base.raw", "src"),
    export("g", "src", writable=True),
    qed("t.qed", "tmp", backing="src"),
    export("f", "tmp", writable=True),
    export("h", "src", writable=True),
    step("query-block-exports"),
]

SNAPSHOTS = [
    SERVER,
    raw("base.raw", "src"),
    export("g", "src", writable=True),
    qed("t.qed", "tmp", backing=None),
    step(
        "transaction",
        actions=[action("blockdev-snapshot", node="src", overlay="tmp"), action("abort")],
    ),
    export("again", "src", writable=True),
    null("n"),
    step(
        "transaction",
        actions=[
            action("blockdev-snapshot", node="src", overlay="tmp"),
            action("blockdev-snapshot", node="src", overlay="n"),
        ],
    ),
    step("blockdev-snapshot", node="src", overlay="tmp"),
    qed("top.qed", "other", backing=None),
    step("blockdev-snapshot", node="src", overlay="other"),
    step(
        "blockdev-snapshot-sync",
        node_name="src",
        snapshot_file="new.qed",
        format="qed",
        snapshot_node_name="new",
    ),
    step(
        "blockdev-snapshot-sync",
        node_name="tmp",
        snapshot_file="new.qed",
        format="qed",
        snapshot_node_name="src",
    ),
    export("h", "src", writable=True),
    export("i", "src"),
    step("query-block-exports"),
]

LAYERS = {
    "driver": "qed",
    "node-name": "o",
    "file": file("top.qed", "fo"),
    "backing": {"driver": "raw", "node-name": "b", "file": file("base.raw", "fb")},
}
LOWER: dict[str, Any] = {"driver": "raw", "file": {"driver": "file", "filename": "base.raw"}}

REOPENING_INLINE = [
    ("blockdev-add", LAYERS),
    *(
        step("blockdev-reopen", options=[LAYERS | {"backing": lower}])
        for lower in (
            LAYERS["backing"],
            LOWER,
            LOWER | {"driver": "qed"},
            LOWER | {"detect-zeroes": "on"},
            "b",
            LOWER,
            None,
            LOWER,
        )
    ),
    step("blockdev-add", **LOWER, node_name="other"),
    step("blockdev-reopen", options=[LAYERS | {"backing": "other"}]),
    step("blockdev-reopen", options=[LAYERS | {"backing": LOWER}]),
    step("query-named-block-nodes", flat=True),
]

REOPENING = [
    step("blockdev-add", **file("t.raw", "ft")),
    step("blockdev-add", **file("base.raw", "fb", **{"read-only": True})),
    step("blockdev-add", **file("t.qed", "fq")),
    step("blockdev-add", driver="raw", node_name="r", file="ft"),
    step("blockdev-add", driver="qed", node_name="q", file="fq"),
    step("blockdev-reopen", options=[{"driver": "raw", "node-name": "r", "file": "fb"}]),
    step(
        "blockdev-reopen",
        options=[{"driver": "raw", "node-name": "r", "file": "fb", "read-only": True}],
    ),
    step("blockdev-del", node_name="ft"),
    step("blockdev-del", node_name="fb"),
    step("blockdev-reopen", options=[{"driver": "raw", "node-name": "r", "file": "q"}]),
    step("blockdev-reopen", options=[{"driver": "raw", "node-name": "r"}]),
    step("blockdev-reopen", options=[{"driver": "raw", "node-name": "r", "file": None}]),
    step("blockdev-reopen", options=[{"driver": "raw", "node-name": "r", "file": "zz"}]),
    step("blockdev-reopen", options=[{"driver": "raw", "node-name": "r", "file": "r"}]),
    step(
        "blockdev-reopen",
        options=[{"driver": "raw", "node-name": "r", "file": {"driver": "null-co"}}],
    ),
    step("blockdev-reopen", options=[{"driver": "qed", "node-name": "q", "file": "r"}]),
    step("blockdev-reopen", options=[{"driver": "qed", "node-name": "q", "file": "fq"}]),
    step(
        "blockdev-reopen",
        options=[{"driver": "qed", "node-name": "q", "file": "fq", "backing": "r"}],
    ),
    step(
        "blockdev-reopen",
        options=[{"driver": "qed", "node-name": "q", "file": "fq", "backing": "zz"}],
    ),
    step(
        "blockdev-reopen",
        options=[{"driver": "qed", "node-name": "q", "file": "fq", "force-share": True}],
    ),
    step("blockdev-del", node_name="q"),
    step(
        "blockdev-reopen",
        options=[{"driver": "raw", "node-name": "r", "file": "fb", "read-only": True}],
    ),
    step("query-named-block-nodes", flat=True),
]

FILTERS = [
    SERVER,
    step("object-add", qom_type="throttle-group", id="tg"),
    null("n"),
    null("n2"),
    step("blockdev-add", driver="raw", node_name="r", file="n"),
    export("e", "r", writable=True),
    step("blockdev-add", driver="throttle", node_name="t", file="n", throttle_group="tg"),
    step("object-del", id="tg"),
    step("blockdev-reopen", options=[{"driver": "raw", "node-name": "r", "file": "t"}]),
    step("blockdev-del", node_name="n"),
    step("blockdev-del", node_name="t"),
    step("blockdev-reopen", options=[{"driver": "raw", "node-name": "r", "file": "n2"}]),
    step("blockdev-del", node_name="n2"),
    step("blockdev-del", node_name="t"),
    step("object-del", id="tg"),
    step("object-del", id="tg"),
    step("block-set-write-threshold", node_name="n2", write_threshold=512),
    step("block-set-write-threshold", node_name="n2", write_threshold=-5),
    step("query-named-block-nodes"),
    step("block-set-write-threshold", node_name="n2", write_threshold=2**63),
    step("query-named-block-nodes"),
    step("block-set-write-threshold", node_name="n2", write_threshold=2**64),
    step("block-set-write-threshold", node_name="n2", write_threshold=1.5),
    step("block-set-write-threshold", node_name="n2", write_threshold="1"),
    step("block-set-write-threshold", node_name="n2", write_threshold=512),
    step("query-named-block-nodes", flat=True),
]


def window(**given: object) -> Step:
    return step(
        "blockdev-reopen", options=[{"driver": "raw", "node-name": "r", "file": "n"} | given]
    )


WINDOWS = [
    null("n"),
    step("blockdev-add", driver="raw", node_name="r", file="n", offset=4096),
    *(
        each
        for given in ({"offset": 8192}, {"offset": 512, "size": 4096}, {"size": 512}, {"offset": 1})
        for each in (window(**given), step("query-named-block-nodes"))
    ),
    window(),
    step("block-dirty-bitmap-add", node="r", name="b"),
    step("query-named-block-nodes", flat=True),
]


def throttle(group: object, *, file: str = "n", **more: object) -> Step:
    return step("blockdev-add", driver="throttle", node_name="t", file=file,
                throttle_group=group, **more)  # fmt: skip


def other_group(group: object, **more: object) -> dict[str, object]:
    return {"driver": "throttle", "node-name": "t", "file": "n", "throttle-group": group, **more}


THROTTLE_GROUPS = [
    SERVER,
    null("n"),
    null("n2"),
    step("object-add", qom_type="secret", id="s", data="x"),
    step("object-add", qom_type="throttle-group", id="g", **{"x-iops-total": 10**9}),
    step("object-add", qom_type="throttle-group", id="g2", limits={"iops-total": 10**9}),
    throttle("typo"),
    throttle(""),
    throttle("s"),
    throttle(5),
    throttle("g", file="nosuch"),
    throttle("g", limits={"bps-total": 5}),
    throttle("g"),
    export("e", "t", writable=True),
    step("object-del", id="g"),
    step("blockdev-reopen", options=[other_group("typo")]),
    step("blockdev-reopen", options=[other_group("s")]),
    step("blockdev-reopen", options=[other_group("g2", foo=1)]),
    step("blockdev-reopen", options=[other_group("g2"), {"driver": "null-co", "node-name": "zz"}]),
    step("object-del", id="g"),
    step("blockdev-reopen", options=[other_group("g2")]),
    step("object-del", id="g2"),
    step("object-del", id="g"),
    step("blockdev-reopen", options=[other_group("g")]),
    step("blockdev-reopen", options=[other_group("g2", file="n2")]),
    step("object-del", id="g2"),
    step("block-export-del", id="e"),
    step("blockdev-del", node_name="t"),
    step("object-del", id="g2"),
    *(
        step("object-add", qom_type="throttle-group", id="w", **{kind: limits})
        for kind, limits in (
            ("limits", {"bps-total": 1, "bps-read": 1}),
            ("limits", {"bps-total": -1}),
            ("limits", {"bps-total": "1"}),
            ("limits", {"speed": 1}),
            ("limits", {"iops-size": 1}),
            ("limits", {"bps-read-max": 1}),
            ("limits", {"bps-read": 2, "bps-read-max": 1}),
            ("limits", {"bps-read": 10**15 + 1}),
            ("limits", {"bps-read": 1, "bps-read-max": 2, "bps-read-max-length": 2**32}),
            ("x-bps-total", -1),
            ("x-bps-total", "1"),
            ("x-iops-size", 1),
        )
    ),
    *(
        step("object-add", id="w", **given)
        for given in (
            {"qom_type": "secret"},
            {"qom_type": "secret", "file": "nosuch"},
            {"qom_type": "secret", "data": "a!b", "format": "base64"},
            {"qom_type": "secret", "data": "x", "keyid": "zz"},
            {"qom_type": "secret", "data": "x", "keyid": "s"},
            {"qom_type": "tls-creds-x509"},
            {"qom_type": "tls-creds-x509", "dir": "nosuch", "endpoint": "zz"},
            {"qom_type": "tls-creds-x509", "dir": "nosuch", "endpoint": "server"},
            {"qom_type": "tls-creds-psk", "dir": "nosuch"},
            {"qom_type": "authz-simple"},
            {"qom_type": "authz-list", "policy": "zz"},
            {"qom_type": "iothread", "poll-max-ns": -1},
            {"qom_type": "iothread", "thread-pool-max": 0},
            {"qom_type": "tls-cipher-suites"},
            {"qom_type": "main-loop"},
            {"qom_type": "main-loop"},
        )
    ),
]


def drive_backup(target: str, **more: object) -> Step:
    given = {"job_id": "j", "device": "s", "sync": "full", "auto_dismiss": False, **more}
    return step("drive-backup", target=target, **given)


ENDED = [status("j", "concluded"), step("query-jobs"), step("job-dismiss", id="j")]

DRIVES = [
    raw("t.raw", "s"),
    qed("top.qed", "top"),
    drive_backup("new.qed", format="qed"),
    *ENDED,
    drive_backup("new.raw"),
    *ENDED,
    drive_backup("a.img", format="zz"),
    drive_backup("nowhere/a.img", format="raw"),
    drive_backup("new.raw", format="raw", mode="existing"),
    *ENDED,
    drive_backup("zz.raw", format="raw", mode="existing"),
    drive_backup("a.img", device="zz", format="raw"),
    drive_backup("over.qed", device="top", format="qed", sync="top"),
    *ENDED,
    drive_backup("a.img", format="raw", job_id="1 j"),
    drive_backup("a.img", format="raw", sync="incremental"),
    drive_backup("a.img", format="raw", sync="bitmap", bitmap="b"),
    drive_backup("a.img"),
    drive_backup("b.img"),
    *ENDED,
    drive_backup("fleece.qed", format="qed", sync="none", filter_node_name="flt"),
    step("query-jobs"),
    step("blockdev-del", node_name="s"),
    step("job-cancel", id="j"),
    *ENDED,
    step("transaction", actions=[
        action("drive-backup", **{"job-id": "k", "device": "s", "target": "c.img",
                                  "sync": "full", "format": "raw"}),
        action("abort"),
    ]),
    step("query-jobs"),
    step("transaction", actions=[
        action("drive-backup", **{"job-id": "j", "device": "s", "target": "d.img", "sync": "full",
                                  "format": "raw", "auto-dismiss": False}),
    ], properties={"completion-mode": "grouped"}),
    *ENDED,
    step("blockdev-del", node_name="top"),
    step("query-named-block-nodes", flat=True),
    step("query-block"),
]  # fmt: skip

AMENDING = [
    qed("t.qed", "q"),
    raw("t.raw", "r"),
    step("x-blockdev-amend", job_id="a", node_name="q", options={"driver": "qed"}),
    step("x-blockdev-amend", job_id="a", node_name="zz", options={"driver": "qed"}),
    step("x-blockdev-amend", job_id="a", node_name="r", options={"driver": "raw"}),
    step("x-blockdev-amend", job_id="a", node_name="q", options={"driver": "raw"}),
    step("x-blockdev-amend", job_id="1 a", node_name="q", options={"driver": "qed"}),
    step("x-blockdev-amend", node_name="q", options={"driver": "qed"}),
    step("x-blockdev-amend", job_id="a", node_name="q", options={"driver": "nonsense"}),
    step("x-blockdev-amend", job_id="a", node_name="q", options={}),
    step("query-jobs"),
]

INSIDE = "blockdev-snapshot-internal-sync"
NOT_INSIDE = "blockdev-snapshot-delete-internal-sync"

INTERNAL_SNAPSHOTS = [
    raw("t.raw", "s"),
    qed("t.qed", "q"),
    null("ro", read_only=True),
    step(INSIDE, device="zz", name="i"),
    step(INSIDE, device="s", name=""),
    step(INSIDE, device="q", name="i"),
    step(INSIDE, device="ro", name="i"),
    step(NOT_INSIDE, device="zz", name="i"),
    step(NOT_INSIDE, device="s", name="i"),
    step(NOT_INSIDE, device="ro", id="1"),
    step(NOT_INSIDE, device="q"),
    step("transaction", actions=[
        action("block-dirty-bitmap-add", node="s", name="b"),
        action(INSIDE, device="s", name="i"),
    ]),
    step("transaction", actions=[action(INSIDE, device="ro", name="i")]),
    step("query-named-block-nodes", flat=True),
]  # fmt: skip

SHARED_LAYERS = [
    SERVER,
    step("blockdev-create", job_id="f",
         options={"driver": "file", "filename": "z.qed", "size": 0}),
    status("f", "concluded"),
    step("job-dismiss", id="f"),
    step("blockdev-add", **file("z.qed", "fz")),
    step("blockdev-create", job_id="q", options={"driver": "qed", "file": "fz", "size": 1 << 20}),
    status("q", "concluded"),
    step("job-dismiss", id="q"),
    raw("base.raw", "a"),
    qed("top.qed", "b", backing="a"),
    qed("t.qed", "s", backing="b"),
    step("blockdev-add", driver="qed", node_name="z", file="fz", backing="b"),
    export("es", "s", writable=True),
    export("ez", "z"),
    step("block-commit", job_id="j", device="s", base_node="a"),
    step("block_resize", node_name="a", size=1 << 21),
    step("block_resize", node_name="b", size=1 << 21),
    step("block_resize", node_name="b", size=1 << 19),
    step("block-export-del", id="ez"),
    step("block-commit", job_id="j", device="s", base_node="a"),
    wait("BLOCK_JOB_READY", device="j"),
    export("ez", "z"),
    step("job-cancel", id="j"),
    status("j", "null"),
    export("ez", "z"),
    step("block-export-del", id="ez"),
    step("block-commit", job_id="j", device="s", base_node="b"),
    wait("BLOCK_JOB_READY", device="j"),
    step("block-job-complete", device="j"),
    status("j", "null"),
    step("query-block-exports"),
]  # fmt: skip

GRAPH_SCRIPTS = {
    "shared layers": SHARED_LAYERS,
    "fleecing": FLEECING,
    "backup targets": BACKUP_TARGETS,
    "writers below": WRITERS_BELOW,
    "snapshots": SNAPSHOTS,
    "reopening": REOPENING,
    "reopening inline": REOPENING_INLINE,
    "filters": FILTERS,
    "windows": WINDOWS,
    "throttle groups": THROTTLE_GROUPS,
    "drives": DRIVES,
    "amending": AMENDING,
    "internal snapshots": INTERNAL_SNAPSHOTS,
}
