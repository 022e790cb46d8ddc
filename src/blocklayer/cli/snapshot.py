# SPDX-License-Identifier: Apache-2.0
"""`blk snapshot`: internal snapshots of an image."""

from __future__ import annotations

from blocklayer.cli.failures import Failure
from blocklayer.cli.getopt import Option
from blocklayer.cli.output import print_json
from blocklayer.cli.parsing import (
    ALLOW,
    FORCE_SHARE,
    FORMAT,
    IMAGE_OPTS,
    OUTPUT,
    QUIET,
    UNTRUSTED,
    Arguments,
    Command,
    one_image,
    trust_argument,
    wants_json,
)

COMMAND = Command(
    "snapshot",
    "FILE",
    "List, make, apply or delete snapshots inside an image, for formats that have them.",
    (
        Option("-l --list", "", "list the snapshots (default)"),
        Option("-c --create", "NAME", "make a snapshot"),
        Option("-a --apply", "NAME", "go back to a snapshot"),
        Option("-d --delete", "NAME", "delete a snapshot"),
        FORMAT,
        OUTPUT,
        QUIET,
        IMAGE_OPTS,
        FORCE_SHARE,
        UNTRUSTED,
        ALLOW,
    ),
    examples=(
        ("snapshot -l disk.img", "List them."),
        ("snapshot -c before-update disk.img", "Make one."),
    ),
)

ACTIONS = ("create", "apply", "delete")


def run(arguments: Arguments) -> int:
    """The command."""
    if sum(len(arguments.all(action)) for action in ("list", *ACTIONS)) > 1:
        raise Failure("Cannot mix '-l', '-a', '-c', '-d'")
    name, format_name = one_image(arguments)
    as_json = wants_json(arguments)
    force_share = "force-share" in arguments
    trust = trust_argument(arguments)
    for action in ACTIONS:
        if action in arguments:
            if force_share:
                raise Failure(
                    f"Could not open '{arguments.names[0]}': force-share=on can only be used"
                    " with read-only images"
                )
            from blocklayer.ops.snapshot import change_snapshot

            wanted = arguments.last(action)
            change_snapshot(name, action, wanted, format=format_name, trust=trust)
            return 0
    from blocklayer.ops.snapshot import snapshots

    found = snapshots(name, format=format_name, force_share=force_share, trust=trust)
    if as_json:
        print_json(found)
    for snapshot in () if as_json else found:
        print(snapshot)
    return 0
