# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests of TLS, made by openssl: a folder as `tls-creds-x509` objects want it."""

import subprocess
from pathlib import Path

SERVER_NAME = "localhost"
CLIENT_NAME = "tester"

_CONFIG = """\
[req]
distinguished_name = name
prompt = no
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = clientAuth
"""


def make_certificates(folder: Path) -> Path:
    """An authority, a server called localhost and a client called tester, all in one folder."""
    folder.mkdir()
    config = folder / "openssl.cnf"
    config.write_text(_CONFIG)
    _request(folder, "ca", "/CN=Test authority", "authority")
    _signed(folder, "server", f"/C=GB/O=Example/CN={SERVER_NAME}")
    _signed(folder, "client", f"/C=GB/O=Example/CN={CLIENT_NAME}")
    return folder


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


def _key(folder: Path, who: str) -> Path:
    key = folder / f"{who}-key.pem"
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
    return key


def _request(folder: Path, who: str, subject: str, section: str) -> None:
    _openssl(
        *("req", "-new", "-x509", "-days", "2", "-config", folder / "openssl.cnf"),
        *("-extensions", section, "-subj", subject),
        *("-key", _key(folder, who), "-out", folder / f"{who}-cert.pem"),
    )


def _signed(folder: Path, who: str, subject: str) -> None:
    request = folder / f"{who}.csr"
    _openssl(
        *("req", "-new", "-config", folder / "openssl.cnf", "-subj", subject),
        *("-key", _key(folder, who), "-out", request),
    )
    _openssl(
        *("x509", "-req", "-days", "2", "-in", request, "-CAcreateserial"),
        *("-CA", folder / "ca-cert.pem", "-CAkey", folder / "ca-key.pem"),
        *("-extfile", folder / "openssl.cnf", "-extensions", who),
        *("-out", folder / f"{who}-cert.pem"),
    )
