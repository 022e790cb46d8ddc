# SPDX-License-Identifier: Apache-2.0
"""`blk help`: what `--help` says, for those who ask in words."""

from __future__ import annotations

from blocklayer.cli.failures import UsageError
from blocklayer.cli.parsing import Arguments, Command

COMMAND = Command(
    "help",
    "[COMMAND [IO_COMMAND]]",
    "Tell about blk, about one of its commands, or about a command of 'blk io'.",
    (),
    examples=(
        ("help convert", "Usage, options and examples of a command."),
        ("help io write", "The same of a command that 'blk io' knows."),
    ),
    words=("COMMAND",),
)


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.cli import main

    names = arguments.names
    if len(names) > (2 if names[:1] == ["io"] else 1):
        raise UsageError(f"Unexpected argument: {names[-1]}")
    if len(names) == 2:
        return main.main(["io", "-c", f"help {names[1]}"])
    return main.main([*names, "--help"])
