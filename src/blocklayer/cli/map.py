# SPDX-License-Identifier: Apache-2.0
"""`blk map`: where the data of an image is."""

from __future__ import annotations

from collections.abc import Iterable

from blocklayer.base.errors import BlocklayerError
from blocklayer.cli.failures import Failure
from blocklayer.cli.getopt import Option
from blocklayer.cli.numbers import size_argument
from blocklayer.cli.output import print_result
from blocklayer.cli.parsing import (
    ALLOW,
    FORCE_SHARE,
    FORMAT,
    IMAGE_OPTS,
    LONG_PROGRESS,
    OUTPUT,
    UNTRUSTED,
    Arguments,
    Command,
    one_image,
    trust_argument,
    wants_json,
)
from blocklayer.cli.progress import Running

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.base.extent import Row
    from blocklayer.core.names import FilenameLike

COMMAND = Command(
    "map",
    "FILE",
    "Tell which parts of a disk hold data, and in which file of the backing chain, and where.",
    (
        FORMAT,
        OUTPUT,
        LONG_PROGRESS,
        Option("-s --start-offset", "SIZE", "where to begin (default 0)"),
        Option("-l --max-length", "SIZE", "how much to look at (default everything)"),
        Option("--plot", "FILE", "draw the map into a .png, .svg or .pdf file"),
        IMAGE_OPTS,
        FORCE_SHARE,
        UNTRUSTED,
        ALLOW,
    ),
    details=(
        "For people, ranges with data are listed, with the file they are in. For programs"
        " (--output=json) all ranges are: where they begin, how deep in the chain they are,"
        " whether they read as zeroes, and their offset in the file. With --plot a picture is made"
        " of them instead, and --output=json tells what was drawn."
    ),
    examples=(
        ("map disk.qed", "Where is data?"),
        ("map --output=json -s 1M -l 64k top.qed", "All about a part of the disk."),
        ("map --plot map.svg top.qed", "A picture of it."),
    ),
)


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.map import map_rows

    start = size_argument(arguments.last("start-offset", "0"), "start offset")
    length = None
    if "max-length" in arguments:
        length = size_argument(arguments.last("max-length"), "max length")
    name, format_name = one_image(arguments)
    as_json = wants_json(arguments)
    if "plot" in arguments:
        return _plot(arguments, name, format_name, start, length)
    with Running(arguments, listing=True) as running:
        batches = map_rows(
            name,
            format_name,
            start,
            length,
            force_share="force-share" in arguments,
            trust=trust_argument(arguments),
            progress=running.report,
            cancel=running.cancel,
        )
        if as_json:
            _print_as_json(batches, start)
        else:
            _print_table(batches)
    return 0


def _plot(
    arguments: Arguments,
    name: FilenameLike,
    format_name: str | None,
    start: int,
    length: int | None,
) -> int:
    from blocklayer.ops.plot import plot

    target = arguments.last("plot")
    with Running(arguments) as running:
        drawn = plot(
            name,
            target,
            format=format_name,
            offset=start,
            length=length,
            force_share="force-share" in arguments,
            trust=trust_argument(arguments),
            progress=running.report,
            cancel=running.cancel,
        )
    layers = [
        {"depth": depth, "filename": filename, "data": data}
        for depth, filename, data in drawn.layers
    ]
    members = {"filename": target, "start": drawn.start, "length": drawn.length}
    members |= {"layers": layers, "zero": drawn.zero, "hole": drawn.hole}
    print_result(arguments, members)
    return 0


def _print_table(batches: Iterable[list[Row]]) -> None:
    """Data only."""
    header = False
    for batch in batches:
        if not header:
            _print_header()
            header = True
        print("".join(map(_as_line, filter(_is_shown, batch))), end="")
    if not header:
        _print_header()


def _print_header() -> None:
    """Not before there is something to print: opening the image may fail."""
    print(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File")


def _is_shown(row: Row) -> bool:
    return row[2] and not row[3]  # data, and not known to be zero


_LINE = "%#-16x%#-16x%#-16x%s\n"
"""Not an f-string: this is faster, and there may be millions of lines."""


def _as_line(row: Row) -> str:
    start, length, _, _, _, _, host, filename = row
    if host is None:
        raise Failure("File contains external, encrypted or compressed clusters.")
    if start and host:
        return _LINE % (start, length, host, filename)
    # As C's %#x: zero has no prefix.
    first = f"{start:#x}" if start else "0"
    place = f"{host:#x}" if host else "0"
    return f"{first:<16}{length:<#16x}{place:<16}{filename}\n"


def _print_as_json(batches: Iterable[list[Row]], start: int) -> None:
    """A line an extent, as it is found: maps can be longer than memory.

    The array of a map that ends early has no end: nobody takes it for the whole.
    """
    begin = "["
    try:
        for batch in batches:
            print(begin + ",\n".join(map(_as_json, batch)), end="")
            begin = ",\n"
    except (BlocklayerError, KeyboardInterrupt):
        if begin != "[":
            print()
        raise
    if begin == "[":
        print(begin + _as_json((start, 0, False, False, False, 0, None, None)), end="")
    print("]")


_BOOLEAN = ("false", "true")


def _as_json(row: Row) -> str:
    start, length, data, zero, present, depth, host, _ = row
    if not data and not zero:  # what an NBD server says of a bitmap: shown as not there
        present, host = False, None
    place = f', "offset": {host}}}' if host is not None else "}"
    return (
        f'{{ "start": {start}, "length": {length}, "depth": {depth},'
        f' "present": {_BOOLEAN[present]}, "zero": {_BOOLEAN[zero]},'
        f' "data": {_BOOLEAN[data]}{place}'
    )
