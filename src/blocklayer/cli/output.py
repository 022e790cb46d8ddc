# SPDX-License-Identifier: Apache-2.0
"""Writing to people and to programs."""

from __future__ import annotations

import sys

from blocklayer.cli.failures import PROGRAM

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any


def complain(message: str) -> None:
    """One message on stderr, after the program's name."""
    try:
        sys.stdout.flush()  # what was printed before stands before, also in a shared file
    except OSError:
        pass  # it may be what there is to complain about
    try:
        print(f"{PROGRAM}: {message}", file=sys.stderr)
    except OSError:
        pass  # nobody listens; the exit code tells


def print_json(value: Any) -> None:
    """As QEMU's tools print it: indented by four, non-ASCII characters escaped."""
    import json

    print(json.dumps(value, indent=4))


def print_specific(fields: dict[str, Any], indent: int = 4) -> None:
    """What a format tells of itself, nested: ``lazy refcounts: false``."""
    for name, value in fields.items():
        label = " " * indent + name.replace("-", " ") + ":"
        if isinstance(value, dict):
            print(label)
            print_specific(value, indent + 4)
        elif isinstance(value, bool):
            print(label, "true" if value else "false")
        else:
            print(label, value)


def warn_of_guess(filename: str) -> None:
    """Whoever controls the content of a raw image can make it be taken for another format."""
    print(
        f"WARNING: Image format was not specified for '{filename}' and probing guessed raw.\n"
        "         A guess can be made wrong by what is written into the image: give -f raw.",
        file=sys.stderr,
    )
