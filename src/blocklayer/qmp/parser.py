# SPDX-License-Identifier: Apache-2.0
"""A JSON value from its tokens, one at a time; the first error in QEMU's words.

Not recursive: the depth of a value costs memory in a list, and the splitter bounds it.
"""

from __future__ import annotations

import math
import re
from enum import Enum, auto
from typing import Any

from blocklayer.qmp.lexer import Kind, Token


class JsonError(Exception):
    """What was read is no JSON value, or beyond a limit; the text is what a peer is told."""


def parse_error(reason: str) -> JsonError:
    """An error of syntax."""
    return JsonError(f"JSON parse error, {reason}")


class _Expect(Enum):
    """What may come next in the innermost list or object."""

    VALUE = auto()
    VALUE_OR_END = auto()
    """Behind the opening bracket of a list."""
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    COMMA_OR_END = auto()


class _Level:
    """A list or an object that is not complete."""

    __slots__ = ("container", "expect", "key")

    def __init__(self, container: list[Any] | dict[str, Any]) -> None:
        self.container = container
        is_list = isinstance(container, list)
        self.expect = _Expect.VALUE_OR_END if is_list else _Expect.KEY_OR_END
        self.key = ""


_CLOSING = {b"]": list, b"}": dict}


class Parser:
    """Builds one value. The first error stays; what follows it is ignored."""

    def __init__(self) -> None:
        self.error: JsonError | None = None
        self.done = False
        self.value: Any = None
        self._levels: list[_Level] = []

    def token(self, token: Token) -> None:
        """The next token of the value."""
        if self.error is None and not self.done:
            try:
                self._step(token)
            except JsonError as error:
                self.error = error

    def _step(self, token: Token) -> None:
        level = self._levels[-1] if self._levels else None
        expect = level.expect if level else _Expect.VALUE
        mark = token.text if token.kind is Kind.PUNCTUATION else b""
        if level is not None and expect is _Expect.COLON:
            if mark != b":":
                raise parse_error("missing : in object pair")
            level.expect = _Expect.VALUE
        elif level is not None and expect is _Expect.COMMA_OR_END:
            self._after_value(level, mark)
        elif mark in (b"{", b"["):
            self._levels.append(_Level({} if mark == b"{" else []))
        elif level is not None and self._may_close(level, mark):
            self._close()
        elif mark:
            raise parse_error("expecting value")
        else:
            self._complete(_scalar(token))

    def _after_value(self, level: _Level, mark: bytes) -> None:
        is_list = isinstance(level.container, list)
        if mark == b",":
            level.expect = _Expect.VALUE if is_list else _Expect.KEY
        elif _CLOSING.get(mark) is type(level.container):
            self._close()
        else:
            raise parse_error(f"expected separator in {'list' if is_list else 'dict'}")

    def _may_close(self, level: _Level, mark: bytes) -> bool:
        at_start = level.expect in (_Expect.VALUE_OR_END, _Expect.KEY_OR_END)
        return at_start and _CLOSING.get(mark) is type(level.container)

    def _close(self) -> None:
        self._complete(self._levels.pop().container)

    def _complete(self, value: Any) -> None:
        """A value is there: it goes where the innermost level wants it."""
        if not self._levels:
            self.value, self.done = value, True
            return
        level = self._levels[-1]
        if isinstance(level.container, list):
            level.container.append(value)
        elif level.expect is _Expect.VALUE:
            if level.key in level.container:
                raise parse_error("duplicate key")
            level.container[level.key] = value
        else:
            if not isinstance(value, str):
                raise parse_error("key is not a string in object")
            level.key = value
            level.expect = _Expect.COLON
            return
        level.expect = _Expect.COMMA_OR_END


_KEYWORDS = {b"true": True, b"false": False, b"null": None}
INT64_MIN, UINT64_MAX = -(2**63), 2**64 - 1


def _scalar(token: Token) -> Any:
    text = token.text
    if token.kind is Kind.STRING:
        return _string(text)
    if token.kind is Kind.KEYWORD:
        if text not in _KEYWORDS:
            raise parse_error(f"invalid keyword '{text.decode()}'")
        return _KEYWORDS[text]
    # Long digits are no integers of any parameter; Python would refuse, or take long, over them.
    if token.kind is Kind.INTEGER and len(text) <= 21:
        value = int(text)
        if INT64_MIN <= value <= UINT64_MAX:
            return value
    number = float(text)
    if not math.isfinite(number):  # JSON could not say it in an answer
        raise parse_error("number out of range")
    return number


_UNICODE = re.compile(rb"u[0-9a-fA-F]{4}")
_SIMPLE = {
    b'"': '"',
    b"'": "'",
    b"\\": "\\",
    b"/": "/",
    b"b": "\b",
    b"f": "\f",
    b"n": "\n",
    b"r": "\r",
    b"t": "\t",
}


def _string(quoted: bytes) -> str:
    """The text of a string with its quotes."""
    if b"\\" not in quoted:
        return _decoded(quoted[1:-1])
    pieces: list[str] = []
    position = 1
    while (start := quoted.find(b"\\", position)) >= 0:
        pieces.append(_decoded(quoted[position:start]))
        character, position = _escaped(quoted, start)
        pieces.append(character)
    pieces.append(_decoded(quoted[position:-1]))
    return "".join(pieces)


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise parse_error("invalid UTF-8 sequence in string") from None


def _escaped(raw: bytes, start: int) -> tuple[str, int]:
    """The character of the escape at `start`, and where it ends."""
    letter = raw[start + 1 : start + 2]
    if letter in _SIMPLE:
        return _SIMPLE[letter], start + 2
    if letter != b"u":
        raise parse_error("invalid escape sequence in string")
    end = start + 6
    code = _code_unit(raw, start)
    if 0xD800 <= code < 0xDC00 and raw[end : end + 2] == b"\\u":
        low = _code_unit(raw, end)
        end += 6
        if 0xDC00 <= low < 0xE000:
            return chr(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)), end
    if 0xD800 <= code < 0xE000 or 0xFDD0 <= code < 0xFDF0 or code & 0xFFFE == 0xFFFE:
        raise _not_unicode(raw[start : start + 6])
    return chr(code), end


def _code_unit(raw: bytes, start: int) -> int:
    digits = raw[start + 1 : start + 6]
    if not _UNICODE.fullmatch(digits):
        raise _not_unicode(raw[start : start + 6])
    return int(digits[1:], 16)


def _not_unicode(escape: bytes) -> JsonError:
    return parse_error(f"{escape.decode(errors='replace')} is not a valid Unicode character")
