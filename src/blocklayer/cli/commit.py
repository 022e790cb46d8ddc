# SPDX-License-Identifier: Apache-2.0
"""`blk commit`: an overlay's content goes into its backing file."""

from __future__ import annotations

from blocklayer.cli.parsing import (
    FORMAT,
    IMAGE_OPTS,
    PROGRESS,
    QUIET,
    Arguments,
    Command,
    Option,
    cache_name,
    one_image,
    size_argument,
)
from blocklayer.cli.progress import Running

COMMAND = Command(
    "commit",
    "FILE",
    "Write what an overlay holds into its backing file, and empty the overlay.",
    (
        FORMAT,
        Option("-b --base", "FILE", "commit into this image further down; leaves the overlay"),
        Option("-d", "", "leave the overlay as it is"),
        Option("-r", "RATE", "at most so many bytes a second"),
        Option("-t", "CACHE", "cache mode (default writeback)"),
        PROGRESS,
        QUIET,
        IMAGE_OPTS,
    ),
)


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.commit import commit

    name, format_name = one_image(arguments)
    cache = cache_name(arguments, "t", "writeback")
    base = arguments.optional("base")
    rate_limit = size_argument(arguments.last("r", "0"), "rate limit")
    with Running(arguments) as running:
        commit(
            name,
            format=format_name,
            base=base,
            keep="d" in arguments or base is not None,
            cache=cache,
            rate_limit=rate_limit,
            progress=running.report,
            cancel=running.cancel,
        )
    if "quiet" not in arguments:
        print("Image committed.")
    return 0
