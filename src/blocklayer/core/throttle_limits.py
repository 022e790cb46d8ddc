# SPDX-License-Identifier: Apache-2.0
"""Limits of throttle groups as numbers: their names, and which of them go together.

Of each kind (``bps-total`` … ``iops-write``) there are an average, a burst (``…-max``) and a length
of the burst in seconds (``…-max-length``); ``iops-size`` is what one operation may move.
"""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.units import INT64_MAX

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

UNITS = ("bps", "iops")
DIRECTIONS = ("total", "read", "write")
KINDS = tuple(f"{unit}-{what}" for unit in UNITS for what in DIRECTIONS)
SIZE = "iops-size"
MEMBERS = (*(f"{kind}{end}" for kind in KINDS for end in ("", "-max", "-max-length")), SIZE)

VALUE_MAX = 10**15
"""Of an average or a burst, as in QEMU."""
LENGTH_MAX = 2**32 - 1


def of_group(properties: Mapping[str, Any]) -> dict[str, int]:
    """The limits of a ``throttle-group`` object: ``limits``, and over them ``x-…``.

    Raises `InvalidArgument` if they make no sense.
    """
    numbers: dict[str, int] = dict(properties.get("limits", {}))
    for name, value in numbers.items():
        _check_length(name, value)
    for name in MEMBERS:
        if f"x-{name}" in properties:
            value = properties[f"x-{name}"]
            if value < 0:
                raise InvalidArgument("Property values cannot be negative")
            _check_length(f"x-{name}", value)
            numbers[name] = value
    check(numbers)
    return numbers


def _check_length(name: str, value: int) -> None:
    if name.endswith("-max-length") and value > LENGTH_MAX:
        raise InvalidArgument(f"{name} value must be in the range [0, {LENGTH_MAX}]")


def check(numbers: Mapping[str, int]) -> None:
    """Raise `InvalidArgument`, in QEMU's words, if limits do not go together."""
    for unit in UNITS:
        for end in ("", "-max"):
            total, read, write = (numbers.get(f"{unit}-{what}{end}", 0) for what in DIRECTIONS)
            if total and (read or write):
                raise InvalidArgument(
                    "bps/iops/max total values and read/write values cannot be used at the same"
                    " time"
                )
    if numbers.get(SIZE) and not any(numbers.get(f"iops-{what}") for what in DIRECTIONS):
        raise InvalidArgument("iops size requires an iops value to be set")
    for kind in KINDS:
        _check_kind(
            numbers.get(kind, 0),
            numbers.get(f"{kind}-max", 0),
            numbers.get(f"{kind}-max-length", 1),
        )


def _check_kind(average: int, burst: int, length: int) -> None:
    if not (0 <= average <= VALUE_MAX and 0 <= burst <= VALUE_MAX):
        raise InvalidArgument(f"bps/iops/max values must be within [0, {VALUE_MAX}]")
    if not length:
        raise InvalidArgument("the burst length cannot be 0")
    if length != 1 and not burst:
        raise InvalidArgument("burst length set without burst rate")
    if burst and not 0 < length <= VALUE_MAX // burst:
        raise InvalidArgument("burst length too high for this burst rate")
    if burst and not average:
        raise InvalidArgument("bps_max/iops_max require corresponding bps/iops values")
    if burst and burst < average:
        raise InvalidArgument("bps_max/iops_max cannot be lower than bps/iops")


def operation_size(numbers: Mapping[str, int]) -> int:
    """Bytes of one operation, 0 if their size does not matter. QEMU takes any 64 bits."""
    size = numbers.get(SIZE, 0)
    return size if size >= 0 else INT64_MAX
