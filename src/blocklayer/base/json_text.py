# SPDX-License-Identifier: Apache-2.0
"""Short JSON texts, written without the library's `json` as far as nothing needs it.

Importing that brings regular expressions, and takes a third of the interpreter's start.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any


def json_text(value: Any) -> str:
    """What `json.dumps` makes of it: slower, but for what is short.

    Whole numbers and texts without anything to escape, in lists and dictionaries, are written here.
    """
    kind = type(value)
    if kind is int:
        return str(value)
    if kind is str and _is_plain(value):
        return f'"{value}"'
    if kind in (list, tuple):
        return "[" + ", ".join(map(json_text, value)) + "]"
    if kind is dict and all(type(name) is str for name in value):
        members = (f"{json_text(name)}: {json_text(member)}" for name, member in value.items())
        return "{" + ", ".join(members) + "}"
    import json

    return json.dumps(value)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text
