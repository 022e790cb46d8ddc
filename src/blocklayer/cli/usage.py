# SPDX-License-Identifier: Apache-2.0
"""Help, made from what the commands declare."""

from __future__ import annotations

from blocklayer._version import __version__
from blocklayer.cli.failures import PROGRAM
from blocklayer.cli.parsing import Command, Option


def version() -> str:
    """What --version prints."""
    return f"{PROGRAM} version {__version__}"


def program_help(options: tuple[Option, ...], commands: dict[str, str]) -> str:
    """What `blk --help` prints; `commands` are names with what they do."""
    from blocklayer.core.drivers import FORMATS

    width = max(map(len, commands))
    return "\n".join(
        [
            version(),
            f"usage: {PROGRAM} [standard options] command [command options]",
            "Create, inspect, check, convert and change virtual disk images",
            "",
            "Standard options:",
            *map(_option_line, options),
            "",
            "Commands:",
            *(f"  {name:{width}}  {about}" for name, about in commands.items()),
            "",
            f"'{PROGRAM} command --help' tells more about a command.",
            "Sizes are bytes, or numbers with a suffix k, M, G, T, P or E (powers of 1024).",
            "",
            f"Supported formats: {' '.join(FORMATS)}",
        ]
    )


def command_help(command: Command) -> str:
    """What `blk COMMAND --help` prints."""
    return "\n".join(
        [
            f"usage: {PROGRAM} {command.name} [options] {command.usage}",
            command.about,
            "",
            *map(_option_line, command.options),
        ]
    )


def _option_line(option: Option) -> str:
    spellings = [f"-{option.short}"] if option.short else []
    if option.long:
        spellings.append(f"--{option.long}")
    text = ", ".join(spellings)
    if option.value:
        text += f" {option.value}"
    return f"  {text:26}  {option.help}"
