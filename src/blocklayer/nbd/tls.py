# SPDX-License-Identifier: Apache-2.0
"""TLS for both sides: from QEMU's `tls-creds-x509` objects to contexts of Python's `ssl`.

A credentials object is a folder with files of fixed names:

    ca-cert.pem                            whom to trust; both sides need it
    ca-crl.pem                             whom not any more; optional
    server-cert.pem, server-key.pem        who a server is; it needs them
    client-cert.pem, client-key.pem        who a client is, for servers that want to know

Nothing here talks to a socket: callers wrap theirs with the context.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping

from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.base.options import parse_bool
from blocklayer.base.record import Record

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    import ssl
    from typing import Any, Final

CLIENT: Final = "client"
SERVER: Final = "server"

X509: Final = "tls-creds-x509"
_KINDS_WITHOUT_CERTIFICATES = {
    "tls-creds-psk": "pre-shared keys need Python 3.13 or newer, and are not supported yet",
    "tls-creds-anon": "anonymous TLS protects from nobody who can intercept, and is not supported",
}
_PROPERTIES = frozenset(
    {"endpoint", "dir", "verify-peer", "priority", "sanity-check", "passwordid"}
)
_PRIORITIES = ("", "NORMAL", "@SYSTEM")
"""GnuTLS's words for what OpenSSL does by default. Others have no translation."""


class TlsCredentials(Record, frozen=True):
    """A `tls-creds-x509` object.

    folder       `dir`
    verify_peer  a server wants a certificate of each client; a client checks the server's
    password     of an encrypted key
    """

    folder: str
    endpoint: str
    verify_peer: bool = True
    password: str | None = None

    def path(self, name: str) -> str:
        """The file `name`, which has to be there. Raises `InvalidArgument`."""
        path = os.path.join(self.folder, name)
        if not os.access(path, os.R_OK):
            reason = os.strerror(errno.EACCES if os.path.exists(path) else errno.ENOENT)
            raise InvalidArgument(f"Unable to access credentials {path}: {reason}")
        return path

    def has(self, name: str) -> bool:
        """Whether there is a file `name`."""
        return os.path.exists(os.path.join(self.folder, name))


def credentials(
    kind: str, properties: Mapping[str, Any], *, endpoint: str, password: str | None = None
) -> TlsCredentials:
    """What an object's properties say, for use as `endpoint`.

    Raises `NotSupported` for kinds without certificates, `InvalidArgument` for what makes no sense.
    """
    if kind in _KINDS_WITHOUT_CERTIFICATES:
        raise NotSupported(f"{kind}: {_KINDS_WITHOUT_CERTIFICATES[kind]}")
    if kind != X509:
        raise InvalidArgument(f"'{kind}' objects are not TLS credentials")
    for name in properties.keys() - _PROPERTIES:
        raise InvalidArgument(f"Property '{X509}.{name}' not found")
    found = properties.get("endpoint", CLIENT)
    if found not in (CLIENT, SERVER):
        raise InvalidArgument(f"Parameter 'endpoint' does not accept value '{found}'")
    if found != endpoint:
        raise InvalidArgument(f"Expecting TLS credentials with a {endpoint} endpoint")
    folder = _folder(properties)
    if properties.get("priority", "") not in _PRIORITIES:
        raise NotSupported(
            f"TLS priority '{properties['priority']}': priorities are GnuTLS's and mean nothing to"
            " OpenSSL, which is used here; leave the property out"
        )
    if "passwordid" in properties and password is None:
        raise InvalidArgument(f"No secret with id '{properties['passwordid']}'")
    verify = parse_bool(properties.get("verify-peer", True), "verify-peer")
    return TlsCredentials(folder, endpoint, verify, password)


def check_certificates(properties: Mapping[str, Any], password: Callable[[], str | None]) -> None:
    """Whether a `tls-creds-x509` object can be used. Raises `InvalidArgument`.

    password  asked for if there is a key that it might belong to
    """
    server = properties.get("endpoint", CLIENT) == SERVER
    creds = TlsCredentials(_folder(properties), SERVER if server else CLIENT)
    creds.path("ca-cert.pem")
    who = creds.endpoint
    names = (f"{who}-cert.pem", f"{who}-key.pem")
    if server:
        for name in names:
            creds.path(name)
    if all(creds.has(name) for name in names):
        creds = creds.replace(password=password())
    if server:
        server_context(creds)
    else:
        client_context(creds, check_hostname=False)


def check_shared_keys(properties: Mapping[str, Any]) -> None:
    """The same for a `tls-creds-psk` object."""
    TlsCredentials(_folder(properties), CLIENT).path("keys.psk")


def _folder(properties: Mapping[str, Any]) -> str:
    folder = properties.get("dir")
    if not isinstance(folder, str) or not folder:
        raise InvalidArgument("Missing 'dir' property value")
    return folder


def server_context(creds: TlsCredentials) -> ssl.SSLContext:
    """For accepting clients. Raises `InvalidArgument` for files that are missing or wrong."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_identity(context, creds, "server")
    _load_authority(context, creds)
    context.verify_mode = ssl.CERT_REQUIRED if creds.verify_peer else ssl.CERT_NONE
    return context


def client_context(creds: TlsCredentials, *, check_hostname: bool) -> ssl.SSLContext:
    """For connecting. Raises `InvalidArgument` for files that are missing or wrong.

    check_hostname  the caller knows whom it wants to reach, and gives it as `server_hostname`;
                    without, any certificate of the authority will do
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = check_hostname and creds.verify_peer
    _load_authority(context, creds)
    if creds.has("client-cert.pem") or creds.has("client-key.pem"):
        _load_identity(context, creds, "client")
    if not creds.verify_peer:
        context.verify_mode = ssl.CERT_NONE
    return context


def public_context(*, check_hostname: bool) -> ssl.SSLContext:
    """For connecting to a server with a certificate that the system's authorities vouch for."""
    import ssl

    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = check_hostname
    return context


def _load_authority(context: ssl.SSLContext, creds: TlsCredentials) -> None:
    import ssl

    path = creds.path("ca-cert.pem")
    try:
        context.load_verify_locations(path)
        if creds.has("ca-crl.pem"):
            path = creds.path("ca-crl.pem")
            context.load_verify_locations(path)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (ssl.SSLError, OSError) as error:
        raise _unusable(path, error) from None


def _load_identity(context: ssl.SSLContext, creds: TlsCredentials, who: str) -> None:
    import ssl

    certificate, key = creds.path(f"{who}-cert.pem"), creds.path(f"{who}-key.pem")
    # Without one OpenSSL would ask at the terminal, and wait.
    password = creds.password or ""
    try:
        context.load_cert_chain(certificate, key, password=lambda: password)
    except (ssl.SSLError, OSError) as error:
        raise _unusable(f"{certificate}' with key '{key}", error) from None


def _unusable(path: str, error: OSError) -> InvalidArgument:
    return InvalidArgument(f"Unable to import credentials '{path}': {reason_of(error)}")


def reason_of(error: OSError) -> str:
    """Why TLS failed, in words for people."""
    detail = getattr(error, "verify_message", None)
    if detail:
        return f"the certificate cannot be trusted: {detail}"
    reason = getattr(error, "reason", None)
    if reason:
        return str(reason).lower().replace("_", " ")
    return error.strerror or str(error)


_SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "emailAddress": "EMAIL",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
"""Keywords of names, as GnuTLS and so QEMU's rules have them."""


def distinguished_name(certificate: Mapping[str, Any] | None) -> str:
    """Whom a peer's certificate (`getpeercert`) names: ``CN=laptop,O=Example,C=GB`` (RFC 4514).

    What authorisation lists of QEMU's are written in; empty without a certificate.
    """
    parts = []
    for relative in reversed((certificate or {}).get("subject", ())):
        names = (f"{_SHORT_NAMES.get(name, name)}={_escaped(value)}" for name, value in relative)
        parts.append("+".join(names))
    return ",".join(parts)


def _escaped(value: str) -> str:
    """A value inside a distinguished name (RFC 4514, section 2.4)."""
    text = "".join("\\" + c if c in '\\,+"<>;' else c for c in value)
    if text.startswith((" ", "#")):
        text = "\\" + text
    return text[:-1] + "\\ " if text.endswith(" ") and len(value) > 1 else text
