# SPDX-License-Identifier: Apache-2.0
"""Arguments and results of the commands about the monitor and the daemon."""

from __future__ import annotations

from typing import Any, Literal

from blocklayer.qmp.types import Answer, Int, Members


class Capabilities(Members, kw_only=True):
    """What the client wants to use.

    enable  capabilities of the greeting
    """

    enable: list[Literal["oob"]] | None = None


class VersionTriple(Answer, kw_only=True):
    """A version number."""

    major: Int
    minor: Int
    micro: Int


class VersionInfo(Answer, kw_only=True):
    """The version; `qemu` is the one whose protocol this is."""

    qemu: VersionTriple
    package: str


class CommandInfo(Answer, kw_only=True):
    """A command."""

    name: str


class StatusInfo(Answer, kw_only=True, omit_defaults=False):
    """What runs: nodes do, whenever there is a daemon."""

    running: bool
    status: Literal["running", "shutdown"]


class HumanCommand(Members, kw_only=True):
    """A command for people.

    command-line  the command: help lists them
    cpu-index     accepted; there are no processors
    """

    command_line: str
    cpu_index: Int | None = None


class ChardevInfo(Answer, kw_only=True):
    """A character device."""

    label: str
    filename: str
    frontend_open: bool


class ChardevBackendInfo(Answer, kw_only=True):
    """A kind of character device."""

    name: str


class ObjectDel(Members, kw_only=True):
    """Which object to delete.

    id  its name
    """

    id: str


Schema = list[Any]
"""query-qmp-schema's answer describes itself in QEMU's documentation of SchemaInfo."""
