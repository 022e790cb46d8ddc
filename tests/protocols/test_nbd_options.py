# SPDX-License-Identifier: Apache-2.0
"""The `nbd` protocol's options and TLS: every way to name a server, and what is refused."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import BlocklayerError, OpenError
from blocklayer.core import objects
from blocklayer.core.names import backing_path, parse_name
from blocklayer.core.objects import UserObject
from tests.nbd.server_bytes import negotiation, simple
from tests.support import needs
from tests.support.certificates import make_certificates
from tests.support.fake_nbd import fake_server, requests, skip_options
from tests.support.nbd_servers import nbdkit, qemu_nbd, running


def opened(**options: Any) -> blocklayer.Disk:
    return blocklayer.open({"driver": "raw", "file": {"driver": "nbd", **options}})


# --- names --------------------------------------------------------------------------------------


@needs("nbdkit")
def test_every_way_to_name_a_server(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with running(nbdkit(path, "pattern", "1M"), path):
        names: list[Any] = [
            f"nbd+unix:///?socket={path}",
            f"nbd+unix://?socket={path}",
            f"nbd:unix:{path}",
            f'json:{{"driver": "nbd", "path": "{path}"}}',
            f'json:{{"driver": "nbd", "server.type": "unix", "server.path": "{path}"}}',
            {"driver": "nbd", "path": str(path), "export": ""},
            {"driver": "nbd", "server": {"type": "unix", "path": str(path)}},
            {"file.driver": "nbd", "file.server.type": "unix", "file.server.path": str(path)},
        ]
        for name in names:
            with blocklayer.open(name) as disk:
                assert disk.read(4096, 8) == (4096).to_bytes(8, "big")
                assert disk.filename == f"nbd+unix://?socket={path}"


@needs("nbdkit")
def test_tcp(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "-P", str(tmp_path / "pid")]
    with running([*command, "pattern", "1M"], tmp_path / "pid"):
        for name in (f"nbd://localhost:{port}", f"nbd:127.0.0.1:{port}:exportname="):
            with blocklayer.open(name) as disk:
                assert disk.read(8, 8) == (8).to_bytes(8, "big")
        server = {"type": "inet", "host": "127.0.0.1", "port": str(port)}
        with opened(server=server) as disk:
            assert disk.size == 1 << 20


def test_a_descriptor() -> None:
    ours, theirs = socket.socketpair()

    def serve() -> None:
        theirs.settimeout(20)
        theirs.sendall(negotiation("simple"))
        skip_options(theirs)
        for head, _ in requests(theirs):
            theirs.sendall(simple(head.cookie, data=b"d" * head.length))

    thread = threading.Thread(target=serve)
    thread.start()
    with opened(server={"type": "fd", "str": str(ours.fileno())}) as disk:
        assert disk.read(0, 3) == b"ddd"
    thread.join()
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "NBD server address missing"),
        ({"port": "1"}, "NBD server address missing"),
        ({"path": "/s", "host": "h"}, "path and host may not be used at the same time"),
        ({"path": "/s", "server": {}}, "cannot be used together"),
        ({"filename": "nbd:unix:/s", "export": "e"}, "may not be specified at the same time"),
        ({"filename": 5}, "expected: string"),
        ({"path": "/s", "export": "x" * 4097}, "export name too long"),
        ({"path": "/s", "export": 5}, "expected: string"),
        ({"path": "/s", "tls-creds": "nobody"}, "No TLS credentials with id 'nobody'"),
        ({"path": "/s", "tls-hostname": "h"}, "only be used with tls-creds"),
        ({"path": "/s", "reconnect-delay": "soon"}, "'reconnect-delay' expects a number"),
        ({"path": "/s", "open-timeout": -1}, "'open-timeout' is out of range"),
        ({"path": "/s", "connections": 0}, "can be 1 to"),
        ({"path": "/s", "connections": True}, "expects a number"),
        ({"path": "/s", "x-dirty-bitmap": "x" * 5000}, "too long"),
        ({"path": "/s" * 200}, "too long"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BlocklayerError) as failure:
        opened(**options)
    assert words in str(failure.value)


def test_what_is_left_over_is_refused(tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(negotiation("simple"))
        skip_options(connection)
        for head, _ in requests(connection):
            connection.sendall(simple(head.cookie))

    with fake_server(tmp_path / "s", serve):
        with pytest.raises(BlocklayerError, match="Invalid parameter 'colour'"):
            opened(path=str(tmp_path / "s"), colour="red")
        assert [t for t in threading.enumerate() if t.name == "blocklayer-nbd"] == []


def test_names_beside_an_overlay() -> None:
    for name in ("nbd://h/d", "nbd:h:1", "nbd:unix:s", "nbds+unix:///?socket=s"):
        assert backing_path("/images/overlay.qed", name) == name
        assert parse_name(name) == {"file": {"driver": "nbd", "filename": name}}


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls") / "pki")


@pytest.fixture
def creds(certificates: Path) -> Iterator[str]:
    properties = {"endpoint": "client", "dir": str(certificates)}
    objects.define(UserObject("tls-creds-x509", "tls0", properties))
    yield "tls0"
    objects.forget("tls0")


def encrypted_nbdkit(path: Path, certificates: Path) -> list[str]:
    options = ("--tls=require", f"--tls-certificates={certificates}", "--tls-verify-peer")
    return nbdkit(path, *options, "memory", "8M")


@needs("nbdkit", "openssl")
def test_tls_to_nbdkit(tmp_path: Path, certificates: Path, creds: str) -> None:
    path = tmp_path / "s"
    with running(encrypted_nbdkit(path, certificates), path):
        tree = {"driver": "nbd", "path": str(path), "tls-creds": creds, "tls-hostname": "localhost"}
        data = bytes(range(256)) * 8192
        with blocklayer.open({"driver": "raw", "file": tree}, mode="r+") as disk:
            disk.write(4096, data)
            workers = [
                threading.Thread(target=lambda: [disk.read(n * 4096, 8192) for n in range(200)])
                for _ in range(4)
            ]
            for worker in workers:
                worker.start()
            for n in range(100):
                disk.write((1 << 22) + n * 4096, b"%04d" % n * 1024)
            for worker in workers:
                worker.join()
            assert disk.read(4096, len(data)) == data
            assert disk.read((1 << 22) + 99 * 4096, 4) == b"0099"
        uri = f"nbds+unix:///?socket={path}&tls-certificates={certificates}&tls-hostname=localhost"
        with blocklayer.open(uri, format="raw") as disk:
            assert disk.read(4096, 256) == data[:256]
        with pytest.raises(OpenError, match="TLS negotiation required before option 7"):
            opened(path=str(path))
        with pytest.raises(OpenError, match="Certificate does not match the hostname elsewhere"):
            opened(path=str(path), **{"tls-creds": creds, "tls-hostname": "elsewhere"})
        with pytest.raises(OpenError, match="TLS handshake failed"):
            blocklayer.open(f"nbds+unix:///?socket={path}")  # a stranger to the system


@needs("qemu-nbd", "openssl", "qemu-img")
def test_tls_to_qemu(tmp_path: Path, certificates: Path, creds: str) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"secret" + bytes(1 << 20))
    definition = f"tls-creds-x509,id=t,endpoint=server,dir={certificates},verify-peer=yes"
    command = qemu_nbd(
        *(tmp_path / "s", image, "-f", "raw", "--object", definition, "--tls-creds", "t")
    )
    with running(command, tmp_path / "s") as peer:
        with opened(path=str(peer.socket), **{"tls-creds": creds}) as disk:
            assert disk.read(0, 6) == b"secret"
        with pytest.raises(OpenError, match="Did you forget a valid tls-creds"):
            blocklayer.open(peer.uri)


@needs("nbdkit", "openssl")
def test_a_server_without_tls_gets_no_plain_text(tmp_path: Path, creds: str) -> None:
    path = tmp_path / "s"
    command = nbdkit(path, "--tls=off", "memory", "1M")
    with running(command, path), pytest.raises(OpenError, match=r"(?i)starttls"):
        opened(path=str(path), **{"tls-creds": creds})


def test_wrong_objects(tmp_path: Path) -> None:
    objects.define(UserObject("secret", "tls1", {"data": "x"}))
    objects.define(UserObject("tls-creds-psk", "tls2", {"dir": "d", "endpoint": "client"}))
    objects.define(UserObject("tls-creds-x509", "tls3", {"dir": "d", "endpoint": "server"}))
    objects.define(UserObject("tls-creds-x509", "tls4", {"dir": "nowhere"}))
    expected = {
        "tls1": "Object with id 'tls1' is not TLS credentials",
        "tls2": "pre-shared keys",
        "tls3": "Expecting TLS credentials with a client endpoint",
        "tls4": "Unable to access credentials nowhere/ca-cert.pem",
    }
    try:
        for name, words in expected.items():
            with pytest.raises(BlocklayerError) as failure:
                opened(path="/s", **{"tls-creds": name})
            assert words in str(failure.value)
    finally:
        for name in expected:
            objects.forget(name)


def test_secrets(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("c2VzYW1l\n")
    cases: list[tuple[dict[str, str], str | None]] = [
        ({"data": "sesame"}, "sesame"),
        ({"data": "c2VzYW1l", "format": "base64"}, "sesame"),
        ({"file": str(file), "format": "base64"}, "sesame"),
        ({"file": str(tmp_path / "nothing")}, None),
        ({"data": "!", "format": "base64"}, None),
    ]
    for properties, text in cases:
        objects.define(UserObject("secret", "s", properties))
        assert objects.secret("s") == text
    objects.forget("s")
    assert objects.secret("s") is None
