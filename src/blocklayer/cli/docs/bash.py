# SPDX-License-Identifier: Apache-2.0
"""Completion for bash: the tables that `blk.bash` looks things up in."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from blocklayer.cli.docs import model
from blocklayer.cli.getopt import Option
from blocklayer.cli.io import all_commands
from blocklayer.cli.parsing import Command
from blocklayer.cli.usage import spellings


def script() -> str:
    """The completion script."""
    with open(os.path.join(os.path.dirname(__file__), "blk.bash"), encoding="utf-8") as file:
        template = file.read()
    return template.replace("@TABLES@", "\n".join(_tables()))


def _tables() -> Iterator[str]:
    commands = model.commands()
    chosen = {command.name: model.format_option(command) for command in commands}
    with_target = [name for name, option in chosen.items() if option and option.short == "O"]
    formats = model.format_options()
    io_commands = all_commands()
    yield _words("commands", (command.name for command in commands))
    yield _words("with_target", with_target)
    yield _words("formats", formats)
    yield _words("caches", model.cache_modes())
    yield _words("io_commands", sorted({command.name for command in io_commands.values()}))
    names = {command.name: _option_names(command.options) for command in commands}
    yield from _cases("option_names", {"''": _option_names(model.program_options()), **names})
    yield from _kinds(commands)
    yield from _cases(
        "arguments", {command.name: model.argument_words(command) for command in commands}
    )
    yield from _cases(
        "format_option_names",
        {name: [f"{option.name}=" for option in options] for name, options in formats.items()},
    )
    yield from _format_option_kinds()
    yield from _cases(
        "io_options",
        {f"'{name}'": _option_names(command.options) for name, command in io_commands.items()},
    )


def _option_names(options: Iterable[Option]) -> list[str]:
    return [name for option in options for name in spellings(option)]


def _words(name: str, words: Iterable[str]) -> str:
    return f"_blk_{name}='{' '.join(words)}'"


def _cases(name: str, words: dict[str, list[str]]) -> Iterator[str]:
    """A function that sets `names` to the words that belong to its argument."""
    yield from ("", f"_blk_{name}() {{", "    names=''", "    case $1 in")
    for key, values in words.items():
        if values:
            yield f"        {key}) names='{' '.join(values)}' ;;"
    yield from ("    esac", "}")


def _kinds(commands: list[Command]) -> Iterator[str]:
    """A function that sets `kind` to what the value of an option of `command` is."""
    yield from ("", "_blk_kind_of() {", "    kind=''", '    case "$command $1" in')
    for name, options in (
        ("", model.program_options()),
        *((command.name, command.options) for command in commands),
    ):
        for option in options:
            if kind := model.value_kind(option):
                patterns = " | ".join(f"'{name} {spelling}'" for spelling in spellings(option))
                yield f"        {patterns}) kind='{kind}' ;;"
            elif kind := model.optional_kind(option):
                yield f"        '{name} --{option.long}=') kind='{kind}' ;;"
    yield from ("    esac", "}")


def _format_option_kinds() -> Iterator[str]:
    yield from ("", "_blk_format_option_kind() {", "    kind=''", '    case "$1 $2" in')
    for name, options in model.format_options().items():
        for option in options:
            kind = model.create_option_kind(option)
            if kind != model.ANY:
                yield f"        '{name} {option.name}') kind='{kind}' ;;"
    yield from ("    esac", "}")
