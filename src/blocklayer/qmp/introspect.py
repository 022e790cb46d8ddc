# SPDX-License-Identifier: Apache-2.0
"""query-qmp-schema: the declarations in QEMU's form of introspection.

Types have numbers for names, as QEMU masks them, so that nobody relies on a name: two types that
look the same are the same to a client. ``0`` is the empty object.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import inspect

from blocklayer.qmp.types import Command, Members, Nothing
from blocklayer.qmp.validate import type_of

_BUILTIN = {
    inspect.StrType: ("str", "string"),
    inspect.IntType: ("int", "int"),
    inspect.BoolType: ("bool", "boolean"),
    inspect.AnyType: ("any", "value"),
    inspect.NoneType: ("null", "null"),
}


def schema(commands: Iterable[Command], events: dict[str, Any]) -> list[dict[str, Any]]:
    """Every command and event, and every type that they need."""
    builder = _Builder()
    for command in commands:
        builder.add_command(command)
    for name, members in events.items():
        entry = {"name": name, "meta-type": "event", "arg-type": builder.name(type_of(members))}
        builder.entries.append(entry)
    return builder.entries + builder.types


class _Builder:
    """Collects types as they are met."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.types: list[dict[str, Any]] = []
        self._names: dict[Any, str] = {}
        self._next = 0
        self.name(type_of(Nothing))

    def add_command(self, command: Command) -> None:
        """One command."""
        entry: dict[str, Any] = {
            "name": command.name,
            "meta-type": "command",
            "arg-type": self.name(type_of(command.arguments)),
            "ret-type": self.name(type_of(Nothing if command.returns is None else command.returns)),
        }
        self.entries.append(_with_features(entry, command.features))

    # --- types ----------------------------------------------------------------------------------

    def name(self, kind: inspect.Type) -> str:
        """The name of a type, which is described if it is new."""
        alternate = False
        if isinstance(kind, inspect.Metadata):
            alternate = "title" in (kind.extra_json_schema or {})
            kind = kind.type
        if isinstance(kind, inspect.UnionType):
            return self._union(kind, alternate=alternate)
        if isinstance(kind, inspect.ListType):
            return self._list(kind)
        if isinstance(kind, inspect.LiteralType):
            return self._enum({str(value): () for value in kind.values})
        if isinstance(kind, inspect.StructType):
            return self._object(kind)
        name, json_type = _BUILTIN[type(kind)]
        if name not in self._names:
            self._names[name] = name
            self.types.append({"name": name, "meta-type": "builtin", "json-type": json_type})
        return name

    def _described(self, key: Any, name: str | None = None) -> tuple[str, dict[str, Any] | None]:
        """The name of a type, and its new description to be filled in; None if it is known."""
        known = self._names.get(key)
        if known is not None:
            return known, None
        if name is None:
            name = str(self._next)
            self._next += 1
        self._names[key] = name
        description: dict[str, Any] = {"name": name}
        self.types.append(description)
        return name, description

    def _list(self, kind: inspect.ListType) -> str:
        element = self.name(kind.item_type)
        name, description = self._described(("list", element), f"[{element}]")
        if description is not None:
            description |= {"meta-type": "array", "element-type": element}
        return name

    def _enum(self, values: dict[str, tuple[str, ...]]) -> str:
        """Values with their features."""
        name, description = self._described(("enum", *values.items()))
        if description is not None:
            members = [_with_features({"name": value}, each) for value, each in values.items()]
            description |= {"meta-type": "enum", "members": members, "values": list(values)}
        return name

    def _object(self, kind: inspect.StructType) -> str:
        if kind.tag is not None:
            return self._choice([kind])
        return self._members(("object", kind.cls), kind.cls, kind.fields)

    def _members(self, key: Any, cls: type, fields: Iterable[inspect.Field]) -> str:
        name, description = self._described(key)
        if description is not None:
            description |= {"meta-type": "object", "members": []}
            description["members"] += [self._member(cls, field) for field in fields]
        return name

    def _member(self, cls: type, field: inspect.Field) -> dict[str, Any]:
        name = field.encode_name
        member: dict[str, Any] = {"name": name, "type": self.name(field.type)}
        if not field.required:
            member["default"] = None
        return _with_features(member, _features(cls, name))

    def _union(self, kind: inspect.UnionType, *, alternate: bool) -> str:
        alternatives = list(kind.types)
        if not alternate:
            alternatives = [each for each in alternatives if not _is_null(each)]
        if len(alternatives) == 1:
            return self.name(alternatives[0])
        objects = [each for each in alternatives if isinstance(each, inspect.StructType)]
        if not alternate:
            return self._choice(objects)
        # A choice of objects is one alternative, the others are told apart by their JSON type.
        others = [each for each in alternatives if not isinstance(each, inspect.StructType)]
        key = ("alternate", *(each.cls for each in objects), *map(repr, others))
        name, description = self._described(key)
        if description is not None:
            description["meta-type"] = "alternate"
            description["members"] = []
            if objects:
                tagged = objects[0].tag is not None
                inner = self._choice(objects) if tagged else self._object(objects[0])
                description["members"].append({"type": inner})
            description["members"] += [{"type": self.name(each)} for each in others]
        return name

    def _choice(self, objects: list[inspect.StructType]) -> str:
        """Objects that a tag tells apart: members of all, and what each case adds."""
        name, description = self._described(("choice", *(each.cls for each in objects)))
        if description is None:
            return name
        tag_field = objects[0].tag_field or ""
        base = common_base([each.cls for each in objects])
        shared = set(base.__struct_fields__) if base is not None else set()
        tags = self._enum({str(each.tag): _features(each.cls, tag_field) for each in objects})
        description |= {"meta-type": "object", "tag": tag_field, "members": [], "variants": []}
        description["members"].append({"name": tag_field, "type": tags})
        for field in objects[0].fields:
            if field.name in shared:
                description["members"].append(self._member(objects[0].cls, field))
        for each in objects:
            own = [field for field in each.fields if field.name not in shared]
            case = self._members(("case", each.cls), each.cls, own) if own else "0"
            description["variants"].append({"case": each.tag, "type": case})
        return name


def _features(cls: type, member: str) -> tuple[str, ...]:
    """What clients should know of a member."""
    declared: dict[str, tuple[str, ...]] = getattr(cls, "FEATURES", {})
    return declared.get(member, ("unstable",) if member.startswith("x-") else ())


def _with_features(entry: dict[str, Any], features: tuple[str, ...]) -> dict[str, Any]:
    if features:
        entry["features"] = list(features)
    return entry


def _is_null(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.NoneType)


def common_base(classes: list[type]) -> Any:
    """What all of a choice are derived from, and are not themselves; None if nothing is declared.

    That is the class which names the tag.
    """
    for candidate in classes[0].__mro__[1:]:
        if candidate is Members:
            break
        config = candidate.__struct_config__  # type: ignore[attr-defined]
        if config.tag_field and config.tag == candidate.__name__:  # what msgspec makes it
            return candidate if all(issubclass(each, candidate) for each in classes) else None
    return None
