# SPDX-License-Identifier: Apache-2.0
"""The entry of `blk`: finds the command, imports it alone, and answers for how it ends.

Exit codes: what the command or the error says (1 for most), 130 after Ctrl-C, 141 if nobody reads
the output any more.
"""

from __future__ import annotations

import os
import sys

from blocklayer.cli.failures import Failure, Interrupted, UsageError
from blocklayer.cli.output import complain
from blocklayer.cli.parsing import (
    Arguments,
    BadOption,
    Command,
    Option,
    getopt,
    parse,
    usage_error,
)

COMMANDS = {
    "check": ("blocklayer.cli.check", "find, and repair, what is wrong with an image"),
    "commit": ("blocklayer.cli.commit", "write an overlay's content into its backing file"),
    "compare": ("blocklayer.cli.compare", "tell whether two images show the same disk"),
    "convert": ("blocklayer.cli.convert", "copy an image into another format"),
    "create": ("blocklayer.cli.create", "make a new image"),
    "info": ("blocklayer.cli.info", "tell what an image is"),
    "io": ("blocklayer.cli.io", "read and write parts of an image by small commands"),
    "map": ("blocklayer.cli.map", "tell where an image's data is"),
    "measure": ("blocklayer.cli.measure", "tell how large an image would become"),
    "rebase": ("blocklayer.cli.rebase", "give an overlay another backing file"),
    "resize": ("blocklayer.cli.resize", "change the size of a disk"),
}
"""Where each command is, and what it does. A module has a COMMAND and a `run(arguments)`."""

OPTIONS = (
    Option("-h --help", "", "show this help"),
    Option("-V --version", "", "show the version"),
    Option("-T --trace", "PATTERN", "print events of drivers that match: 'qed_*'"),
)

INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: list[str] | None = None) -> int:
    """Run `blk` with `argv`, or with the process's arguments; the exit code."""
    if argv is None:
        argv = sys.argv[1:]
        _prepare_streams()
    try:
        code = _run(argv)
        sys.stdout.flush()
    except (KeyboardInterrupt, Exception) as error:
        code = _answer_for(error)
    return code


def _prepare_streams() -> None:
    """Make the standard streams fit for any file name, and sure to be there.

    File names are bytes; those that are no UTF-8 must come out as they came in. And where a stream
    is closed, the next file to be opened, an image, would take its number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            mode = "w" if number else "r"
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 -- for good
            setattr(sys, name, stream)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape")


def _run(argv: list[str]) -> int:
    try:
        pairs, rest = getopt(OPTIONS, argv, mixed=False)
    except BadOption as error:
        raise usage_error(error) from None
    given = dict(pairs)
    if "help" in given or "version" in given:
        _print_about("help" in given)
        return 0
    if not rest:
        raise UsageError("Not enough arguments")
    name = rest[0]
    if name not in COMMANDS:
        raise UsageError(f"Command not found: {name}")
    traces = [value for key, value in pairs if key == "trace"]
    return _run_command(name, rest[1:], traces)


def _print_about(everything: bool) -> None:
    from blocklayer.cli import usage

    about = {name: text for name, (_, text) in COMMANDS.items()}
    print(usage.program_help(OPTIONS, about) if everything else usage.version())


def _run_command(name: str, argv: list[str], traces: list[str]) -> int:
    import importlib

    module = importlib.import_module(COMMANDS[name][0])
    command: Command = module.COMMAND
    arguments = parse(command, argv)
    if "help" in arguments:
        from blocklayer.cli.usage import command_help

        print(command_help(command))
        return 0
    if "object" in arguments:
        from blocklayer.cli.objects import check_objects

        check_objects(arguments.all("object"))
    traces = traces + arguments.all("trace")
    code: int = _run_traced(module, arguments, traces) if traces else module.run(arguments)
    return code


def _run_traced(module: object, arguments: Arguments, traces: list[str]) -> int:
    from blocklayer.cli.tracing import traced

    with traced(traces):
        code: int = module.run(arguments)  # type: ignore[attr-defined]
    return code


# --- how it ends --------------------------------------------------------------------------------


def _answer_for(error: BaseException) -> int:
    """Say what went wrong; the exit code. What nobody foresaw goes on as it is."""
    if isinstance(error, BrokenPipeError):
        _drop_output()
        return BROKEN_PIPE
    code = _explain(error)
    if code is None:
        raise error
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    return code


def _explain(error: BaseException) -> int | None:
    from blocklayer.base.errors import BlocklayerError

    if isinstance(error, KeyboardInterrupt):
        complain("interrupted")
        return INTERRUPTED
    if isinstance(error, Interrupted):
        complain("interrupted")
        return error.exit_code
    if isinstance(error, OSError):
        complain(_os_error_text(error))
        return 1
    if not isinstance(error, Failure | BlocklayerError):
        return None
    complain("\n".join([str(error), *getattr(error, "__notes__", ())]))
    if isinstance(error, UsageError):
        print("Try 'blk --help' for more information", file=sys.stderr)
    return error.exit_code


def _os_error_text(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename is not None else reason


def _drop_output() -> None:
    """Nobody reads it; the interpreter would fail to flush it at exit."""
    try:
        descriptor = sys.stdout.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
    except (OSError, ValueError):
        return
