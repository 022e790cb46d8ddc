# SPDX-License-Identifier: Apache-2.0
"""Alignment, and sizes as people write them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from blocklayer.base.align import align_down, align_up, div_ceil, is_power_of_two
from blocklayer.base.errors import InvalidArgument
from blocklayer.base.units import INT64_MAX, EiB, GiB, KiB, MiB, TiB, format_size, parse_size

ALIGNMENTS = [1, 2, 4, 8, 16]


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_alignment_of_every_small_number(alignment: int) -> None:
    for value in range(100):
        multiples = range(0, 200, alignment)
        assert align_down(value, alignment) == max(m for m in multiples if m <= value)
        assert align_up(value, alignment) == min(m for m in multiples if m >= value)
        assert div_ceil(value, alignment) == align_up(value, alignment) // alignment


def test_alignment_of_large_numbers() -> None:
    for value in (INT64_MAX, 1 << 63, (1 << 64) - 1):
        assert align_down(value, 4096) == value // 4096 * 4096
        assert align_up(value, 4096) == -(-value // 4096) * 4096


def test_division_by_anything() -> None:
    for value in range(60):
        for divisor in range(1, 20):
            assert div_ceil(value, divisor) == len(range(0, value, divisor))


def test_powers_of_two() -> None:
    assert [n for n in range(-5, 70) if is_power_of_two(n)] == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        (" 4096 ", 4096),
        ("1b", 1),
        ("64k", 64 * KiB),
        ("64K", 64 * KiB),
        ("1.5G", 3 * GiB // 2),
        ("0.5k", 512),
        ("1.999k", 2046),
        ("2T", 2 * TiB),
        ("1P", 1024 * TiB),
        ("7.5E", 15 * EiB // 2),
        ("0x200", 512),
        ("0XfF", 255),
        ("9223372036854775807", INT64_MAX),
        (12345, 12345),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


def test_fractions_are_exact() -> None:
    """Floats would not be."""
    for digits in ("1", "01", "123456789", "999999999999999999"):
        expected = (3 + Fraction(int(digits), 10 ** len(digits))) * EiB
        assert parse_size(f"3.{digits}E") == int(expected)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "k", "1x", "1kk", "1.5", "1.", ".5k", "1.k", "-1", "-1k", "1 k", "1e3", "0x"),
        *(
            "0x1_0",
            "0xg",
            "1_000",
            "٣",
            "½k",
            "1,5k",
            "nan",
            "inf",
            "8E",
            "9" * 5000,
            "1" * 30 + "k",
        ),
        *(-1, 1 << 63),
    ],
)
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(InvalidArgument, match="Invalid image size"):
        parse_size(text, "image size")


@pytest.mark.parametrize("thing", [None, 1.5, True, [1], {"size": 1}])
def test_what_is_not_even_text(thing: object) -> None:
    with pytest.raises(InvalidArgument):
        parse_size(thing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1024, "1 KiB"),
        (64 * KiB, "64 KiB"),
        (MiB + MiB // 2, "1.5 MiB"),
        (10 * GiB, "10 GiB"),
        (1023 * MiB, "0.999 GiB"),
        (INT64_MAX, "8 EiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text
