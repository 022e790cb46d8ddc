"""Negotiation, ids, errors and the commands about the daemon, through QEMU's own client library."""

import asyncio
import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from tests.qmp.daemons import Conversation, conversation
from tests.support import needs


def raw_client(talk: Conversation) -> Any:
    """A file on a connection of its own, before the greeting is read."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(str(talk.socket))
    file = connection.makefile("rwb")
    connection.close()
    return file


def say(file: Any, text: str) -> Any:
    file.write(text.encode())
    file.flush()
    return json.loads(file.readline())


def test_the_greeting_and_negotiation(tmp_path: Path) -> None:
    with conversation(tmp_path) as talk, raw_client(talk) as file:
        greeting = json.loads(file.readline())["QMP"]
        assert greeting["capabilities"] == ["oob"]
        assert greeting["version"]["qemu"] == {"major": 7, "minor": 2, "micro": 0}
        early = say(file, '{"execute": "query-version", "id": [1, {"a": null}]}')
        assert early == {
            "id": [1, {"a": None}],
            "error": {
                "class": "CommandNotFound",
                "desc": "Expecting capabilities negotiation with 'qmp_capabilities'",
            },
        }
        out_of_band = '{"exec-oob": "query-version"}'
        wrong = say(file, '{"execute": "qmp_capabilities", "arguments": {"enable": ["magic"]}}')
        assert "does not accept value 'magic'" in wrong["error"]["desc"]
        assert say(file, out_of_band)["error"]["desc"] == (
            "QMP input member 'exec-oob' is unexpected"
        )
        enable = '{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}'
        assert say(file, enable) == {"return": {}}
        again = say(file, enable)["error"]
        assert again == {
            "class": "CommandNotFound",
            "desc": "Capabilities negotiation is already complete, command ignored",
        }
        assert say(file, out_of_band)["error"]["desc"] == (
            "The command query-version does not support OOB"
        )


MESSAGES = [
    ("[1]", "QMP input must be a JSON object"),
    ('"x"', "QMP input must be a JSON object"),
    ("{}", "QMP input lacks member 'execute'"),
    ('{"execute": 1}', "QMP input member 'execute' must be a string"),
    (
        '{"execute": "query-version", "arguments": []}',
        "QMP input member 'arguments' must be an object",
    ),
    ('{"execute": "query-version", "more": 1}', "QMP input member 'more' is unexpected"),
    ('{"execute": "query-version", "arguments": {"x": 1}}', "Parameter 'x' is unexpected"),
    ('{"execute": "nonsense"}', "The command nonsense has not been found"),
    ("{a}", "JSON parse error, invalid keyword 'a'"),
]


def test_messages_that_are_wrong(tmp_path: Path) -> None:
    with conversation(tmp_path) as talk, raw_client(talk) as file:
        file.readline()
        say(file, '{"execute": "qmp_capabilities"}')
        for message, words in MESSAGES:
            assert say(file, message)["error"]["desc"] == words
        assert say(file, "{'execute': 'query-status', 'id': 5}")["id"] == 5


def test_several_clients_hear_the_same_events(tmp_path: Path) -> None:
    with conversation(tmp_path) as talk:
        other = talk.connect()
        talk.do("blockdev-add", driver="null-co", node_name="n", size=65536)
        talk.do(
            "nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp_path / "nbd.sock")}}
        )
        talk.do("block-export-add", type="nbd", id="e", node_name="n")
        talk.do("block-export-del", id="e")
        assert talk.event("BLOCK_EXPORT_DELETED") == {"id": "e"}
        event = other.next_event()
        assert event["event"] == "BLOCK_EXPORT_DELETED"
        assert set(event["timestamp"]) == {"seconds", "microseconds"}
        other.close()


def test_what_the_daemon_tells_of_itself(tmp_path: Path) -> None:
    with conversation(tmp_path) as talk:
        version = talk.do("query-version")
        assert version["package"].startswith("blocklayer-")
        names = {each["name"] for each in talk.do("query-commands")}
        assert {"blockdev-add", "transaction", "quit"} <= names
        schema = talk.do("query-qmp-schema")
        assert {e["name"] for e in schema if e["meta-type"] == "command"} == names
        assert talk.do("query-status") == {"running": True, "status": "running"}
        assert talk.do("query-block") == []
        assert talk.do("query-blockstats") == []
        (device,) = talk.do("query-chardev")
        assert device["label"] == "m"
        assert device["frontend-open"] is True
        assert device["filename"] == f"unix:{tmp_path}/qmp.sock,server=on"
        kinds = {each["name"] for each in talk.do("query-chardev-backends")}
        assert kinds == {"file", "null", "pipe", "socket", "stdio"}


def test_quit_is_answered_announced_and_final(tmp_path: Path) -> None:
    with Conversation(tmp_path) as talk:
        assert talk.do("quit") == {}
        assert talk.event("SHUTDOWN") == {"guest": False, "reason": "host-qmp-quit"}
        assert talk.process.wait(30) == 0
    assert not talk.socket.exists()


def test_the_asynchronous_client(tmp_path: Path) -> None:
    async def drive(path: Path) -> Any:
        client = QMPClient("test")
        await client.connect(str(path))
        try:
            await client.execute("blockdev-add", {"driver": "null-co", "node-name": "n"})
            return await client.execute("query-named-block-nodes")
        finally:
            await client.disconnect()

    with conversation(tmp_path) as talk:
        nodes = asyncio.run(drive(talk.socket))
    assert [node["node-name"] for node in nodes] == ["n"]


def test_commands_for_people(tmp_path: Path) -> None:
    with conversation(tmp_path) as talk:
        talk.do("blockdev-add", driver="memory", node_name="m", size=1 << 20)

        def human(line: str) -> str:
            return str(talk.do("human-monitor-command", command_line=line))

        assert human('qemu-io m "write -P 7 64k 4k"').startswith("wrote 4096/4096 bytes")
        assert human('qemu-io m "read -P 7 64k 4k"').startswith("read 4096/4096 bytes")
        assert "Pattern verification failed" in human('qemu-io m "read -P 8 64k 4k"')
        assert 'command "frob" not found' in human('qemu-io m "frob"')
        assert 'command "close" not found' in human('qemu-io m "close"')
        assert "Cannot find device='x' nor node-name='x'" in human('qemu-io x "read 0 1"')
        assert "qemu-io NODE" in human("help")
        assert human("info block").startswith("m:")
        assert human("info block-jobs") == "No active jobs\r\n"
        assert human("frob") == "Error: unknown command: 'frob'\r\n"
        assert "No closing quotation" in human('qemu-io "')
        assert human("") == ""


@needs("qemu-io")
def test_requests_that_wait_at_break_points_do_not_keep_the_daemon(tmp_path: Path) -> None:
    with conversation(tmp_path) as talk:
        memory = {"driver": "memory", "size": 1 << 20}
        talk.do("blockdev-add", driver="fault", node_name="f", image=memory)
        line = 'qemu-io f "break pwritev A"'
        talk.do("human-monitor-command", command_line=line)
        assert 'command "wait_break" not found' in talk.do(
            "human-monitor-command", command_line='qemu-io f "wait_break A"'
        )
        nbd = str(tmp_path / "nbd")
        talk.do("nbd-server-start", addr={"type": "unix", "data": {"path": nbd}})
        talk.do("block-export-add", type="nbd", id="e", node_name="f", writable=True)
        write = ["qemu-io", "-f", "raw", "-c", "write 0 512", f"nbd+unix:///f?socket={nbd}"]
        client = subprocess.Popen(write, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        with pytest.raises(subprocess.TimeoutExpired):
            client.wait(1)  # it waits at the break point
    client.communicate(timeout=30)


@pytest.mark.parametrize("kind", ["iothread", "secret", "throttle-group", "authz-simple",
                                  "authz-list", "authz-list-file"])  # fmt: skip
def test_objects_come_and_go(tmp_path: Path, kind: str) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "iothread": {},
        "secret": {"data": "x"},
        "throttle-group": {"limits": {"bps-total": 1000000}},
        "authz-simple": {"identity": "CN=me"},
        "authz-list": {"rules": [{"match": "CN=*", "policy": "allow", "format": "glob"}]},
        "authz-list-file": {"filename": "rules.json"},
    }
    properties = kinds[kind]
    (tmp_path / "rules.json").write_text('{"policy": "deny"}')
    with conversation(tmp_path) as talk:
        talk.ask("object-add", {"qom-type": kind, "id": "o", **properties})
        words = "attempt to add duplicate property 'o' to object (type 'container')"
        again = talk.ask("object-add", {"qom-type": kind, "id": "o", **properties})
        assert again["error"]["desc"] == words
        talk.do("object-del", id="o")
        assert talk.refused("object-del", id="o") == "object 'o' not found"
