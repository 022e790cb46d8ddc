# SPDX-License-Identifier: Apache-2.0
"""Binary units, and the way sizes are written by people."""

from blocklayer.base.errors import InvalidArgument

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB
TiB = 1024 * GiB
PiB = 1024 * TiB
EiB = 1024 * PiB

SECTOR = 512
"""Bytes in a sector: the unit of the smallest atomic disk write, and of image sizes."""

INT64_MAX = 2**63 - 1
"""The largest file offset the operating system can express."""

_SUFFIXES = {"b": 1, "k": KiB, "m": MiB, "g": GiB, "t": TiB, "p": PiB, "e": EiB}


def parse_size(text: str | int, what: str = "size") -> int:
    """Bytes from what a person writes: ``4096``, ``64k``, ``1.5G``, ``0x200``.

    Suffixes are powers of 1024 and case does not matter, as in qemu-img.
    `what` names the quantity in the error.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        value = text
    elif isinstance(text, str):
        value = _parse_size_text(text.strip(), what)
    else:
        raise InvalidArgument(f"Invalid {what} '{text}': give bytes, as a number or as text")
    if not 0 <= value <= INT64_MAX:
        raise InvalidArgument(f"Invalid {what} '{text}': must be between 0 and {INT64_MAX} bytes")
    return value


def _parse_size_text(text: str, what: str) -> int:
    lowered = text.lower()
    try:
        if lowered.startswith("0x") and lowered.isascii() and lowered.isalnum():
            return int(lowered, 16)
        if lowered.isascii() and lowered.isdigit():
            return int(lowered)
        if lowered[-1:] not in _SUFFIXES:
            raise ValueError
        return _scaled(lowered[:-1], _SUFFIXES[lowered[-1]])
    except ValueError:
        raise InvalidArgument(
            f"Invalid {what} '{text}': give bytes, or a number with one of the suffixes"
            " k, M, G, T, P or E (powers of 1024)"
        ) from None


def _scaled(number: str, unit: int) -> int:
    """`number` times `unit`, exactly: fractions are computed with integers, not floats."""
    whole, dot, fraction = number.partition(".")
    if not (whole + fraction).isascii() or not whole.isdigit() or (dot and not fraction.isdigit()):
        raise ValueError(number)
    value = int(whole) * unit
    if fraction:
        value += int(fraction) * unit // 10 ** len(fraction)
    return value


def format_size(size: int) -> str:
    """`size` in bytes as qemu-img writes it for people: three significant digits and a unit."""
    value, index = float(size), 0
    names = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    # 1000, not 1024: qemu-img moves on to the next unit before a number needs four digits.
    while value >= 1000 and index < len(names) - 1:
        value /= 1024
        index += 1
    return f"{value:.3g} {names[index]}"
