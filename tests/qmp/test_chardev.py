"""Character devices from their options: sockets that are passed on, and all that is wrong."""

import os
import socket
from pathlib import Path

import pytest

from blocklayer.base.errors import BlocklayerError
from blocklayer.qmp.channels import Channel
from blocklayer.qmp.chardev import Chardev, open_chardev


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
