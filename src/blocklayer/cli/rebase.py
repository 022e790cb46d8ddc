# SPDX-License-Identifier: Apache-2.0
"""`blk rebase`: another backing file, or none, without changing what the disk shows."""

from __future__ import annotations

from blocklayer.base.errors import (
    BlocklayerError,
    Cancelled,
    FormatError,
    LockError,
    NotSupported,
    OpenError,
)
from blocklayer.cli.failures import Failure, UsageError
from blocklayer.cli.getopt import Option
from blocklayer.cli.output import print_result
from blocklayer.cli.parsing import (
    ALLOW,
    FORCE_SHARE,
    FORMAT,
    IMAGE_OPTS,
    OUTPUT,
    PROGRESS,
    QUIET,
    UNTRUSTED,
    Arguments,
    Command,
    cache_name,
    one_image,
    trust_argument,
)
from blocklayer.cli.progress import Running

COMMAND = Command(
    "rebase",
    "-b BACKING FILE",
    "Give an overlay another backing file. What would change is copied into the overlay first.",
    (
        FORMAT,
        Option("-b --backing", "FILE", "the new backing file; '' for none"),
        Option("-F -B --backing-format", "FMT", "format of the new backing file"),
        Option(
            "-u --backing-unsafe", "", "unsafe: change the name only; right if the file has moved"
        ),
        Option("-c --compress", "", "compress what is copied (no format here can)"),
        Option("-t --cache", "CACHE", "cache mode of the image (default writeback)"),
        Option(
            "-T --backing-cache", "CACHE", "cache mode of the backing files (default writeback)"
        ),
        OUTPUT,
        PROGRESS,
        QUIET,
        IMAGE_OPTS,
        FORCE_SHARE,
        UNTRUSTED,
        ALLOW,
    ),
    details=(
        "What the disk shows stays the same: where the old and the new backing file differ, the"
        " overlay gets its own copy. With -u nothing is looked at or copied; that is right only if"
        " both backing files show the same, for one after the file has moved."
    ),
    examples=(
        ("rebase -b new.qed -F qed overlay.qed", "On another base, with the same content."),
        ("rebase -b '' overlay.qed", "On none: the overlay becomes complete."),
        ("rebase -u -b moved.qed -F qed overlay.qed", "The backing file has a new name."),
    ),
)


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.rebase import rebase

    name, format_name = one_image(arguments)
    backing = arguments.optional("backing")
    unsafe = "backing-unsafe" in arguments
    if backing is None and not unsafe:
        raise UsageError("Must specify backing file (-b) or use unsafe mode (-u)")
    cache = cache_name(arguments, "cache", "writeback")
    source_cache = cache_name(arguments, "backing-cache", "writeback", what="source ")
    if "compress" in arguments:
        raise Failure("Compression not supported for this file format")
    backing_format = _backing_format(arguments, backing)
    with Running(arguments) as running:
        try:
            rebase(
                name,
                backing,
                format=format_name,
                backing_format=backing_format,
                unsafe=unsafe,
                cache=cache,
                source_cache=source_cache,
                force_share="force-share" in arguments,
                trust=trust_argument(arguments),
                progress=running.report,
                cancel=running.cancel,
            )
        except Cancelled:
            raise
        except OpenError as error:
            if not unsafe and error.filename in _paths(name, backing):
                reason = (
                    error.message if isinstance(error.__cause__, FormatError | LockError) else error
                )
                raise Failure(f"Could not open new backing file '{backing}': {reason}") from None
            raise
        except NotSupported:
            raise _unchanged(backing, "Operation not supported") from None
        except BlocklayerError as error:
            raise _unchanged(backing, str(error)) from None
    members = {"filename": arguments.names[0], "backing-filename": backing or None}
    print_result(arguments, members)
    return 0


def _backing_format(arguments: Arguments, backing: str | None) -> str | None:
    """It must be given: a guess would be stored, and repeated at every opening."""
    from blocklayer.core.drivers import is_known

    format_name = arguments.optional("backing-format")
    if format_name is not None and not is_known(format_name):
        raise Failure(f"Invalid format name: '{format_name}'")
    if backing and format_name is None:
        raise _unchanged(backing, "backing format must be specified")
    return format_name


def _paths(name: object, backing: str | None) -> tuple[str, ...]:
    """What the new backing file may be called in an error."""
    from blocklayer.core.names import backing_path

    if not backing or not isinstance(name, str):
        return ()
    return backing, backing_path(name, backing)


def _unchanged(backing: str | None, reason: str) -> Failure:
    return Failure(f"Could not change the backing file to '{backing or ''}': {reason}")
