# SPDX-License-Identifier: Apache-2.0
"""TLS credentials: what makes a context, what is refused, and whom a context trusts."""

import socket
import ssl
import threading
from pathlib import Path

import pytest

from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.nbd import tls
from tests.support import needs
from tests.support.certificates import make_certificates

pytestmark = needs("openssl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls") / "pki")


def creds(folder: Path, endpoint: str, **properties: object) -> tls.TlsCredentials:
    options = {"endpoint": endpoint, "dir": str(folder), **properties}
    return tls.credentials(tls.X509, options, endpoint=endpoint)


def shake(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> tuple[str, str]:
    """Whom server and client see; raises what the client's side or else the server's meets."""
    ours, theirs = socket.socketpair()
    failures: list[OSError] = []
    seen: list[str] = []

    def serve() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as stream:
                seen.append(tls.distinguished_name(stream.getpeercert()))
                stream.send(b"welcome")
        except OSError as error:
            failures.append(error)
        finally:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name) as stream:
            assert stream.recv(7) == b"welcome"
            found = tls.distinguished_name(stream.getpeercert())
    finally:
        ours.close()
        thread.join()
    assert not failures
    return seen[0], found


def test_both_sides_know_each_other(folder: Path) -> None:
    server = tls.server_context(creds(folder, "server"))
    client = tls.client_context(creds(folder, "client"), check_hostname=True)
    assert shake(server, client, "localhost") == (
        "CN=tester,O=Example,C=GB",
        "CN=localhost,O=Example,C=GB",
    )


def test_a_server_of_another_name_is_refused(folder: Path) -> None:
    server = tls.server_context(creds(folder, "server"))
    client = tls.client_context(creds(folder, "client"), check_hostname=True)
    with pytest.raises(ssl.SSLCertVerificationError) as failure:
        shake(server, client, "elsewhere.example")
    assert "elsewhere.example" in tls.reason_of(failure.value)


def test_a_stranger_is_refused(folder: Path, tmp_path: Path) -> None:
    strangers = make_certificates(tmp_path / "strangers")
    server = tls.server_context(creds(strangers, "server", **{"verify-peer": "off"}))
    client = tls.client_context(creds(folder, "client"), check_hostname=False)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(server, client, None)
    careless = tls.client_context(
        creds(folder, "client", **{"verify-peer": False}), check_hostname=True
    )
    assert shake(server, careless, "localhost")[0] == ""


def test_a_server_wants_certificates_of_its_clients(folder: Path, tmp_path: Path) -> None:
    nameless = tmp_path / "nameless"
    nameless.mkdir()
    (nameless / "ca-cert.pem").write_bytes((folder / "ca-cert.pem").read_bytes())
    client = tls.client_context(creds(nameless, "client"), check_hostname=True)
    with pytest.raises(OSError):
        shake(tls.server_context(creds(folder, "server")), client, "localhost")
    careless = tls.server_context(creds(folder, "server", **{"verify-peer": "no"}))
    assert shake(careless, client, "localhost")[0] == ""


def test_credentials_name_what_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgument, match=r"Unable to access credentials .*ca-cert\.pem: No such"
    ):
        tls.client_context(creds(tmp_path, "client"), check_hostname=True)
    (tmp_path / "ca-cert.pem").write_text("nonsense")
    with pytest.raises(InvalidArgument, match=r"Unable to import credentials .*ca-cert\.pem"):
        tls.client_context(creds(tmp_path, "client"), check_hostname=True)


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"endpoint": "server", "dir": "d"}, "Expecting TLS credentials with a client endpoint"),
        ({"endpoint": "both", "dir": "d"}, "'endpoint' does not accept value 'both'"),
        ({"endpoint": "client"}, "Missing 'dir'"),
        ({"dir": "d", "colour": "red"}, "Property 'tls-creds-x509.colour' not found"),
        ({"dir": "d", "verify-peer": "maybe"}, "'verify-peer' expects 'on' or 'off'"),
        ({"dir": "d", "passwordid": "s0"}, "No secret with id 's0'"),
    ],
)
def test_wrong_properties(properties: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        tls.credentials(tls.X509, properties, endpoint="client")


def test_what_is_not_supported() -> None:
    with pytest.raises(NotSupported, match="pre-shared keys"):
        tls.credentials("tls-creds-psk", {"dir": "d"}, endpoint="client")
    with pytest.raises(NotSupported, match="anonymous"):
        tls.credentials("tls-creds-anon", {}, endpoint="client")
    with pytest.raises(InvalidArgument, match="not TLS credentials"):
        tls.credentials("secret", {}, endpoint="client")
    with pytest.raises(NotSupported, match="GnuTLS"):
        tls.credentials(tls.X509, {"dir": "d", "priority": "SECURE256"}, endpoint="client")


def test_names_are_written_as_gnutls_does() -> None:
    subject = ((("countryName", "GB"),), (("organizationName", "A, B"),), (("commonName", "#x "),))
    assert tls.distinguished_name({"subject": subject}) == r"CN=\#x\ ,O=A\, B,C=GB"
    assert tls.distinguished_name({"subject": ((("commonName", " "),),)}) == r"CN=\ "
    assert tls.distinguished_name(None) == ""
