# SPDX-License-Identifier: Apache-2.0
"""docs/qmp.md, from the declarations: ``python -m blocklayer.qmp.reference > docs/qmp.md``."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, get_args

from msgspec import Struct, inspect

from blocklayer.qmp.commands import FAMILIES
from blocklayer.qmp.introspect import common_base
from blocklayer.qmp.schema.events import EVENTS
from blocklayer.qmp.types import Command
from blocklayer.qmp.validate import type_of

_ENTRY = re.compile(r"(\S+)  +(\S.*)")


class Row(NamedTuple):
    """A member of an object, for people."""

    name: str
    kind: str
    required: bool
    about: str


def choices(declared: Any) -> dict[str, Any]:
    """The objects that a tag tells apart, by tag; none if there is no tag."""
    classes = _classes(declared)
    return {each.__struct_config__.tag: each for each in classes if each.__struct_config__.tag}


def _classes(declared: Any) -> list[Any]:
    candidates = get_args(declared) if isinstance(declared, types.UnionType) else (declared,)
    return [each for each in candidates if isinstance(each, type) and issubclass(each, Struct)]


def member_rows(cls: Any, *, without: Iterable[str] = ()) -> list[Row]:
    """The members of an object in the order of their declaration."""
    kind = type_of(cls)
    assert isinstance(kind, inspect.StructType)
    texts = member_texts(cls)
    return [
        Row(field.encode_name, _kind(field.type), field.required, texts.get(field.encode_name, ""))
        for field in kind.fields
        if field.name not in without
    ]


def member_texts(cls: Any) -> dict[str, str]:
    """What the docstrings of a struct, and of those it is derived from, say of its members."""
    texts: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        lines = (each.__dict__.get("__doc__") or "").splitlines()
        name = ""
        for line in map(str.rstrip, lines[1:]):
            text = line.removeprefix("    ")
            entry = _ENTRY.fullmatch(text)
            if entry:
                name = entry[1]
                texts[name] = entry[2]
            elif name and text.startswith(" "):
                texts[name] += " " + text.strip()
            else:
                name = ""
    return texts


def _kind(kind: inspect.Type) -> str:
    """A type in a few words."""
    if isinstance(kind, inspect.Metadata):
        title = (kind.extra_json_schema or {}).get("title", "")
        if title.startswith("Blockdev"):
            return "node"
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        parts = [each for each in kind.types if not isinstance(each, inspect.NoneType)]
        words = dict.fromkeys(_kind(each) for each in parts)
        return " or ".join(words)
    if isinstance(kind, inspect.ListType):
        return f"list of {_kind(kind.item_type)}"
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(str(value) for value in kind.values)
    return {
        inspect.StrType: "string",
        inspect.IntType: "integer",
        inspect.BoolType: "boolean",
        inspect.StructType: "object",
        inspect.AnyType: "anything",
    }[type(kind)]


# --- the document -------------------------------------------------------------------------------


def document() -> str:
    """The whole page."""
    lines = [
        "# QMP commands",
        "",
        "Made from the declarations in `blocklayer.qmp` by `make docs`.",
        "How to start a daemon, and how it differs from QEMU's, is in [daemon.md](daemon.md).",
        "Arguments that may be left out are marked with `?`.",
    ]
    for family in FAMILIES:
        lines += ["", f"## {family.title}"]
        for command in family.commands:
            lines += _command(command)
    lines += ["", "## Events"]
    for name, cls in sorted(EVENTS.items()):
        lines += ["", f"### {name}", "", _about(cls), "", *_table(cls)]
    return "\n".join(lines) + "\n"


def _about(cls: Any) -> str:
    return (cls.__doc__ or "").partition("\n")[0]


def _command(command: Command) -> Iterator[str]:
    yield ""
    yield f"### {command.name}"
    yield ""
    yield command.about.partition("\n")[0]
    if command.features:
        yield ""
        yield f"Features: {', '.join(command.features)}."
    yield from _arguments(command.arguments)
    if command.returns is not None:
        yield ""
        yield f"Returns: {_returned(command.returns)}"
        yield from _result(command.returns)


def _arguments(declared: Any) -> Iterator[str]:
    cases = choices(declared)
    if not cases:
        yield from _spaced(_table(declared))
        return
    classes = list(cases.values())
    base = common_base(classes)
    tag = classes[0].__struct_config__.tag_field
    yield ""
    yield f"`{tag}` is one of {', '.join(f'`{case}`' for case in cases)}. All of them have:"
    shared = set(base.__struct_fields__) if base is not None else set()
    if base is not None:
        yield from _spaced(_table(base))
    for case, cls in cases.items():
        yield ""
        yield f"**`{case}`**: {_about(cls)}"
        yield from _spaced(_table(cls, without=shared))


def _spaced(lines: list[str]) -> list[str]:
    return ["", *lines] if lines else []


def _table(cls: Any, *, without: Iterable[str] = ()) -> list[str]:
    rows = member_rows(cls, without=without)
    if not rows:
        return []
    lines = ["| argument | type | |", "|---|---|---|"]
    for row in rows:
        mark = "" if row.required else "?"
        lines.append(f"| `{row.name}`{mark} | {row.kind} | {row.about} |")
    return lines


def _returned(declared: Any) -> str:
    return _kind(type_of(declared)) + "."


def _result(declared: Any) -> Iterator[str]:
    inner = get_args(declared)[0] if get_args(declared) else declared
    if inner is not Any and not choices(inner) and _classes(inner):
        yield ""
        yield f"{_about(inner)}"
        yield from _spaced(_table(inner))


if __name__ == "__main__":
    sys.stdout.write(document())
