"""Commands about nodes and bitmaps, through QEMU's client library; qemu-img looks at results."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.qmp.daemons import OURS, QEMUS, Conversation, conversation
from tests.support import needs
from tests.support.certificates import make_certificates

pytestmark = needs("qemu-img")

MIB = 1 << 20


def make(folder: Path, *lines: str) -> None:
    """Images made by qemu-img, with its options."""
    for line in lines:
        command = ["qemu-img", "create", "-q", *line.split()]
        subprocess.run(command, cwd=folder, check=True)


def about(path: Path) -> dict[str, Any]:
    """What qemu-img says of an image."""
    done = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", str(path)], capture_output=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Conversation]:
    with conversation(tmp_path) as found:
        yield found


def io(talk: Conversation, node: str, command: str) -> str:
    line = f'qemu-io {node} "{command}"'
    return str(talk.do("human-monitor-command", command_line=line))


def node(talk: Conversation, name: str) -> dict[str, Any]:
    (found,) = [each for each in talk.do("query-named-block-nodes") if each["node-name"] == name]
    return dict(found)


def test_an_image_is_opened_resized_and_closed(talk: Conversation) -> None:
    make(talk.folder, "-f qed a.qed 1M")
    file = {"driver": "file", "filename": "a.qed", "node-name": "f"}
    talk.do("blockdev-add", driver="qed", node_name="a", file=file)
    talk.do("block_resize", node_name="a", size=2 * MIB)
    assert node(talk, "a")["image"]["virtual-size"] == 2 * MIB
    assert "wrote" in io(talk, "a", "write -P 1 1M 64k")
    talk.do("blockdev-del", node_name="a")
    assert talk.do("query-named-block-nodes") == []
    assert about(talk.folder / "a.qed")["virtual-size"] == 2 * MIB
    assert (
        "dirty-flag" not in about(talk.folder / "a.qed")
        or not about(talk.folder / "a.qed")["dirty-flag"]
    )


def test_reopening_makes_read_only_and_back(talk: Conversation) -> None:
    make(talk.folder, "-f raw a.raw 1M")
    options = {"driver": "raw", "node-name": "a", "file": "f"}
    talk.do("blockdev-add", driver="file", filename="a.raw", node_name="f")
    talk.do("blockdev-add", **options)
    talk.do("blockdev-reopen", options=[{**options, "read-only": True}])
    assert node(talk, "a")["ro"] is True
    assert "read-only" in io(talk, "a", "write 0 512")
    talk.do("blockdev-reopen", options=[{**options, "detect-zeroes": "on"}])
    assert node(talk, "a")["ro"] is False
    assert node(talk, "a")["detect_zeroes"] == "on"
    assert "wrote" in io(talk, "a", "write 0 512")


def test_a_snapshot_takes_the_writes(talk: Conversation) -> None:
    make(talk.folder, "-f qed base.qed 1M", "-f qed over.qed 1M")
    base = {"driver": "file", "filename": "base.qed"}
    over = {"driver": "file", "filename": "over.qed"}
    talk.do("blockdev-add", driver="qed", node_name="base", file=base)
    assert "wrote" in io(talk, "base", "write -P 1 0 128k")
    talk.do("blockdev-add", driver="qed", node_name="over", file=over, backing=None)
    nbd = str(talk.folder / "nbd")
    talk.do("nbd-server-start", addr={"type": "unix", "data": {"path": nbd}})
    talk.do("block-export-add", type="nbd", id="e", node_name="base", writable=True)
    talk.do("blockdev-snapshot", node="base", overlay="over")
    # What the export's client writes from now on is in the overlay.
    uri = f"nbd+unix:///base?socket={nbd}"
    command = ["qemu-io", "-f", "raw", "-c", "write -P 2 0 64k", "-c", "read -P 1 64k 64k", uri]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert b"failed" not in done.stdout
    assert "Pattern" not in io(talk, "over", "read -P 2 0 64k")
    assert "Pattern" not in io(talk, "over", "read -P 1 64k 64k")
    assert "Pattern" not in io(talk, "base", "read -P 1 0 128k")
    assert node(talk, "over")["backing_file_depth"] == 1


def names(talk: Conversation) -> list[str]:
    """Of all nodes."""
    return [each["node-name"] for each in talk.do("query-named-block-nodes")]


def test_a_snapshot_is_made_on_the_way(talk: Conversation) -> None:
    make(talk.folder, "-f qed base.qed 1M")
    base = {"driver": "file", "filename": "base.qed"}
    talk.do("blockdev-add", driver="qed", node_name="base", file=base)
    assert "wrote" in io(talk, "base", "write -P 1 0 64k")
    snapshot = {"snapshot-file": "over.qed", "snapshot-node-name": "over"}
    wrong = talk.ask("blockdev-snapshot-sync", {"node-name": "base", **snapshot, "format": "x"})
    assert "error" in wrong
    assert not (talk.folder / "over.qed").exists()
    talk.do("blockdev-snapshot-sync", node_name="base", **snapshot)
    # Nobody uses it: it goes, and with an export it stays.
    assert "over" not in names(talk)
    assert node(talk, "base")["ro"] is True
    talk.do("blockdev-reopen", options=[{"driver": "qed", "node-name": "base", "file": base}])
    nbd = {"type": "unix", "data": {"path": str(talk.folder / "nbd")}}
    talk.do("nbd-server-start", addr=nbd)
    talk.do("block-export-add", type="nbd", id="e", node_name="base", writable=True)
    talk.do("blockdev-snapshot-sync", node_name="base", mode="existing", **snapshot)
    words = talk.refused("blockdev-del", node_name="over")
    assert words == "Node over is not owned by the monitor"
    assert "wrote" in io(talk, "over", "write -P 2 64k 64k")
    talk.do("block-export-del", id="e", mode="hard")
    talk.event("BLOCK_EXPORT_DELETED", id="e")
    assert "over" not in names(talk)
    assert "base" in names(talk)
    found = about(talk.folder / "over.qed")
    assert Path(found["backing-filename"]) == talk.folder / "base.qed"


def test_another_backing_file_is_stored(talk: Conversation) -> None:
    make(talk.folder, "-f raw base.raw 1M", "-f qed -b base.raw -F raw top.qed")
    top = {"driver": "file", "filename": "top.qed"}
    talk.do("blockdev-add", driver="qed", node_name="top", file=top)
    (talk.folder / "other.raw").write_bytes(bytes(MIB))
    talk.do("change-backing-file", device="top", image_node_name="top", backing_file="other.raw")
    assert about(talk.folder / "top.qed")["backing-filename"] == "other.raw"
    assert about(talk.folder / "top.qed")["backing-filename-format"] == "raw"


def test_a_threshold_is_told_once(talk: Conversation) -> None:
    talk.do("blockdev-add", driver="memory", node_name="m", size=MIB)
    talk.do("block-set-write-threshold", node_name="m", write_threshold=65536)
    assert node(talk, "m")["write_threshold"] == 65536
    io(talk, "m", "write 0 64k")
    io(talk, "m", "write 64k 512")
    told = talk.event("BLOCK_WRITE_THRESHOLD")
    assert told == {"node-name": "m", "amount-exceeded": 512, "write-threshold": 65536}
    assert node(talk, "m")["write_threshold"] == 0
    io(talk, "m", "write 128k 512")
    talk.do("block-set-write-threshold", node_name="m", write_threshold=1)
    io(talk, "m", "write 0 512")
    assert talk.event("BLOCK_WRITE_THRESHOLD")["amount-exceeded"] == 511
    assert not talk.seen


def test_a_threshold_of_what_lies_below(talk: Conversation) -> None:
    """Of storage: what an image writes there counts, its tables included."""
    make(talk.folder, "-f qed a.qed 1M")
    talk.do("blockdev-add", driver="file", filename="a.qed", node_name="f")
    talk.do("blockdev-add", driver="qed", file="f", node_name="a")
    assert "wrote" in io(talk, "a", "write 0 64k")
    end = (talk.folder / "a.qed").stat().st_size
    talk.do("block-set-write-threshold", node_name="f", write_threshold=0)
    talk.do("block-set-write-threshold", node_name="f", write_threshold=end)
    assert "wrote" in io(talk, "a", "write 0 64k")
    assert "wrote" in io(talk, "a", "write 512k 64k")
    told = talk.event("BLOCK_WRITE_THRESHOLD")
    assert told == {"node-name": "f", "amount-exceeded": 65536, "write-threshold": end}
    assert node(talk, "f")["write_threshold"] == 0
    talk.do("blockdev-del", node_name="a")
    talk.do("blockdev-del", node_name="f")
    talk.do("blockdev-add", driver="file", filename="a.qed", node_name="f")
    assert node(talk, "f")["write_threshold"] == 0


def test_the_graph_is_told(talk: Conversation) -> None:
    talk.do("blockdev-add", driver="memory", node_name="m", size=MIB)
    talk.do("blockdev-add", driver="raw", node_name="r", file="m")
    graph = talk.do("x-debug-query-block-graph")
    numbers = {each["name"]: each["id"] for each in graph["nodes"]}
    (edge,) = graph["edges"]
    assert edge == {
        "parent": numbers["r"],
        "child": numbers["m"],
        "name": "file",
        "perm": [],
        "shared-perm": ["consistent-read", "write", "resize", "write-unchanged"],
    }


@needs("qemu-storage-daemon", "qemu-img")
def test_who_uses_whom_is_told_as_by_qemu(tmp_path: Path) -> None:
    """With chains, images that are only read, and exports; but what exports leave to others."""
    found = []
    for program in (OURS, QEMUS):
        folder = tmp_path / program[-1]
        folder.mkdir()
        for line in ("base.raw 1M", "-f qed a.qed 1M", "-f qed -b base.raw -F raw top.qed"):
            subprocess.run(["qemu-img", "create", "-q", *line.split()], cwd=folder, check=True)
        with Conversation(folder, program) as each:
            base = {"driver": "file", "node-name": "bf", "filename": "base.raw"}
            below = {"driver": "raw", "node-name": "base", "file": base}
            top = {"driver": "file", "node-name": "topf", "filename": "top.qed"}
            alone = {"driver": "file", "node-name": "af", "filename": "a.qed"}
            each.do("blockdev-add", driver="qed", node_name="top", file=top, backing=below)
            each.do("blockdev-add", driver="qed", node_name="a", file=alone, read_only=True)
            found.append(edges(each))
            each.do("nbd-server-start", addr={"type": "unix", "data": {"path": "s"}})
            each.do("block-export-add", type="nbd", id="e", node_name="top", writable=True)
            found.append({key: used for key, used in edges(each).items() if key[2] != "root"})
    assert found[0]["top", "topf", "file"][0] == {"consistent-read", "write", "resize"}
    assert found[:2] == found[2:]


def edges(talk: Conversation) -> dict[tuple[str, str, str], tuple[set[str], set[str]]]:
    """What is used, and what is left to others, by (parent, child, role)."""
    graph = talk.do("x-debug-query-block-graph")
    names = {each["id"]: each["name"] for each in graph["nodes"]}
    return {
        (names[edge["parent"]], names[edge["child"]], edge["name"]): (
            set(edge["perm"]),
            set(edge["shared-perm"]),
        )
        for edge in graph["edges"]
    }


# --- bitmaps --------------------------------------------------------------------------------------


def bitmaps(talk: Conversation, name: str) -> dict[str, tuple[int, bool]]:
    """(bytes marked, whether it records) by name."""
    found = node(talk, name).get("dirty-bitmaps", [])
    return {each["name"]: (each["count"], each["recording"]) for each in found}


def test_bitmaps_record_and_are_changed(talk: Conversation) -> None:
    talk.do("blockdev-add", driver="memory", node_name="m", size=MIB)
    for name in ("a", "b"):
        talk.do("block-dirty-bitmap-add", node="m", name=name, granularity=65536)
    talk.do("block-dirty-bitmap-disable", node="m", name="b")
    io(talk, "m", "write 60k 8k")
    assert bitmaps(talk, "m") == {"a": (131072, True), "b": (0, False)}
    talk.do("block-dirty-bitmap-merge", node="m", target="b", bitmaps=["a"])
    talk.do("block-dirty-bitmap-clear", node="m", name="a")
    talk.do("block-dirty-bitmap-enable", node="m", name="b")
    assert bitmaps(talk, "m") == {"a": (0, True), "b": (131072, True)}
    hashes = [
        talk.do("x-debug-block-dirty-bitmap-sha256", node="m", name=name)["sha256"]
        for name in ("a", "b")
    ]
    assert hashes[0] != hashes[1]
    talk.do("block-dirty-bitmap-remove", node="m", name="a")
    assert bitmaps(talk, "m") == {"b": (131072, True)}


def test_an_aborted_transaction_changes_no_bitmap(talk: Conversation) -> None:
    talk.do("blockdev-add", driver="memory", node_name="m", size=MIB)
    for name, granularity in (("a", 65536), ("b", 4096), ("c", 512)):
        talk.do("block-dirty-bitmap-add", node="m", name=name, granularity=granularity)
        io(talk, "m", f"write {granularity} 1k")
    talk.do("block-dirty-bitmap-disable", node="m", name="c")
    before = bitmaps(talk, "m")
    changes: list[tuple[str, dict[str, Any]]] = [
        ("add", {"name": "new"}),
        ("clear", {"name": "a"}),
        ("merge", {"target": "b", "bitmaps": ["c", "new"]}),
        ("enable", {"name": "c"}),
        ("disable", {"name": "a"}),
        ("remove", {"name": "b"}),
    ]
    actions = [
        {"type": f"block-dirty-bitmap-{verb}", "data": {"node": "m", **data}}
        for verb, data in changes
    ]
    abort = {"type": "abort", "data": {}}
    for length in range(len(actions) + 1):
        words = talk.refused("transaction", actions=[*actions[:length], abort])
        assert words == "Transaction aborted using Abort action"
        assert bitmaps(talk, "m") == before
    talk.do("transaction", actions=actions)
    assert set(bitmaps(talk, "m")) == {"a", "c", "new"}


def test_a_layer_keeps_its_size(talk: Conversation) -> None:
    """Neither a job nor an image above it could know of another one."""
    below: str | None = None
    for name in ("a", "b", "s"):
        make(talk.folder, f"-f qed {name} 8M")
        file = {"driver": "file", "filename": name}
        talk.do("blockdev-add", driver="qed", node_name=name, file=file, backing=below)
        io(talk, name, "write -P 7 7M 64k")
        below = name
    io(talk, "b", "write -P 8 0 6M")
    talk.do("block-stream", job_id="j", device="s", base_node="a", speed=1)
    for name in ("a", "b", "s"):
        for size in (MIB, 16 * MIB):
            words = talk.refused("block_resize", node_name=name, size=size)
            assert words.startswith(f"Node '{name}' is busy: ")
    talk.do("job-cancel", id="j")
    talk.event("JOB_STATUS_CHANGE", id="j", status="null")
    for name, above in (("a", "b"), ("b", "s")):
        words = talk.refused("block_resize", node_name=name, size=MIB)
        assert words == f"Node '{name}' is busy: node is used as backing hd of '{above}'"
    assert "failed" not in io(talk, "s", "read -P 8 0 6M")
    talk.do("block_resize", node_name="s", size=16 * MIB)


def test_a_layer_below_a_filter_keeps_its_size(talk: Conversation) -> None:
    """So does a filter above a layer that a job is at."""
    for line in ("-f raw a 8M", "-f qed b 8M", "-f qed top 8M"):
        make(talk.folder, line)
    file = {"driver": "file", "filename": "a"}
    talk.do("blockdev-add", driver="raw", node_name="a", file=file)
    file = {"driver": "file", "filename": "b"}
    talk.do("blockdev-add", driver="qed", node_name="b", file=file, backing="a")
    talk.do("blockdev-add", driver="copy-on-read", node_name="c", file="b")
    io(talk, "a", "write -P 7 0 8M")
    talk.do("block-stream", job_id="j", device="b", speed=1)
    for size in (MIB, 16 * MIB):
        words = talk.refused("block_resize", node_name="c", size=size)
        assert words.startswith("Node 'b' is busy: ")
    talk.do("job-cancel", id="j")
    talk.event("JOB_STATUS_CHANGE", id="j", status="null")
    talk.do("block_resize", node_name="c", size=16 * MIB)
    file = {"driver": "file", "filename": "top"}
    talk.do("blockdev-add", driver="qed", node_name="top", file=file, backing="c")
    for size in (MIB, 32 * MIB):
        words = talk.refused("block_resize", node_name="b", size=size)
        assert words == "Node 'c' is busy: node is used as backing hd of 'top'"
    assert "failed" not in io(talk, "top", "read -P 7 0 8M")


def test_clients_of_an_export_see_bitmaps(talk: Conversation) -> None:
    talk.do("blockdev-add", driver="memory", node_name="m", size=MIB)
    talk.do("block-dirty-bitmap-add", node="m", name="b", granularity=65536)
    io(talk, "m", "write 64k 64k")
    nbd = str(talk.folder / "nbd")
    talk.do("nbd-server-start", addr={"type": "unix", "data": {"path": nbd}})
    export = {"type": "nbd", "id": "e", "node_name": "m", "name": "x", "bitmaps": ["b"]}
    words = talk.refused("block-export-add", **export)
    assert words == "Enabled bitmap 'b' incompatible with readonly export"
    talk.do("block-dirty-bitmap-disable", node="m", name="b")
    talk.do("block-export-add", **export)
    options = (
        f"driver=nbd,export=x,server.type=unix,server.path={nbd},x-dirty-bitmap=qemu:dirty-bitmap:b"
    )
    done = subprocess.run(
        ["qemu-img", "map", "--output=json", "--image-opts", options],
        capture_output=True,
        check=True,
        timeout=60,
    )
    # qemu-img shows what is dirty as what is not data.
    dirty = [
        (each["start"], each["length"]) for each in json.loads(done.stdout) if not each["data"]
    ]
    assert dirty == [(65536, 65536)]
    ours = [*OURS[:-1], "map", "--output=json", "--image-opts", options]
    same = subprocess.run(ours, capture_output=True, check=True, timeout=60)
    assert json.loads(same.stdout) == json.loads(done.stdout)


def test_statistics_of_exports(talk: Conversation) -> None:
    talk.do("blockdev-add", driver="memory", node_name="m", size=MIB)
    nbd = str(talk.folder / "nbd")
    talk.do("nbd-server-start", addr={"type": "unix", "data": {"path": nbd}})
    talk.do("block-export-add", type="nbd", id="e", node_name="m", writable=True)
    uri = f"nbd+unix:///m?socket={nbd}"
    command = ["qemu-io", "-f", "raw", "-c", "write 0 64k", "-c", "read 0 32k", uri]
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    (stats,) = talk.do("query-blockstats", query_nodes=True)
    assert stats["node-name"] == "m"
    assert stats["stats"]["wr_bytes"] == 65536
    assert stats["stats"]["rd_bytes"] >= 32768
    assert stats["stats"]["wr_operations"] == 1


@needs("openssl")
def test_clients_of_an_encrypted_server_are_authorised(talk: Conversation) -> None:
    folder = make_certificates(talk.folder / "pki")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    talk.do("blockdev-add", driver="memory", node_name="m", size=MIB)
    tls = {"qom-type": "tls-creds-x509", "endpoint": "server", "dir": str(folder)}
    talk.ask("object-add", {**tls, "id": "tls"})
    rules = [{"match": "*CN=tester*", "policy": "allow", "format": "glob"}]
    talk.ask("object-add", {"qom-type": "authz-list", "id": "some", "rules": rules})
    talk.ask("object-add", {"qom-type": "authz-simple", "id": "none", "identity": "CN=other"})
    address = {"type": "inet", "data": {"host": "localhost", "port": port}}
    assert "TLS authorization" in talk.refused("nbd-server-start", addr=address, tls_authz="some")
    client = [
        "qemu-img",
        "info",
        "--object",
        f"tls-creds-x509,id=t,endpoint=client,dir={folder}",
        "--image-opts",
        f"driver=nbd,host=localhost,port={port},export=m,tls-creds=t",
    ]
    for rule, welcome in (("some", True), ("none", False)):
        talk.do("nbd-server-start", addr=address, tls_creds="tls", tls_authz=rule)
        talk.do("block-export-add", type="nbd", id="e", node_name="m")
        done = subprocess.run(client, capture_output=True, check=False, timeout=60)
        assert (done.returncode == 0) == welcome, done.stderr
        talk.do("nbd-server-stop")
        talk.event("BLOCK_EXPORT_DELETED")


def test_an_export_in_use_is_removed_by_force_only(talk: Conversation) -> None:
    talk.do("blockdev-add", driver="memory", node_name="m", size=MIB)
    nbd = str(talk.folder / "nbd")
    talk.do("nbd-server-start", addr={"type": "unix", "data": {"path": nbd}})
    talk.do("block-export-add", type="nbd", id="e", node_name="m", name="x")
    uri = f"nbd+unix:///x?socket={nbd}"
    command = ["qemu-io", "-r", "-f", "raw", uri]
    client = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(b"read 0 512\n")
    client.stdin.flush()
    for line in iter(client.stdout.readline, b""):
        if b"read 512/512" in line:
            break
    else:
        pytest.fail("the client has ended")
    assert talk.refused("block-export-del", id="e") == "export 'e' still in use"
    talk.do("block-export-del", id="e", mode="hard")
    assert talk.event("BLOCK_EXPORT_DELETED") == {"id": "e"}
    talk.do("blockdev-del", node_name="m")
    client.communicate(timeout=60)
