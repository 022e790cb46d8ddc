# SPDX-License-Identifier: Apache-2.0
"""What nodes may be called."""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument

NAME_MAX = 31


def check_name(name: object) -> str:
    """Raise `InvalidArgument` unless a node may have this name."""
    if not isinstance(name, str):
        raise InvalidArgument("Invalid parameter type for 'node-name', expected: string")
    if not is_well_formed(name):
        raise InvalidArgument(f"Invalid node-name: '{name}'")
    if len(name.encode()) > NAME_MAX:
        raise InvalidArgument("Node name too long")
    return name


def is_well_formed(name: str) -> bool:
    """Whether a name can be an id: a letter, then letters, digits, ``-``, ``.``, ``_``."""
    return (
        name.isascii()
        and name[:1].isalpha()
        and all(character.isalnum() or character in "-._" for character in name)
    )
