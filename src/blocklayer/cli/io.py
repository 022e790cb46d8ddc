# SPDX-License-Identifier: Apache-2.0
"""`blk io`: small commands on an image, from the command line, a script or a person.

Exit code: 1 if any command has failed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from blocklayer.cli import io_commands, io_control
from blocklayer.cli.failures import PROGRAM, Failure, UsageError
from blocklayer.cli.getopt import Option
from blocklayer.cli.io_language import IoCommand, Quit, execute
from blocklayer.cli.io_session import Opening, Session
from blocklayer.cli.parsing import (
    ALLOW,
    HELP,
    IMAGE_OPTS,
    OBJECT,
    OUTPUT,
    TRACE_HELP,
    UNTRUSTED,
    Arguments,
    Command,
    trust_argument,
    wants_json,
)
from blocklayer.core.modes import AIO_MODES

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeAlias

    from blocklayer.cli.io_json import ForPrograms

    Runner: TypeAlias = "_ForPeople | ForPrograms"

COMMAND = Command(
    "io",
    "[-c COMMAND]... [FILE]",
    "Read and write parts of an image. 'blk io -c help' lists the commands.",
    (
        Option("-c --cmd", "COMMAND", "a command; may be repeated. Without: read from stdin"),
        Option("-f --format", "FMT", "format of the image; found by its signature if not given"),
        Option("-r --read-only", "", "open read-only"),
        Option("-s --snapshot", "", "writes go to a temporary overlay"),
        Option("-n --nocache", "", "no host cache, short for -t none"),
        Option("-C --copy-on-read", "", "store in the image what is read from its backing file"),
        Option("-m --misalign", "", "misaligned buffers (accepted)"),
        Option("-k --native-aio", "", "kernel AIO (accepted)"),
        Option(
            "-i --aio",
            "MODE",
            "AIO mode: threads, native or io_uring (accepted)",
            choices=AIO_MODES,
        ),
        Option("-t --cache", "CACHE", "cache mode (default: every write is flushed)"),
        Option(
            "-d --discard",
            "MODE",
            "discard mode: ignore or unmap (default)",
            choices=("ignore", "unmap"),
        ),
        Option("-U --force-share", "", "open although somebody else writes to the image"),
        OUTPUT,
        IMAGE_OPTS,
        UNTRUSTED,
        ALLOW,
    ),
    common=(
        OBJECT,
        Option("-T --trace", "PATTERN", TRACE_HELP),
        Option("-V --version", "", "show the version"),
        HELP,
    ),
    details=(
        "Commands come from -c, or else from stdin. On a terminal there is a prompt, where the tab"
        " key completes commands, options and file names, the arrow keys bring back earlier lines"
        " (of other sessions, too), Ctrl-C drops the line or stops the command, Ctrl-D leaves.\n\n"
        "Files are opened for writing unless -r is given, and every write is flushed unless -t"
        " says otherwise.\n\n"
        "With --output=json there is an object a line for each command, when it is done, and no"
        " prompt."
    ),
    examples=(
        ("io -c 'write -P 1 0 64k' -c 'read -P 1 0 64k' disk.qed", "Write a pattern, verify it."),
        ("io -r -c 'read -v 0 512' disk.qed", "Dump the first sector."),
        ("io -c 'help write'", "Tell about a command."),
        ("io disk.qed", "Ask for commands."),
    ),
    exits=((1, "a command has failed, or a pattern was not there"),),
)

PROMPT = f"{PROGRAM}> "

_LETTERS = {
    "read-only": "r",
    "snapshot": "s",
    "nocache": "n",
    "copy-on-read": "C",
    "native-aio": "k",
    "aio": "i",
    "cache": "t",
    "discard": "d",
    "force-share": "U",
}
"""The program's options that `open` has as well, under letters only."""


def run(arguments: Arguments) -> int:
    """The command."""
    if "version" in arguments:
        from blocklayer.cli.usage import version

        print(version())
        return 0
    if len(arguments.names) > 1:
        raise UsageError(f"Unexpected argument: {arguments.names[1]}")
    opening = _opening(arguments)
    runner: Runner = _ForPeople()
    if wants_json(arguments):
        from blocklayer.cli.io_json import ForPrograms

        runner = ForPrograms()
    session = Session(all_commands(), runner.tell)
    session.image_opts = opening.image_opts
    session.trust = opening.trust
    try:
        if arguments.names:
            session.open(opening)
        failed = _run_commands(session, runner, arguments.all("cmd"))
    finally:
        session.close()
        session.print_finished()
    runner.end(failed)
    return 1 if failed else 0


def _opening(arguments: Arguments) -> Opening:
    image_opts = "image-opts" in arguments
    if image_opts and "format" in arguments:
        raise Failure("--image-opts and -f are mutually exclusive")
    pairs = [(letter, value) for key, letter in _LETTERS.items() for value in arguments.all(key)]
    path = arguments.names[0] if arguments.names else ""
    opening = io_control.opening_from(Arguments(pairs, []), path, image_opts=image_opts)
    return opening.replace(format=arguments.optional("format"), trust=trust_argument(arguments))


def all_commands() -> dict[str, IoCommand]:
    """Commands by name and alias."""
    commands = {}
    for command in (*io_commands.COMMANDS, *io_control.COMMANDS):
        commands[command.name] = command
        if command.alias:
            commands[command.alias] = command
    return commands


class _ForPeople:
    """Commands are asked for by a prompt, and answered in lines."""

    prompt = PROMPT
    tell = None
    execute = staticmethod(execute)

    def end(self, failed: int) -> None:
        """People know."""


def _run_commands(session: Session, runner: Runner, lines: list[str]) -> int:
    """Run what was given, or what stdin says; how many commands have failed."""
    if not lines and runner.prompt and sys.stdin.isatty():
        from blocklayer.cli.io_terminal import converse

        return converse(session, runner.prompt)
    failed = 0
    try:
        for line in lines or _piped_lines(runner.prompt):
            failed += not runner.execute(session, line)
            session.print_finished()
    except Quit:
        pass
    return failed


def _piped_lines(prompt: str) -> Iterator[str]:
    print(prompt, end="", flush=True)
    for line in sys.stdin:
        yield line.rstrip("\n")
        print(prompt, end="", flush=True)
