# SPDX-License-Identifier: Apache-2.0
"""`blk compare`: whether two images show the same disk.

Exit codes: 0 they do, 1 they differ, 2 one cannot be opened (or the command line is wrong), 3 one's
tables are wrong, 4 one cannot be read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from blocklayer.base.errors import BlocklayerError, Cancelled, FormatError
from blocklayer.cli.failures import Failure, UsageError
from blocklayer.cli.getopt import Option
from blocklayer.cli.output import print_result
from blocklayer.cli.parsing import (
    ALLOW,
    FORCE_SHARE,
    IMAGE_OPTS,
    OUTPUT,
    PROGRESS,
    QUIET,
    UNTRUSTED,
    Arguments,
    Command,
    cache_name,
    image_name,
    trust_argument,
    wants_json,
)
from blocklayer.cli.progress import Running

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.core.disk import Disk
    from blocklayer.ops.compare import CompareResult

COMMAND = Command(
    "compare",
    "FILE1 FILE2",
    "Tell whether two images show the same disk. Exit code: 0 they do, 1 they differ.",
    (
        Option("-f --a-format --format", "FMT", "format of the first image", key="format"),
        Option("-F --b-format", "FMT", "format of the second image"),
        Option("-s --strict", "", "strict: sizes and allocation must be the same, too"),
        Option("-T --cache", "CACHE", "cache mode (default writeback)"),
        OUTPUT,
        PROGRESS,
        QUIET,
        IMAGE_OPTS,
        FORCE_SHARE,
        UNTRUSTED,
        ALLOW,
    ),
    details=(
        "What the disks show is compared, not how the images store it: formats, cluster sizes and"
        " backing files may differ. If one disk is longer, its rest must read as zeroes."
    ),
    examples=(
        ("compare server.raw server.qed", "Has the conversion kept everything?"),
        ("compare -s -f raw -F raw a.raw b.raw", "Sizes and allocation must be the same, too."),
    ),
    exits=(
        (0, "both show the same disk"),
        (1, "they differ"),
        (2, "an image could not be opened"),
        (3, "it could not be told what is allocated"),
        (4, "an image could not be read, or the answer could not be written"),
    ),
)

CANNOT_OPEN = 2
CANNOT_MAP = 3
CANNOT_READ = CANNOT_WRITE = 4


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.compare import compare_disks

    if len(arguments.names) != 2:
        raise UsageError("Expecting two image file names")
    cache = cache_name(arguments, "cache", "writeback", what="source ", code=CANNOT_OPEN)
    first, second = arguments.names
    strict = "strict" in arguments
    with (
        _open(arguments, first, arguments.optional("format"), cache) as one,
        _open(arguments, second, arguments.optional("b-format"), cache) as two,
    ):
        try:
            with Running(arguments) as running:
                result = compare_disks(
                    one, two, strict=strict, progress=running.report, cancel=running.cancel
                )
        except Cancelled:
            raise
        except FormatError as error:
            message = f"Sector allocation test failed for {error.filename}: {error}"
            raise Failure(message, CANNOT_MAP) from None
        except BlocklayerError as error:
            raise Failure(str(error), CANNOT_READ) from None
        with _answering():
            if wants_json(arguments):
                print_result(arguments, _members(result))
            elif "quiet" not in arguments:
                _print_result(result, strict, common=min(one.size, two.size))
    return 0 if result.identical else 1


@contextmanager
def _answering() -> Iterator[None]:
    """An answer that could not be written is not "they differ"."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failure(f"stdout: {error.strerror}", CANNOT_WRITE) from None


def _members(result: CompareResult) -> dict[str, Any]:
    """What --output=json tells; `difference` is content, size or status (with -s)."""
    return {
        "identical": result.identical,
        "offset": result.offset,
        "difference": result.kind,
        "sizes-differ": result.sizes_differ,
    }


def _open(arguments: Arguments, name: str, format_name: str | None, cache: str) -> Disk:
    from blocklayer.ops.open_image import open_disk

    if "image-opts" in arguments and format_name is not None:
        raise Failure("--image-opts and --format are mutually exclusive", CANNOT_OPEN)
    shown = image_name(arguments, name, CANNOT_OPEN)
    force_share = "force-share" in arguments
    try:
        trust = trust_argument(arguments)
        return open_disk(
            shown, format=format_name, cache=cache, force_share=force_share, trust=trust
        )
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
