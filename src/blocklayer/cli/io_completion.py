# SPDX-License-Identifier: Apache-2.0
"""What the tab key offers in `blk io`."""

from __future__ import annotations

import os
from collections.abc import Iterable

from blocklayer.cli.getopt import Option
from blocklayer.cli.io_language import IoCommand
from blocklayer.cli.io_session import Session

_BREAKS = ("remove_break", "resume", "wait_break")
"""Commands that take the tag of a break point."""


class Completer:
    """readline's completion function: asked for one candidate after the other."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._found: list[str] = []

    def __call__(self, text: str, state: int) -> str | None:
        """The candidate of that number; None behind the last one."""
        if state == 0:
            import readline

            before = readline.get_line_buffer()[: readline.get_begidx()]
            self._found = candidates(self._session, before.split(), text)
        return self._found[state] if state < len(self._found) else None


def candidates(session: Session, before: list[str], text: str) -> list[str]:
    """What `text` may become behind the words that stand before it."""
    if not before or (before[0] in ("help", "?") and len(before) == 1):
        return _begun(sorted({each.name for each in session.commands.values()}), text)
    command = session.commands.get(before[0])
    if command is None:
        return []
    option = _open_option(command, before[1:])
    if option is not None:
        return _values(option, text)
    if text.startswith("-"):
        return _begun([f"-{each.short}" for each in command.options], text)
    if command.name == "open":
        return _files(text)
    if command.name in _BREAKS:
        return _begun(sorted(session.tags), text)
    return []


def _begun(words: Iterable[str], text: str) -> list[str]:
    return [f"{word} " for word in words if word.startswith(text)]


def _open_option(command: IoCommand, words: list[str]) -> Option | None:
    """The option that ends the words, and whose value is still to come."""
    if not words or not words[-1].startswith("-"):
        return None
    by_letter = {option.short: option for option in command.options}
    for index, letter in enumerate(words[-1][1:], 2):
        option = by_letter.get(letter)
        if option is not None and option.value:
            return option if index == len(words[-1]) else None
    return None


def _values(option: Option, text: str) -> list[str]:
    if option.value == "FILE":
        return _files(text)
    if option.value == "CACHE":
        from blocklayer.core.opening import CACHE_MODES

        return _begun(CACHE_MODES, text)
    return _begun(option.choices, text)


def _files(text: str) -> list[str]:
    """Files and directories; names with spaces cannot be written in this language."""
    directory, name = os.path.split(text)
    try:
        with os.scandir(directory or ".") as entries:
            found = [
                entry.name + ("/" if entry.is_dir() else " ")
                for entry in entries
                if entry.name.startswith(name) and not set(entry.name) & set(" \t\n")
            ]
    except OSError:
        return []
    shown = [each for each in found if name or not each.startswith(".")]
    return [os.path.join(directory, each) for each in sorted(shown)]
