# SPDX-License-Identifier: Apache-2.0
"""`blk measure`: how large an image would become."""

from __future__ import annotations

from blocklayer.cli.failures import Failure
from blocklayer.cli.getopt import Option
from blocklayer.cli.numbers import size_argument
from blocklayer.cli.output import print_json
from blocklayer.cli.parsing import (
    ALLOW,
    FORCE_SHARE,
    LONG_PROGRESS,
    NAMING,
    OUTPUT,
    UNTRUSTED,
    Arguments,
    Command,
    image_name,
    trust_argument,
    wants_json,
)
from blocklayer.cli.progress import Running
from blocklayer.cli.targets import check_sizes, create_options, refuse_snapshot

COMMAND = Command(
    "measure",
    "FILE | --size SIZE",
    "Tell how large an image of another format would be, for an image's data or a size.",
    (
        Option("-O --target-format", "FMT", "format to measure (default raw)"),
        Option(
            "-o --target-format-options --options",
            "OPTIONS",
            "options of that format",
            key="options",
        ),
        Option("-s --size", "SIZE", "measure an empty disk of this size"),
        Option(
            "-f --format --source-format",
            "FMT",
            "format of the image; found by its signature if not given",
        ),
        Option("-l --snapshot", "SNAPSHOT", "measure a snapshot of the image"),
        OUTPUT,
        LONG_PROGRESS,
        Option(
            "--image-opts --source-image-opts",
            "",
            "the image is named by options: driver=qed,file.filename=x",
            group=NAMING,
        ),
        FORCE_SHARE,
        UNTRUSTED,
        ALLOW,
    ),
    details=("Two numbers: the size that the data needs, and the size if everything were written."),
    examples=(
        ("measure -O qed server.raw", "How large will the conversion be?"),
        ("measure -O qed --size 1T", "How large is an empty image of that size?"),
    ),
)


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.measure import measure

    as_json = wants_json(arguments)
    size = None
    if "size" in arguments:
        size = size_argument(arguments.last("size"), "image size")
    options = create_options(arguments)
    target = arguments.last("target-format", "raw")
    filename = _filename(arguments)
    if options is None:
        # As a value of an option like any other: there is no image yet to describe options of.
        raise _invalid("help", target)
    check_sizes(target, options)
    if "snapshot" in arguments and filename is not None:
        refuse_snapshot(arguments, [filename])
    with Running(arguments, result=True) as running:
        result = measure(
            None if filename is None else image_name(arguments, filename),
            size=size,
            format=target,
            source_format=arguments.optional("format"),
            options=options,
            force_share="force-share" in arguments,
            trust=trust_argument(arguments),
            progress=running.report,
            cancel=running.cancel,
        )
    if as_json:
        print_json({"required": result.required, "fully-allocated": result.fully_allocated})
    else:
        print(f"required size: {result.required}")
        print(f"fully allocated size: {result.fully_allocated}")
    return 0


def _filename(arguments: Arguments) -> str | None:
    """The image to measure; None to measure a size."""
    names = arguments.names
    if len(names) > 1:
        raise Failure("At most one filename argument is allowed.")
    if not names and any(key in arguments for key in ("image-opts", "format", "snapshot")):
        raise Failure("--image-opts, -f, and -l require a filename argument.")
    if not names and "size" not in arguments:
        raise Failure("Either --size N or one filename must be specified.")
    if names and "size" in arguments:
        raise Failure("--size N cannot be used together with a filename.")
    return names[0] if names else None


def _invalid(option: str, target: str) -> Failure:
    return Failure(f"Invalid parameter '{option}'\nInvalid options for file format '{target}'")
