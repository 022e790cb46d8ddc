# SPDX-License-Identifier: Apache-2.0
"""Arguments against their declaration, with QEMU's words for what is wrong.

Two spellings of values: QMP's JSON, and a command line's, where every scalar is a string and lists
are objects with the members ``0``, ``1`` … What comes out is the same for both. Members are looked
at in the order of their declaration, then what is left over is unexpected.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NoReturn

import msgspec
from msgspec import inspect

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.units import parse_size
from blocklayer.qmp.types import QmpError

UINT64_MAX = 2**64 - 1

DEPTH_MAX = 100
"""Levels of arguments: no graph of nodes may be as deep."""


@cache
def type_of(declared: Any) -> inspect.Type:
    """What msgspec knows of a declared type."""
    return inspect.type_info(declared)


def convert(value: Any, declared: Any, *, spelled: bool = False) -> Any:
    """`value` as an instance of the declared type. Raises `QmpError`.

    With `spelled` its scalars are strings, as on a command line.
    """
    return msgspec.convert(checked(value, declared, spelled=spelled), declared)


def checked(value: Any, declared: Any, *, spelled: bool = False) -> Any:
    """The same as plain objects: what was left out stays out."""
    return _Visitor(spelled).visit(type_of(declared), value, "", 0)


class _Visitor:
    """One walk through a value."""

    def __init__(self, spelled: bool) -> None:
        self._spelled = spelled

    def visit(self, kind: inspect.Type, value: Any, path: str, depth: int) -> Any:
        """`value`, which stands at `path`, if it is of that kind."""
        if depth > DEPTH_MAX:
            raise QmpError(f"Parameter '{path}' is nested too deeply")
        title = ""
        if isinstance(kind, inspect.Metadata):
            title = (kind.extra_json_schema or {}).get("title", "")
            kind = kind.type
        if isinstance(kind, inspect.UnionType):
            return self._union(kind, value, path, depth, title)
        if isinstance(kind, inspect.StructType):
            if kind.tag is not None:
                kind = self._chosen([kind], value, path)
            return self._object(kind, value, path, depth)
        if isinstance(kind, inspect.ListType):
            return self._list(kind, value, path, depth)
        if isinstance(kind, inspect.AnyType):
            return value
        return self._scalar(kind, value, path, title)

    # --- containers -----------------------------------------------------------------------------

    def _union(self, kind: inspect.UnionType, value: Any, path: str, depth: int, title: str) -> Any:
        """An alternate if it has a title; else a choice of objects, told apart by a tag."""
        alternatives = [each for each in kind.types if not isinstance(each, inspect.NoneType)]
        objects = [each for each in alternatives if isinstance(each, inspect.StructType)]
        if not title or not isinstance(value, dict):
            if len(alternatives) == 1:
                return self.visit(alternatives[0], value, path, depth)
            for each in kind.types:
                if title and _fits(each, value):
                    return value
        if title and not (objects and isinstance(value, dict)):
            _wrong_type(_last(path), title)
        if len(objects) == 1 and objects[0].tag is None:
            return self._object(objects[0], value, path, depth)
        return self._object(self._chosen(objects, value, path), value, path, depth)

    def _chosen(
        self, objects: list[inspect.StructType], value: Any, path: str
    ) -> inspect.StructType:
        """The object that the tag of `value` asks for."""
        self._require_object(value, path)
        tag_field = objects[0].tag_field or ""
        full = _joined(path, tag_field)
        if tag_field not in value:
            raise QmpError(f"Parameter '{full}' is missing")
        tag = value[tag_field]
        if not isinstance(tag, str):
            _wrong_type(full, "string")
        for each in objects:
            if each.tag == tag:
                return each
        raise QmpError(f"Parameter '{_last(full)}' does not accept value '{tag}'")

    def _require_object(self, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            _wrong_type(path, "object")

    def _object(self, kind: inspect.StructType, value: Any, path: str, depth: int) -> Any:
        self._require_object(value, path)
        result = {}
        if kind.tag_field is not None:
            result[kind.tag_field] = kind.tag
        for field in kind.fields:
            name = field.encode_name
            if name in value:
                full = _joined(path, name)
                result[name] = self.visit(field.type, value[name], full, depth + 1)
            elif field.required:
                raise QmpError(f"Parameter '{_joined(path, name)}' is missing")
        for name in value:
            if name not in result:
                raise QmpError(f"Parameter '{_joined(path, name)}' is unexpected")
        return result

    def _list(self, kind: inspect.ListType, value: Any, path: str, depth: int) -> Any:
        if self._spelled and isinstance(value, dict):
            value = _spelled_list(value, path)
        if not isinstance(value, list):
            _wrong_type(path, "array")
        return [
            self.visit(kind.item_type, each, f"{path}[{index}]", depth + 1)
            for index, each in enumerate(value)
        ]

    # --- scalars --------------------------------------------------------------------------------

    def _scalar(self, kind: inspect.Type, value: Any, path: str, title: str) -> Any:
        if isinstance(kind, inspect.LiteralType):
            if not isinstance(value, str):
                _wrong_type(path, "string")
            if value not in kind.values:
                raise QmpError(f"Parameter '{_last(path)}' does not accept value '{value}'")
        elif isinstance(kind, inspect.BoolType):
            return self._bool(value, path)
        elif isinstance(kind, inspect.IntType):
            return self._integer(kind, value, path, title)
        elif isinstance(kind, inspect.StrType):
            if not isinstance(value, str):
                _wrong_type(path, "string")
        else:
            raise TypeError(f"{path}: nothing is declared as {kind}")
        return value

    def _bool(self, value: Any, path: str) -> bool:
        if self._spelled and isinstance(value, str):
            if value not in ("on", "off", "yes", "no", "true", "false", "y", "n"):
                raise QmpError(f"Parameter '{path}' expects 'on' or 'off'")
            return value in ("on", "yes", "true", "y")
        if not isinstance(value, bool):
            _wrong_type(path, "boolean")
        return value

    def _integer(self, kind: inspect.IntType, value: Any, path: str, title: str) -> int:
        if self._spelled and isinstance(value, str):
            value = _spelled_integer(value, path, is_size=title == "size")
        least, most = kind.ge or 0, UINT64_MAX if kind.le is None else kind.le
        if not isinstance(value, int) or isinstance(value, bool):
            if least == 0 and not self._spelled:
                raise QmpError(f"Parameter '{path}' expects uint64")
            _wrong_type(path, "integer")
        number: int = value
        if most == UINT64_MAX and title != "size" and -(2**63) <= number < 0:
            return number & UINT64_MAX  # as in QEMU: the same bits
        if not least <= number <= most:
            if least == 0:
                raise QmpError(f"Parameter '{_last(path)}' expects uint{most.bit_length()}_t")
            _wrong_type(path, "integer")
        return number


def _fits(kind: inspect.Type, value: Any) -> bool:
    """Whether a value that is no object is of the JSON type of an alternative."""
    if isinstance(kind, inspect.StrType):
        return isinstance(value, str)
    return isinstance(kind, inspect.NoneType) and value is None


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _last(path: str) -> str:
    """The name alone, as QEMU has it in errors about values of a set."""
    return path.rpartition(".")[2]


def _wrong_type(path: str, expected: str) -> NoReturn:
    raise QmpError(f"Invalid parameter type for '{path}', expected: {expected}")


def _spelled_list(value: dict[str, Any], path: str) -> list[Any]:
    """``{"0": a, "1": b}``."""
    for index in range(len(value)):
        if str(index) not in value:
            raise QmpError(f"Parameter '{_joined(path, str(index))}' missing")
    return [value[str(index)] for index in range(len(value))]


def _spelled_integer(text: str, path: str, *, is_size: bool) -> int:
    if is_size:
        try:
            return parse_size(text)
        except InvalidArgument:
            raise QmpError(f"Parameter '{path}' expects size") from None
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isalnum() and len(digits) <= 20):
        raise QmpError(f"Parameter '{path}' expects integer")
    try:
        return int(text, 0)
    except ValueError:
        raise QmpError(f"Parameter '{path}' expects integer") from None
