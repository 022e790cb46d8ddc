# SPDX-License-Identifier: Apache-2.0
"""`blk amend`: other create options for an image that exists."""

from __future__ import annotations

from blocklayer.cli.failures import UsageError
from blocklayer.cli.getopt import Option
from blocklayer.cli.output import print_result
from blocklayer.cli.parsing import (
    ALLOW,
    FORMAT,
    IMAGE_OPTS,
    OUTPUT,
    PROGRESS,
    QUIET,
    UNTRUSTED,
    Arguments,
    Command,
    cache_name,
    one_image,
    trust_argument,
)
from blocklayer.cli.progress import Running
from blocklayer.cli.targets import create_options

COMMAND = Command(
    "amend",
    "-o OPTIONS FILE",
    "Change options that an image was created with, for formats that can change them.",
    (
        Option(
            "-o --options",
            "OPTIONS",
            "the options: name=value,...; 'help' lists those of the format",
        ),
        FORMAT,
        Option("-t --cache", "CACHE", "cache mode (default writeback)"),
        Option("--force", "", "allow what is unsafe"),
        OUTPUT,
        PROGRESS,
        QUIET,
        IMAGE_OPTS,
        UNTRUSTED,
        ALLOW,
    ),
    examples=(("amend -f qed -o help", "List what can be changed in images of a format."),),
)


def run(arguments: Arguments) -> int:
    """The command."""
    options = create_options(arguments)
    if "options" not in arguments:
        raise UsageError("Must specify options (-o)")
    with Running(arguments):
        if options is None and "format" in arguments and not arguments.names:
            _help(arguments.last("format"))
            return 0
        name, format_name = one_image(arguments)
        cache = cache_name(arguments, "cache", "writeback")
        trust = trust_argument(arguments)
        if options is None:
            from blocklayer.ops.info import info

            _help(format_name or info(name, format=format_name, trust=trust).format)
            return 0
        from blocklayer.ops.amend import amend

        amend(name, options, format=format_name, cache=cache, trust=trust)
        print_result(arguments, {"filename": arguments.names[0]})
    return 0


def _help(format_name: str) -> None:
    from blocklayer.ops.amend import amendable_options

    for option in amendable_options(format_name):
        print(option.name)
