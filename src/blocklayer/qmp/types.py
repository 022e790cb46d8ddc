# SPDX-License-Identifier: Apache-2.0
"""How QMP's types are declared, so that everything else follows from the declarations.

A type is a msgspec struct, a command a function with a struct for its arguments. Validation
(`validate`), introspection (`introspect`) and docs/qmp.md (`reference`) read nothing else.

Docstrings of structs are part of the declaration: a sentence, an empty line, and a line for each
member, ``name  what it is``; lines that begin with spaces go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from msgspec import Meta, Struct

from blocklayer.base.errors import BlocklayerError

Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
UInt16 = Annotated[int, Meta(ge=0, le=2**16 - 1)]
UInt32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
UInt64 = Annotated[int, Meta(ge=0)]
"""msgspec has no bounds beyond those of int64: `validate` knows that of 64 bits without a sign."""
Size = Annotated[int, Meta(ge=0, title="size")]
"""A number of bytes: on a command line with a suffix."""


class Members(Struct, kw_only=True, rename="kebab", forbid_unknown_fields=True, omit_defaults=True):
    """Base of objects. Members with a default may be left out; `None` stands for "not there".

    FEATURES  what introspection tells of members, by their names; that of the tag is this case's.
              Those that begin with ``x-`` are unstable anyway
    """

    FEATURES: ClassVar[dict[str, tuple[str, ...]]] = {}


class Answer(Struct, kw_only=True, rename="kebab", omit_defaults=True):
    """Base of what commands return, and of events."""


class Nothing(Members, kw_only=True):
    """No members."""


class QmpError(BlocklayerError, eq=False):
    """An error of the protocol or of its arguments."""


class CommandNotFound(QmpError, eq=False):
    """No such command, or not now."""

    qmp_class = "CommandNotFound"


class DeviceNotFound(QmpError, eq=False):
    """No such device."""

    qmp_class = "DeviceNotFound"


Undo = Callable[[], None]
"""Takes back what a command of a transaction has done."""

A = TypeVar("A", bound=Members)
Handler = Callable[[Any, Any], Any]


class Command(msgspec.Struct, frozen=True):
    """A command: its name, types and function ``(context, arguments) -> result``."""

    name: str
    arguments: Any
    returns: Any
    """None: an empty object."""
    run: Handler
    features: tuple[str, ...] = ()
    about: str = ""
    before_negotiation: bool = False


class Family:
    """The commands of one module, collected by a decorator."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.commands: list[Command] = []

    def command(
        self,
        name: str,
        arguments: Any = Nothing,
        returns: Any = None,
        *,
        features: tuple[str, ...] = (),
        before_negotiation: bool = False,
    ) -> Callable[[Callable[[Any, Any], Any]], Callable[[Any, Any], Any]]:
        """Declare the decorated function to be a command; its docstring says what it does."""

        def declare(run: Handler) -> Handler:
            about = run.__doc__ or ""
            self.commands.append(
                Command(name, arguments, returns, run, features, about, before_negotiation)
            )
            return run

        return declare


class Event(Answer, kw_only=True):
    """Base of events: the members of `data`. The names are in `schema.events`."""
