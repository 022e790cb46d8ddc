# SPDX-License-Identifier: Apache-2.0
"""``--blockdev help``, ``--export nbd,help`` …: what the daemon's options take."""

from __future__ import annotations

from blocklayer.cli.parsing import Arguments

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

_ASKS = ("help", "?")


def told(arguments: Arguments) -> str | None:
    """What somebody asks for; None if nobody does."""
    for key in ("blockdev", "export", "nbd-server", "object", "chardev", "monitor"):
        for text in arguments.all(key):
            words = text.split(",")
            if not text.startswith("{") and any(word in _ASKS for word in words):
                return _about(key, "" if words[0] in _ASKS else words[0].rpartition("=")[2])
    return None


def _about(key: str, first: str) -> str:
    from blocklayer.qmp import chardev
    from blocklayer.qmp.schema import blockdev, exports, objects

    if key == "chardev":
        return "\n".join(["Available chardev backend types:", *map("  {}".format, chardev.KINDS)])
    if key == "monitor":
        return "monitor options:\n  chardev=<id>\n  mode=control\n  pretty=<bool (on/off)>"
    declared, title = {
        "blockdev": (blockdev.Blockdevs, "Drivers:"),
        "export": (exports.NbdExport, "Export types:"),
        "nbd-server": (exports.NbdServerOptions, "nbd-server options:"),
        "object": (objects.Objects, "List of user creatable objects:"),
    }[key]
    return _listing(declared, title, first)


def _listing(declared: Any, title: str, first: str) -> str:
    from blocklayer.qmp.reference import choices, member_rows

    cases = choices(declared)
    if cases and first in cases:
        rows = member_rows(cases[first])
        title = f"{first} options:"
    elif cases:
        return "\n".join([title, *(f"  {tag}" for tag in cases)])
    else:
        rows = member_rows(declared)
    lines = [f"  {row.name}=<{row.kind}>".ljust(36) + f" - {row.about}" for row in rows]
    return "\n".join([title, *lines])
