# SPDX-License-Identifier: Apache-2.0
"""What the commands of `blk io` do, at length: read when somebody asks, and by the manual."""

from __future__ import annotations

from blocklayer.cli.failures import PROGRAM
from blocklayer.cli.io_language import IoCommand
from blocklayer.cli.usage import paragraphs, wrapped

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeAlias

    Help: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


def _help(details: str, *examples: tuple[str, str]) -> Help:
    return details, examples


HELP: dict[str, Help] = {
    "read": _help(
        "Reads bytes and throws them away, unless -v dumps them or -P compares them. With -P"
        " the command fails if a byte is another one; -s and -l narrow down what is compared,"
        " from the start of what is read.\n\n"
        "All of it is one request. Its time is told, and the rates that follow from it.",
        ("read 0 64k", "Read, and tell how long it took."),
        ("read -v 512 64", "Dump 64 bytes."),
        ("read -P 0xcd 1M 64k", "Is everything there 0xcd?"),
        ("read -P 0 -s 4k -l 4k 0 16k", "Read 16 KiB, look at the second 4 KiB of it."),
    ),
    "readv": _help(
        "As read; the lengths are those of several buffers for one request, one behind the"
        " other on the disk.",
        ("readv -P 1 0 512 1k 4k", "Read 5632 bytes from 0 on."),
    ),
    "write": _help(
        "Writes one byte over and over (0xcd, or what -P says), a file's content over and over"
        " (-s), or zeroes (-z). Zeroes take no data to write where the format or the file"
        " system can say them otherwise: -u allows to give the space back, -n makes the command"
        " fail if data had to be written.\n\n"
        "-f is one request for data and flush: what was written is durable when the command is"
        " done.",
        ("write 0 64k", "Write 0xcd."),
        ("write -P 7 -f 1M 4k", "Write 7, to stable storage."),
        ("write -z -u 0 1G", "Zeroes, and no space for them."),
        ("write -s sector.bin 0 512", "Write what is in a file."),
    ),
    "writev": _help(
        "As write; the lengths are those of several buffers for one request, one behind the"
        " other on the disk.",
        ("writev -P 1 0 512 1k 4k", "Write 5632 bytes at 0."),
    ),
    "multiwrite": _help(
        "Requests stand between semicolons, which are words of their own. They are given to the"
        " disk together, which merges those that touch. The first one has the pattern, each one"
        " after it a pattern one higher.",
        ("multiwrite -P 1 0 4k ; 4k 4k ; 1M 512", "Three requests, two of them in a row."),
    ),
    "aio_read": _help(
        "The next command does not wait for it; aio_flush does. What became of it is printed"
        " between two commands, once it is done. A failure is told, but is not counted as the"
        " command's.",
        ("aio_read -P 1 0 64k", "Begin a read that verifies."),
    ),
    "aio_write": _help(
        "The next command does not wait for it; aio_flush does. Writes that are begun directly"
        " after each other are given to the disk as one batch. A failure is told, but is not"
        " counted as the command's.",
        ("aio_write -P 1 0 64k", "Begin a write."),
        ("aio_write -z -u 1M 1M", "Begin to write zeroes."),
    ),
    "aio_flush": _help(
        "Waits for everything that aio_read and aio_write have begun, and prints what became of"
        " it. What was written need not be durable then: see flush.",
    ),
    "flush": _help(
        "Everything that was written before survives a power failure afterwards.",
    ),
    "discard": _help(
        "The disk may give the space back; what is read there afterwards is undefined. Does"
        " nothing if the image is open with -d ignore.",
        ("discard 1M 64k", "Nobody needs these 64 KiB."),
    ),
    "truncate": _help(
        "What is cut off is lost, what is added reads as zeroes. -m says how added space is"
        " prepared: off, metadata, falloc or full.",
        ("truncate 2G", "The disk has 2 GiB."),
    ),
    "open": _help(
        "Opens an image; nothing may be open. Without -r it is opened for writing, without -t"
        " every write is flushed. -o takes options of the driver, among them driver=FORMAT,"
        " separated by commas; with them the path may be left out.",
        ("open -r disk.qed", "Open for reading only."),
        ("open -o driver=raw disk.raw", "Give the format."),
        ("open -s disk.qed", "Try things out: nothing that is written stays."),
    ),
    "close": _help(
        "Waits for what was begun, writes what is buffered, and closes the image.",
    ),
    "reopen": _help(
        "Changes whether the image may be written to, or its cache mode. If that fails, the"
        " image stays open as it was.",
        ("reopen -r", "No more writes."),
        ("reopen -w -c writeback", "Writes, flushed on demand."),
    ),
    "length": _help(
        "Prints the size of the disk that the image holds.",
    ),
    "info": _help(
        "Prints the format's name and the size of its clusters.",
    ),
    "alloc": _help(
        "How many bytes of a range the image itself holds, as opposed to what it is backed by."
        " Without a count, one sector.",
        ("alloc 0 1M", "How much of the first MiB is allocated?"),
    ),
    "map": _help(
        "Lists which ranges the image itself holds, from the first byte to the last.",
    ),
    "break": _help(
        "The next request that comes to the event stops there until it is resumed. Needs an"
        " image that is opened through the driver blkdebug (fault); events are l2_load,"
        " l2_update and the others that --trace shows, without the format's name before them.",
        ("break l2_update A", "Stop the next request that updates an L2 table, call it A."),
        ("aio_write 0 64k", "Such a request."),
        ("wait_break A", "It has come there."),
        ("resume A", "It goes on."),
    ),
    "remove_break": _help(
        "The break point is gone; who waited at it goes on.",
    ),
    "wait_break": _help(
        "Waits until a request has come to the break point of that tag.",
    ),
    "resume": _help(
        "The request that is suspended under that tag goes on.",
    ),
    "sleep": _help(
        "Requests that were begun go on meanwhile.",
        ("sleep 500", "Half a second."),
    ),
    "sigraise": _help(
        "Sends a signal, by its number, to the program itself: what is left then is what a"
        " crash at this point leaves.",
        ("sigraise 9", "Be killed."),
    ),
    "abort": _help(
        "Ends the program at once, and leaves the image as a crash would.",
    ),
    "quit": _help(
        "Closes the image and leaves; the exit code tells whether a command has failed.",
    ),
    "help": _help(
        "Without a command, lists all of them in a line each.",
        ("help write", "Tell about a command."),
    ),
}
"""Of each command: paragraphs, and lines with what they do."""


def help_text(command: IoCommand, name: str) -> str:
    """What `help NAME` prints."""
    details, examples = HELP[command.name]
    lines = [command.summary(name)]
    for option in command.options:
        value = f" {option.value}" if option.value else ""
        lines.append(f" -{option.short}{value} -- {option.help}")
    for paragraph in paragraphs(details):
        lines += ["", *wrapped(paragraph)]
    if examples:
        width = max(len(line) for line, _ in examples)
        lines += ["", "Examples:"]
        lines += [f"  {line:{width}}  {text}" for line, text in examples]
    if command.name == "help":
        lines += ["", f"'{PROGRAM} help io' tells about the program itself."]
    return "\n".join(lines)
