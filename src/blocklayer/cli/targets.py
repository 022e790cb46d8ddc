# SPDX-License-Identifier: Apache-2.0
"""What commands that make images are told of them: their names, and options of their formats."""

from __future__ import annotations

from blocklayer.cli.failures import Failure
from blocklayer.cli.numbers import size_option
from blocklayer.cli.parsing import Arguments, image_name, trust_argument

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any


def check_target(name: str) -> None:
    """Whether a new image can have this name, or there is one by nature. Raises `Failure`."""
    from blocklayer.base.errors import OpenError
    from blocklayer.core.names import is_export, path_of

    if is_export(name):
        return
    try:
        path_of(name)
    except OpenError as error:
        raise Failure(error.message) from None


def refuse_snapshot(arguments: Arguments, names: list[str]) -> None:
    """-l: none of the formats that there are has snapshots. Raises `Failure`, or `OpenError`."""
    from blocklayer.base.options import split_options
    from blocklayer.ops.info import info

    text = arguments.last("snapshot")
    if text.startswith("snapshot."):
        for name, _ in split_options(text):
            if name not in ("snapshot.id", "snapshot.name"):
                raise Failure(f"Invalid parameter '{name}'")
    for name in names:
        found = info(
            image_name(arguments, name),
            format=arguments.optional("format"),
            trust=trust_argument(arguments),
        )
    if len(names) > 1:
        raise Failure("No support for concatenating multiple snapshot")
    raise Failure(
        f"Failed to load snapshot: Block format '{found.format}' has no internal snapshots"
    )


_NOT_FOR_DRIVERS = ("filename", "format", "backing", "backing_format", "check_backing", "locking")
"""Arguments of `blocklayer.create` that are no options of a format."""


def create_options(arguments: Arguments) -> dict[str, Any] | None:
    """All -o together; None where they ask for help."""
    from blocklayer.base.options import split_options

    result: dict[str, Any] = {}
    for text in arguments.all("options"):
        if not text or text.startswith(",") or _ends_with_comma(text):
            raise Failure(f"Invalid option list: {text}")
        items = text.replace(",,", "\0").split(",")
        if "help" in items or "?" in items:
            return None
        result |= dict(split_options(text))
        if any(item.startswith("=") for item in items):
            result[""] = ""
        for name in result.keys() & _NOT_FOR_DRIVERS:
            raise Failure(f"Invalid parameter '{name}'")
    return result


def check_sizes(format_name: str, options: dict[str, Any]) -> None:
    """Look at options that are sizes. Raises `Failure` in the words that QEMU has for options."""
    from blocklayer.core import drivers
    from blocklayer.ops.file_hints import FILE_OPTIONS

    if not drivers.is_known(format_name):
        return
    for option in (*drivers.load(format_name).create_options, *FILE_OPTIONS):
        if option.kind == "size" and isinstance(options.get(option.name), str):
            options[option.name] = str(size_option(option.name, options[option.name]))


def _ends_with_comma(text: str) -> bool:
    """A trailing comma that is not half of a doubled one."""
    return (len(text) - len(text.rstrip(","))) % 2 == 1
