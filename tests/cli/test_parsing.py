# SPDX-License-Identifier: Apache-2.0
"""Command lines against Python's getopt, and numbers against a table."""

from __future__ import annotations

import getopt as stdlib
import random

import pytest

from blocklayer.cli.failures import Failure, UsageError
from blocklayer.cli.getopt import BadOption, Option, getopt
from blocklayer.cli.numbers import NotANumber, NumberTooLarge, number
from blocklayer.cli.parsing import Arguments, Command, option_tree, parse
from blocklayer.cli.targets import create_options

OPTIONS = (
    Option("-f --format", "FMT"),
    Option("-q --quiet"),
    Option("-p"),
    Option("--output", "FMT"),
    Option("--object", "DEF"),
    Option("-o", "OPTIONS"),
)
TOKENS = (
    *("-f", "-fx", "-q", "-qp", "-qf", "-qfx", "-p", "-o", "-ox", "-x", "-qx", "-", "--", "a"),
    *("--format", "--format=x", "--form", "--form=x", "--quiet", "--quiet=x", "--out", "--o"),
    *("--output=", "--object=a=b", "--nonsense", "", "a b", "-f-", "--qui"),
)


def expected(tokens: list[str]) -> tuple[list[tuple[str, str]], list[str]] | None:
    """What the standard library makes of them; None if it refuses."""
    keys = {"-f": "format", "--format": "format", "-q": "quiet", "--quiet": "quiet"}
    try:
        pairs, rest = stdlib.gnu_getopt(
            tokens, "f:qpo:", ["format=", "quiet", "output=", "object="]
        )
    except stdlib.GetoptError:
        return None
    return [(keys.get(key, key.lstrip("-")), value) for key, value in pairs], rest


def test_getopt_is_that_of_the_standard_library(rng: random.Random) -> None:
    refused = 0
    for _ in range(5000):
        tokens = rng.choices(TOKENS, k=rng.randint(0, 6))
        wanted = expected(tokens)
        try:
            found = getopt(OPTIONS, tokens)
        except BadOption:
            assert wanted is None, tokens
            refused += 1
        else:
            assert found == wanted, tokens
    assert 500 < refused < 4500


def test_unmixed_options_end_at_the_first_argument() -> None:
    assert getopt(OPTIONS, ["-q", "a", "-f"], mixed=False) == ([("quiet", "")], ["a", "-f"])
    assert getopt(OPTIONS, ["-q", "--", "-f"], mixed=False) == ([("quiet", "")], ["-f"])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["-x"], "unrecognized option '-x'"),
        (["-qx"], "unrecognized option '-x'"),
        (["--foo=1"], "unrecognized option '--foo=1'"),
        (["--quiet=1"], "unrecognized option '--quiet=1'"),
        (["--o"], "unrecognized option '--o'"),
        (["-f"], "missing argument for option '-f'"),
        (["-qf"], "missing argument for option '-f'"),
        (["a", "--output"], "missing argument for option '--output'"),
    ],
)
def test_complaints(tokens: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(Command("test", "", "", OPTIONS), tokens)
    assert str(caught.value) == message


def test_the_last_argument_may_be_a_negative_number() -> None:
    command = Command("test", "", "", OPTIONS, last_is_number=True)
    assert parse(command, ["-q", "a", "-1M"]).names == ["a", "-1M"]
    assert "help" in parse(command, ["-h"])


def test_the_last_value_counts_and_all_are_there() -> None:
    arguments = parse(Command("test", "", "", OPTIONS), ["-fa", "--format", "b", "-o1", "-o2"])
    assert arguments.last("format") == "b"
    assert arguments.all("o") == ["1", "2"]
    assert arguments.optional("quiet") is None
    assert arguments.last("output", "human") == "human"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64k", 65536),
        ("64K", 65536),
        ("1.5M", 1572864),
        ("1b", 1),
        ("0x200", 512),
        ("2G", 2147483648),
        ("1e", 1 << 60),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_numbers(text: str, value: int) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1k1", "1kk", "1.5", "1e3", "0x", "k", "1KB", "--", "1,5k", "٣"]
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(NotANumber):
        number(text)


@pytest.mark.parametrize(
    "text", ["8E", "9223372036854775808", "99999999999G", "0x8000000000000000"]
)
def test_what_is_too_large(text: str) -> None:
    with pytest.raises(NumberTooLarge):
        number(text)


def arguments_with(*values: str) -> Arguments:
    return Arguments([("options", value) for value in values], [])


def test_create_options_accumulate() -> None:
    assert create_options(arguments_with("a=1,b=2", "b=3,c", "d=x,,y")) == {
        "a": "1",
        "b": "3",
        "c": "on",
        "d": "x,y",
    }
    assert create_options(arguments_with("a=1,help")) is None
    assert create_options(arguments_with("?")) is None


@pytest.mark.parametrize("text", ["", ",", ",a=1", "a=1,", "a=1,,,", "filename=x", "locking=off"])
def test_create_options_that_are_none(text: str) -> None:
    with pytest.raises(Failure, match=r"Invalid (option list|parameter)"):
        create_options(arguments_with(text))


def test_option_trees() -> None:
    assert option_tree("driver=qed,file.filename=a,,b,read-only") == {
        "driver": "qed",
        "file": {"filename": "a,b"},
        "read-only": "on",
    }
