# SPDX-License-Identifier: Apache-2.0
"""`blk bitmap`: bitmaps that are stored in an image."""

from __future__ import annotations

from blocklayer.cli.failures import Failure
from blocklayer.cli.getopt import Option
from blocklayer.cli.numbers import size_argument
from blocklayer.cli.output import print_result
from blocklayer.cli.parsing import (
    ALLOW,
    IMAGE_OPTS,
    OUTPUT,
    UNTRUSTED,
    Arguments,
    Command,
    image_name,
    trust_argument,
    wants_json,
)

COMMAND = Command(
    "bitmap",
    "FILE BITMAP",
    "Change a bitmap that an image holds, for formats that can hold one; actions in their order.",
    (
        Option("--add", "", "make a new bitmap"),
        Option("--remove", "", "delete the bitmap"),
        Option("--clear", "", "forget what it has recorded"),
        Option("--enable", "", "record writes"),
        Option("--disable", "", "do not record writes"),
        Option("--merge", "SOURCE", "add what another bitmap has recorded"),
        Option("-g --granularity", "SIZE", "with --add: bytes that a bit stands for"),
        Option("-b --source-file", "FILE", "with --merge: the image that has the other bitmap"),
        Option("-F --source-format", "FMT", "format of that image"),
        Option("-f --format", "FMT", "format of the image; found by its signature if not given"),
        OUTPUT,
        IMAGE_OPTS,
        UNTRUSTED,
        ALLOW,
    ),
    examples=(("bitmap --add -g 64k disk.img backup", "Record from now on what is written."),),
)

ACTIONS = ("add", "remove", "clear", "enable", "disable", "merge")


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.bitmap import change_bitmap

    granularity = size_argument(arguments.last("granularity", "0"), "granularity")
    actions = [key for key in arguments.order if key in ACTIONS]
    _check(arguments, actions)
    filename, bitmap = arguments.names
    format_name = arguments.optional("format")
    name = image_name(arguments, filename)
    wants_json(arguments)
    change_bitmap(
        name,
        bitmap,
        actions,
        format=format_name,
        granularity=granularity,
        source=arguments.optional("source-file"),
        source_format=arguments.optional("source-format"),
        trust=trust_argument(arguments),
    )
    print_result(arguments, {"filename": filename, "bitmap": bitmap, "actions": actions})
    return 0


def _check(arguments: Arguments, actions: list[str]) -> None:
    """What does not go together, in QEMU's order."""
    if not actions:
        raise Failure(
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"
        )
    for key, needed, message in (
        ("granularity", "add", "granularity only supported with --add"),
        ("source-format", "source-file", "-F only supported with -b"),
        ("source-file", "merge", "Merge bitmap source file only supported with --merge"),
    ):
        if key in arguments and needed not in arguments:
            raise Failure(message)
    if len(arguments.names) != 2:
        raise Failure("Expecting filename and bitmap name")
    if "image-opts" in arguments and "format" in arguments:
        raise Failure("--image-opts and --format are mutually exclusive")
