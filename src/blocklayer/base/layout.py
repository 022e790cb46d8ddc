# SPDX-License-Identifier: Apache-2.0
"""On-disk structures, declared once.

A class body of fields compiles to one `struct.Struct`:

    class Header(Layout, byte_order="<"):
        magic = u32("magic number")
        cluster_size = u32("bytes")

and the same declaration serves reading, writing, `info`, dumps, fuzzers and corruption tests:
whoever wants to damage an image names a field and asks `offset_of` where it lies.
The text of a field is its unit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from blocklayer.base.record import Record

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self, overload


class Field:
    """One integer of a layout: its struct code and its unit."""

    __slots__ = ("code", "name", "offset", "unit")

    def __init__(self, code: str, unit: str) -> None:
        self.code = code
        self.unit = unit
        self.name = ""
        self.offset = -1

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return struct.calcsize("=" + self.code)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type) -> Field: ...
        @overload
        def __get__(self, instance: object, owner: type) -> int: ...
        def __get__(self, instance: object | None, owner: type) -> Field | int: ...

    else:

        def __get__(self, instance, owner):
            return self if instance is None else instance.__dict__[self.name]

    def __set__(self, instance: object, value: int) -> None:
        if not 0 <= value < 1 << (8 * self.size):
            raise ValueError(f"{self.name} = {value:#x} does not fit {self.size} bytes")
        instance.__dict__[self.name] = value


def u8(unit: str) -> Field:
    """An unsigned byte."""
    return Field("B", unit)


def u16(unit: str) -> Field:
    """An unsigned 16-bit integer."""
    return Field("H", unit)


def u32(unit: str) -> Field:
    """An unsigned 32-bit integer."""
    return Field("I", unit)


def u64(unit: str) -> Field:
    """An unsigned 64-bit integer."""
    return Field("Q", unit)


class FieldInfo(Record, frozen=True):
    """A described field: what a dump or a fuzzer needs."""

    name: str
    offset: int
    size: int
    unit: str
    value: int


class Layout:
    """Base of declared structures. Instances hold one integer a field."""

    FIELDS: ClassVar[tuple[Field, ...]] = ()
    SIZE: ClassVar[int] = 0
    _struct: ClassVar[struct.Struct]

    def __init_subclass__(cls, byte_order: str = "<", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.FIELDS = tuple(field for field in vars(cls).values() if isinstance(field, Field))
        offset = 0
        for field in cls.FIELDS:
            field.offset = offset
            offset += field.size
        cls._struct = struct.Struct(byte_order + "".join(field.code for field in cls.FIELDS))
        cls.SIZE = offset
        assert cls._struct.size == offset, "byte_order must rule out padding"

    def __init__(self, **values: int) -> None:
        unknown = values.keys() - {field.name for field in self.FIELDS}
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        for field in self.FIELDS:
            setattr(self, field.name, values.get(field.name, 0))

    @classmethod
    def unpack_from(cls, buffer: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """The structure at `offset` of `buffer`, which must hold `SIZE` bytes there."""
        numbers = cls._struct.unpack_from(buffer, offset)
        return cls(**{field.name: value for field, value in zip(cls.FIELDS, numbers, strict=True)})

    @classmethod
    def codec(cls) -> struct.Struct:
        """Packs and unpacks plain numbers in the order of the fields: for hot paths."""
        return cls._struct

    def pack(self) -> bytes:
        """`SIZE` bytes, as they stand on disk."""
        return self._struct.pack(*(getattr(self, field.name) for field in self.FIELDS))

    def replace(self, **values: int) -> Self:
        """A copy with some fields changed."""
        return type(self)(**{**self.as_dict(), **values})

    def as_dict(self) -> dict[str, int]:
        """Field values by name, in the order on disk."""
        return {field.name: getattr(self, field.name) for field in self.FIELDS}

    @classmethod
    def offset_of(cls, name: str) -> int:
        """Bytes from the start of the structure to field `name`."""
        return next(field.offset for field in cls.FIELDS if field.name == name)

    def describe(self) -> Iterator[FieldInfo]:
        """Every field with its place, unit and value."""
        for field in self.FIELDS:
            yield FieldInfo(
                field.name, field.offset, field.size, field.unit, getattr(self, field.name)
            )

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        body = ", ".join(f"{name}={value:#x}" for name, value in self.as_dict().items())
        return f"{type(self).__name__}({body})"
