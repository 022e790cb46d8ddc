# SPDX-License-Identifier: Apache-2.0
"""Amounts, times, statistics and dumps of `blk io`, against what qemu-io was seen to print."""

from __future__ import annotations

import pytest

from blocklayer.cli.io_report import Statistics, amount_text, dump_lines, has_pattern, time_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"),
        (20, "20 bytes"),
        (1023, "1023 bytes"),
        (309.354158, "309.354158 bytes"),
        (1024, "1 KiB"),
        (1536, "1.500 KiB"),
        (65536, "64 KiB"),
        (18677760, "17.812 MiB"),
        (1023 * 1024, "1023 KiB"),
        (1 << 30, "1 GiB"),
        (5 << 60, "5 EiB"),
    ],
)
def test_amounts(value: float, text: str) -> None:
    assert amount_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text", "full"),
    [
        (0.0, "00.00 sec", "0:00:00.00"),
        (0.029, "00.02 sec", "0:00:00.02"),
        (59.5, "59.50 sec", "0:00:59.50"),
        (61.25, "0:01:01.25", "0:01:01.25"),
        (3535.99, "0:58:55.98", "0:58:55.98"),
        (36000.5, "10:00:00.50", "10:00:00.50"),
    ],
)
def test_times(seconds: float, text: str, full: str) -> None:
    assert time_text(seconds) == text
    assert time_text(seconds, full=True) == full


def test_statistics() -> None:
    done = Statistics("wrote", 512, 4096, 0.5)
    assert done.lines(machine_readable=False) == [
        "wrote 4096/4096 bytes at offset 512",
        "4 KiB, 1 ops; 00.50 sec (8 KiB/sec and 2.0000 ops/sec)",
    ]
    assert done.lines(machine_readable=True) == ["4096,1,0:00:00.50,8192.000,2.000"]
    assert Statistics("read", 0, 0, 0.0).lines(machine_readable=False)[0].startswith("read 0/0")


def test_dumps() -> None:
    data = bytes(range(0x30, 0x40)) + b"Az\xe9\x00"
    assert dump_lines(data, 0x1000) == [
        "00001000:  30 31 32 33 34 35 36 37 38 39 3a 3b 3c 3d 3e 3f  0123456789......",
        "00001010:  41 7a e9 00  Az..",
    ]


def test_patterns() -> None:
    assert has_pattern(b"\x07" * 10, 7)
    assert not has_pattern(b"\x07" * 9 + b"\x08", 7)
    assert has_pattern(b"", 7)
