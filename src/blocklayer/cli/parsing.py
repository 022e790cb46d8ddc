# SPDX-License-Identifier: Apache-2.0
"""What a command declares, and what a command line says to it.

An option may be repeated: for most the last one counts, `-o` accumulates. How lines are read is in
`getopt`, how numbers are in `numbers`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from blocklayer.cli.failures import Failure, UsageError
from blocklayer.cli.getopt import BadOption, Option, getopt

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.base.options import OptionTree
    from blocklayer.core.trust import Trust

# --- commands -----------------------------------------------------------------------------------

# Options with one meaning in every command that has them.
NAMING = "How images are named and opened"
REPORTING = "What is printed"
GENERAL = "In every command"

FORMAT = Option(
    "-f --format",
    "FMT",
    "format of the image; found by its signature if not given",
    group=NAMING,
)
IMAGE_OPTS = Option(
    "--image-opts",
    "",
    "the image is named by options: driver=qed,file.filename=x",
    group=NAMING,
)
FORCE_SHARE = Option(
    "-U --force-share", "", "open although somebody else writes to the image", group=NAMING
)
UNTRUSTED = Option(
    "--untrusted",
    "",
    "somebody else made the image: open nothing that it names outside its folder"
    " (--untrusted=DIR: outside DIR), and refuse absurd sizes",
    group=NAMING,
    optional=True,
)
ALLOW = Option(
    "--allow",
    "LIMITS",
    "raise limits of --untrusted: size=64T,table-size=32M,depth=8,probe=off",
    group=NAMING,
)
OUTPUT = Option(
    "--output", "FMT", "human (default) or json", choices=("human", "json"), group=REPORTING
)
QUIET = Option("-q --quiet", "", "print nothing but errors", group=REPORTING)
_PROGRESS_HELP = "show progress (--progress=json: an object a line on stderr, for programs)"
PROGRESS = Option(
    "-p --progress", "", _PROGRESS_HELP, choices=("json",), group=REPORTING, optional=True
)
LONG_PROGRESS = Option(
    "--progress", "", _PROGRESS_HELP, choices=("json",), group=REPORTING, optional=True
)
"""For commands in which qemu-img knows no -p."""
OBJECT = Option("--object", "TYPE,id=ID,...", "define an object", group=GENERAL)
TRACE_HELP = "print events of drivers that match: 'qed_*'; 'help' lists them"
TRACE = Option("--trace", "PATTERN", TRACE_HELP, group=GENERAL)
HELP = Option("-h --help", "", "show this help", group=GENERAL)
COMMON = (OBJECT, TRACE, HELP)
"""Every command has these."""


class Command:
    """A command's grammar; `usage` names its arguments, `about` tells what it does.

    details    more about it, for help and manual; paragraphs have an empty line between them
    examples   (command line without the program's name, what it does)
    exits      (exit code, what it means), beyond those that all commands have
    words      what its arguments may be, where they are no files; `if=` takes a value
    """

    __slots__ = (
        "about",
        "details",
        "examples",
        "exits",
        "last_is_number",
        "name",
        "options",
        "usage",
        "words",
    )

    def __init__(
        self,
        name: str,
        usage: str,
        about: str,
        options: Iterable[Option],
        *,
        common: Iterable[Option] = COMMON,
        last_is_number: bool = False,
        details: str = "",
        examples: tuple[tuple[str, str], ...] = (),
        exits: tuple[tuple[int, str], ...] = (),
        words: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.usage = usage
        self.about = about
        self.options = (*options, *common)
        self.last_is_number = last_is_number
        """The last argument may be a negative number, and is never an option."""
        self.details = details
        self.examples = examples
        self.exits = exits
        self.words = words


class Arguments:
    """A parsed command line."""

    __slots__ = ("_values", "names", "order")

    def __init__(self, pairs: list[tuple[str, str]], names: list[str]) -> None:
        self.set(pairs, names)

    def set(self, pairs: list[tuple[str, str]], names: list[str]) -> None:
        """Options with their values, and what is left."""
        self.names = names
        """Arguments that are no options."""
        self.order = [key for key, _ in pairs]
        """Options in the order they were given."""
        self._values: dict[str, list[str]] = {}
        for key, value in pairs:
            self._values.setdefault(key, []).append(value)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def all(self, key: str) -> list[str]:
        """Every value of an option, in order."""
        return self._values.get(key, [])

    def last(self, key: str, default: str = "") -> str:
        """The value that counts."""
        values = self._values.get(key)
        return values[-1] if values else default

    def optional(self, key: str) -> str | None:
        """The value that counts; None if the option is not there."""
        values = self._values.get(key)
        return values[-1] if values else None


def parse(command: Command, argv: list[str]) -> Arguments:
    """Read a command's arguments. Raises `UsageError`."""
    kept = []
    if command.last_is_number:
        if argv[-1:] in (["-h"], ["--help"]):
            return Arguments([("help", "")], [])
        if len(argv) < 2:
            raise UsageError("Not enough arguments")
        argv, kept = argv[:-1], argv[-1:]
    try:
        pairs, names = getopt(command.options, argv)
    except BadOption as error:
        raise usage_error(error, command.options) from None
    return Arguments(pairs, names + kept)


def usage_error(error: BadOption, options: Iterable[Option]) -> UsageError:
    """getopt's complaint in qemu-img's words, and what may have been meant."""
    if error.kind == "missing":
        return UsageError(f"missing argument for option '{error.spelling}'")
    from blocklayer.cli.suggestions import suggest_option

    complaint = UsageError(f"unrecognized option '{error.spelling}'")
    suggest_option(complaint, error.spelling, options)
    return complaint


# --- arguments of one kind ----------------------------------------------------------------------


def one_image(arguments: Arguments) -> tuple[str | OptionTree, str | None]:
    """The name and the format of the only image of a command."""
    if len(arguments.names) != 1:
        raise UsageError("Expecting one image file name")
    return image_name(arguments, arguments.names[0]), arguments.optional("format")


def image_name(arguments: Arguments, name: str, code: int = 1) -> str | OptionTree:
    """A file name, or with --image-opts the options that describe an image."""
    if "image-opts" not in arguments:
        return name
    if "format" in arguments:
        raise Failure("--image-opts and --format are mutually exclusive", code)
    return option_tree(name, code)


class TypedOptions(dict[str, object]):
    """Nested options, and how they were typed: so they are called in errors."""

    def __init__(self, tree: OptionTree, typed: str) -> None:
        super().__init__(tree)
        self.typed = typed


def option_tree(text: str, code: int = 1) -> OptionTree:
    """``driver=qed,file.filename=x`` as nested options."""
    from blocklayer.base.options import nest, split_options

    first = text.partition(",")[0]
    if first and "=" not in first:
        reason = f"Cannot find device='{first}' nor node-name='{first}'"
        raise Failure(f"Could not open '{text}': {reason}", code)
    return TypedOptions(nest(dict(split_options(text))), text)


def trust_argument(arguments: Arguments) -> Trust | None:
    """What --untrusted and --allow say; None for images that are trusted."""
    if "untrusted" not in arguments:
        if "allow" in arguments:
            raise Failure("--allow raises limits of --untrusted, which is not there")
        return None
    from blocklayer.base.options import split_options
    from blocklayer.core.trust import Trust

    limits = dict(pair for text in arguments.all("allow") for pair in split_options(text))
    folder = arguments.last("untrusted") or None
    if folder is not None and not os.path.isdir(folder):
        raise Failure(f"--untrusted={folder}: there is no such directory")
    return Trust.from_options(limits, folder)


def wants_json(arguments: Arguments) -> bool:
    """What --output asks for."""
    output = arguments.last("output", "human")
    if output not in ("human", "json"):
        raise Failure("--output must be used with human or json as argument.")
    return output == "json"


def cache_name(
    arguments: Arguments, key: str, default: str, *, what: str = "", code: int = 1
) -> str:
    """A cache mode; `what` distinguishes the source's from the target's in the error."""
    from blocklayer.core.opening import CACHE_MODES

    name = arguments.last(key, default)
    if name not in CACHE_MODES:
        raise Failure(f"Invalid {what}cache option: {name}", code)
    return name
