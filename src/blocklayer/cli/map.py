# SPDX-License-Identifier: Apache-2.0
"""`blk map`: where the data of an image is."""

from __future__ import annotations

from collections.abc import Iterable

from blocklayer.base.extent import Extent
from blocklayer.cli.failures import Failure
from blocklayer.cli.parsing import (
    FORCE_SHARE,
    FORMAT,
    IMAGE_OPTS,
    OUTPUT,
    Arguments,
    Command,
    Option,
    one_image,
    size_argument,
    wants_json,
)

COMMAND = Command(
    "map",
    "FILE",
    "Tell which parts of a disk hold data, and in which file of the backing chain, and where.",
    (
        FORMAT,
        OUTPUT,
        Option("-s --start-offset", "SIZE", "where to begin (default 0)"),
        Option("-l --max-length", "SIZE", "how much to look at (default everything)"),
        IMAGE_OPTS,
        FORCE_SHARE,
    ),
)


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.map import map as map_image

    start = size_argument(arguments.last("start-offset", "0"), "start offset")
    length = None
    if "max-length" in arguments:
        length = size_argument(arguments.last("max-length"), "max length")
    name, format_name = one_image(arguments)
    as_json = wants_json(arguments)
    extents = map_image(
        name,
        format=format_name,
        offset=start,
        length=length,
        force_share="force-share" in arguments,
    )
    if as_json:
        _print_as_json(extents, start)
    else:
        _print_table(extents)
    return 0


def _print_table(extents: Iterable[Extent]) -> None:
    """Data only."""
    header = False
    for extent in extents:
        if not header:
            _print_header()
            header = True
        if not extent.data or extent.zero:
            continue
        if extent.host_offset is None:
            raise Failure("File contains external, encrypted or compressed clusters.")
        numbers = (extent.offset, extent.length, extent.host_offset)
        print("".join(f"{_hexadecimal(n):<16}" for n in numbers) + f"{extent.filename}")
    if not header:
        _print_header()


def _print_header() -> None:
    """Not before there is something to print: opening the image may fail."""
    print(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File")


def _hexadecimal(value: int) -> str:
    """As C's %#x: zero has no prefix."""
    return f"{value:#x}" if value else "0"


def _print_as_json(extents: Iterable[Extent], start: int) -> None:
    """A line an extent, as it is found: maps can be longer than memory."""
    begin = "["
    for extent in extents:
        print(begin + _as_json(extent), end="")
        begin = ",\n"
    if begin == "[":
        print(begin + _as_json(Extent(start, 0, False, False, False, 0)), end="")
    print("]")


def _as_json(extent: Extent) -> str:
    members = [
        f'"start": {extent.offset}',
        f'"length": {extent.length}',
        f'"depth": {extent.depth}',
        f'"present": {_boolean(extent.present)}',
        f'"zero": {_boolean(extent.zero)}',
        f'"data": {_boolean(extent.data)}',
    ]
    if extent.host_offset is not None:
        members.append(f'"offset": {extent.host_offset}')
    return "{ " + ", ".join(members) + "}"


def _boolean(value: bool) -> str:
    return "true" if value else "false"
