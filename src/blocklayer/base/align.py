# SPDX-License-Identifier: Apache-2.0
"""Alignment arithmetic. An alignment is a power of two, in bytes."""


def align_down(value: int, alignment: int) -> int:
    """The largest multiple of `alignment` that is not above `value`."""
    return value & -alignment


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is not below `value`."""
    return (value + alignment - 1) & -alignment


def div_ceil(value: int, divisor: int) -> int:
    """`value` / `divisor`, rounded up; for any positive divisor."""
    return -(-value // divisor)


def is_power_of_two(value: int) -> bool:
    """Whether `value` is 1, 2, 4, 8 …"""
    return value > 0 and not value & (value - 1)
