# SPDX-License-Identifier: Apache-2.0
"""`blk resize`: another size, given in bytes or as +SIZE, -SIZE."""

from __future__ import annotations

from blocklayer.cli.failures import Failure, UsageError
from blocklayer.cli.output import warn_of_guess
from blocklayer.cli.parsing import (
    FORMAT,
    IMAGE_OPTS,
    QUIET,
    Arguments,
    Command,
    NotANumber,
    NumberTooLarge,
    Option,
    image_name,
    number,
)

COMMAND = Command(
    "resize",
    "FILE [+|-]SIZE",
    "Change the size of a disk. What is cut off is lost; what is added reads as zeroes.",
    (
        FORMAT,
        Option("--shrink", "", "allow to make the disk smaller"),
        Option("--preallocation", "MODE", "of added space: off (default), falloc, full"),
        QUIET,
        IMAGE_OPTS,
    ),
    last_is_number=True,
)

PREALLOCATIONS = ("off", "metadata", "falloc", "full")


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.info import info
    from blocklayer.ops.resize import resize

    if len(arguments.names) != 2:
        raise UsageError("Expecting image file name and size")
    filename, text = arguments.names
    preallocation = arguments.last("preallocation", "off")
    if preallocation not in PREALLOCATIONS:
        raise Failure(f"Invalid preallocation mode '{preallocation}'")
    sign = text[:1] if text[:1] in ("+", "-") else ""
    amount = _amount(text[len(sign) :])
    name = image_name(arguments, filename)
    format_name = arguments.optional("format")
    image = info(name, format=format_name)
    size = {"": amount, "+": image.virtual_size + amount, "-": image.virtual_size - amount}[sign]
    if size <= 0:
        raise Failure("New image size must be positive")
    if size <= image.virtual_size and preallocation != "off":
        raise Failure("Preallocation can only be used for growing images")
    if image.format == "raw" and format_name is None:
        warn_of_guess(filename)
    resize(
        name,
        size,
        format=format_name,
        shrink="shrink" in arguments,
        preallocation=preallocation,
    )
    if "quiet" not in arguments:
        print("Image resized.")
    return 0


def _amount(text: str) -> int:
    try:
        return number(text)
    except NotANumber:
        raise Failure(
            "Parameter 'size' expects a non-negative number below 2^64\n"
            "A suffix k, M, G, T, P or E multiplies it by a power of 1024."
        ) from None
    except NumberTooLarge:
        raise Failure(f"Value '{text}' is out of range for parameter 'size'") from None
