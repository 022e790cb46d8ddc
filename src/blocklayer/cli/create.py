# SPDX-License-Identifier: Apache-2.0
"""`blk create`: new images."""

from __future__ import annotations

from blocklayer.base.errors import OpenError
from blocklayer.cli.failures import Failure, UsageError
from blocklayer.cli.getopt import Option
from blocklayer.cli.numbers import size_argument
from blocklayer.cli.output import print_result
from blocklayer.cli.parsing import (
    ALLOW,
    OUTPUT,
    QUIET,
    UNTRUSTED,
    Arguments,
    Command,
    trust_argument,
)
from blocklayer.cli.progress import Running
from blocklayer.cli.targets import check_sizes, check_target, create_options

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.core.drivers import CreateOption

COMMAND = Command(
    "create",
    "FILE [SIZE]",
    "Make a new image. An image that is based on another one needs no size.",
    (
        Option("-f --format", "FMT", "format of the new image (default raw)"),
        Option("-b --backing", "FILE", "image that shows where the new one holds nothing"),
        Option("-F -B --backing-format", "FMT", "format of the backing file"),
        Option("-u --backing-unsafe", "", "do not look whether the backing file is there"),
        Option(
            "-o --options", "OPTIONS", "options of the format: name=value,...; 'help' lists them"
        ),
        OUTPUT,
        QUIET,
        UNTRUSTED,
        ALLOW,
    ),
    details=(
        "An image with a backing file (-b) shows what that one holds until it is written to; the"
        " backing file must not change any more. Its format must be given with -F: a guess could"
        " be made wrong by what a guest writes. If somebody else made the backing file, --untrusted"
        " limits what is opened below it.\n\n"
        "-o takes the options of the format as name=value, separated by commas; a comma in a value"
        " is doubled."
    ),
    examples=(
        ("create -f qed disk.qed 10G", "An empty disk of 10 GiB."),
        ("create -f qed -b base.qed -F qed overlay.qed", "An overlay, as large as its base."),
        ("create -f qed -o cluster_size=2M,table_size=4 big.qed 8T", "With options."),
        ("create -f qed -o help", "List the options of a format."),
    ),
)

ANNOUNCED = ("size", "backing_file", "backing_fmt", "cluster_size")
"""Told about every image; other options only where they were given."""


def run(arguments: Arguments) -> int:
    """The command."""
    format_name = arguments.last("format", "raw")
    options = create_options(arguments)
    names = arguments.names
    if options is None:
        print(options_help(format_name, names[0] if names else None))
        return 0
    if not names:
        raise UsageError("Expecting image file name")
    filename = names[0]
    size = size_argument(names[1], "image size") if len(names) > 1 else None
    if len(names) > 2:
        raise UsageError(f"Unexpected argument: {names[2]}")
    given, backing_fmt = tuple(options), options.get("backing_fmt")
    try:
        with Running(arguments, at_once=True):
            resolved = _create(arguments, filename, format_name, size, options)
    except Failure as failure:
        raise Failure(f"{filename}: {failure}") from None
    if arguments.last("output") == "json":
        members = {"filename": filename, "format": format_name, "options": resolved}
        print_result(arguments, members)
    elif "quiet" not in arguments:
        backing_format = arguments.optional("backing-format") or backing_fmt
        if backing_format is not None:
            resolved.setdefault("backing_fmt", backing_format)
        print(_announcement(filename, format_name, resolved, given))
    return 0


def _create(
    arguments: Arguments,
    filename: str,
    format_name: str,
    size: int | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    from blocklayer.ops.create import create

    check_sizes(format_name, options)
    _check_backing_options(arguments, format_name, options)
    if "size" in options:
        if size is not None:
            raise Failure("The image size must be specified only once")
        size = options.pop("size")
    backing = _either(arguments.optional("backing"), options.pop("backing_file", None))
    backing_format = _either(arguments.optional("backing-format"), options.pop("backing_fmt", None))
    if backing == "":
        raise Failure("Expected backing file name, got empty string")
    if backing is not None and backing_format is None:
        _refuse_to_guess(
            filename, backing, look=not {"backing-unsafe", "untrusted"} & {*arguments.order}
        )
    return create(
        filename,
        format=format_name,
        size=size,
        backing=backing,
        backing_format=backing_format,
        check_backing="backing-unsafe" not in arguments,
        trust=trust_argument(arguments),
        **options,
    )


def _check_backing_options(arguments: Arguments, format_name: str, options: dict[str, Any]) -> None:
    """What a format without backing files cannot take, before anybody looks for the file."""
    from blocklayer.core import drivers

    if not drivers.is_known(format_name):
        return
    known = {option.name for option in drivers.load(format_name).create_options}
    for key, option, what in (
        ("backing", "backing_file", "Backing file"),
        ("backing-format", "backing_fmt", "Backing file format"),
    ):
        if key in arguments and known and option not in known:
            raise Failure(f"{what} not supported for file format '{format_name}'")
        if option in options and known and option not in known:
            raise Failure(f"Invalid parameter '{option}'")
    backing_format = _either(arguments.optional("backing-format"), options.get("backing_fmt"))
    backing = _either(arguments.optional("backing"), options.get("backing_file"))
    if backing is None and backing_format is not None and not drivers.is_known(backing_format):
        raise Failure(f"Parameter 'backing-fmt' does not accept value '{backing_format}'")


def _either(first: str | None, second: str | None) -> str | None:
    """-b and -F win over the same given by -o."""
    return second if first is None else first


def _refuse_to_guess(filename: str, backing: str, *, look: bool) -> None:
    """Who controls a raw backing file's content must not choose the format it is opened with."""
    message = "Backing file specified without backing format"
    if look:
        from blocklayer.core.names import backing_path
        from blocklayer.ops.probe import probe

        try:
            found = probe(backing_path(filename, backing))
        except OpenError as error:
            raise Failure(f"{error}\nCould not open backing image.") from None
        message += f"\nDetected format of {found}."
    raise Failure(message)


def _announcement(
    filename: str, format_name: str, options: dict[str, Any], given: tuple[str, ...]
) -> str:
    names = [name for name in ANNOUNCED if options.get(name) is not None]
    names += [name for name in options if name in given and name not in names]
    shown = "".join(f" {name}={_shown(options[name])}" for name in names)
    return f"Formatting '{filename}', fmt={format_name}{shown}"


def _shown(value: object) -> str:
    """As it can be given to -o again."""
    return str(value).replace(",", ",,")


def options_help(format_name: str, target: str | None) -> str:
    """What -o help prints: for a target, the options of files as well."""
    from blocklayer.core import drivers
    from blocklayer.ops.file_hints import FILE_OPTIONS

    if not drivers.is_known(format_name) or (driver := drivers.load(format_name)).create is None:
        raise Failure(f"Unknown file format '{format_name}'")
    options = list(driver.create_options)
    if target is None:
        title = f"Supported {format_name} options:"
        more = ["", "Name the target as well to see the options that files have."]
    else:
        check_target(target)
        title, more = "Supported options:", []
        options += FILE_OPTIONS
    options.sort(key=lambda option: option.name)
    return "\n".join([title, *map(_option_line, options), *more])


def _option_line(option: CreateOption) -> str:
    kind = "bool (on/off)" if option.kind == "bool" else option.kind
    return f"  {f'{option.name}=<{kind}>':22} - {option.help}"
