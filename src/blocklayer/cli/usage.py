# SPDX-License-Identifier: Apache-2.0
"""Help, made from what the commands declare, and laid out for the terminal it is shown on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blocklayer._version import __version__
from blocklayer.cli.failures import PROGRAM
from blocklayer.cli.getopt import Option
from blocklayer.cli.parsing import Command

COLUMN = 28
"""Where the texts of options begin, if the terminal is wide enough."""
WIDTH_MIN, WIDTH_MAX = 40, 100
"""Narrower, words are cut; wider, lines are hard to follow."""

ABOUT = "Create, inspect, check, convert and change virtual disk images"
SIZES = "Sizes are bytes, or numbers with a suffix k, M, G, T, P or E (powers of 1024)."
EXITS = (
    (0, "success"),
    (1, "failure: stderr says what was tried and what was found"),
    (130, "interrupted by Ctrl-C (128 and the number of the signal)"),
    (141, "nobody reads the output any more"),
)
"""Exit codes that every command has, unless it gives the number another meaning."""


def version() -> str:
    """What --version prints."""
    return f"{PROGRAM} version {__version__}"


def program_help(options: tuple[Option, ...], commands: dict[str, str]) -> str:
    """What `blk --help` prints; `commands` are names with what they do."""
    from blocklayer.core.drivers import FORMATS

    width = _terminal_width()
    column = max(map(len, commands)) + 4
    lines = [
        version(),
        f"usage: {PROGRAM} [standard options] command [command options]",
        *_wrapped(ABOUT, width),
        *_section("Standard options", (_option_rows(options)), width),
        *_section("Commands", list(commands.items()), width, column),
        "",
        *_wrapped(f"'{PROGRAM} help COMMAND' tells more about a command.", width),
        *_wrapped(SIZES, width),
        "",
        *_wrapped(f"Supported formats: {' '.join(FORMATS)}", width),
    ]
    return "\n".join(lines)


def command_help(command: Command) -> str:
    """What `blk COMMAND --help` prints."""
    width = _terminal_width()
    head = f"usage: {PROGRAM} {command.name} [options] "
    lines = _wrapped(head + command.usage, width, hanging=len(head))
    lines += _wrapped(command.about, width)
    for paragraph in paragraphs(command.details):
        lines += ["", *_wrapped(paragraph, width)]
    for title, options in option_groups(command):
        lines += _section(title, _option_rows(options), width)
    if command.exits:
        rows = [(str(code), meaning) for code, meaning in exit_codes(command)]
        lines += _section("Exit codes", rows, width, column=7)
    if command.examples:
        lines += ["", "Examples:"]
        for line, about in command.examples:
            lines += [f"  {PROGRAM} {line}", *_wrapped(about, width, indent=6)]
    return "\n".join(lines)


def option_groups(command: Command) -> list[tuple[str, list[Option]]]:
    """A command's options under their titles, its own ones first."""
    groups: dict[str, list[Option]] = {}
    for option in command.options:
        groups.setdefault(option.group, []).append(option)
    own = [("Options", groups.pop(""))] if "" in groups else []
    return own + list(groups.items())


def exit_codes(command: Command) -> list[tuple[int, str]]:
    """All exit codes of a command; its own meanings go before those that all have."""
    return sorted({**dict(EXITS), **dict(command.exits)}.items())


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a description."""
    return text.split("\n\n") if text else []


def spellings(option: Option) -> list[str]:
    """``-f``, ``--format``."""
    return [f"-{letter}" for letter in option.shorts] + [f"--{long}" for long in option.longs]


# --- layout -------------------------------------------------------------------------------------


def _terminal_width() -> int:
    import shutil

    columns = shutil.get_terminal_size((80, 24)).columns
    return max(WIDTH_MIN, min(columns, WIDTH_MAX))


def _option_rows(options: Iterable[Option]) -> list[tuple[str, str]]:
    rows = []
    for option in options:
        # Long spellings stand below each other, those without a letter too.
        text = ", ".join(spellings(option))
        if not option.short:
            text = "    " + text
        rows.append((f"{text} {option.value}".rstrip(), option.help))
    return rows


def _section(
    title: str, rows: list[tuple[str, str]], width: int, column: int = COLUMN
) -> Iterator[str]:
    """A title, and terms with their texts beside them; below them where there is no room."""
    yield ""
    yield f"{title}:"
    column = min(column, width // 2)
    for term, text in rows:
        lines = _wrapped(text, width, indent=column)
        if len(term) + 4 > column:
            yield f"  {term}"
        else:
            lines[0] = f"  {term}".ljust(column) + lines[0].lstrip()
        yield from lines


def wrapped(text: str) -> list[str]:
    """A paragraph's lines, for the terminal."""
    return _wrapped(text, _terminal_width())


def _wrapped(text: str, width: int, *, indent: int = 0, hanging: int = 0) -> list[str]:
    """A paragraph's lines; `hanging` indents all but the first."""
    import textwrap

    margin = " " * indent
    return textwrap.wrap(
        text,
        width,
        initial_indent=margin,
        subsequent_indent=margin + " " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [margin]
