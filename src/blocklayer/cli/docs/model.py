# SPDX-License-Identifier: Apache-2.0
"""What there is to tell: commands, their options, formats and their options.

Everything here is read from the declarations that `--help` is made from.
"""

from __future__ import annotations

import importlib
import re

from blocklayer.cli.getopt import Option
from blocklayer.cli.main import COMMANDS, OPTIONS
from blocklayer.cli.parsing import Command
from blocklayer.core import drivers
from blocklayer.core.drivers import FORMATS, CreateOption
from blocklayer.core.opening import CACHE_MODES

ANY = "any"
"""The kind of a value that nobody can guess."""

KINDS = {
    "FILE": "file",
    "FMT": "format",
    "CACHE": "cache",
    "OPTIONS": "options",
    "COMMAND": "io",
}
"""What values are, by what they are called in help."""

_REPEATED = ("cmd", "options", "object", "trace")
"""Options that are of use more than once."""


def commands() -> list[Command]:
    """All commands, in the order of `blk --help`."""
    modules = (importlib.import_module(module) for module, _ in COMMANDS.values())
    return [module.COMMAND for module in modules]


def summary(command: Command) -> str:
    """What a command does, in a few words."""
    return COMMANDS[command.name][1]


def program_options() -> tuple[Option, ...]:
    """The options that stand before the command."""
    return OPTIONS


def value_kind(option: Option) -> str:
    """What an option's value is: a kind, or ``words:`` and the values; empty if it has none."""
    if not option.value:
        return ""
    if option.choices:
        return "words:" + " ".join(option.choices)
    return KINDS.get(option.value, ANY)


def optional_kind(option: Option) -> str:
    """The same of a value that may follow a long option after =; empty if none may."""
    if not option.optional:
        return ""
    return "words:" + " ".join(option.choices) if option.choices else "file"


def is_repeated(option: Option) -> bool:
    """Whether giving it twice makes sense."""
    return option.key in _REPEATED


def argument_words(command: Command) -> list[str]:
    """What a command's arguments may be, where they are no files."""
    return list(COMMANDS) if command.words == ("COMMAND",) else list(command.words)


def takes_files(command: Command) -> bool:
    """Whether its arguments are files."""
    return not command.words


def format_option(command: Command) -> Option | None:
    """The option that chooses the format whose options -o takes: of the target, if it has one."""
    by_letter = {option.short: option for option in command.options}
    return by_letter.get("O") or by_letter.get("f")


# --- formats ------------------------------------------------------------------------------------


def cache_modes() -> list[str]:
    """The cache modes."""
    return list(CACHE_MODES)


def format_options() -> dict[str, list[CreateOption]]:
    """Formats, and what -o takes for each."""
    return {
        name: sorted(drivers.load(name).create_options, key=lambda option: option.name)
        for name in FORMATS
    }


def create_option_kind(option: CreateOption) -> str:
    """What the value of an option of a format is; see `value_kind`."""
    allowed = re.search(r"allowed values: ([^)]+)\)", option.help)
    if allowed:
        return "words:" + " ".join(allowed.group(1).split(", "))
    if option.kind == "bool":
        return "words:on off"
    return {"backing_file": "file", "backing_fmt": "format"}.get(option.name, ANY)
