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
    from blocklayer.core.trust import Trust

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

SIZE_HINT = (
    "You may use k, M, G, T, P or E suffixes for\n"
    "kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
)


class Option:
    """An option: its spellings (`-f --format`), what its value is called (nothing: it has none).

    choices    all values there are; of other values, their name tells completion what they are:
               FILE, FMT (a format), CACHE (a cache mode), OPTIONS (of a format), COMMAND (of io)
    group      the title it stands under in help and manual; a command's own have none
    optional   it has no value, but may be given one: --option=VALUE
    """

    __slots__ = ("choices", "group", "help", "key", "long", "optional", "short", "value")

    def __init__(
        self,
        spellings: str,
        value: str = "",
        help: str = "",
        *,
        choices: tuple[str, ...] = (),
        group: str = "",
        optional: bool = False,
    ) -> None:
        self.optional = optional
        self.short = self.long = ""
        for spelling in spellings.split():
            if spelling.startswith("--"):
                self.long = spelling[2:]
            else:
                self.short = spelling[1:]
        self.key = self.long or self.short
        self.value = value
        self.help = help
        self.choices = choices
        self.group = group


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
        if option.optional:
            return option.key, value
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
TRACE = Option("--trace", "PATTERN", "print events of drivers that match: 'qed_*'", group=GENERAL)
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
    return Trust.from_options(limits, arguments.last("untrusted") or None)


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

    if text != text.rstrip() or ("." in text and text[-1:] in "bB"):
        raise NotANumber(text)
    text = text.lstrip().removeprefix("+")
    head, dot, unit = text.rpartition(".")
    if dot and head and (not unit or (len(unit) == 1 and unit.isalpha())):
        text = head + unit  # "1.M" is 1M
    try:
        if text[:2] in ("0x", "0X") and text[-1:] in "kKmMgGtTpP":
            return parse_size(parse_size(text[:-1]) * parse_size(f"1{text[-1]}"))
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


def size_argument(text: str, what: str, *, least: int = 0, most: int = INT64_MAX) -> int:
    """A size from the command line; `what` names it in the error."""
    try:
        size = number(text)
    except NotANumber:
        raise Failure(f"Invalid {what} specified. {SIZE_HINT}") from None
    except NumberTooLarge:
        size = INT64_MAX + 1
    if not least <= size <= most:
        raise Failure(f"Invalid {what} specified. Must be between {least} and {most}.")
    return size


def integer_argument(text: str, what: str, *, most: int = INT32_MAX) -> int:
    """A number without a suffix, in any base that C knows: ``10``, ``0x10``, ``010``."""
    digits = text.strip().removeprefix("+").lower()
    value = -1
    hexadecimal = digits.startswith("0x") and digits.isalnum()
    if digits.isascii() and (digits.isdigit() or hexadecimal):  # Python takes 1_0 and 0o7 as well
        base = 16 if hexadecimal else 8 if digits.startswith("0") else 10
        try:
            value = int(digits, base)
        except ValueError:
            value = -1
    if not 0 <= value <= most:
        raise Failure(f"Invalid {what} specified")
    return value


def check_target(name: str) -> None:
    """Whether a new image can have this name. Raises `Failure`."""
    from blocklayer.base.errors import OpenError
    from blocklayer.core.opening import path_of

    try:
        path_of(name)
    except OpenError as error:
        raise Failure(error.message) from None


def refuse_snapshot(arguments: Arguments, names: list[str]) -> None:
    """-l: none of the formats that there are has snapshots. Raises `Failure`, or `OpenError`."""
    from blocklayer.base.options import split_options
    from blocklayer.ops.info import info

    text = arguments.last("l")
    if text.startswith("snapshot."):
        for name, _ in split_options(text):
            if name not in ("snapshot.id", "snapshot.name"):
                raise Failure(f"Invalid parameter '{name}'")
    for each in names:
        format_name = arguments.optional("format")
        format_name = info(image_name(arguments, each), format=format_name).format
    if len(names) > 1:
        raise Failure("No support for concatenating multiple snapshot")
    raise Failure(
        f"Failed to load snapshot: Block format '{format_name}' has no internal snapshots"
    )


_NOT_FOR_DRIVERS = ("filename", "format", "backing", "backing_format", "check_backing", "locking")
"""Arguments of `blocklayer.create` that are no options of a format."""


def create_options(arguments: Arguments) -> dict[str, Any] | None:
    """All -o together; None where they ask for help."""
    from blocklayer.base.options import split_options

    result: dict[str, Any] = {}
    for text in arguments.all("o"):
        if not text or text.startswith(",") or _ends_with_comma(text):
            raise Failure(f"Invalid option list: {text}")
        items = text.replace(",,", "\0").split(",")
        if "help" in items or "?" in items:
            return None
        result |= dict(split_options(text))
        if any(item.startswith("=") for item in items):
            result[""] = ""
        for name in result.keys() & _NOT_FOR_DRIVERS:
            raise Failure(f"Invalid parameter '{name}'")
    return result


def check_sizes(format_name: str, options: dict[str, Any]) -> None:
    """Look at options that are sizes. Raises `Failure` in the words that QEMU has for options."""
    from blocklayer.core import drivers
    from blocklayer.ops.file_hints import FILE_OPTIONS

    if not drivers.is_known(format_name):
        return
    for option in (*drivers.load(format_name).create_options, *FILE_OPTIONS):
        if option.kind == "size" and isinstance(options.get(option.name), str):
            options[option.name] = str(size_option(option.name, options[option.name]))


def size_option(name: str, text: str) -> int:
    """A size that is an option's value. Raises `Failure`."""
    try:
        return number(text)
    except NotANumber:
        raise Failure(
            f"Parameter '{name}' expects a non-negative number below 2^64\n"
            "A suffix k, M, G, T, P or E multiplies it by a power of 1024."
        ) from None
    except NumberTooLarge:
        raise Failure(f"Value '{text}' is out of range for parameter '{name}'") from None


def _ends_with_comma(text: str) -> bool:
    """A trailing comma that is not half of a doubled one."""
    return (len(text) - len(text.rstrip(","))) % 2 == 1
