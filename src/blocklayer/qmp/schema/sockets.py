# SPDX-License-Identifier: Apache-2.0
"""Socket addresses, in the two forms that QEMU has for them."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import field

from blocklayer.qmp.types import Members, UInt16


class Inet(Members, kw_only=True):
    """A TCP address.

    host        name or address
    port        number or service
    numeric     host and port are numbers, not to be looked up
    to          the last port to try
    ipv4        use IPv4
    ipv6        use IPv6
    keep-alive  have the connection tested while it is idle
    """

    host: str
    port: str
    numeric: bool | None = None
    to: UInt16 | None = None
    ipv4: bool | None = None
    ipv6: bool | None = None
    keep_alive: bool | None = None


class Unix(Members, kw_only=True):
    """A socket in the file system.

    path      its path
    abstract  in Linux's abstract name space
    tight     the abstract name is not padded
    """

    path: str
    abstract: bool | None = None
    tight: bool | None = None


class Descriptor(Members, kw_only=True):
    """A socket that was passed on.

    str  number of the file descriptor
    """

    str_: str = field(name="str")


class InetAddress(Inet, kw_only=True, tag_field="type", tag="inet"):
    """A TCP address."""


class UnixAddress(Unix, kw_only=True, tag_field="type", tag="unix"):
    """A socket in the file system."""


class DescriptorAddress(Descriptor, kw_only=True, tag_field="type", tag="fd"):
    """A socket that was passed on."""


SocketAddress: TypeAlias = InetAddress | UnixAddress | DescriptorAddress


class LegacyAddress(Members, kw_only=True, tag_field="type"):
    """A socket address, as QMP commands have it."""


class LegacyInet(LegacyAddress, kw_only=True, tag="inet"):
    """TCP.

    data  the address
    """

    data: Inet


class LegacyUnix(LegacyAddress, kw_only=True, tag="unix"):
    """A socket in the file system.

    data  the address
    """

    data: Unix


class LegacyDescriptor(LegacyAddress, kw_only=True, tag="fd"):
    """A socket that was passed on.

    data  the socket
    """

    data: Descriptor


LegacyAddresses: TypeAlias = LegacyInet | LegacyUnix | LegacyDescriptor
