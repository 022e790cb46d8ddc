# SPDX-License-Identifier: Apache-2.0
"""`blk snapshot`: internal snapshots of an image."""

from __future__ import annotations

from blocklayer.cli.failures import Failure
from blocklayer.cli.getopt import Option
from blocklayer.cli.output import print_json
from blocklayer.cli.parsing import (
    ALLOW,
    FORCE_SHARE,
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
        Option("-l", "", "list the snapshots (default)"),
        Option("-c", "NAME", "make a snapshot"),
        Option("-a", "NAME", "go back to a snapshot"),
        Option("-d", "NAME", "delete a snapshot"),
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

ACTIONS = {"c": "create", "a": "apply", "d": "delete"}


def run(arguments: Arguments) -> int:
    """The command."""
    if sum(len(arguments.all(letter)) for letter in ("l", *ACTIONS)) > 1:
        raise Failure("Cannot mix '-l', '-a', '-c', '-d'")
    name, _ = one_image(arguments)
    as_json = wants_json(arguments)
    force_share = "force-share" in arguments
    trust = trust_argument(arguments)
    for letter, action in ACTIONS.items():
        if letter in arguments:
            if force_share:
                raise Failure(
                    f"Could not open '{arguments.names[0]}': force-share=on can only be used"
                    " with read-only images"
                )
            from blocklayer.ops.snapshot import change_snapshot

            change_snapshot(name, action, arguments.last(letter), trust=trust)
            return 0
    from blocklayer.ops.snapshot import snapshots

    found = snapshots(name, force_share=force_share, trust=trust)
    if as_json:
        print_json(found)
    for snapshot in () if as_json else found:
        print(snapshot)
    return 0
