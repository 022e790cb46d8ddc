# SPDX-License-Identifier: Apache-2.0
"""Command lines, read as GNU getopt reads them and qemu-img's users write them.

Options and arguments may be mixed, short options clustered (`-pq`) or joined with their value
(`-fqed`), long ones abbreviated; `--` ends them. argparse does none of this with the right words,
and costs more start-up time than opening an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Option:
    """An option: its spellings (`-f --format`), what its value is called (nothing: it has none).

    The first letter and the first long name are those it is known by; there may be others.

    choices    the values there are, or are worth offering; of other values, their name tells
               completion what they are: FILE, FMT (a format), CACHE (a cache mode), OPTIONS (of a
               format), COMMAND (of io)
    group      the title it stands under in help and manual; a command's own have none
    optional   it has no value, but may be given one: --option=VALUE
    key        what those call it who ask for it, if not by its long name
    """

    __slots__ = (
        "choices",
        "group",
        "help",
        "key",
        "long",
        "longs",
        "optional",
        "short",
        "shorts",
        "value",
    )

    def __init__(
        self,
        spellings: str,
        value: str = "",
        help: str = "",
        *,
        choices: tuple[str, ...] = (),
        group: str = "",
        optional: bool = False,
        key: str = "",
    ) -> None:
        self.optional = optional
        words = spellings.split()
        self.longs = [word[2:] for word in words if word[1] == "-"]
        self.shorts = [word[1:] for word in words if word[1] != "-"]
        self.long = self.longs[0] if self.longs else ""
        self.short = self.shorts[0] if self.shorts else ""
        self.key = key or self.long or self.short
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
    by_short = {letter: option for option in options for letter in option.shorts}
    by_long = {long: option for option in options for long in option.longs}
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
        matches = {known for long, known in by_long.items() if long.startswith(name)}
        if len(matches) != 1:
            raise BadOption("unknown", token)
        option = matches.pop()
    if not option.value:
        if option.optional:
            if equals and not value:  # an empty variable is no folder, and not the default either
                raise BadOption("missing", token)
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
