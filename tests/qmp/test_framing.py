"""The stream of JSON: any pieces, any garbage, bounded memory, and found again afterwards."""

import json
import random
import tracemalloc
from typing import Any

import pytest

from blocklayer.qmp.framing import MESSAGE_MAX, NESTING_MAX, TOKENS_MAX, Splitter, loads
from blocklayer.qmp.parser import JsonError


def split(*pieces: bytes) -> list[Any]:
    """What comes out; errors as their words."""
    splitter = Splitter()
    found = [each for piece in pieces for each in splitter.feed(piece)]
    found += splitter.finish()
    return [str(each) if isinstance(each, JsonError) else [each] for each in found]


def parse_error(reason: str) -> str:
    return f"JSON parse error, {reason}"


EXPECTING_VALUE = parse_error("expecting value")

CASES: list[tuple[bytes, list[Any]]] = [
    (b'{"a": [1, 2.5, true, false, null, "x"]}', [[{"a": [1, 2.5, True, False, None, "x"]}]]),
    (b"{} []\n{}", [[{}], [[]], [{}]]),
    (b"{'a': 'it\\'s'}", [[{"a": "it's"}]]),
    (b'"\\u00e9\\n\\/\\ud83d\\ude00\xc3\xa9\\u0000"', [["é\n/😀é\0"]]),
    (b"-0 18446744073709551615 18446744073709551616 1e3 ", [[0], [2**64 - 1], [2.0**64], [1e3]]),
    (b"1e400 ", [parse_error("number out of range")]),
    (b"@\n", [parse_error("stray '@'")]),
    (b"@@\n", [parse_error("stray '@'")]),
    (b'{"a": @}\n', [parse_error("stray '@'"), EXPECTING_VALUE]),
    (b'{"a" 1}', [parse_error("missing : in object pair")]),
    (b'{"a": }', [EXPECTING_VALUE]),
    (b"{a: 1}", [parse_error("invalid keyword 'a'")]),
    (b"}", [EXPECTING_VALUE]),
    (b"{]", [EXPECTING_VALUE]),
    (b"[}", [EXPECTING_VALUE]),
    (b"[1,]", [EXPECTING_VALUE]),
    (b'{"a":1,}', [EXPECTING_VALUE]),
    (b'{"a":1 "b":2}', [parse_error("expected separator in dict")]),
    (b"[1 2]", [parse_error("expected separator in list")]),
    (b'{"a":1,"a":2}', [parse_error("duplicate key")]),
    (b"{1:2}", [parse_error("key is not a string in object")]),
    (b"nul\n", [parse_error("invalid keyword 'nul'")]),
    (b'"\\x"', [parse_error("invalid escape sequence in string")]),
    (b'"\\u12"', [parse_error('\\u12" is not a valid Unicode character')]),
    (b'"\\ud800"', [parse_error("\\ud800 is not a valid Unicode character")]),
    (b'"\xc3("', [parse_error("invalid UTF-8 sequence in string")]),
    (b'"a\nb"\n{}', [parse_error("stray '\"a\n'"), [{}]]),
    (b"1.5.2\n", [[1.5], parse_error("stray '.'")]),
    (b"01\n", [parse_error("stray '01'")]),
    (b"-v\n", [parse_error("stray '-v'")]),
    (b"1e\n{}", [parse_error("stray '1e\n'"), [{}]]),
    (b"{}\xff{}", [[{}], parse_error("stray '\ufffd'"), [{}]]),
    (b"{}\0{}", [[{}], parse_error("stray ''"), [{}]]),
    (b'{"a": @ , "b": {"c": 1}}', [
        parse_error("stray '@'"), EXPECTING_VALUE, ["b"], EXPECTING_VALUE, [{"c": 1}],
        EXPECTING_VALUE,
    ]),
    (b'{"a": [1', [parse_error("premature EOI")]),
    (b"12", [[12]]),
    (b"", []),
    (b" \n ", []),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), CASES)
def test_the_answers_to_a_stream(data: bytes, expected: list[Any]) -> None:
    assert split(data) == expected


@pytest.mark.parametrize(("data", "expected"), CASES)
def test_bytes_one_by_one_make_no_difference(data: bytes, expected: list[Any]) -> None:
    assert split(*(data[i : i + 1] for i in range(len(data)))) == expected


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """`data` in random pieces."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(10)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 5 else 6)
    if kind == 6:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {
            f"k{number}{rng.random()}": random_value(rng, depth + 1)
            for number in range(rng.randrange(4))
        }
    text = "".join(rng.choice('a"\\\n\x01é😀\x7f/\u2028') for _ in range(rng.randrange(6)))
    return [None, True, False, rng.randrange(-(2**63), 2**64), rng.uniform(-1e9, 1e9), text][kind]


def test_random_values_in_random_pieces(rng: random.Random) -> None:
    for _ in range(200):
        values = [random_value(rng) for _ in range(rng.randrange(4))]
        data = b" ".join(
            json.dumps(value, ensure_ascii=rng.random() < 0.5).encode() for value in values
        )
        assert split(*pieces(rng, data + b"\n")) == [[value] for value in values]


def test_garbage_is_the_same_in_any_pieces_and_never_keeps_the_next_message_away(
    rng: random.Random,
) -> None:
    words = [b"{", b"}", b"[", b"]", b'"', b"'", b":", b",", b"1", b"-", b".", b"e", b"true"]
    words += [b"\\", b"\\u", b"\n", b" ", b"\0", b"\xff", b"\xc3", b"%", b'"a"', b"nul", b"{}"]
    for _ in range(500):
        garbage = b"".join(rng.choice(words) for _ in range(rng.randrange(40)))
        expected = split(garbage)
        assert split(*pieces(rng, garbage)) == expected, garbage
        # The documented way to start afresh: a control character ends any token, and whatever was
        # open is closed by as many brackets, or is an error.
        splitter = Splitter()
        for piece in pieces(rng, garbage):
            list(splitter.feed(piece))
        list(splitter.feed(b"\xff\n"))
        assert list(splitter.feed(b'{"ping": 1}')) == [{"ping": 1}], garbage


def test_nesting_is_bounded() -> None:
    deep = b"[" * NESTING_MAX + b"]" * NESTING_MAX
    assert isinstance(split(deep)[0], list)
    assert split(b"[" + deep)[0] == "JSON nesting depth limit exceeded"
    assert split(b'{"a":' * (NESTING_MAX + 1))[0] == "JSON nesting depth limit exceeded"


def test_tokens_of_a_message_are_bounded() -> None:
    assert split(b"[" + b"1," * TOKENS_MAX)[0] == "JSON token count limit exceeded"


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b'"', b"x" * 4096),
        (b'"', b"\\n" * 2048),
        (b"", b"7" * 4096),
        (b"", b"a" * 4096),
        (b"@", b"x" * 4096),
        (b"[", b'"' + b"x" * 4093 + b'",'),
        (b"", b" " * 4096),
        (b"[", b"1," * 2048),
    ],
)
def test_memory_is_bounded(start: bytes, piece: bytes) -> None:
    limit = 64 * 1024
    splitter = Splitter(limit)
    list(splitter.feed(start))
    tracemalloc.start()
    try:
        for _ in range(4 * limit // len(piece)):
            for _ in splitter.feed(piece):
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A byte may become two small objects of a list, and a string is copied once.
    assert peak < 40 * limit if piece.startswith(b"1") else peak < 4 * limit
    list(splitter.feed(b'"\n\xff\n'))
    assert list(splitter.feed(b'{"ping": 1}')) == [{"ping": 1}]


def test_the_usual_limit_allows_what_commands_need() -> None:
    text = "x" * (MESSAGE_MAX - 100)
    assert split(b'{"text": "' + text.encode() + b'"}') == [[{"text": text}]]
    assert split(b'"' + b"x" * MESSAGE_MAX + b'"\n')[0] == "JSON token size limit exceeded"


def test_loads_takes_one_value() -> None:
    assert loads('{"driver": "raw"}') == {"driver": "raw"}
    for wrong in ("", "{", "{} {}", "{'a'}", '{"a": }'):
        with pytest.raises(JsonError, match="JSON parse error"):
            loads(wrong)
