# SPDX-License-Identifier: Apache-2.0
"""Records: plain data whose annotated fields become constructor arguments.

They are what dataclasses are, for type checkers too. But importing `dataclasses` (with `inspect`
behind it) and decorating costs more of a short command's time than all the rest of this package, so
modules on the way to `blk info` use records; others may use dataclasses.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself is expensive to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_):
        """Tells type checkers only."""
        return lambda cls: cls


class _Fresh:
    """A default that is made anew for each record."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def fresh(*, factory: Callable[[], T]) -> T:
    """Default of a field whose value is mutable: `names: list[str] = fresh(factory=list)`."""
    return _Fresh(factory)  # type: ignore[return-value]


@dataclass_transform(field_specifiers=(fresh,))
class Record:
    """Base of records. ``class Point(Record, frozen=True)`` makes them immutable and hashable."""

    _fields: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, *, frozen: bool = False, eq: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        annotations = cls.__annotations__  # its own, as text
        names = [name for name, kind in annotations.items() if not kind.startswith("ClassVar")]
        cls._fields = cls._fields + tuple(name for name in names if name not in cls._fields)
        own = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
        cls._defaults = {**cls._defaults, **own}
        if frozen:
            cls.__setattr__ = _refuse  # type: ignore[method-assign,assignment]
            cls.__hash__ = _hash  # type: ignore[method-assign]
        if eq:
            cls.__eq__ = _equal  # type: ignore[method-assign,assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        fields = self._fields
        values = dict(zip(fields, args, strict=False))
        if len(args) > len(fields) or not kwargs.keys().isdisjoint(values):
            raise TypeError(f"{type(self).__name__} got too many arguments")
        values |= kwargs
        for name in fields:
            if name not in values:
                values[name] = self._default(name)
        if len(values) > len(fields):
            unknown = ", ".join(values.keys() - set(fields))
            raise TypeError(f"{type(self).__name__} has no field {unknown}")
        self.__dict__.update(values)

    def _default(self, name: str) -> Any:
        try:
            default = self._defaults[name]
        except KeyError:
            raise TypeError(f"{type(self).__name__} needs a value for '{name}'") from None
        return default.make() if isinstance(default, _Fresh) else default

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        values: dict[str, Any] = {name: self.__dict__[name] for name in self._fields}
        return type(self)(**(values | changes))

    def as_dict(self) -> dict[str, Any]:
        """Field values by name."""
        return {name: self.__dict__[name] for name in self._fields}

    def __repr__(self) -> str:
        body = ", ".join(f"{name}={self.__dict__[name]!r}" for name in self._fields)
        return f"{type(self).__name__}({body})"


def _values(record: Record) -> tuple[Any, ...]:
    return tuple(record.__dict__[name] for name in record._fields)


def _equal(self: Record, other: object) -> bool:
    return type(other) is type(self) and _values(other) == _values(self)


def _hash(self: object) -> int:
    assert isinstance(self, Record)
    return hash(_values(self))


def _refuse(self: Record, name: str, value: object) -> None:
    raise AttributeError(f"{type(self).__name__} is immutable: cannot set '{name}'")
