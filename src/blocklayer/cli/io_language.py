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
    from blocklayer.cli.io_session import Session

REQUEST_MAX = 2147483136
"""Bytes in one request: the sectors that a signed 32-bit count of bytes can express."""

UNLIMITED = -1


class Refused(Exception):
    """A command cannot be done: told on stdout."""


class Failed(Exception):
    """A command has failed, and has told so itself."""


class Misused(Exception):
    """A command has the wrong arguments: told is how it is used."""


class Quit(Exception):
    """No more commands."""


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
        run: Callable[[Session, Arguments], None],
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
    command = session.commands.get(words[0])
    if command is None:
        _tell_unknown(session, words[0])
        return False
    problem = _problem(session, command, words)
    if problem:
        print(problem, file=sys.stderr)
        return False
    return _run(session, command, words)


def _tell_unknown(session: Session, name: str) -> None:
    from blocklayer.cli.suggestions import closest

    print(f'command "{name}" not found', file=sys.stderr)
    if meant := closest(name, session.commands):
        print(f"Did you mean '{meant}'?", file=sys.stderr)


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


def _run(session: Session, command: IoCommand, words: list[str]) -> bool:
    if not command.gathers:
        session.submit_gathered()
    try:
        if command.changes:
            session.require_writable()
        command.run(session, _parse(command, words))
    except Refused as error:
        print(error)
    except Misused:
        print(command.summary())
    except (Failure, BlocklayerError) as error:
        complain(str(error))
    except Failed:
        pass
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
    except MemoryError:
        complain("not enough memory")
    else:
        return True
    return False


def _parse(command: IoCommand, words: list[str]) -> Arguments:
    if not command.options:
        return Arguments([], words[1:])  # "-1" is a word like others
    try:
        pairs, names = getopt(command.options, words[1:])
    except BadOption as error:
        letter = error.spelling[1:2]
        reason = "option requires an argument" if error.kind == "missing" else "invalid option"
        print(f"{words[0]}: {reason} -- '{letter}'", file=sys.stderr)
        raise Misused from None
    least, most = command.arguments
    if len(names) < least or UNLIMITED != most < len(names):
        raise Misused
    return Arguments(pairs, names)


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
