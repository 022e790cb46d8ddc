# SPDX-License-Identifier: Apache-2.0
"""Encrypted connections: who is let in, who is not, and that nothing is different inside."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import InvalidArgument
from blocklayer.base.units import MiB
from blocklayer.core.disk import Disk
from blocklayer.export import server as server_module
from blocklayer.export.authorise import authoriser
from blocklayer.nbd import tls, wire
from tests.export.conftest import Serve, Served
from tests.support import needs
from tests.support.certificates import make_certificates
from tests.support.nbd_peer import (
    EXTENDED,
    FLUSH,
    FUA,
    MODES,
    READ,
    STRUCTURED,
    WRITE,
    NbdPeer,
    go_data,
    option_bytes,
)
from tests.support.nbd_process import blk_nbd

pytestmark = needs("openssl")

Make = Callable[..., Disk]
SIZE = 8 * MiB
TESTER = "CN=tester,O=Example,C=GB"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls") / "pki")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of an authority that nobody here knows."""
    return make_certificates(tmp_path_factory.mktemp("strangers") / "pki")


def server_context(folder: Path) -> ssl.SSLContext:
    options = {"endpoint": "server", "dir": str(folder)}
    return tls.server_context(tls.credentials(tls.X509, options, endpoint=tls.SERVER))


def client_context(folder: Path, *, identity: bool = True) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder / "ca-cert.pem")
    context.check_hostname = False
    if identity:
        context.load_cert_chain(folder / "client-cert.pem", folder / "client-key.pem")
    return context


def encrypt(peer: NbdPeer, context: ssl.SSLContext) -> None:
    """Ask for TLS, and do the handshake."""
    assert peer.option(wire.OPT_STARTTLS).kind == wire.REP_ACK
    peer.socket = context.wrap_socket(peer.socket)


def connect(served: Served, folder: Path, mode: str = STRUCTURED, **options: bool) -> NbdPeer:
    """A client inside TLS that has negotiated."""
    peer = served.connect(mode=None)
    try:
        peer.greet()
        encrypt(peer, client_context(folder, **options))
        if mode != "simple":
            wanted = wire.OPT_EXTENDED_HEADERS
            if mode == STRUCTURED:
                wanted = wire.OPT_STRUCTURED_REPLY
            assert peer.option(wanted).kind == wire.REP_ACK
        peer.mode = mode
        peer.go("")
    except BaseException:
        peer.close()
        raise
    return peer


@pytest.fixture
def served(make: Make, serve: Serve, certificates: Path) -> Served:
    """A server that insists on TLS."""
    return serve(make(SIZE), options={"tls": server_context(certificates)})


@pytest.mark.parametrize("mode", MODES)
def test_everything_works_inside(served: Served, certificates: Path, mode: str) -> None:
    data = os.urandom(5 * MiB)
    with connect(served, certificates, mode) as peer:
        peer.write(1000, data, FUA)
        assert peer.read(1000, len(data)) == data
        asked = [peer.ask(READ, n * 4096, 20_000) for n in range(50)]
        asked += [peer.ask(FLUSH) for _ in range(30)]
        asked += [peer.ask(WRITE, 7 * MiB, payload=bytes(5000), flags=FUA) for _ in range(30)]
        for cookie in asked:
            assert not peer.wait(cookie).error
        assert peer.read(1000, len(data)) == data


def test_nothing_is_told_outside(served: Served) -> None:
    with served.connect(mode=None) as peer:
        peer.greet()
        for option in (wire.OPT_LIST, wire.OPT_STRUCTURED_REPLY, 99):
            assert peer.option(option).kind == wire.REP_ERR_TLS_REQD
        assert peer.option(wire.OPT_GO, go_data("")).kind == wire.REP_ERR_TLS_REQD
        peer.send(option_bytes(wire.OPT_EXPORT_NAME))
        assert peer.ended()


def test_plain_text_behind_starttls(served: Served) -> None:
    with served.connect(mode=None) as peer:
        peer.greet()
        peer.send(option_bytes(wire.OPT_STARTTLS) + option_bytes(wire.OPT_GO, go_data("")))
        assert peer.ended()
    with served.connect(mode=None) as peer:
        peer.greet()
        assert peer.option(wire.OPT_STARTTLS).kind == wire.REP_ACK
        peer.send(option_bytes(wire.OPT_GO, go_data("")))
        said = b""
        while piece := peer.socket.recv(1000):
            said += piece
        assert option_bytes(wire.OPT_GO)[:8] not in said
        assert len(said) < 100, "an alert at most"


def test_clients_without_a_certificate(served: Served, certificates: Path) -> None:
    with pytest.raises((OSError, EOFError)):
        connect(served, certificates, identity=False).close()


def test_clients_of_another_authority(served: Served, certificates: Path, strangers: Path) -> None:
    context = client_context(strangers)
    context.verify_mode = ssl.CERT_NONE
    with served.connect(mode=None) as peer:
        peer.greet()

        def talk() -> None:
            encrypt(peer, context)
            peer.option(wire.OPT_LIST)

        with pytest.raises((OSError, EOFError)):
            talk()
    served.wait_until_alone()
    with connect(served, certificates) as peer:
        assert peer.size == SIZE


def test_version_1_2_will_do(served: Served, certificates: Path) -> None:
    context = client_context(certificates)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with served.connect(mode=None) as peer:
        peer.greet()
        encrypt(peer, context)
        peer.go("")
        assert peer.socket.version() == "TLSv1.2"  # type: ignore[attr-defined]
        assert peer.read(0, 512) == bytes(512)


@pytest.mark.parametrize("allowed", [TESTER, "CN=somebody"])
def test_names_are_authorised(make: Make, serve: Serve, certificates: Path, allowed: str) -> None:
    asked: list[str] = []

    def decide(name: str) -> bool:
        asked.append(name)
        return name == allowed

    options = {"tls": server_context(certificates), "authorise": decide}
    served = serve(make(SIZE), options=options)
    if allowed == TESTER:
        with connect(served, certificates) as peer:
            assert peer.read(0, 512) == bytes(512)
    else:
        with pytest.raises((OSError, EOFError)):
            connect(served, certificates).close()
    assert asked == [TESTER]


def test_a_handshake_that_never_ends(
    make: Make, serve: Serve, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_SECONDS", 0.5)
    served = serve(make(SIZE), options={"tls": server_context(certificates)})
    peer = served.connect(mode=None)
    peer.greet()
    assert peer.option(wire.OPT_STARTTLS).kind == wire.REP_ACK
    started = time.monotonic()
    for byte in b"\x16\x03\x01\x02\x00\x01" + bytes(500):
        try:
            peer.send(bytes([byte]))
        except OSError:
            break
        time.sleep(0.02)
    else:
        pytest.fail("the server listened to the end")
    assert time.monotonic() - started < 5
    peer.close()
    served.wait_until_alone()


def test_leaving_without_a_word(served: Served, certificates: Path) -> None:
    for _ in range(5):
        peer = connect(served, certificates, EXTENDED)
        for _ in range(50):
            peer.ask(READ, 0, SIZE)
        os.close(peer.socket.detach())
    served.wait_until_alone()


class SharedByThreads:
    """A client's TLS socket for a thread that sends and one that receives: one call at a time.

    OpenSSL's connections are not for two threads at once.
    """

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        connection.setblocking(False)

    def _try(self, call: Callable[[], Any]) -> Any:
        while True:
            with self._lock:
                try:
                    return call()
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    pass
            time.sleep(0.001)

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            sent: int = self._try(partial(self._connection.send, view[: 64 * 1024]))
            view = view[sent:]

    def recv(self, count: int) -> bytes:
        received: bytes = self._try(lambda: self._connection.recv(count))
        return received

    def close(self) -> None:
        self._connection.close()


def test_sending_and_receiving_at_once(served: Served, certificates: Path) -> None:
    """Large writes go in while large reads come out: neither side waits for the other."""
    with connect(served, certificates) as peer:
        data = os.urandom(2 * MiB)
        failures: list[BaseException] = []

        def read_all() -> None:
            try:
                for _ in range(20):
                    peer.any_reply()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=read_all)
        stream = b""
        for cookie in range(1000, 1010):
            peer.note(cookie, WRITE, 0, len(data))
            peer.note(cookie + 100, READ, 4 * MiB, 2 * MiB)
            stream += peer.packed(cookie, WRITE, 0, 0, payload=data)
            stream += peer.packed(cookie + 100, READ, 4 * MiB, 2 * MiB)
        assert isinstance(peer.socket, ssl.SSLSocket)
        shared = SharedByThreads(peer.socket)
        peer.socket = shared  # type: ignore[assignment]
        thread.start()
        shared.sendall(stream)
        thread.join(30)
        assert not thread.is_alive()
        assert not failures


def test_stopping_with_encrypted_clients(served: Served, certificates: Path) -> None:
    peers = [connect(served, certificates) for _ in range(3)]
    for _ in range(20):
        peers[0].ask(READ, 0, SIZE)
    started = time.monotonic()
    served.server.stop(patience=0.5)
    assert time.monotonic() - started < 8
    for peer in peers:
        peer.close()


# --- peers --------------------------------------------------------------------------------------


def run(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words], check=check, capture_output=True, text=True, timeout=60
    )


@needs("qemu-img", "nbdinfo", "nbdcopy")
def test_peers_inside_tls(certificates: Path, strangers: Path, tmp_path: Path) -> None:
    image, path = tmp_path / "disk.qed", tmp_path / "sock"
    blocklayer.create(str(image), format="qed", size=SIZE)
    with blocklayer.open(str(image), mode="r+") as disk:
        disk.write(0, b"secret" * 1000)
        content = disk.read(0, SIZE)
    creds = f"tls-creds-x509,id=t,dir={certificates},endpoint=server"
    words = ["-t", "-e", "0", "--object", creds, "--tls-creds", "t", "-f", "qed", image]
    with blk_nbd(path, *words) as server:
        uri = f"nbds+unix:///?socket={path}&tls-certificates={certificates}"
        told = json.loads(run("nbdinfo", "--json", f"{uri}&tls-hostname=localhost").stdout)
        assert told["TLS"] is True
        target = tmp_path / "copy"
        run("nbdcopy", f"{uri}&tls-hostname=localhost", target)
        assert target.read_bytes() == content
        theirs = f"tls-creds-x509,id=c,dir={certificates},endpoint=client"
        source = f"driver=nbd,path={path},tls-creds=c,tls-hostname=localhost"
        words = ["--object", theirs, "--image-opts"]
        run("qemu-img", "convert", *words, source, "-O", "raw", target)
        assert target.read_bytes() == content
        plain = run("qemu-img", "info", f"nbd+unix:///?socket={path}", check=False)
        assert plain.returncode
        assert "TLS" in plain.stderr
        wrong = f"tls-creds-x509,id=c,dir={strangers},endpoint=client"
        refused = run("qemu-img", "info", "--object", wrong, "--image-opts", source, check=False)
        assert refused.returncode
        assert server.end() == (0, "")


@needs("qemu-img")
@pytest.mark.parametrize("who", ["tester", "other"])
@pytest.mark.parametrize("kind", ["simple", "list", "file"])
def test_authorisation_by_objects(certificates: Path, tmp_path: Path, who: str, kind: str) -> None:
    image, path = tmp_path / "disk.qed", tmp_path / "sock"
    blocklayer.create(str(image), format="qed", size=SIZE)
    name = f"CN={who},O=Example,C=GB"
    if kind == "simple":
        rule = f"authz-simple,id=a,identity={name.replace(',', ',,')}"
    elif kind == "list":
        rule = (
            f"authz-list,id=a,policy=deny,rules.0.match=CN={who}*,rules.0.policy=allow,"
            "rules.0.format=glob"
        )
    else:
        rules = {"policy": "deny", "rules": [{"match": name, "policy": "allow"}]}
        (tmp_path / "rules.json").write_text(json.dumps(rules))
        rule = f"authz-list-file,id=a,filename={tmp_path / 'rules.json'}"
    creds = f"tls-creds-x509,id=t,dir={certificates},endpoint=server"
    words = ["--object", creds, "--object", rule, "--tls-creds", "t", "--tls-authz", "a"]
    with blk_nbd(path, "-t", "-v", *words, "-f", "qed", image) as server:
        theirs = f"tls-creds-x509,id=c,dir={certificates},endpoint=client"
        source = f"driver=nbd,path={path},tls-creds=c,tls-hostname=localhost"
        done = run("qemu-img", "info", "--object", theirs, "--image-opts", source, check=False)
        assert (done.returncode == 0) == (who == "tester"), done.stderr
        code, said = server.end()
    assert code == 0
    assert ("denied" in said) == (who != "tester")


def test_a_rule_that_is_not_there() -> None:
    with pytest.raises(InvalidArgument, match="Cannot find QAuthZ object ID nobody"):
        authoriser("nobody")


def test_a_port_that_speaks_something_else(served: Served) -> None:
    with served.connect(mode=None) as peer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with pytest.raises((ssl.SSLError, ConnectionError, socket.timeout)):
            context.wrap_socket(peer.socket)
