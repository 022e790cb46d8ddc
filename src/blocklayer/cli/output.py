# SPDX-License-Identifier: Apache-2.0
"""Writing to people and to programs.

With --output=json stdout has one JSON value, or nothing. Whatever goes to stderr then is JSON as
well, an object a line: ``{"error": …}``, ``{"warning": …}``, and progress where it was asked for.
"""

from __future__ import annotations

import os
import sys

from blocklayer.cli.failures import PROGRAM

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, TextIO

    from blocklayer.cli.parsing import Arguments


class _Reader:
    """Who reads what the program writes to stderr."""

    is_program = False


def speak_json(wanted: bool) -> None:
    """Whether messages on stderr are for programs, from now on."""
    _Reader.is_program = wanted


def speaks_json() -> bool:
    """Whether messages on stderr are for programs."""
    return _Reader.is_program


def asks_for_json(argv: list[str]) -> bool:
    """Whether a command line has --output=json, even if it is wrong otherwise."""
    words = argv[: argv.index("--")] if "--" in argv else argv
    wanted = False
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if len(name) > len("--o") and "--output".startswith(name):
            value = value if equals else "".join(words[number + 1 : number + 2])
            wanted = value == "json"
    return wanted


def let_go(stream: TextIO) -> None:
    """Nobody reads it: what waits in its buffer must not fail the end of the process."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        return


def complain(message: str) -> None:
    """One message on stderr, after the program's name."""
    flush_output()
    _write(f"{PROGRAM}: {harmless(message)}")


def harmless(message: str) -> str:
    """Names of files, also those that images store, can hold what a terminal obeys."""
    if message.isprintable():
        return message
    return "".join(
        ascii(c)[1:-1] if c != "\n" and (c < " " or "\x7f" <= c < "\xa0") else c for c in message
    )


def warn(message: str) -> None:
    """The same, if the command goes on."""
    if _Reader.is_program:
        report({"warning": {"message": message}})
    else:
        complain(f"warning: {message}")


def report(members: dict[str, Any]) -> None:
    """An object on stderr, in one line."""
    import json

    flush_output()
    _write(json.dumps(as_unicode(members)))


def flush_output() -> None:
    """What was printed before stands before, also in a shared file."""
    try:
        sys.stdout.flush()
    except OSError:
        pass  # it may be what there is to complain about


def _write(line: str) -> None:
    try:
        print(line, file=sys.stderr)
    except OSError:
        pass  # nobody listens; the exit code tells


def print_json(value: Any) -> None:
    """As QEMU's tools print it: indented by four, non-ASCII characters escaped."""
    import json

    print(json.dumps(as_unicode(value), indent=4))


def as_unicode(value: Any) -> Any:
    """The same without bytes of names that are no UTF-8, which strict readers refuse (RFC 8259)."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {as_unicode(name): as_unicode(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_unicode(member) for member in value]
    return value


def print_result(arguments: Arguments, members: dict[str, Any], text: str = "") -> None:
    """What a command has done: `members` with --output=json, else `text`, if there is any."""
    if "quiet" in arguments:
        return
    if arguments.last("output") == "json":
        print_json(members)
    elif text:
        print(text)


def print_specific(fields: dict[str, Any], indent: int = 4) -> None:
    """What a format tells of itself, nested: ``lazy refcounts: false``."""
    for name, value in fields.items():
        label = " " * indent + name.replace("-", " ") + ":"
        if isinstance(value, dict):
            print(label)
            print_specific(value, indent + 4)
        elif isinstance(value, bool):
            print(label, "true" if value else "false")
        else:
            print(label, value)


def warn_of_guess(filename: str) -> None:
    """Whoever controls the content of a raw image can make it be taken for another format."""
    text = (
        f"Image format was not specified for '{filename}' and probing guessed raw.",
        "A guess can be made wrong by what is written into the image: give -f raw.",
    )
    if _Reader.is_program:
        warn(" ".join(text))
    else:
        print(f"WARNING: {text[0]}\n         {text[1]}", file=sys.stderr)
