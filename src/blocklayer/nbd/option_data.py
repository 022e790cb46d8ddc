# SPDX-License-Identifier: Apache-2.0
"""The data of a client's option: its fields one after another, or the refusal that it deserves."""

from __future__ import annotations

from blocklayer.nbd import wire


class Refusal(Exception):
    """The option is answered by an error."""

    def __init__(self, kind: int, words: str) -> None:
        super().__init__(words)
        self.kind = kind
        self.words = words


def require_empty(data: bytes, name: str) -> None:
    """Raise `Refusal` if an option that has no data comes with some."""
    if data:
        raise Refusal(wire.REP_ERR_INVALID, f"option '{name}' has unexpected length")


class OptionReader:
    """Takes one field after another. Raises `Refusal` for what cannot be one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def number(self, size: int) -> int:
        """An unsigned integer of `size` bytes."""
        field = self._data[self._position : self._position + size]
        if len(field) < size:
            raise Refusal(wire.REP_ERR_INVALID, "option data ends too early")
        self._position += size
        return int.from_bytes(field, "big")

    def string(self, what: str) -> str:
        """Text behind its length; `what` says in refusals what it is."""
        length = self.number(4)
        start = self._position
        if length > len(self._data) - start:
            raise Refusal(wire.REP_ERR_INVALID, f"{what} reaches beyond the option's data")
        self._position += length
        return text_of(self._data[start : self._position], what)

    def end(self) -> None:
        """Nothing may follow."""
        if self._position != len(self._data):
            raise Refusal(wire.REP_ERR_INVALID, "option data is longer than its fields")


def text_of(data: bytes, what: str) -> str:
    """The text that `data` is. Raises `Refusal` if it is none, or too long."""
    if len(data) > wire.MAX_STRING:
        raise Refusal(wire.REP_ERR_INVALID, f"{what} is too long: {len(data)} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Refusal(wire.REP_ERR_INVALID, f"{what} is not valid UTF-8") from None
    if "\0" in text:
        raise Refusal(wire.REP_ERR_INVALID, f"{what} has NUL characters in it")
    return text
