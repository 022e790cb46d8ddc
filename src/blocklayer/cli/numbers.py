# SPDX-License-Identifier: Apache-2.0
"""Numbers and sizes on command lines, and the words for those that are wrong."""

from __future__ import annotations

from blocklayer.cli.failures import Failure

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

SIZE_HINT = (
    "You may use k, M, G, T, P or E suffixes for\n"
    "kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
)


class NotANumber(ValueError):
    """Text that no number was meant by."""


class NumberTooLarge(ValueError):
    """A number beyond the largest file offset."""


def number(text: str) -> int:
    """``4096``, ``64k``, ``1.5G``, ``0x200``. Raises `NotANumber`, `NumberTooLarge`."""
    from blocklayer.base.errors import InvalidArgument
    from blocklayer.base.units import parse_size

    if text != text.rstrip() or ("." in text and text[-1:] in "bB"):
        raise NotANumber(text)
    text = text.lstrip().removeprefix("+")
    head, dot, unit = text.rpartition(".")
    if dot and head and (not unit or (len(unit) == 1 and unit.isalpha())):
        text = head + unit  # "1.M" is 1M
    try:
        if text[:2] in ("0x", "0X") and text[-1:] in "kKmMgGtTpP":
            return parse_size(parse_size(text[:-1]) * parse_size(f"1{text[-1]}"))
        return parse_size(text)
    except InvalidArgument:
        pass
    # Is it the form or the amount? The same text with all digits 0 has the form only.
    prefix = text[:2] if text[:2] in ("0x", "0X") else ""
    digits = "0123456789abcdefABCDEF" if prefix else "0123456789"
    shape = prefix + "".join("0" if c in digits else c for c in text[len(prefix) :])
    try:
        parse_size(shape)
    except InvalidArgument:
        raise NotANumber(text) from None
    raise NumberTooLarge(text)


def size_argument(text: str, what: str, *, least: int = 0, most: int = INT64_MAX) -> int:
    """A size from the command line; `what` names it in the error."""
    try:
        size = number(text)
    except NotANumber:
        raise Failure(f"Invalid {what} specified. {SIZE_HINT}") from None
    except NumberTooLarge:
        size = INT64_MAX + 1
    if not least <= size <= most:
        raise Failure(f"Invalid {what} specified. Must be between {least} and {most}.")
    return size


def integer_argument(text: str, what: str, *, most: int = INT32_MAX) -> int:
    """A number without a suffix, in any base that C knows: ``10``, ``0x10``, ``010``."""
    digits = text.strip().removeprefix("+").lower()
    value = -1
    hexadecimal = digits.startswith("0x") and digits.isalnum()
    if digits.isascii() and (digits.isdigit() or hexadecimal):  # Python takes 1_0 and 0o7 as well
        base = 16 if hexadecimal else 8 if digits.startswith("0") else 10
        try:
            value = int(digits, base)
        except ValueError:
            value = -1
    if not 0 <= value <= most:
        raise Failure(f"Invalid {what} specified")
    return value


def size_option(name: str, text: str) -> int:
    """A size that is an option's value. Raises `Failure`."""
    try:
        return number(text)
    except NotANumber:
        raise Failure(
            f"Parameter '{name}' expects a non-negative number below 2^64\n"
            "A suffix k, M, G, T, P or E multiplies it by a power of 1024."
        ) from None
    except NumberTooLarge:
        raise Failure(f"Value '{text}' is out of range for parameter '{name}'") from None
