# SPDX-License-Identifier: Apache-2.0
"""JSON tokens from a stream of bytes, as QEMU's monitors take them; no input or output of its own.

Bytes may arrive in any pieces. What is no token is an error, after which everything is skipped up
to the end of the line or a structural character: from there the stream can be understood again.
Strings may stand in single quotes. Work is linear in the bytes, however they are cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple


class Kind(Enum):
    """What a token is."""

    PUNCTUATION = auto()
    STRING = auto()
    INTEGER = auto()
    FLOAT = auto()
    KEYWORD = auto()
    STRAY = auto()
    """No token: the text is what could not be understood."""
    TOO_LONG = auto()
    """A token beyond the limit; the text is empty."""


class Token(NamedTuple):
    """A piece of JSON; strings have their quotes and escapes."""

    kind: Kind
    text: bytes


_SPACE = re.compile(rb"[ \t\r\n]*")
_LETTERS = re.compile(rb"[a-z]*")
_RESYNC = re.compile(rb"[\x00-\x08\n-\x1f\xfe\xff{}\[\]:,]")
_PLAIN = {
    quote: re.compile(rb"[^\\\x00-\x1f\xfe\xff%c]*" % quote) for quote in (ord("'"), ord('"'))
}
_STRUCTURAL = frozenset(b"{}[]:,")
_RESTART = frozenset(b"\r\n{}[]:,")
_LOWER = frozenset(range(ord("a"), ord("z") + 1))
_UNPRINTABLE = frozenset([*range(0x20), 0xFE, 0xFF])
_BACKSLASH = ord("\\")


# How much of a number has been seen. Integers: an enumeration's hash costs more than the rest.
_SIGN, _ZERO, _INTEGER, _POINT, _FRACTION, _E, _E_SIGN, _EXPONENT = range(8)


def _steps(*rows: tuple[bytes, int]) -> dict[int, int]:
    return {byte: state for characters, state in rows for byte in characters}


_DIGITS = b"0123456789"
_FIRST = _steps((b"-", _SIGN), (b"0", _ZERO), (b"123456789", _INTEGER))
_NEXT = [
    _steps((b"0", _ZERO), (b"123456789", _INTEGER)),  # behind the sign, and so on
    _steps((b".", _POINT), (b"eE", _E)),
    _steps((_DIGITS, _INTEGER), (b".", _POINT), (b"eE", _E)),
    _steps((_DIGITS, _FRACTION)),
    _steps((_DIGITS, _FRACTION), (b"eE", _E)),
    _steps((b"+-", _E_SIGN), (_DIGITS, _EXPONENT)),
    _steps((_DIGITS, _EXPONENT)),
    _steps((_DIGITS, _EXPONENT)),
]
_COMPLETE = {
    _ZERO: Kind.INTEGER,
    _INTEGER: Kind.INTEGER,
    _FRACTION: Kind.FLOAT,
    _EXPONENT: Kind.FLOAT,
}

_START, _STRING, _ESCAPE, _NUMBER, _KEYWORD, _SKIPPING = range(6)
"""Where the lexer is; `_ESCAPE` is in a string behind a backslash."""


class Lexer:
    """Bytes in, tokens out. Holds at most one unfinished token of `longest` bytes."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._state = _START
        self._partial = bytearray()
        self._number = _SIGN
        self._quote = 0

    def feed(self, data: bytes) -> Iterator[Token]:
        """The tokens that `data` completes. To be exhausted before the next call."""
        position, end = 0, len(data)
        steps = (
            self._begin,
            self._in_string,
            self._in_escape,
            self._in_number,
            self._in_keyword,
            self._skip,
        )
        while position < end:
            position, token = steps[self._state](data, position)
            if len(self._partial) > self._longest:
                self._partial.clear()
                self._state = _SKIPPING
                token = Token(Kind.TOO_LONG, b"")
            if token is not None:
                yield token

    def finish(self) -> Iterator[Token]:
        """The input is at its end: what a space would complete."""
        if self._state is not _START:
            yield from self.feed(b" ")
        if self._state in (_STRING, _ESCAPE):
            text = bytes(self._partial[:-1])
            self._partial.clear()
            self._state = _START
            yield Token(Kind.STRAY, text)

    # Each state: (data, position) -> (position behind what was understood, a token or None).

    def _begin(self, data: bytes, position: int) -> tuple[int, Token | None]:
        match = _SPACE.match(data, position)
        assert match is not None
        position = match.end()
        if position == len(data):
            return position, None
        byte = data[position]
        if byte in _STRUCTURAL:
            return position + 1, Token(Kind.PUNCTUATION, data[position : position + 1])
        if byte in _PLAIN:
            self._state, self._quote = _STRING, byte
        elif byte in _FIRST:
            self._state, self._number = _NUMBER, _FIRST[byte]
        elif byte in _LOWER:
            self._state = _KEYWORD
        else:
            return position + 1, self._stray(byte)
        self._partial.append(byte)
        return position + 1, None

    def _in_string(self, data: bytes, position: int) -> tuple[int, Token | None]:
        match = _PLAIN[self._quote].match(data, position)
        assert match is not None
        self._partial += match.group()
        position = match.end()
        if position == len(data):
            return position, None
        byte = data[position]
        if byte in _UNPRINTABLE:
            return position + 1, self._stray(byte)
        self._partial.append(byte)
        if byte == _BACKSLASH:
            self._state = _ESCAPE
            return position + 1, None
        return position + 1, self._take(Kind.STRING)

    def _in_escape(self, data: bytes, position: int) -> tuple[int, Token | None]:
        byte = data[position]
        if byte in _UNPRINTABLE:
            return position + 1, self._stray(byte)
        self._partial.append(byte)
        self._state = _STRING
        return position + 1, None

    def _in_number(self, data: bytes, position: int) -> tuple[int, Token | None]:
        state = self._number
        for place in range(position, len(data)):
            byte = data[place]
            following = _NEXT[state].get(byte)
            if following is None:
                kind = _COMPLETE.get(state)
                leading_zero = state is _ZERO and byte in _DIGITS
                if kind is None or leading_zero:
                    return place + 1, self._stray(byte)
                return place, self._take(kind)
            state = following
            self._partial.append(byte)
        self._number = state
        return len(data), None

    def _in_keyword(self, data: bytes, position: int) -> tuple[int, Token | None]:
        match = _LETTERS.match(data, position)
        assert match is not None
        self._partial += match.group()
        if match.end() == len(data):
            return match.end(), None
        return match.end(), self._take(Kind.KEYWORD)

    def _skip(self, data: bytes, position: int) -> tuple[int, Token | None]:
        match = _RESYNC.search(data, position)
        if match is None:
            return len(data), None
        byte = data[match.start()]
        if byte not in _RESTART:
            return match.end(), self._stray(byte)  # not even in what is skipped
        self._state = _START
        return match.start(), None

    def _take(self, kind: Kind) -> Token:
        token = Token(kind, bytes(self._partial))
        self._partial.clear()
        self._state = _START
        return token

    def _stray(self, byte: int) -> Token:
        self._partial.append(byte)
        token = self._take(Kind.STRAY)
        self._state = _SKIPPING
        return token
