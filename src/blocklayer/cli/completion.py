# SPDX-License-Identifier: Apache-2.0
"""`blk completion`: a script that makes a shell complete `blk`."""

from __future__ import annotations

from blocklayer.cli.failures import Failure, UsageError
from blocklayer.cli.parsing import Arguments, Command

SHELLS = ("bash", "zsh", "fish")

COMMAND = Command(
    "completion",
    "bash|zsh|fish",
    "Print a script that makes a shell complete the commands and options of blk.",
    (),
    details=(
        "Commands, options and their values are completed: formats, cache modes, the options of"
        " the chosen format after -o, the commands of 'blk io -c', file names. The script is"
        " complete in itself: to complete, no program is started.\n\n"
        "Where the package is installed with its data files, or by 'make install-docs', shells"
        " find it by themselves."
    ),
    examples=(
        ("completion bash > ~/.local/share/bash-completion/completions/blk", "For bash."),
        ("completion zsh > ~/.zfunc/_blk", "For zsh; the directory must be in fpath."),
        ("completion fish > ~/.config/fish/completions/blk.fish", "For fish."),
    ),
    words=SHELLS,
)


def run(arguments: Arguments) -> int:
    """The command."""
    import importlib

    if len(arguments.names) != 1:
        raise UsageError(f"Expecting one shell: {', '.join(SHELLS)}")
    shell = arguments.names[0]
    if shell not in SHELLS:
        raise Failure(f"Unknown shell '{shell}'; there are scripts for {', '.join(SHELLS)}")
    print(importlib.import_module(f"blocklayer.cli.docs.{shell}").script(), end="")
    return 0
