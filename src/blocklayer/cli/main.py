# SPDX-License-Identifier: Apache-2.0
"""The entry of `blk`: finds the command, imports it alone, and answers for how it ends.

Exit codes: what the command or the error says (1 for most), 130 after Ctrl-C, 141 if nobody reads
the output any more.
"""

from __future__ import annotations

import gc
import io
import os
import sys

from blocklayer.base.modules import module_named
from blocklayer.cli.failures import Failure, Interrupted, UsageError
from blocklayer.cli.getopt import BadOption, Option, getopt
from blocklayer.cli.output import (
    asks_for_json,
    complain,
    let_go,
    report,
    speak_json,
    speaks_json,
)
from blocklayer.cli.parsing import OBJECT, TRACE_HELP, Arguments, Command, parse, usage_error

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

COMMANDS = {
    "amend": ("blocklayer.cli.amend", "change options that an image was created with"),
    "bench": ("blocklayer.cli.bench", "time many requests of one kind"),
    "bitmap": ("blocklayer.cli.bitmap", "change bitmaps that an image holds"),
    "check": ("blocklayer.cli.check", "find, and repair, what is wrong with an image"),
    "commit": ("blocklayer.cli.commit", "write an overlay's content into its backing file"),
    "compare": ("blocklayer.cli.compare", "tell whether two images show the same disk"),
    "completion": ("blocklayer.cli.completion", "print a script that makes a shell complete"),
    "convert": ("blocklayer.cli.convert", "copy an image into another format"),
    "create": ("blocklayer.cli.create", "make a new image"),
    "daemon": ("blocklayer.cli.daemon", "hold images, copy and export them as QMP clients ask"),
    "dd": ("blocklayer.cli.dd", "copy a part of a disk, counted in blocks"),
    "digest": ("blocklayer.cli.digest", "print a hash of a disk that is the same in every format"),
    "help": ("blocklayer.cli.help", "tell about a command"),
    "info": ("blocklayer.cli.info", "tell what an image is"),
    "io": ("blocklayer.cli.io", "read and write parts of an image by small commands"),
    "map": ("blocklayer.cli.map", "tell where an image's data is"),
    "measure": ("blocklayer.cli.measure", "tell how large an image would become"),
    "mirror": ("blocklayer.cli.mirror", "make another image show what an image shows"),
    "nbd": ("blocklayer.cli.nbd", "serve an image to NBD clients"),
    "rebase": ("blocklayer.cli.rebase", "give an overlay another backing file"),
    "resize": ("blocklayer.cli.resize", "change the size of a disk"),
    "snapshot": ("blocklayer.cli.snapshot", "list or change snapshots inside an image"),
}
"""Where each command is, and what it does. A module has a COMMAND and a `run(arguments)`."""

OPTIONS = (
    Option("-h --help", "", "show this help"),
    Option("-V --version", "", "show the version"),
    Option("-T --trace", "PATTERN", TRACE_HELP),
)

SEE_HELP = "Try 'blk --help' for more information"
INTERRUPTED = 130

COLLECT_AT = 20_000
"""Objects that are made before the collector looks at the young ones."""
BROKEN_PIPE = 141


def main(argv: list[str] | None = None) -> int:
    """Run `blk` with `argv`, or with the process's arguments; the exit code."""
    alone = argv is None
    if argv is None:
        argv = sys.argv[1:]
        _collect_seldom()
        _prepare_streams()
    speak_json(asks_for_json(argv))
    try:
        code = _run(argv)
        sys.stdout.flush()
    except (KeyboardInterrupt, Exception) as error:
        code = _answer_for(error)
    if alone:
        gc.freeze()  # the process ends: looking for cycles once more would be for nothing
    return code


def _collect_seldom() -> None:
    """Importing makes no garbage; looking for some every 700 objects costs a tenth of the start."""
    gc.set_threshold(COLLECT_AT, *gc.get_threshold()[1:])


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
            escapes = "surrogateescape" if stream.encoding == "utf-8" else "backslashreplace"
            stream.reconfigure(errors=escapes)
    _name_stdout()


class _Output(io.FileIO):
    """Its errors tell that it is the output which cannot be written."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "stdout"
            raise


def _name_stdout() -> None:
    stream = sys.stdout
    if stream is not sys.__stdout__ or not isinstance(stream, io.TextIOWrapper):
        return
    output = _Output(stream.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        output if stream.write_through else io.BufferedWriter(output),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _run(argv: list[str]) -> int:
    try:
        pairs, rest = getopt(OPTIONS, argv, mixed=False)
    except BadOption as error:
        raise usage_error(error, OPTIONS) from None
    given = dict(pairs)
    if "help" in given or "version" in given:
        _print_about("help" in given)
        return 0
    traces = [value for key, value in pairs if key == "trace"]
    if traces and _told_events(traces):
        return 0
    if not rest:
        raise UsageError("Not enough arguments")
    name = rest[0]
    if name not in COMMANDS:
        raise _unknown_command(name)
    return _run_command(name, rest[1:], traces)


def _unknown_command(name: str) -> UsageError:
    from blocklayer.cli.suggestions import suggest

    error = UsageError(f"Command not found: {name}")
    suggest(error, name, COMMANDS)
    return error


def _print_about(everything: bool) -> None:
    from blocklayer.cli import usage

    about = {name: text for name, (_, text) in COMMANDS.items()}
    print(usage.program_help(OPTIONS, about) if everything else usage.version())


def _run_command(name: str, argv: list[str], traces: list[str]) -> int:
    module = module_named(COMMANDS[name][0])
    command: Command = module.COMMAND
    arguments = parse(command, argv)
    if "help" in arguments:
        from blocklayer.cli.usage import command_help

        print(command_help(command))
        return 0
    if "trace" in arguments and _told_events(arguments.all("trace")):
        return 0
    if "object" in arguments and OBJECT in command.options:  # the daemon's has its turn later
        from blocklayer.cli.objects import check_objects, list_objects

        kinds = list_objects(arguments.all("object"))
        if kinds is not None:
            print(kinds)
            return 0
        check_objects(arguments.all("object"))
    traces = traces + arguments.all("trace")
    code: int = _run_traced(module, arguments, traces) if traces else module.run(arguments)
    return code


def _told_events(traces: list[str]) -> bool:
    """Print the events that there are, if that is asked for."""
    from blocklayer.cli.tracing import events_asked_for

    told = events_asked_for(traces)
    if told is not None:
        print(told)
    return told is not None


def _run_traced(module: object, arguments: Arguments, traces: list[str]) -> int:
    from blocklayer.cli.tracing import traced

    with traced(traces):
        code: int = module.run(arguments)  # type: ignore[attr-defined]
    return code


# --- how it ends --------------------------------------------------------------------------------


def _answer_for(error: BaseException) -> int:
    """Say what went wrong; the exit code. What nobody foresaw goes on as it is."""
    if isinstance(error, BrokenPipeError):
        let_go(sys.stdout)
        return BROKEN_PIPE
    code = _explain(error)
    if code is None:
        raise error
    try:
        sys.stdout.flush()
    except OSError:
        let_go(sys.stdout)
    return code


def _explain(error: BaseException) -> int | None:
    found = _words_for(error)
    if found is None:
        return None
    from blocklayer.cli.error_report import all_notes, error_object

    message, code = found
    notes = all_notes(error)
    if speaks_json():
        if isinstance(error, UsageError):
            notes.append(SEE_HELP)
        report(error_object(error, message, "\n".join(notes), code))
        return code
    complain("\n".join([message, *notes]))
    if isinstance(error, UsageError):
        print(SEE_HELP, file=sys.stderr)
    return code


def _words_for(error: BaseException) -> tuple[str, int] | None:
    """What to say, and the exit code; None for what nobody foresaw."""
    from blocklayer.base.errors import BlocklayerError

    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, Interrupted):
        return "interrupted", error.exit_code
    if isinstance(error, OSError):
        return _os_error_text(error), 1
    if isinstance(error, Failure | BlocklayerError):
        return str(error), error.exit_code
    return None


def _os_error_text(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename is not None else reason
