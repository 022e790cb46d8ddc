# SPDX-License-Identifier: Apache-2.0
"""What somebody may have meant by a word that nobody knows."""

from __future__ import annotations

from collections.abc import Iterable

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.cli.getopt import Option

_LIKENESS = 0.6
"""Below it, words have little in common; `difflib` calls this close."""


def closest(word: str, known: Iterable[str]) -> str:
    """The known word most like `word`; empty if none is like it."""
    from difflib import get_close_matches

    return "".join(get_close_matches(word, list(known), n=1, cutoff=_LIKENESS))


def suggest(error: Exception, word: str, known: Iterable[str], prefix: str = "") -> None:
    """Add to an error what may have been meant."""
    if found := closest(word, known):
        error.add_note(f"Did you mean '{prefix}{found}'?")


def suggest_option(error: Exception, spelling: str, options: Iterable[Option]) -> None:
    """The same for a long option, which may have been cut too short as well."""
    if not spelling.startswith("--"):
        return  # one letter is like no other
    name = spelling[2:].partition("=")[0]
    names = [long for option in options for long in option.longs]
    begun = [f"'--{long}'" for long in names if name and long.startswith(name)]
    if name in names:
        error.add_note(f"'--{name}' takes no value.")
    elif len(begun) > 1:
        error.add_note(f"It may be {', '.join(begun[:-1])} or {begun[-1]}.")
    else:
        suggest(error, name, names, "--")
