# SPDX-License-Identifier: Apache-2.0
"""What an image from a stranger may ask for. `docs/untrusted.md` is the contract.

Names that an image stores are judged here as text, before anything is touched; `core/beneath`
then opens what may be opened, and nothing else.
"""

from __future__ import annotations

import os

from blocklayer.base.errors import InvalidArgument, Refused
from blocklayer.base.options import parse_bool
from blocklayer.base.record import Record
from blocklayer.base.units import MiB, TiB, format_size, parse_size
from blocklayer.core import drivers

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from blocklayer.core.node import FormatNode

DEPTH_MAX = 8
"""Layers below an image: snapshots make a few, and each one keeps a descriptor and a lock."""

SIZE_MAX = 64 * TiB
"""What QED's default geometry can hold. A walk through an endless disk has no end."""

TABLE_MAX = 32 * MiB
"""One table of a QED image with clusters of 2 MiB; the format allows 1 GiB."""


_LIMITS = {"size": "size_max", "table-size": "table_max", "depth": "depth_max"}


class Trust(Record, frozen=True):
    """How far an image may be trusted that somebody else has made.

    folder      in which everything that it names must lie; None: the folder it lies in itself
    depth_max   layers below the image
    size_max    bytes of its disk, and of each disk below it
    table_max   bytes of one of its mapping tables
    probe       a backing file's format may be guessed where the image does not name it
    """

    folder: str | os.PathLike[str] | None = None
    depth_max: int = DEPTH_MAX
    size_max: int = SIZE_MAX
    table_max: int = TABLE_MAX
    probe: bool = False

    @classmethod
    def from_options(cls, options: dict[str, str], folder: str | None = None) -> Trust:
        """From texts: ``size``, ``table-size``, ``depth``, ``probe``. Raises `InvalidArgument`."""
        trust = cls(folder=folder)
        for name, value in options.items():
            if name == "probe":
                trust = trust.replace(probe=parse_bool(value, name))
            elif name in _LIMITS:
                trust = trust.replace(**{_LIMITS[name]: parse_size(value, name)})
            else:
                known = ", ".join([*_LIMITS, "probe"])
                raise InvalidArgument(f"Invalid limit '{name}': there are {known}")
        return trust

    def anchored(self, image: str) -> Trust:
        """With the real path of the folder: links on the way to it are the user's own."""
        folder = os.fspath(self.folder) if self.folder is not None else os.path.dirname(image)
        return self.replace(folder=os.path.realpath(folder or "."))

    def check_given(self, name: object) -> None:
        """A text that names the image is a path: it may come from a stranger like the image."""
        if isinstance(name, (str, os.PathLike)):
            text = os.fspath(name)
            protocol = protocol_of(text.removeprefix("file:")) if isinstance(text, str) else None
            if protocol is not None:
                raise Refused(
                    f"'{printable(text)}' is no path: images that are not trusted are named by"
                    " paths, or by options that the caller has put together",
                    printable(text),
                )

    def check_limits(self, node: FormatNode) -> None:
        """Sizes that cost whoever only looks at them. Raises `Refused`."""
        for reason in self.exceeded(node):
            raise Refused(reason, node.filename)

    def exceeded(self, node: FormatNode) -> Iterator[str]:
        """What of an image's sizes is more than may be, in words."""
        for what, limit, found, most in (
            ("its disk", "size", node.size, self.size_max),
            ("each of its tables", "table-size", node.table_bytes, self.table_max),
        ):
            if found > most:
                yield (
                    f"{what} has {format_size(found)} ({found} bytes), more than the"
                    f" {format_size(most)} that are allowed; raise the limit '{limit}' to open it"
                )

    def check_depth(self, layers: int, node: FormatNode) -> None:
        """`layers` counts those below the top, up to the one that is wanted now."""
        if layers > self.depth_max:
            raise Refused(
                f"its backing chain has more than the {self.depth_max} layers that are allowed;"
                " raise the limit 'depth' to open it",
                node.filename,
            )

    def check_stored(self, node: FormatNode, name: str) -> tuple[str, list[str]]:
        """The path of what `node` names, and its parts below the folder. Raises `Refused`."""
        reason = self.reason_against(node.filename, name, node.backing_format)
        if reason is not None:
            raise Refused(reason, node.filename)
        folder = parts_of(str(self.folder))
        path = joined(node.filename, name, folder)
        return path, path.split("/")[len(folder) + 1 :]

    def reason_against(self, image: str, name: str, format_name: str | None) -> str | None:
        """Why `image` may not have what it names; None if nothing in the name is against it.

        The folder must be anchored. Nothing is touched.
        """
        shown = f"its backing file '{printable(name)}'"
        protocol = protocol_of(name)
        if protocol is not None:
            return f"{shown} is no path but a '{protocol}:' name, which may reach for anything"
        folder = parts_of(str(self.folder))
        path = joined(image, name, folder)
        if not (_is_below(folder, path) and _is_below(folder, os.path.normpath(path))):
            return outside(shown, path, str(self.folder))
        if format_name is None and not self.probe:
            return (
                f"{shown} would be opened in a format that is guessed from its content, because"
                " the image does not name one; allow this with 'probe=on' if the folder holds only"
                " files of the same origin"
            )
        if format_name is not None and not _is_format(format_name):
            return f"{shown} is of format '{printable(format_name)}', which is not known here"
        return None


def outside(shown: str, path: str, folder: str) -> str:
    """The sentence for what is not in the folder."""
    return (
        f"{shown} lies outside the folder '{folder}': it would be"
        f" '{printable(os.path.normpath(path))}'; put it into this folder, or name a folder that"
        " holds both"
    )


def printable(text: str) -> str:
    """Names made by strangers may hold what moves a terminal's cursor."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def protocol_of(name: str) -> str | None:
    """What stands before a colon, where that is no part of a file's name."""
    prefix, colon, _ = name.partition(":")
    return printable(prefix) if colon and len(prefix) > 1 and "/" not in prefix else None


def parts_of(path: str) -> list[str]:
    """The names on the way to an absolute path."""
    return [part for part in path.split("/") if part]


def _is_format(name: str) -> bool:
    return drivers.is_known(name) and drivers.load(name).kind == drivers.FORMAT


def joined(image: str, name: str, folder: list[str]) -> str:
    """A stored name as an absolute path without empty parts and dots.

    A ``..`` stays where it may follow a link that a stranger has made.
    """
    if os.path.isabs(name):
        return _path(name, [])
    base = os.path.dirname(image)
    if _is_below(folder, base):
        return _path(name, parts_of(base))
    # The user named this image. Links on the way to it are the user's, and are followed.
    real = parts_of(os.path.realpath(base or "."))
    steps = [step for step in name.split("/") if step != "."]
    while steps and steps[0] == "..":
        del steps[0], real[-1:]
    return _path("/".join(steps), real)


def _path(name: str, base: list[str]) -> str:
    slash = "/" if name.endswith(("/", "/.")) else ""
    return "/" + "/".join([*base, *(part for part in parts_of(name) if part != ".")]) + slash


def _is_below(folder: list[str], path: str) -> bool:
    return os.path.isabs(path) and parts_of(path)[: len(folder)] == folder


class Reach(Record, frozen=True):
    """Something that an image asks for.

    what     ``backing file``, ``name in a backing file's options``, ``size``
    name     as stored in the image
    path     what would be opened, links not looked at; None where it is no path
    refused  why it would be refused, None if it would be tried
    """

    what: str
    name: str
    path: str | None
    refused: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = {key: value for key, value in super().as_dict().items() if value is not None}
        return {**fields, "allowed": self.refused is None}


def reaches(node: FormatNode, trust: Trust) -> list[Reach]:
    """Everything that an image asks for; nothing is opened, nor looked at."""
    trust = trust.anchored(node.filename)
    found = [Reach("size", str(node.size), None, reason) for reason in trust.exceeded(node)]
    name = node.backing_filename
    if name is None:
        return found
    reason = trust.reason_against(node.filename, name, node.backing_format)
    path = None
    if not protocol_of(name):
        path = os.path.normpath(joined(node.filename, name, parts_of(str(trust.folder))))
    found.append(Reach("backing file", name, path, reason))
    if name.startswith("json:"):
        found += [
            Reach("name in a backing file's options", inner, None, "a part of a 'json:' name")
            for inner in _names_in_json(name[5:])
        ]
    return found


def _names_in_json(text: str) -> list[str]:
    """Every text in a JSON document that could name something."""
    import json

    try:
        pending = [json.loads(text)]
    except (ValueError, RecursionError):
        return []
    names = []
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += [inner for key, inner in value.items() if not key.endswith("driver")]
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str):
            names.append(value)
    return names
