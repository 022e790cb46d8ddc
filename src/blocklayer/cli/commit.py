# SPDX-License-Identifier: Apache-2.0
"""`blk commit`: an overlay's content goes into its backing file."""

from __future__ import annotations

from blocklayer.cli.getopt import Option
from blocklayer.cli.numbers import size_argument
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

COMMAND = Command(
    "commit",
    "FILE",
    "Write what an overlay holds into its backing file, and empty the overlay.",
    (
        FORMAT,
        Option("-b --base", "FILE", "commit into this image further down; leaves the overlay"),
        Option("-d --drop", "", "leave the overlay as it is"),
        Option("-r --rate-limit", "RATE", "at most so many bytes a second"),
        Option("-t --cache", "CACHE", "cache mode (default writeback)"),
        OUTPUT,
        PROGRESS,
        QUIET,
        IMAGE_OPTS,
        UNTRUSTED,
        ALLOW,
    ),
    details=(
        "Afterwards the backing file shows what the overlay showed. The overlay is emptied, unless"
        " -d or -b is given. With -b, everything above that image is written into it; overlays"
        " between the two are wrong afterwards and should not be used any more."
    ),
    examples=(
        ("commit overlay.qed", "Write the overlay's data into its backing file."),
        ("commit -b base.qed top.qed", "Write the whole chain down into its base."),
    ),
)


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.commit import commit

    rate_limit = size_argument(arguments.last("rate-limit", "0"), "rate limit")
    name, format_name = one_image(arguments)
    cache = cache_name(arguments, "cache", "writeback")
    base = arguments.optional("base")
    with Running(arguments) as running:
        target = commit(
            name,
            format=format_name,
            base=base,
            keep="drop" in arguments or base is not None,
            cache=cache,
            rate_limit=rate_limit,
            trust=trust_argument(arguments),
            progress=running.report,
            cancel=running.cancel,
        )
    members = {"filename": arguments.names[0], "base": target}
    print_result(arguments, members, "Image committed.")
    return 0
