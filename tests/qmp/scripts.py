"""Conversations that are held with our daemon and with QEMU's, to compare the answers.

Each step is a command with its arguments. In the folder there are: t.qed, t.raw, u.raw and v.raw
(1 MiB, empty), base.raw with data and top.qed above it.
"""

from __future__ import annotations

from typing import Any

Step = tuple[str, dict[str, Any]]


def step(command: str, **arguments: Any) -> Step:
    """A command; names of arguments with ``_`` for ``-``."""
    return command, {name.replace("_", "-"): value for name, value in arguments.items()}


def file(name: str, node: str | None = None, **more: Any) -> dict[str, Any]:
    named = {} if node is None else {"node-name": node}
    return {"driver": "file", "filename": name, **named, **more}


def unix(path: str) -> dict[str, Any]:
    return {"type": "unix", "data": {"path": path}}


def inet(host: str, port: str) -> dict[str, Any]:
    return {"type": "inet", "data": {"host": host, "port": port}}


def null(name: str, **more: Any) -> Step:
    return step("blockdev-add", driver="null-co", node_name=name, size=1 << 20, **more)


def action(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": {name.replace("_", "-"): each for name, each in data.items()}}


NODES = step("query-named-block-nodes")

ARGUMENTS = [
    step("qmp_capabilities"),
    step("qmp_capabilities", enable=["oob"]),
    step("qmp_capabilities", enable="oob"),
    step("qmp_capabilities", foo=1),
    step("block_resize", size="x"),
    step("block_resize", size=1),
    step("block_resize", node_name="x", size=1),
    step("block_resize", device="x", size=1),
    step("block_resize", node_name="x", size=1.0),
    step("block_resize", node_name="x", size=-1),
    step("block_resize", node_name="x", size=10**30),
    step("block_resize", node_name="x", size=True),
    step("block_resize"),
    step("block_resize", node_name=1),
    step("block_resize", node_name=None, size=1),
    step("block_resize", foo=None, size=1),
    step("block_resize", foo=None),
    step("blockdev-add", node_name="x"),
    step("blockdev-add", driver="nonsense"),
    step("blockdev-add", driver=5),
    step("blockdev-add", driver="raw"),
    step("blockdev-add", driver="raw", file=1),
    step("blockdev-add", driver="raw", file=None),
    step("blockdev-add", driver="raw", file=[]),
    step("blockdev-add", driver="raw", file={}),
    step("blockdev-add", driver="raw", file={"driver": "file"}),
    step("blockdev-add", driver="raw", file={"driver": "file", "filename": 1}),
    step("blockdev-add", driver="raw", file={"driver": "nonsense"}),
    step("blockdev-add", driver="raw", file="zz"),
    step("blockdev-add", driver="raw", file="zz", node_name="a"),
    step("blockdev-add", driver="qed", file="zz", backing=7, node_name="a"),
    step("blockdev-add", driver="qed", file="zz", backing={"driver": "raw"}, node_name="a"),
    step("blockdev-add", driver="null-co"),
    step("blockdev-add", driver="null-co", node_name="a a"),
    step("blockdev-add", driver="null-co", node_name=""),
    step("blockdev-add", driver="null-co", node_name="1a"),
    step("blockdev-add", driver="null-co", node_name="a" * 32),
    step("blockdev-add", driver="null-co", node_name="a", discard="foo"),
    step("blockdev-add", driver="null-co", node_name="a", discard=1),
    step("blockdev-add", driver="null-co", node_name="a", cache={"direct": 1}),
    step("blockdev-add", driver="null-co", node_name="a", cache={"foo": True}),
    step("blockdev-add", driver="null-co", node_name="a", cache=3),
    step("blockdev-add", driver="null-co", node_name="a", filename="x"),
    step("blockdev-add", driver="null-co", node_name="a", detect_zeroes="unmap"),
    step("blockdev-add", driver="null-co", node_name="a", read_only="on"),
    step("blockdev-reopen"),
    step("blockdev-reopen", options={}),
    step("blockdev-reopen", options=[5]),
    step("blockdev-reopen", options=[{"driver": "qed", "node-name": "q"}]),
    step("blockdev-reopen", options=[{"driver": "null-co"}]),
    step("blockdev-reopen", options=[{"driver": "null-co", "node-name": "q"}]),
    step("block-dirty-bitmap-add", node="a", name="b", granularity=1 << 32),
    step("block-dirty-bitmap-add", node="a", name="b", granularity=-1),
    step("block-dirty-bitmap-merge", node="a", target="b", bitmaps="c"),
    step("block-dirty-bitmap-merge", node="a", target="b", bitmaps=[{"node": "c"}]),
    step("block-export-add", type="nonsense", id="e", node_name="n"),
    step("block-export-add", id="e", node_name="n"),
    step("block-export-add", type="nbd"),
    step("block-export-del", id="e", mode="soft"),
    step("nbd-server-start"),
    step("nbd-server-start", addr={"type": "unix", "path": "x"}),
    step("nbd-server-start", addr={"type": "unix", "data": {}}),
    step("nbd-server-start", addr={"type": "inet", "data": {"host": "h"}}),
    step("nbd-server-start", addr={"type": "inet", "data": {"host": "h", "port": 5}}),
    step("nbd-server-start", addr=unix("x"), max_connections=-1),
    step("transaction"),
    step("transaction", actions=[{"type": "abort"}]),
    step("transaction", actions=[{"type": "foo", "data": {}}]),
    step("transaction", actions=[], properties={"completion-mode": "x"}),
    step("transaction", actions=[action("block-dirty-bitmap-add", node="x")]),
    step("blockdev-mirror", device="a"),
    step("blockdev-mirror", device="a", target="b", sync="x"),
    step("blockdev-mirror", device="a", target="b", sync="full", copy_mode="x"),
    step("job-cancel"),
    step("job-cancel", id=1),
    step("query-jobs", id=1),
    step("nonsense"),
    step("object-add", qom_type="iothread"),
    step("object-add", qom_type="secret", id="s"),
    step("object-add", qom_type="secret", id="s", data="x", file="y"),
    step("object-add", qom_type="iothread", id="1 x"),
    step("object-del", id="x"),
]

GRAPH = [
    step("blockdev-add", driver="qed", node_name="q", file=file("t.qed", "qf")),
    step("blockdev-add", **file("t.raw", "f")),
    step("blockdev-add", driver="raw", node_name="r", file="f"),
    NODES,
    step("blockdev-add", driver="null-co", node_name="q"),
    step("blockdev-add", driver="raw", node_name="z", file=file("t.raw", "f")),
    step("blockdev-add", driver="qed", node_name="z", file=file("t.qed")),
    step("blockdev-add", driver="qed", node_name="z", file=file("nowhere.qed")),
    step("blockdev-add", driver="qed", node_name="z", file="r"),
    step("blockdev-add", driver="qed", node_name="z", file="qf"),
    step("blockdev-add", driver="raw", node_name="z", file="r", offset=1 << 30),
    step("blockdev-del", node_name="nowhere"),
    step("blockdev-del", node_name="f"),
    step("blockdev-del", node_name="qf"),
    step("block_resize", node_name="q", size=2 << 20),
    step("block_resize", node_name="q", size=-5),
    step("block_resize", node_name="q", size=3),
    step("blockdev-reopen", options=[{"driver": "raw", "node-name": "q", "file": "qf"}]),
    step(
        "blockdev-reopen",
        options=[{"driver": "qed", "node-name": "q", "file": "qf", "read-only": True}],
    ),
    step("block_resize", node_name="q", size=4 << 20),
    NODES,
    step("blockdev-reopen", options=[{"driver": "qed", "node-name": "q", "file": "qf"}]),
    step("block_resize", node_name="q", size=4 << 20),
    step("block-set-write-threshold", node_name="zz", write_threshold=1),
    step("block-set-write-threshold", node_name="q", write_threshold=512),
    step("query-block"),
    step("query-blockstats"),
    step("query-block-jobs"),
    step("query-jobs"),
    step("blockdev-del", node_name="q"),
    step("blockdev-del", node_name="q"),
    step("blockdev-del", node_name="r"),
    step("blockdev-del", node_name="f"),
    NODES,
]

CHAINS = [
    step("blockdev-add", driver="qed", node_name="top", file=file("top.qed", "topf")),
    NODES,
    step("query-named-block-nodes", flat=True),
    step("blockdev-add", **file("base.raw", "bf", **{"read-only": True})),
    step("blockdev-add", driver="raw", node_name="base", file="bf", read_only=True),
    step("blockdev-del", node_name="top"),
    step(
        "blockdev-add", driver="qed", node_name="top", file=file("top.qed", "topf"), backing="base"
    ),
    step("blockdev-del", node_name="base"),
    step("change-backing-file", device="top", image_node_name="zz", backing_file="base.raw"),
    step("change-backing-file", device="zz", image_node_name="top", backing_file="base.raw"),
    step("change-backing-file", device="top", image_node_name="base", backing_file="base.raw"),
    step("blockdev-add", driver="qed", node_name="new", file=file("t.qed"), backing=None),
    step("blockdev-snapshot", node="zz", overlay="new"),
    step("blockdev-snapshot", node="top", overlay="zz"),
    step("blockdev-snapshot", node="top", overlay="base"),
    step("blockdev-snapshot", node="new", overlay="top"),
    step("blockdev-snapshot", node="top", overlay="new"),
    step("blockdev-snapshot", node="top", overlay="new"),
    step("blockdev-del", node_name="top"),
    step("blockdev-del", node_name="new"),
    step("blockdev-del", node_name="top"),
    step("blockdev-del", node_name="base"),
    step("blockdev-add", driver="qed", node_name="top", file=file("top.qed"), backing="nowhere"),
]

BITMAPS = [
    null("n"),
    null("ro", read_only=True),
    step("block-dirty-bitmap-add", node="n", name="b"),
    step("block-dirty-bitmap-add", node="n", name="b"),
    step("block-dirty-bitmap-add", node="zz", name="b"),
    step("block-dirty-bitmap-add", node="n", name=""),
    step("block-dirty-bitmap-add", node="n", name="y" * 1024),
    step("block-dirty-bitmap-add", node="n", name="c", granularity=1000),
    step("block-dirty-bitmap-add", node="n", name="c", granularity=256),
    step("block-dirty-bitmap-add", node="n", name="c", granularity=2147483648),
    step("block-dirty-bitmap-add", node="n", name="d", persistent=True),
    step("block-dirty-bitmap-add", node="n", name="d", disabled=True, granularity=512),
    step("block-dirty-bitmap-add", node="ro", name="r"),
    NODES,
    step("block-dirty-bitmap-remove", node="n", name="zz"),
    step("block-dirty-bitmap-remove", node="zz", name="zz"),
    step("block-dirty-bitmap-clear", node="n", name="zz"),
    step("block-dirty-bitmap-clear", node="ro", name="r"),
    step("block-dirty-bitmap-enable", node="n", name="d"),
    step("block-dirty-bitmap-disable", node="n", name="d"),
    step("block-dirty-bitmap-disable", node="n", name="b"),
    step("block-dirty-bitmap-merge", node="n", target="b", bitmaps=["d", "c"]),
    step("block-dirty-bitmap-merge", node="n", target="b", bitmaps=["zz"]),
    step("block-dirty-bitmap-merge", node="n", target="zz", bitmaps=["b"]),
    step("block-dirty-bitmap-merge", node="n", target="b", bitmaps=[{"node": "zz", "name": "b"}]),
    step("block-dirty-bitmap-merge", node="n", target="b", bitmaps=[{"node": "ro", "name": "r"}]),
    NODES,
    step("transaction", actions=[]),
    step("transaction", actions=[action("abort")]),
    step(
        "transaction",
        actions=[action("block-dirty-bitmap-add", node="n", name="t"), action("abort")],
    ),
    step(
        "transaction",
        actions=[
            action("block-dirty-bitmap-remove", node="n", name="b"),
            action("block-dirty-bitmap-clear", node="n", name="c"),
            action("block-dirty-bitmap-enable", node="n", name="d"),
            action("abort"),
        ],
    ),
    NODES,
    step(
        "transaction",
        actions=[
            action("block-dirty-bitmap-add", node="n", name="t"),
            action("block-dirty-bitmap-add", node="n", name="t"),
        ],
    ),
    step(
        "transaction",
        actions=[
            action("block-dirty-bitmap-add", node="n", name="t"),
            action("block-dirty-bitmap-remove", node="n", name="b"),
            action("block-dirty-bitmap-disable", node="n", name="t"),
            action("block-dirty-bitmap-merge", node="n", target="c", bitmaps=["d"]),
        ],
    ),
    step(
        "transaction",
        actions=[action("block-dirty-bitmap-clear", node="n", name="d")],
        properties={"completion-mode": "grouped"},
    ),
    step(
        "transaction",
        actions=[action("block-dirty-bitmap-clear", node="n", name="d")],
        properties={"completion-mode": "individual"},
    ),
    NODES,
]

EXPORTS = [
    null("n"),
    null("ro", read_only=True),
    step("nbd-server-stop"),
    step("block-export-add", type="nbd", id="e", node_name="zz"),
    step("block-export-add", type="nbd", id="e", node_name="n"),
    step("nbd-server-add", device="n"),
    step("nbd-server-start", addr=unix("nowhere/x.sock")),
    step("nbd-server-start", addr=inet("127.0.0.1", "0"), tls_creds="zz"),
    step("nbd-server-start", addr=inet("127.0.0.1", "x")),
    step("nbd-server-start", addr=unix("nbd.sock"), max_connections=2),
    step("nbd-server-start", addr=unix("nbd.sock")),
    step("block-export-add", type="nbd", id="e", node_name="n"),
    step("block-export-add", type="nbd", id="e", node_name="n"),
    step("block-export-add", type="nbd", id="e2", node_name="n"),
    step("block-export-add", type="nbd", id="1 e2", node_name="n"),
    step("block-export-add", type="nbd", id="e3", node_name="ro", writable=True),
    step("block-export-add", type="nbd", id="e3", node_name="ro", bitmaps=["b"]),
    step("block-export-add", type="nbd", id="e2", node_name="n", name="x", writable=True),
    step("query-block-exports"),
    step("blockdev-del", node_name="n"),
    step("block-export-del", id="zz"),
    step("block-export-del", id="e"),
    step("block-export-del", id="e2", mode="hard"),
    step("nbd-server-add", device="n"),
    step("nbd-server-add", device="zz"),
    step("nbd-server-add", device="ro", writable=True, name="w"),
    step("nbd-server-add", device="n", bitmap="b", name="v"),
    step("query-block-exports"),
    step("nbd-server-remove", name="zz"),
    step("nbd-server-remove", name="n"),
    step("nbd-server-remove", name="w", mode="hard"),
    step("block-export-add", type="nbd", id="e", node_name="n", name="q"),
    step("nbd-server-stop"),
    step("query-block-exports"),
    step("blockdev-del", node_name="n"),
]

SCRIPTS = {
    "arguments": ARGUMENTS,
    "graph": GRAPH,
    "chains": CHAINS,
    "bitmaps": BITMAPS,
    "exports": EXPORTS,
}
