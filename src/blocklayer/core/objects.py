# SPDX-License-Identifier: Apache-2.0
"""Objects that users define by id (`--object`, `object-add`), for options to refer to.

There is one table a process, as in QEMU: options name an object wherever they stand in a graph.
"""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.record import Record, fresh

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any


class UserObject(Record, frozen=True):
    """A definition: `kind` is QEMU's ``qom-type``."""

    kind: str
    name: str
    properties: dict[str, Any] = fresh(factory=dict)


_objects: dict[str, UserObject] = {}


def define(definition: UserObject) -> None:
    """Make an object known, in place of one that had its name."""
    _objects[definition.name] = definition


def find(name: str) -> UserObject | None:
    """The object called `name`."""
    return _objects.get(name)


def forget(name: str) -> None:
    """The object called `name` is no more."""
    _objects.pop(name, None)


def names() -> list[str]:
    """Of all objects."""
    return list(_objects)


def secret(name: object) -> str | None:
    """The text of a ``secret`` object, None if there is none of that name or it is unreadable."""
    definition = _objects.get(name) if isinstance(name, str) else None
    if definition is None or definition.kind != "secret":
        return None
    data = definition.properties.get("data")
    if data is None:
        try:
            with open(definition.properties["file"], encoding="utf-8") as file:
                data = file.read().rstrip("\n")
        except (OSError, KeyError, UnicodeDecodeError):
            return None
    if definition.properties.get("format", "raw") == "base64":
        import base64
        import binascii

        try:
            return base64.b64decode("".join(data.split()), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
    return str(data)


def tls_credentials(name: object) -> tuple[UserObject, str | None]:
    """The object that an option ``tls-creds`` names, and the password of its key, if it has one.

    Raises `InvalidArgument`. `nbd/tls.py` knows what its properties mean.
    """
    found = _objects.get(name) if isinstance(name, str) else None
    if found is None:
        raise InvalidArgument(f"No TLS credentials with id '{name}'")
    if not found.kind.startswith("tls-creds-"):
        raise InvalidArgument(f"Object with id '{name}' is not TLS credentials")
    return found, secret(found.properties.get("passwordid"))
