# SPDX-License-Identifier: Apache-2.0
"""Objects that options refer to: what object-add takes, and `--object`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from blocklayer.qmp.types import Int, Members


class Object(Members, kw_only=True, tag_field="qom-type"):
    """What every object has.

    id  its name
    """

    id: str


class Secret(Object, kw_only=True, tag="secret"):
    """A text that is not to be seen.

    data    the text
    file    the file that holds it
    format  raw, or base64
    keyid   another secret that decrypts it; not supported
    iv      for keyid
    """

    data: str | None = None
    file: str | None = None
    format: Literal["raw", "base64"] | None = None
    keyid: str | None = None
    iv: str | None = None


class _Tls(Object, kw_only=True):
    endpoint: Literal["client", "server"] | None = None
    dir: str | None = None
    verify_peer: bool | None = None
    priority: str | None = None


class TlsX509(_Tls, kw_only=True, tag="tls-creds-x509"):
    """Certificates for TLS.

    endpoint      for which side of a connection
    dir           the folder with ca-cert.pem, server-cert.pem, server-key.pem …
    verify-peer   the other side must have a certificate too
    priority      accepted
    sanity-check  accepted
    passwordid    secret that decrypts the key
    """

    sanity_check: bool | None = None
    passwordid: str | None = None


class TlsPsk(_Tls, kw_only=True, tag="tls-creds-psk"):
    """Shared keys for TLS.

    endpoint     for which side of a connection
    dir          the folder with keys.psk
    verify-peer  accepted
    priority     accepted
    username     of a client
    """

    username: str | None = None


class AuthzSimple(Object, kw_only=True, tag="authz-simple"):
    """One client may connect.

    identity  who: the distinguished name of its certificate
    """

    identity: str


class AuthzRule(Members, kw_only=True):
    """A rule of a list.

    match   the name, or a pattern
    policy  what becomes of a client that matches
    format  exact, or glob
    """

    match: str
    policy: Literal["deny", "allow"]
    format: Literal["exact", "glob"] | None = None


class AuthzList(Object, kw_only=True, tag="authz-list"):
    """Clients are judged by rules.

    policy  what becomes of a client that matches no rule (default: deny)
    rules   the first that matches decides
    """

    policy: Literal["deny", "allow"] | None = None
    rules: list[AuthzRule] | None = None


class AuthzListFile(Object, kw_only=True, tag="authz-list-file"):
    """Clients are judged by rules in a file.

    filename  a JSON file with the properties of an authz-list
    refresh   accepted: the file is read again whenever it has changed
    """

    filename: str
    refresh: bool | None = None


class Limits(Members, kw_only=True):
    """Limits of a group: averages, what may go beyond them, and for how many seconds.

    iops-total             operations a second
    iops-total-max         burst
    iops-total-max-length  seconds
    iops-read              reads a second
    iops-read-max          burst
    iops-read-max-length   seconds
    iops-write             writes a second
    iops-write-max         burst
    iops-write-max-length  seconds
    bps-total              bytes a second
    bps-total-max          burst
    bps-total-max-length   seconds
    bps-read               bytes read a second
    bps-read-max           burst
    bps-read-max-length    seconds
    bps-write              bytes written a second
    bps-write-max          burst
    bps-write-max-length   seconds
    iops-size              longer requests count as several; bytes
    """

    iops_total: Int | None = None
    iops_total_max: Int | None = None
    iops_total_max_length: Int | None = None
    iops_read: Int | None = None
    iops_read_max: Int | None = None
    iops_read_max_length: Int | None = None
    iops_write: Int | None = None
    iops_write_max: Int | None = None
    iops_write_max_length: Int | None = None
    bps_total: Int | None = None
    bps_total_max: Int | None = None
    bps_total_max_length: Int | None = None
    bps_read: Int | None = None
    bps_read_max: Int | None = None
    bps_read_max_length: Int | None = None
    bps_write: Int | None = None
    bps_write_max: Int | None = None
    bps_write_max_length: Int | None = None
    iops_size: Int | None = None


class ThrottleGroup(Object, kw_only=True, tag="throttle-group"):
    """Limits that several nodes share.

    limits                   the limits
    x-iops-total             over what limits says
    x-iops-total-max         over what limits says
    x-iops-total-max-length  over what limits says
    x-iops-read              over what limits says
    x-iops-read-max          over what limits says
    x-iops-read-max-length   over what limits says
    x-iops-write             over what limits says
    x-iops-write-max         over what limits says
    x-iops-write-max-length  over what limits says
    x-bps-total              over what limits says
    x-bps-total-max          over what limits says
    x-bps-total-max-length   over what limits says
    x-bps-read               over what limits says
    x-bps-read-max           over what limits says
    x-bps-read-max-length    over what limits says
    x-bps-write              over what limits says
    x-bps-write-max          over what limits says
    x-bps-write-max-length   over what limits says
    x-iops-size              over what limits says
    """

    limits: Limits | None = None
    x_iops_total: Int | None = None
    x_iops_total_max: Int | None = None
    x_iops_total_max_length: Int | None = None
    x_iops_read: Int | None = None
    x_iops_read_max: Int | None = None
    x_iops_read_max_length: Int | None = None
    x_iops_write: Int | None = None
    x_iops_write_max: Int | None = None
    x_iops_write_max_length: Int | None = None
    x_bps_total: Int | None = None
    x_bps_total_max: Int | None = None
    x_bps_total_max_length: Int | None = None
    x_bps_read: Int | None = None
    x_bps_read_max: Int | None = None
    x_bps_read_max_length: Int | None = None
    x_bps_write: Int | None = None
    x_bps_write_max: Int | None = None
    x_bps_write_max_length: Int | None = None
    x_iops_size: Int | None = None


class _Loop(Object, kw_only=True):
    aio_max_batch: Int | None = None
    thread_pool_min: Int | None = None
    thread_pool_max: Int | None = None


class Iothread(_Loop, kw_only=True, tag="iothread"):
    """Accepted, as QEMU's command lines have it; requests have threads anyway.

    poll-max-ns      accepted
    poll-grow        accepted
    poll-shrink      accepted
    aio-max-batch    accepted
    thread-pool-min  accepted
    thread-pool-max  accepted
    """

    poll_max_ns: Int | None = None
    poll_grow: Int | None = None
    poll_shrink: Int | None = None


class MainLoop(_Loop, kw_only=True, tag="main-loop"):
    """Accepted, as an iothread is.

    aio-max-batch    accepted
    thread-pool-min  accepted
    thread-pool-max  accepted
    """


class TlsAnonymous(_Tls, kw_only=True, tag="tls-creds-anon"):
    """TLS without certificates: accepted, but not to be used.

    endpoint     for which side of a connection
    dir          accepted
    verify-peer  accepted
    priority     accepted
    """


class TlsCipherSuites(Object, kw_only=True, tag="tls-cipher-suites"):
    """Accepted, as QEMU's command lines have it.

    priority  GnuTLS's name of the ciphers
    """

    priority: str | None = None


Objects: TypeAlias = (
    AuthzList
    | AuthzListFile
    | AuthzSimple
    | Iothread
    | MainLoop
    | Secret
    | ThrottleGroup
    | TlsAnonymous
    | TlsCipherSuites
    | TlsPsk
    | TlsX509
)
