# SPDX-License-Identifier: Apache-2.0
"""Values from a stream of JSON, one after the other, with errors in between.

A value ends where as many braces and brackets are closed as were opened. After an error the next
value is found again, by QEMU's rules, so that peers that were written against QEMU get the same
answers. Nothing here reads or writes: bytes in, values or errors out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blocklayer.qmp.lexer import Kind, Lexer, Token
from blocklayer.qmp.parser import JsonError, Parser, parse_error

NESTING_MAX = 512
"""Levels of lists and objects. QEMU allows twice as many; an answer that repeats them as its id
must not exhaust Python's stack."""

MESSAGE_MAX = 8 << 20
"""Bytes of one value without its spaces. No command needs more; QEMU allows eight times as much."""

TOKENS_MAX = 250_000
"""Tokens of one value: each may become an object of a hundred bytes."""


class Splitter:
    """Splits one peer's stream. Memory is bounded by the limits above."""

    def __init__(self, message_max: int = MESSAGE_MAX) -> None:
        self._message_max = message_max
        self._lexer = Lexer(message_max)
        self._reset()

    def _reset(self) -> None:
        self._parser = Parser()
        self._braces = self._brackets = self._tokens = self._bytes = 0

    def feed(self, data: bytes) -> Iterator[Any]:
        """Values and `JsonError`s, in order. To be exhausted before the next call."""
        for token in self._lexer.feed(data):
            yield from self._token(token)

    def finish(self) -> Iterator[Any]:
        """The stream has ended: what is left of it."""
        for token in self._lexer.finish():
            yield from self._token(token)
        if self._tokens:
            self._reset()
            yield parse_error("premature EOI")

    def _token(self, token: Token) -> Iterator[Any]:
        error = _lexical_error(token) or self._limit_exceeded(token)
        if error is not None:
            self._reset()
            yield error
            return
        self._parser.token(token)
        if min(self._braces, self._brackets) < 0 or self._braces == self._brackets == 0:
            parser = self._parser
            self._reset()
            yield parser.error or (parser.value if parser.done else parse_error("premature EOI"))

    def _limit_exceeded(self, token: Token) -> JsonError | None:
        self._count(token)
        if self._braces + self._brackets > NESTING_MAX:
            return JsonError("JSON nesting depth limit exceeded")
        if self._tokens > TOKENS_MAX:
            return JsonError("JSON token count limit exceeded")
        if self._bytes > self._message_max:
            return JsonError("JSON token size limit exceeded")
        return None

    def _count(self, token: Token) -> None:
        self._tokens += 1
        self._bytes += len(token.text)
        if token.kind is Kind.PUNCTUATION:
            self._braces += (token.text == b"{") - (token.text == b"}")
            self._brackets += (token.text == b"[") - (token.text == b"]")


def _lexical_error(token: Token) -> JsonError | None:
    if token.kind is Kind.TOO_LONG:
        return JsonError("JSON token size limit exceeded")
    if token.kind is Kind.STRAY:
        # C's strings end at a zero byte.
        text = token.text.partition(b"\0")[0].decode(errors="replace")
        return parse_error(f"stray '{text}'")
    return None


def loads(text: str | bytes) -> Any:
    """The only value of `text`, as options on a command line have it. Raises `JsonError`."""
    splitter = Splitter()
    data = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    values = [*splitter.feed(data), *splitter.finish()]
    for value in values:
        if isinstance(value, JsonError):
            raise value
    if len(values) != 1:
        raise parse_error("expecting value")
    return values[0]
