# SPDX-License-Identifier: Apache-2.0
"""`blk dd`: a part of a disk, counted in blocks, into a new image."""

from __future__ import annotations

from blocklayer.base.errors import CreateError
from blocklayer.cli.failures import Failure
from blocklayer.cli.getopt import Option
from blocklayer.cli.numbers import INT32_MAX, size_argument
from blocklayer.cli.output import complain, print_result
from blocklayer.cli.parsing import (
    ALLOW,
    FORCE_SHARE,
    IMAGE_OPTS,
    LONG_PROGRESS,
    OUTPUT,
    UNTRUSTED,
    Arguments,
    Command,
    image_name,
    trust_argument,
)
from blocklayer.cli.progress import Running

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.ops.dd import DdResult

COMMAND = Command(
    "dd",
    "[bs=BYTES] [count=BLOCKS] [skip=BLOCKS] if=FILE of=TARGET",
    "Copy a part of a disk into a new image: COUNT blocks of BS bytes (512), after SKIP others.",
    (
        Option("-f --format", "FMT", "format of the image; found by its signature if not given"),
        Option("-O --output-format", "FMT", "format of the target (default raw)"),
        OUTPUT,
        LONG_PROGRESS,
        IMAGE_OPTS,
        FORCE_SHARE,
        UNTRUSTED,
        ALLOW,
    ),
    details=(
        "Arguments are those of dd(1), but for the target's: it is made anew, and its size is what"
        " is copied. An export of an NBD server is written to from its start, and keeps its size."
    ),
    examples=(
        ("dd if=disk.qed of=head.raw bs=1M count=1", "The first MiB as a raw image."),
        ("dd -O qed if=disk.qed of=tail.qed bs=64k skip=100", "All but 100 blocks of 64 KiB."),
    ),
    words=("if=", "of=", "bs=", "count=", "skip="),
)

OPERANDS = ("bs", "count", "if", "of", "skip")


def run(arguments: Arguments) -> int:
    """The command."""
    operands = _operands(arguments.names)
    if "if" not in operands or "of" not in operands:
        raise Failure("Must specify both input and output files")
    if "image-opts" in arguments and "format" in arguments:
        raise Failure("--image-opts and --format are mutually exclusive")
    result = _copy(arguments, operands)
    if result.skipped_all:
        complain(f"{operands['if']}: cannot skip to specified offset")
    print_result(arguments, {"filename": operands["of"], "size": result.size})
    return 0


def _operands(words: list[str]) -> dict[str, str]:
    """What is given as NAME=VALUE; numbers are looked at here, in their order."""
    operands: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in OPERANDS or not equals:
            raise Failure(f"unrecognized operand {name}")
        if name not in ("if", "of"):
            _number(name, value)
        operands[name] = value
    return operands


def _number(name: str, text: str) -> int:
    if name == "bs":
        return size_argument(text, name, least=1, most=INT32_MAX)
    return size_argument(text, name)


def _copy(arguments: Arguments, operands: dict[str, str]) -> DdResult:
    from blocklayer.ops.dd import dd

    numbers = {name: _number(name, operands[name]) for name in OPERANDS[:2] if name in operands}
    with Running(arguments) as running:
        try:
            return dd(
                image_name(arguments, operands["if"]),
                operands["of"],
                source_format=arguments.optional("format"),
                format=arguments.last("output-format", "raw"),
                block_size=numbers.get("bs", 512),
                count=numbers.get("count"),
                skip=_number("skip", operands.get("skip", "0")),
                force_share="force-share" in arguments,
                trust=trust_argument(arguments),
                progress=running.report,
                cancel=running.cancel,
            )
        except CreateError as error:
            raise Failure(
                f"{error.filename}: error while creating output image: {error.message}"
            ) from None
