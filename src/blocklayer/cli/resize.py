# SPDX-License-Identifier: Apache-2.0
"""`blk resize`: another size, given in bytes or as +SIZE, -SIZE."""

from __future__ import annotations

from blocklayer.base.errors import IoError
from blocklayer.cli.failures import Failure, UsageError
from blocklayer.cli.getopt import Option
from blocklayer.cli.numbers import size_option
from blocklayer.cli.output import print_result, warn_of_guess
from blocklayer.cli.parsing import (
    ALLOW,
    FORMAT,
    IMAGE_OPTS,
    LONG_PROGRESS,
    OUTPUT,
    QUIET,
    UNTRUSTED,
    Arguments,
    Command,
    image_name,
    trust_argument,
)
from blocklayer.cli.progress import Running
from blocklayer.core.modes import PREALLOCATION_MODES

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.names import FilenameLike

COMMAND = Command(
    "resize",
    "FILE [+|-]SIZE",
    "Change the size of a disk. What is cut off is lost; what is added reads as zeroes.",
    (
        FORMAT,
        Option("--shrink", "", "allow to make the disk smaller"),
        Option(
            "--preallocation",
            "MODE",
            "of added space: off (default), falloc, full",
            choices=PREALLOCATION_MODES,
        ),
        OUTPUT,
        LONG_PROGRESS,
        QUIET,
        IMAGE_OPTS,
        UNTRUSTED,
        ALLOW,
    ),
    last_is_number=True,
    details=(
        "The disk changes, not what is on it: file systems and partitions are grown afterwards,"
        " and shrunk before."
    ),
    examples=(
        ("resize disk.qed +10G", "10 GiB more."),
        ("resize -f raw --shrink disk.raw 5G", "Cut everything behind 5 GiB off."),
    ),
)


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.info import info
    from blocklayer.ops.resize import resize

    preallocation = arguments.last("preallocation", "off")
    if preallocation not in PREALLOCATION_MODES:
        raise Failure(f"Invalid preallocation mode '{preallocation}'")
    if len(arguments.names) != 2:
        raise UsageError("Expecting image file name and size")
    filename, text = arguments.names
    sign = text[:1] if text[:1] in ("+", "-") else ""
    amount = size_option("size", text[len(sign) :])
    name = image_name(arguments, filename)
    format_name = arguments.optional("format")
    image = info(name, format=format_name, trust=trust_argument(arguments))
    size = {"": amount, "+": image.virtual_size + amount, "-": image.virtual_size - amount}[sign]
    if image.format == "raw" and format_name is None and _is_guess(name):
        warn_of_guess(filename)
    if size <= 0:
        raise Failure("New image size must be positive")
    if size <= image.virtual_size and preallocation != "off":
        raise Failure("Preallocation can only be used for growing images")
    try:
        with Running(arguments) as running:
            size = resize(
                name,
                size,
                format=format_name,
                shrink="shrink" in arguments,
                preallocation=preallocation,
                trust=trust_argument(arguments),
                progress=running.report,
                cancel=running.cancel,
            )
    except IoError as error:
        if error.operation != "truncate":
            raise
        raise Failure(f"Could not resize file: {error.reason}") from None
    members = {"filename": filename, "virtual-size": size, "before": image.virtual_size}
    print_result(arguments, members, "Image resized.")
    return 0


def _is_guess(name: FilenameLike) -> bool:
    """Whether the name leaves it open what the image is."""
    from blocklayer.core.names import parse_name

    return "driver" not in parse_name(name)
