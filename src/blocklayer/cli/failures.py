# SPDX-License-Identifier: Apache-2.0
"""How a command ends early: what is said on stderr, and the exit code."""

from __future__ import annotations

PROGRAM = "blk"


class Failure(Exception):
    """The command cannot go on; `message` is told after the program's name."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UsageError(Failure):
    """The command line is wrong: the user is told where help is."""


class Interrupted(Exception):
    """A signal asked to stop, and what was half made has been removed."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted")
        self.exit_code = 128 + signal_number
