# SPDX-License-Identifier: Apache-2.0
"""`blk convert`: an image, or several in a row, into another format."""

from __future__ import annotations

from blocklayer.base.errors import CreateError
from blocklayer.cli.failures import Failure
from blocklayer.cli.getopt import Option
from blocklayer.cli.numbers import integer_argument, size_argument
from blocklayer.cli.output import print_result, warn
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
    option_tree,
    trust_argument,
)
from blocklayer.cli.progress import Running
from blocklayer.cli.targets import check_sizes, check_target, create_options, refuse_snapshot

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.ops.convert import ConvertResult

COMMAND = Command(
    "convert",
    "FILE [FILE2 ...] TARGET",
    "Copy an image, or several one after the other, into a new image. Zeroes are not stored.",
    (
        Option(
            "-f --source-format --format",
            "FMT",
            "format of the images; found by its signature if not given",
            key="format",
        ),
        Option("-O --target-format", "FMT", "format of the target (default raw)"),
        Option(
            "-o --target-format-options",
            "OPTIONS",
            "options of the target: name=value,...; 'help' lists them",
            key="options",
        ),
        Option(
            "-b -B --backing", "FILE", "backing file of the target: only differences are stored"
        ),
        Option("-F --backing-format", "FMT", "format of that backing file"),
        Option("-n --no-create", "", "write into a target that exists"),
        Option("--target-is-zero", "", "with -n: the target reads as zeroes everywhere"),
        Option("--target-image-opts", "", "with -n: the target is named by options"),
        Option("-c --compress", "", "compress"),
        Option(
            "-C --copy-range-offloading",
            "",
            "copy offload (accepted; copies are read and written)",
        ),
        Option("-l --snapshot", "SNAPSHOT", "copy a snapshot of the image"),
        Option(
            "-S --sparse-size",
            "SIZE",
            "how many zero bytes in a row become a hole (default 4k; 0: none)",
        ),
        Option(
            "-m --parallel",
            "NUMBER",
            "requests at a time, 1 to 16 (accepted; the engine chooses)",
        ),
        Option("-W --oob-writes", "", "allow writing out of order (accepted; the engine chooses)"),
        Option("-r --rate-limit", "RATE", "at most so many bytes a second"),
        Option("--salvage", "", "take what cannot be read as zeroes"),
        Option("--verify", "", "read back what was written and compare it with the source"),
        Option("--resume", "", "keep what is copied if interrupted, and go on with it if there"),
        Option("--bitmaps", "", "copy persistent bitmaps, too"),
        Option("--skip-broken-bitmaps", "", "with --bitmaps: leave inconsistent ones out"),
        Option("-t --target-cache", "CACHE", "cache mode of the target (default unsafe)"),
        Option("-T --source-cache", "CACHE", "cache mode of the source (default writeback)"),
        OUTPUT,
        PROGRESS,
        QUIET,
        IMAGE_OPTS,
        FORCE_SHARE,
        UNTRUSTED,
        ALLOW,
    ),
    details=(
        "What reads as zeroes takes no space in the target. With -B, the target is an overlay that"
        " stores only what differs from its backing file. A target that was made is removed again"
        " if the copy fails, also where a file of its name was there before: only with --resume"
        " that file stays until the copy is whole. --resume needs files or devices as"
        " sources, and a file as target: a server cannot tell whether its disk has changed. What"
        " goes on begins behind the last part that is safely stored: parts have 16 MiB of data at"
        " first, and later a quarter of what is there, up to 256 MiB."
    ),
    examples=(
        ("convert -p -f raw -O qed server.raw server.qed", "A raw disk as QED, with progress."),
        ("convert -O qed -o cluster_size=256k a.raw a.qed", "With options of the format."),
        ("convert -O qed -B base.qed -F qed full.qed top.qed", "Only what differs from base.qed."),
        ("convert -n -O raw disk.qed /dev/vg/disk", "Into a device that exists."),
    ),
)

WORKERS_MAX = 16
DEFAULT_SPARSE_SIZE = 4096
SPARSE_SIZE_MAX = 16 * 1024 * 1024


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.convert import convert

    options = create_options(arguments)
    if options is None:
        from blocklayer.cli.create import options_help

        names = arguments.names
        print(
            options_help(
                arguments.last("target-format", "raw"), names[-1] if len(names) > 1 else None
            )
        )
        return 0
    sparse_size = _sparse_size(arguments)
    _check_workers(arguments)
    rate_limit = size_argument(arguments.last("rate-limit", "0"), "rate limit")
    _check_combinations(arguments)
    if len(arguments.names) < 2:
        raise Failure("Must specify image file name")
    if "target-image-opts" in arguments and "target-format" in arguments:
        raise Failure("--image-opts and --format are mutually exclusive")
    *sources, target = arguments.names
    _refuse_what_no_format_can(arguments, sources)
    cache = cache_name(arguments, "target-cache", "unsafe")
    source_cache = cache_name(arguments, "source-cache", "writeback", what="source ")
    by_options = "target-image-opts" in arguments
    if "no-create" not in arguments:
        check_target(target)
    target_format = None if by_options else arguments.last("target-format", "raw")
    check_sizes(target_format or "", options)
    _add_backing(arguments, options)
    if options.get("backing_file") and len(sources) > 1:
        raise Failure(
            "Having a backing file for the target makes no sense when concatenating multiple"
            " input images"
        )
    with Running(arguments) as running:
        try:
            result = convert(
                [image_name(arguments, source) for source in sources],
                option_tree(target) if by_options else target,
                source_format=arguments.optional("format"),
                format=target_format,
                options=options,
                create="no-create" not in arguments,
                target_is_zero="target-is-zero" in arguments,
                sparse_size=sparse_size,
                cache=cache,
                source_cache=source_cache,
                force_share="force-share" in arguments,
                rate_limit=rate_limit,
                salvage="salvage" in arguments,
                verify="verify" in arguments,
                resume="resume" in arguments,
                trust=trust_argument(arguments),
                progress=running.report,
                cancel=running.cancel,
            )
        except CreateError as error:
            raise Failure(
                f"{error.filename}: error while converting {target_format}: {error.message}"
            ) from None
    for offset, length in result.salvaged:
        warn(f"could not read {length} bytes at offset {offset}: taken as zeroes")
    print_result(arguments, _members(result, target))
    return 0


def _members(result: ConvertResult, target: str) -> dict[str, Any]:
    """What --output=json tells; sizes are bytes."""
    return {
        "filename": target,
        "virtual-size": result.size,
        "data": result.data,
        "zero": result.zero,
        "resumed": result.resumed,
        "salvaged": [{"offset": at, "length": length} for at, length in result.salvaged],
    }


def _sparse_size(arguments: Arguments) -> int:
    if "sparse-size" not in arguments:
        return DEFAULT_SPARSE_SIZE
    size = size_argument(arguments.last("sparse-size"), "buffer size for sparse output")
    if size % 512 or size > SPARSE_SIZE_MAX:
        raise Failure(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512"
            f" up to {SPARSE_SIZE_MAX}. Select 0 to disable sparse detection (fully allocates"
            " output)."
        )
    return size


def _check_workers(arguments: Arguments) -> None:
    try:
        count = integer_argument(arguments.last("parallel", "8"), "number of coroutines")
    except Failure:
        count = 0
    if not 1 <= count <= WORKERS_MAX:
        raise Failure(
            "Invalid number of coroutines. Allowed number of coroutines is between 1 and"
            f" {WORKERS_MAX}"
        )


def _check_combinations(arguments: Arguments) -> None:
    """Options that contradict each other, or need each other, in QEMU's order."""
    for option, other, needed, message in (
        ("skip-broken-bitmaps", "bitmaps", True, "Use of --skip-broken-bitmaps requires --bitmaps"),
        (
            "copy-range-offloading",
            "compress",
            False,
            "Cannot enable copy offloading when -c is used",
        ),
        (
            "copy-range-offloading",
            "sparse-size",
            False,
            "Cannot enable copy offloading when -S is used",
        ),
        ("copy-range-offloading", "salvage", False, "Cannot use copy offloading in salvaging mode"),
        ("target-image-opts", "no-create", True, "--target-image-opts requires use of -n flag"),
        ("target-is-zero", "no-create", True, "--target-is-zero requires use of -n flag"),
        ("no-create", "options", False, "-o has no effect when skipping image creation"),
    ):
        if option in arguments and (other in arguments) != needed:
            raise Failure(message)


def _refuse_what_no_format_can(arguments: Arguments, sources: list[str]) -> None:
    if "snapshot" in arguments:
        refuse_snapshot(arguments, sources)
    for key, message in (
        ("compress", "Compression not supported for this file format"),
        ("bitmaps", "Source lacks bitmap support"),
    ):
        if key in arguments:
            raise Failure(message)


def _add_backing(arguments: Arguments, options: dict[str, Any]) -> None:
    """-B and -F are short for two of the -o options."""
    for key, option in (("backing", "backing_file"), ("backing-format", "backing_fmt")):
        if key in arguments:
            options[option] = arguments.last(key)
    if "backing" in arguments and "target-is-zero" in arguments:
        raise Failure("Cannot use --target-is-zero when the destination image has a backing file")
    explicit = options.get("backing_fmt") or "no-create" in arguments  # nothing is made with it
    if options.get("backing_file") is not None and not explicit:
        raise Failure("Use of backing file requires explicit backing format")
