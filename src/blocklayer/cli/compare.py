# SPDX-License-Identifier: Apache-2.0
"""`blk compare`: whether two images show the same disk.

Exit codes: 0 they do, 1 they differ, 2 one cannot be opened (or the command line is wrong), 4 one
cannot be read.
"""

from __future__ import annotations

from blocklayer.base.errors import BlocklayerError, Cancelled
from blocklayer.cli.failures import Failure, UsageError
from blocklayer.cli.parsing import (
    FORCE_SHARE,
    IMAGE_OPTS,
    PROGRESS,
    QUIET,
    Arguments,
    Command,
    Option,
    cache_name,
    image_name,
)
from blocklayer.cli.progress import Running

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.disk import Disk
    from blocklayer.ops.compare import CompareResult

COMMAND = Command(
    "compare",
    "FILE1 FILE2",
    "Tell whether two images show the same disk. Exit code: 0 they do, 1 they differ.",
    (
        Option("-f --format", "FMT", "format of the first image"),
        Option("-F", "FMT", "format of the second image"),
        Option("-s", "", "strict: sizes and allocation must be the same, too"),
        Option("-T", "CACHE", "cache mode (default writeback)"),
        PROGRESS,
        QUIET,
        IMAGE_OPTS,
        FORCE_SHARE,
    ),
)

CANNOT_OPEN = 2
CANNOT_READ = 4


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.compare import compare_disks

    if len(arguments.names) != 2:
        raise UsageError("Expecting two image file names")
    cache = cache_name(arguments, "T", "writeback", what="source ", code=CANNOT_OPEN)
    first, second = arguments.names
    strict = "s" in arguments
    with (
        _open(arguments, first, arguments.optional("format"), cache) as one,
        _open(arguments, second, arguments.optional("F"), cache) as two,
    ):
        try:
            with Running(arguments) as running:
                result = compare_disks(
                    one, two, strict=strict, progress=running.report, cancel=running.cancel
                )
        except Cancelled:
            raise
        except BlocklayerError as error:
            raise Failure(str(error), CANNOT_READ) from None
        if "quiet" not in arguments:
            _print_result(result, strict, common=min(one.size, two.size))
    return 0 if result.identical else 1


def _open(arguments: Arguments, name: str, format_name: str | None, cache: str) -> Disk:
    from blocklayer.ops.open_image import open_disk

    shown = image_name(arguments, name, CANNOT_OPEN)
    force_share = "force-share" in arguments
    try:
        return open_disk(shown, format=format_name, cache=cache, force_share=force_share)
    except BlocklayerError as error:
        raise Failure(str(error), CANNOT_OPEN) from None


def _print_result(result: CompareResult, strict: bool, common: int) -> None:
    """`common` is where the shorter disk ends."""
    if result.kind == "size":
        print("Strict mode: Image size mismatch!")
        return
    at_tail = result.offset is None or result.offset >= common
    if result.sizes_differ and not strict and at_tail:
        print("Warning: Image size mismatch!")
    if result.identical:
        print("Images are identical.")
    elif result.kind == "status":
        print(f"Strict mode: Offset {result.offset} block status mismatch!")
    else:
        print(f"Content mismatch at offset {result.offset}!")
