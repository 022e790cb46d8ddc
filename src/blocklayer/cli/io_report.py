# SPDX-License-Identifier: Apache-2.0
"""What `blk io` prints: amounts, rates, statistics and dumps, in the words of qemu-io."""

from __future__ import annotations

from blocklayer.base.record import Record

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_ROW = 16


def amount_text(value: float) -> str:
    """``64 KiB``, ``17.812 MiB``, ``20 bytes``: exact ones without a fraction."""
    unit, digits = "bytes", 6
    for name in _UNITS:
        if value < 1024:
            break
        value /= 1024
        unit, digits = name, 3
    text = f"{value:.{digits}f}"
    return f"{text.removesuffix('.' + '0' * digits)} {unit}"


def time_text(seconds: float, *, full: bool = False) -> str:
    """``00.02 sec``, or hours, minutes and seconds if it took longer than a minute."""
    whole = int(seconds)
    hundredths = int((seconds - whole) * 100)
    if full or whole >= 60:
        hours, rest = divmod(whole, 3600)
        return f"{hours}:{rest // 60:02}:{rest % 60:02}.{hundredths:02}"
    return f"{whole:02}.{hundredths:02} sec"


class Statistics(Record, frozen=True):
    """One command that is done, of one request or more."""

    verb: str
    offset: int
    length: int
    seconds: float
    requests: int = 1

    def lines(self, *, machine_readable: bool) -> list[str]:
        """The report for people, or bytes, requests, time and rates for programs."""
        seconds = self.seconds or 1e-9
        if machine_readable:
            time = time_text(self.seconds, full=True)
            rates = f"{self.length / seconds:.3f},{self.requests / seconds:.3f}"
            return [f"{self.length},{self.requests},{time},{rates}"]
        operations = self.requests / seconds
        rates = f"{amount_text(self.length / seconds)}/sec and {operations:.4f} ops/sec"
        return [
            f"{self.verb} {self.length}/{self.length} bytes at offset {self.offset}",
            f"{amount_text(self.length)}, {self.requests} ops; {time_text(self.seconds)} ({rates})",
        ]


def dump_lines(data: bytes, offset: int) -> list[str]:
    """Offset, bytes in hexadecimal, and letters and digits among them; 16 bytes a line."""
    lines = []
    for start in range(0, len(data), _ROW):
        row = data[start : start + _ROW]
        shown = "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else "." for byte in row)
        lines.append(f"{offset + start:08x}:  {row.hex(' ')}  {shown}")
    return lines


def has_pattern(data: bytes, pattern: int) -> bool:
    """Whether every byte is `pattern`."""
    return data.count(pattern) == len(data)
