# SPDX-License-Identifier: Apache-2.0
"""Drivers by name. This module knows names and signatures; code is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.modules import module_named
from blocklayer.base.record import Record

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.base.options import OptionTree
    from blocklayer.core.node import Node
    from blocklayer.core.opening import Opener

PROTOCOL = "protocol"
FORMAT = "format"
FILTER = "filter"


class CreateOption(Record, frozen=True):
    """An option of `create`: its name and what `-o help` says of it."""

    name: str
    kind: str
    help: str
    default: str = ""


class Driver(Record, frozen=True):
    """What a driver module offers under the name DRIVER.

    open      (opener, options) -> node; takes what it knows out of `options`
    create    (storage, options) -> None; formats only: writes a new image into empty storage
    resolve   (options) -> options; checks and completes create options, before anything is touched
    measure   (resolved options, data ranges) -> (required, fully allocated) bytes
    """

    name: str
    kind: str
    open: Callable[[Opener, OptionTree], Node]
    create: Callable[[Node, dict[str, Any]], None] | None = None
    resolve: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    measure: Callable[[dict[str, Any], Iterable[tuple[int, int]]], tuple[int, int]] | None = None
    create_options: tuple[CreateOption, ...] = ()


_MODULES = {
    "file": "blocklayer.protocols.file",
    "host_device": "blocklayer.protocols.file",
    "memory": "blocklayer.protocols.memory",
    "null": "blocklayer.protocols.null",
    "null-co": "blocklayer.protocols.null",
    "null-aio": "blocklayer.protocols.null",
    "nbd": "blocklayer.protocols.nbd",
    "raw": "blocklayer.formats.raw",
    "qed": "blocklayer.formats.qed.driver",
    "fault": "blocklayer.filters.fault",
    "blkdebug": "blocklayer.filters.fault",
    "verify": "blocklayer.filters.verify",
    "blkverify": "blocklayer.filters.verify",
    "copy_on_read": "blocklayer.filters.copy_on_read",
    "copy-on-read": "blocklayer.filters.copy_on_read",
    "throttle": "blocklayer.filters.throttle",
    "write_log": "blocklayer.filters.write_log",
    "blklogwrites": "blocklayer.filters.write_log",
}

TOLD_NAMES = ("blkdebug", "blkverify", "blklogwrites", "null-aio")
"""Names of QEMU's by which a node is called if it was opened by them: programs look for them."""

_SCHEMES = dict.fromkeys(
    (
        *("nbd", "nbd+tcp", "nbd+unix", "nbd+vsock"),
        *("nbds", "nbds+tcp", "nbds+unix", "nbds+vsock"),
    ),
    "nbd",
)
"""Protocols by what names of theirs begin with."""

FORMATS = ("qed", "raw")
"""Formats that images can be created in, as listed for people."""

_SIGNATURES = (("qed", 0, b"QED\0"),)

_FOREIGN_SIGNATURES = (
    ("qcow", 0, b"QFI\xfb\x00\x00\x00\x01"),
    ("qcow2", 0, b"QFI\xfb"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
)

PROBE_LENGTH = 512
"""Bytes at the start of an image that probing looks at."""


def load(name: object) -> Driver:
    """The driver called `name`. Raises `InvalidArgument` for names nobody has."""
    module = _MODULES.get(name) if isinstance(name, str) else None
    if module is None:
        raise InvalidArgument(f"Unknown driver '{name}'")
    driver: Driver = module_named(module).DRIVER
    return driver


def is_known(name: str) -> bool:
    """Whether there is a driver of that name."""
    return name in _MODULES


def of_scheme(name: str) -> str | None:
    """The protocol that understands a name, by what stands before its first colon."""
    scheme, colon, _ = name.partition(":")
    return _SCHEMES.get(scheme) if colon else None


def probe_signature(head: bytes | bytearray) -> str | None:
    """The format whose signature `head` carries; None for none, which makes it raw."""
    for name, offset, signature in _SIGNATURES:
        if head.startswith(signature, offset) and len(head) >= 64:
            return name
    return None


def foreign_signature(head: bytes | bytearray) -> str | None:
    """A known format that this package cannot open: treating it as raw would be a mistake."""
    for name, offset, signature in _FOREIGN_SIGNATURES:
        if head.startswith(signature, offset):
            return name
    return None
