# SPDX-License-Identifier: Apache-2.0
"""Command lines, read as GNU getopt reads them and qemu-img's users write them.

Options and arguments may be mixed, short options clustered (`-pq`) or joined with their value
(`-fqed`), long ones abbreviated; `--` ends them. An option may be repeated: for most the last one
counts, `-o` accumulates. argparse does none of this with the right words, and costs more start-up
time than opening an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from blocklayer.cli.failures import Failure, UsageError

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.base.options import OptionTree

SIZE_HINT = (
    "You may use k, M, G, T, P or E suffixes for\n"
    "kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
)


class Option:
    """An option: its spellings (`-f --format`), what its value is called (nothing: it has none)."""

    __slots__ = ("help", "key", "long", "short", "value")

    def __init__(self, spellings: str, value: str = "", help: str = "") -> None:
        self.short = self.long = ""
        for spelling in spellings.split():
            if spelling.startswith("--"):
                self.long = spelling[2:]
            else:
                self.short = spelling[1:]
        self.key = self.long or self.short
        self.value = value
        self.help = help


class BadOption(Exception):
    """getopt's complaint: `kind` is unknown, missing (its value) or extra (a value)."""

    def __init__(self, kind: str, spelling: str) -> None:
        super().__init__(spelling)
        self.kind = kind
        self.spelling = spelling


def getopt(
    options: Iterable[Option], argv: Sequence[str], *, mixed: bool = True
) -> tuple[list[tuple[str, str]], list[str]]:
    """(key, value) pairs in their order, and the other arguments. Raises `BadOption`.

    Without `mixed`, options end at the first argument that is none.
    """
    by_short = {option.short: option for option in options if option.short}
    by_long = {option.long: option for option in options if option.long}
    pairs: list[tuple[str, str]] = []
    arguments: list[str] = []
    tokens = list(reversed(argv))
    while tokens:
        token = tokens.pop()
        if token == "--":
            break
        if token.startswith("--"):
            pairs.append(_long_option(by_long, token, tokens))
        elif token.startswith("-") and token != "-":
            pairs += _short_options(by_short, token, tokens)
        else:
            arguments.append(token)
            if not mixed:
                break
    return pairs, arguments + tokens[::-1]


def _long_option(by_long: dict[str, Option], token: str, rest: list[str]) -> tuple[str, str]:
    name, equals, value = token[2:].partition("=")
    option = by_long.get(name)
    if option is None:
        matches = [known for long, known in by_long.items() if long.startswith(name)]
        if len(matches) != 1:
            raise BadOption("unknown", token)
        option = matches[0]
    if not option.value:
        if equals:
            raise BadOption("extra", token)
        return option.key, ""
    if not equals:
        if not rest:
            raise BadOption("missing", token)
        value = rest.pop()
    return option.key, value


def _short_options(
    by_short: dict[str, Option], token: str, rest: list[str]
) -> Iterable[tuple[str, str]]:
    pairs = []
    for index, letter in enumerate(token[1:], 2):
        option = by_short.get(letter)
        if option is None:
            raise BadOption("unknown", f"-{letter}")
        if not option.value:
            pairs.append((option.key, ""))
            continue
        if not token[index:] and not rest:
            raise BadOption("missing", f"-{letter}")
        pairs.append((option.key, token[index:] or rest.pop()))
        break
    return pairs


# --- commands -----------------------------------------------------------------------------------

# Options with one meaning in every command that has them.
FORMAT = Option("-f --format", "FMT", "format of the image; found by its signature if not given")
IMAGE_OPTS = Option("--image-opts", "", "the image is named by options: driver=qed,file.filename=x")
FORCE_SHARE = Option("-U --force-share", "", "open although somebody else writes to the image")
OUTPUT = Option("--output", "FMT", "human (default) or json")
QUIET = Option("-q --quiet", "", "print nothing but errors")
PROGRESS = Option("-p --progress", "", "show progress")
OBJECT = Option("--object", "TYPE,id=ID,...", "define an object")
TRACE = Option("--trace", "PATTERN", "print events of drivers that match: 'qed_*'")
HELP = Option("-h --help", "", "show this help")
COMMON = (OBJECT, TRACE, HELP)
"""Every command has these."""


class Command:
    """A command's grammar; `usage` names its arguments, `about` tells what it does."""

    __slots__ = ("about", "last_is_number", "name", "options", "usage")

    def __init__(
        self,
        name: str,
        usage: str,
        about: str,
        options: Iterable[Option],
        *,
        common: Iterable[Option] = COMMON,
        last_is_number: bool = False,
    ) -> None:
        self.name = name
        self.usage = usage
        self.about = about
        self.options = (*options, *common)
        self.last_is_number = last_is_number
        """The last argument may be a negative number, and is never an option."""


class Arguments:
    """A parsed command line."""

    __slots__ = ("_values", "names")

    def __init__(self, pairs: list[tuple[str, str]], names: list[str]) -> None:
        self.names = names
        """Arguments that are no options."""
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
        raise usage_error(error) from None
    return Arguments(pairs, names + kept)


def usage_error(error: BadOption) -> UsageError:
    """getopt's complaint in qemu-img's words."""
    if error.kind == "missing":
        return UsageError(f"missing argument for option '{error.spelling}'")
    return UsageError(f"unrecognized option '{error.spelling}'")


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
    return option_tree(name)


def option_tree(text: str) -> OptionTree:
    """``driver=qed,file.filename=x`` as nested options."""
    from blocklayer.base.options import nest, split_options

    return nest(dict(split_options(text)))


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


class NotANumber(ValueError):
    """Text that no number was meant by."""


class NumberTooLarge(ValueError):
    """A number beyond the largest file offset."""


def number(text: str) -> int:
    """``4096``, ``64k``, ``1.5G``, ``0x200``. Raises `NotANumber`, `NumberTooLarge`."""
    from blocklayer.base.errors import InvalidArgument
    from blocklayer.base.units import parse_size

    try:
        return parse_size(text)
    except InvalidArgument:
        pass
    # Is it the form or the amount? The same text with all digits 0 has the form only.
    prefix = text[:2] if text[:2] in ("0x", "0X") else ""
    digits = "0123456789abcdefABCDEF" if prefix else "0123456789"
    shape = prefix + "".join("0" if c in digits else c for c in text[len(prefix) :])
    try:
        parse_size(shape)
    except InvalidArgument:
        raise NotANumber(text) from None
    raise NumberTooLarge(text)


def size_argument(text: str, what: str) -> int:
    """A size from the command line; `what` names it in the error."""
    from blocklayer.base.units import INT64_MAX

    try:
        return number(text)
    except NotANumber:
        raise Failure(f"Invalid {what} specified. {SIZE_HINT}") from None
    except NumberTooLarge:
        raise Failure(f"Invalid {what} specified. Must be between 0 and {INT64_MAX}.") from None


_NOT_FOR_DRIVERS = ("filename", "format", "backing", "backing_format", "check_backing", "locking")
"""Arguments of `blocklayer.create` that are no options of a format."""


def create_options(arguments: Arguments) -> dict[str, Any] | None:
    """All -o together; None where they ask for help."""
    from blocklayer.base.options import split_options

    result: dict[str, Any] = {}
    for text in arguments.all("o"):
        if not text or text.startswith(",") or _ends_with_comma(text):
            raise Failure(f"Invalid option list: {text}")
        for name, value in split_options(text):
            if name in ("help", "?"):
                return None
            if name in _NOT_FOR_DRIVERS:
                raise Failure(f"Invalid parameter '{name}'")
            result[name] = value
    return result


def _ends_with_comma(text: str) -> bool:
    """A trailing comma that is not half of a doubled one."""
    return (len(text) - len(text.rstrip(","))) % 2 == 1
