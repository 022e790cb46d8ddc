# SPDX-License-Identifier: Apache-2.0
"""`blk create`: new images."""

from __future__ import annotations

from blocklayer.base.errors import OpenError
from blocklayer.cli.failures import Failure, UsageError
from blocklayer.cli.parsing import (
    QUIET,
    Arguments,
    Command,
    Option,
    create_options,
    size_argument,
)

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
        Option("-F --backing-format", "FMT", "format of the backing file"),
        Option("-u", "", "do not look whether the backing file is there"),
        Option("-o", "OPTIONS", "options of the format: name=value,...; 'help' lists them"),
        QUIET,
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
        print(options_help(format_name, with_target=bool(names)))
        return 0
    if not names:
        raise UsageError("Expecting image file name")
    filename = names[0]
    size = size_argument(names[1], "image size") if len(names) > 1 else None
    if len(names) > 2:
        raise UsageError(f"Unexpected argument: {names[2]}")
    given = tuple(options)
    try:
        resolved = _create(arguments, filename, format_name, size, options)
    except Failure as failure:
        raise Failure(f"{filename}: {failure}") from None
    if "quiet" not in arguments:
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

    if "size" in options:
        if size is not None:
            raise Failure("The image size must be specified only once")
        size = options.pop("size")
    backing = _either(arguments.optional("backing"), options.pop("backing_file", None))
    backing_format = _either(arguments.optional("backing-format"), options.pop("backing_fmt", None))
    if backing == "":
        raise Failure("Expected backing file name, got empty string")
    if backing is not None and backing_format is None:
        _refuse_to_guess(filename, backing, look="u" not in arguments)
    return create(
        filename,
        format=format_name,
        size=size,
        backing=backing,
        backing_format=backing_format,
        check_backing="u" not in arguments,
        **options,
    )


def _either(first: str | None, second: str | None) -> str | None:
    """-b and -F win over the same given by -o."""
    return second if first is None else first


def _refuse_to_guess(filename: str, backing: str, *, look: bool) -> None:
    """Who controls a raw backing file's content must not choose the format it is opened with."""
    message = "Backing file specified without backing format"
    if look:
        from blocklayer.core.opening import backing_path
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


def options_help(format_name: str, *, with_target: bool) -> str:
    """What -o help prints."""
    from blocklayer.core import drivers

    if not drivers.is_known(format_name) or (driver := drivers.load(format_name)).create is None:
        raise Failure(f"Unknown file format '{format_name}'")
    title = "Supported options:" if with_target else f"Supported {format_name} options:"
    ordered = sorted(driver.create_options, key=lambda option: option.name)
    return "\n".join([title, *map(_option_line, ordered)])


def _option_line(option: CreateOption) -> str:
    kind = "bool (on/off)" if option.kind == "bool" else option.kind
    return f"  {f'{option.name}=<{kind}>':22} - {option.help}"
