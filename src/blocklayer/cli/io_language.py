# SPDX-License-Identifier: Apache-2.0
"""The language of `blk io`: a command is a line of words, with options as getopt reads them.

Words are separated by spaces; there is no quoting. What is wrong with a request is told on stdout,
where scripts look for it; what is wrong with a line, on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from blocklayer.base.errors import BlocklayerError
from blocklayer.cli.failures import Failure
from blocklayer.cli.getopt import BadOption, Option, getopt
from blocklayer.cli.numbers import NotANumber, NumberTooLarge, integer_argument, number
from blocklayer.cli.output import complain
from blocklayer.cli.parsing import Arguments

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.cli.io_session import Session

REQUEST_MAX = 2147483136
"""Bytes in one request: the sectors that a signed 32-bit count of bytes can express."""

UNLIMITED = -1

NO_MEMORY = "not enough memory"


class Refused(Exception):
    """A command cannot be done: told on stdout."""


class Failed(Exception):
    """A command has failed, and has told so itself; programs are told again."""


class Misused(Exception):
    """A command has the wrong arguments, maybe for a reason: told is how it is used."""


class Unusable(Exception):
    """A command cannot be run at all."""


class Unknown(Exception):
    """There is no command of this name."""


class Quit(Exception):
    """No more commands."""


class Call(Arguments):
    """A command's arguments, and what it has found out for programs.

    words         the line
    for_programs  what `members` tells is not printed
    error         why a request has failed that was done while other commands ran
    is_later      there is such a request: what became of it is told when it is done
    """

    __slots__ = ("error", "for_programs", "is_later", "members", "words")

    def __init__(self, words: list[str], *, for_programs: bool = False) -> None:
        super().__init__([], words[1:])
        self.words = words
        self.for_programs = for_programs
        self.members: dict[str, Any] = {}
        self.error: Exception | None = None
        self.is_later = False

    def found(self, lines: Iterable[str], **members: object) -> list[str]:
        """The lines to print of what was found out: none for programs, who get the members."""
        if not self.for_programs:
            return list(lines)
        self.members |= {name.replace("_", "-"): value for name, value in members.items()}
        return []


class IoCommand:
    """A command's name, grammar and function.

    words      least and most words after the name, options included (-1: any number)
    arguments  least and most words that are no options
    changes    it writes: refused for disks that are open read-only
    gathers    its requests may be submitted together with those of the next command
    """

    __slots__ = (
        "about",
        "alias",
        "arguments",
        "changes",
        "gathers",
        "name",
        "needs_disk",
        "options",
        "run",
        "usage",
        "words",
    )

    def __init__(
        self,
        name: str,
        alias: str,
        run: Callable[[Session, Call], None],
        usage: str,
        about: str,
        *,
        words: tuple[int, int] = (0, 0),
        arguments: tuple[int, int] | None = None,
        options: Iterable[Option] = (),
        needs_disk: bool = True,
        changes: bool = False,
        gathers: bool = False,
    ) -> None:
        self.name = name
        self.alias = alias
        self.run = run
        self.usage = usage
        self.about = about
        self.words = words
        self.arguments = words if arguments is None else arguments
        self.options = tuple(options)
        self.needs_disk = needs_disk
        self.changes = changes
        self.gathers = gathers

    def summary(self, name: str = "") -> str:
        """One line of help."""
        return " ".join(filter(None, (name or self.name, self.usage, "--", self.about)))


def execute(session: Session, line: str) -> bool:
    """Run one line; whether it succeeded. Raises `Quit`."""
    words = line.split()
    if not words:
        return True
    try:
        perform(session, Call(words))
    except Refused as error:
        print(error)
    except Misused as error:
        for reason in error.args:
            print(reason, file=sys.stderr)
        print(session.commands[words[0]].summary())
    except (Unknown, Unusable) as error:
        print(error, file=sys.stderr)
    except (Failure, BlocklayerError) as error:
        complain(str(error))
    except Failed:
        pass
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
    except MemoryError:
        complain(NO_MEMORY)
    else:
        return True
    return False


def perform(session: Session, call: Call) -> None:
    """Run a command. Raises what is wrong with it, and `Quit`."""
    words = call.words
    command = session.commands.get(words[0])
    if command is None:
        raise Unknown(_unknown(session, words[0]))
    problem = _problem(session, command, words)
    if problem:
        raise Unusable(problem)
    if not command.gathers:
        session.submit_gathered()
    if command.changes:
        session.require_writable()
    _parse(command, call)
    command.run(session, call)


def _unknown(session: Session, name: str) -> str:
    from blocklayer.cli.suggestions import closest

    message = f'command "{name}" not found'
    if meant := closest(name, session.commands):
        message += f"\nDid you mean '{meant}'?"
    return message


def _problem(session: Session, command: IoCommand, words: list[str]) -> str:
    """Why a command cannot be run at all."""
    if command.needs_disk and session.disk is None:
        return "no file open, try 'help open'"
    count, (least, most) = len(words) - 1, command.words
    if count < least or UNLIMITED != most < count:
        if most == UNLIMITED:
            expected = f"at least {least}"
        else:
            expected = f"{least}" if least == most else f"between {least} and {most}"
        return f"bad argument count {count} to {words[0]}, expected {expected} arguments"
    return ""


def _parse(command: IoCommand, call: Call) -> None:
    if not command.options:
        return  # "-1" is a word like others
    try:
        pairs, names = getopt(command.options, call.words[1:])
    except BadOption as error:
        letter = error.spelling[1:2]
        reason = "option requires an argument" if error.kind == "missing" else "invalid option"
        raise Misused(f"{call.words[0]}: {reason} -- '{letter}'") from None
    least, most = command.arguments
    if len(names) < least or UNLIMITED != most < len(names):
        raise Misused
    call.set(pairs, names)


# --- words --------------------------------------------------------------------------------------


def number_word(text: str) -> int:
    """An offset or a length. Raises `Refused`."""
    try:
        return number(text)
    except NotANumber:
        raise Refused(
            f"Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"
        ) from None
    except NumberTooLarge:
        raise Refused(f"Parsing error: argument too large -- {text}") from None


def pattern_word(text: str) -> int:
    """A byte, in any base that C knows. Raises `Refused`."""
    try:
        return integer_argument(text, "pattern", most=0xFF)
    except Failure:
        raise Refused(f"{text} is not a valid pattern byte") from None
