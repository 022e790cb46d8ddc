"""Character devices from their options: sockets that are passed on, and all that is wrong."""

import os
import socket
from pathlib import Path

import pytest

from blocklayer.base.errors import BlocklayerError
from blocklayer.qmp.channels import Channel
from blocklayer.qmp.chardev import Chardev, open_chardev
from tests.qmp.daemons import OURS, QEMUS, Conversation
from tests.support import needs


def options(text: str) -> dict[str, str]:
    first, *rest = text.split(",")
    pairs = [each.partition("=") for each in rest]
    return {"backend": first, **{key: value for key, _, value in pairs}}


WRONG = [
    ("socket,id=a", "chardev: socket: no port or path given"),
    ("socket,id=a,host=localhost,port=x", "address resolution failed for localhost:x"),
    ("socket,id=a,path=p,wait=on", "'wait' option is incompatible with socket in client"),
    ("socket,id=a,path=p,nowait=on", "'wait' option is incompatible with socket in client"),
    ("socket,id=a,path=p,server=maybe", "Parameter 'server' expects 'on' or 'off'"),
    ("socket,id=a,path=nowhere", "Failed to connect to 'nowhere': No such file or directory"),
    ("socket,id=a,host=127.0.0.1,port=1", "Failed to connect to '127.0.0.1:1'"),
    ("socket,id=a,fd=x", "Unable to parse FD number x"),
    ("socket,id=a,fd=999", "Cannot use file descriptor 999: Bad file descriptor"),
    ("file,id=a", "chardev: file: no filename given"),
    ("file,id=a,path=no/such", "Could not open 'no/such': No such file or directory"),
    ("pipe,id=a,path=nowhere", "Could not open 'nowhere.in': No such file or directory"),
    ("stdio,id=a,frob=1", "Invalid parameter 'frob'"),
    ("socket,id=a,path=p,server=on,wait=off,frob=1", "Invalid parameter 'frob'"),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_what_is_wrong(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BlocklayerError) as caught:
        open_chardev(options(text))
    assert str(caught.value).startswith(words)
    assert not (tmp_path / "p").exists()


def test_half_a_pipe_is_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.in")
    with pytest.raises(BlocklayerError, match=r"p\.out"):
        open_chardev(options(f"pipe,id=a,path={tmp_path}/p"))


def test_a_connected_socket_is_passed_on() -> None:
    ours, theirs = socket.socketpair()
    device = open_chardev(options(f"socket,id=a,fd={theirs.detach()}"))
    assert isinstance(device, Chardev)
    assert not device.is_open

    def talk(channel: Channel) -> None:
        channel.write(channel.read().upper())

    device.start(talk)
    ours.settimeout(30)
    ours.sendall(b"hello")
    assert ours.recv(10) == b"HELLO"
    assert device.is_open
    device.stop_listening()
    device.close()
    assert ours.recv(1) == b""
    ours.close()


def test_a_listening_socket_is_refused() -> None:
    with socket.socket() as listener:
        listener.listen()
        with pytest.raises(BlocklayerError, match="listens"):
            open_chardev(options(f"socket,id=a,fd={listener.fileno()}"))


@pytest.mark.parametrize("program", [OURS, pytest.param(QEMUS, marks=needs("qemu-storage-daemon"))])
def test_sockets_tell_who_is_connected(program: tuple[str, ...], tmp_path: Path) -> None:
    """The same with QEMU's daemon: who waits is told from who is used."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    more: tuple[str, ...] = ("--chardev", f"socket,id=idle,path={tmp_path}/idle,server=on,wait=off")
    more += ("--chardev", f"socket,id=out,host=127.0.0.1,port={port}", "--monitor", "out")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    more += ("--chardev", f"socket,id=tcp,host=127.0.0.1,port={free},server=on,wait=off")
    with Conversation(tmp_path, program, (*more, "--monitor", "tcp"), killed=True) as talk:
        monitor = listener.accept()[0]
        with socket.create_connection(("127.0.0.1", free)) as client, monitor:
            assert client.recv(4)  # a greeting: it is known of
            names = {each["label"]: each["filename"] for each in talk.do("query-chardev")}
            ours, theirs = client.getsockname()[1], monitor.getpeername()[1]
    listener.close()
    assert names == {
        "m": f"unix:{tmp_path}/qmp.sock,server=on",
        "idle": f"disconnected:unix:{tmp_path}/idle,server=on",
        "out": f"tcp:127.0.0.1:{theirs} <-> 127.0.0.1:{port}",
        "tcp": f"tcp:127.0.0.1:{free},server=on <-> 127.0.0.1:{ours}",
    }
