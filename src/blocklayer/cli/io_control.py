# SPDX-License-Identifier: Apache-2.0
"""The commands of `blk io` that move no bytes: what is open, what it looks like, break points."""

from __future__ import annotations

import os
import sys
import time

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.options import OptionTree, nest, parse_bool, split_options
from blocklayer.cli.failures import Failure
from blocklayer.cli.getopt import Option
from blocklayer.cli.io_language import (
    UNLIMITED,
    Call,
    Failed,
    IoCommand,
    Quit,
    Refused,
    number_word,
)
from blocklayer.cli.io_report import amount_text
from blocklayer.cli.io_session import Opening, Session, fault_node
from blocklayer.cli.numbers import integer_argument
from blocklayer.cli.parsing import Arguments, cache_name
from blocklayer.core.disk import Disk
from blocklayer.core.modes import AIO_MODES, DISCARD_MODES, take_modes
from blocklayer.core.node import Node

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

SECTOR = 512

OPEN_OPTIONS = (
    Option("-s", "", "writes go to a temporary overlay"),
    Option("-C", "", "store in the image what is read from its backing file"),
    Option("-n", "", "no host cache, short for -t none"),
    Option("-r", "", "read-only"),
    Option("-k", "", "kernel AIO (accepted; needs -n or -t none, as everywhere)"),
    Option(
        "-i",
        "MODE",
        "AIO mode: threads, native or io_uring (accepted)",
        choices=AIO_MODES,
    ),
    Option("-t", "CACHE", "cache mode"),
    Option("-d", "MODE", "discard mode: ignore or unmap", choices=("ignore", "unmap")),
    Option("-o", "OPTIONS", "options of the driver"),
    Option("-U", "", "open although somebody else writes to the image"),
)


def opening_from(arguments: Arguments, path: str, *, image_opts: bool = False) -> Opening:
    """How to open, as `open` and the program itself are told by the same options."""
    cache = cache_name(arguments, "t", "none" if "n" in arguments else "writethrough")
    discard = arguments.last("d", "unmap")
    if discard not in DISCARD_MODES:
        raise Failure(f"Invalid discard option: {discard}")
    aio = "native" if "k" in arguments else arguments.last("i", "threads")
    if aio not in AIO_MODES:
        raise Failure(f"Invalid aio option: {aio}")
    if aio == "native" and cache not in ("none", "directsync"):
        what = f"can't open device {path}" if path else "can't open"
        raise Failure(
            f"{what}: aio=native was specified, but it requires cache.direct=on,"
            " which was not specified."
        )
    return Opening(
        path=path,
        options=_driver_options(arguments),
        image_opts=image_opts,
        read_only="r" in arguments,
        cache=cache,
        discard=DISCARD_MODES[discard],
        force_share="U" in arguments,
        snapshot="s" in arguments,
        copy_on_read="C" in arguments,
    )


def _driver_options(arguments: Arguments) -> OptionTree:
    """All -o together."""
    pairs = [pair for text in arguments.all("o") for pair in split_options(text)]
    return nest(dict(pairs))


# --- what is open -------------------------------------------------------------------------------


def _open(session: Session, call: Call) -> None:
    path = call.names[0] if call.names else ""
    opening = opening_from(call, path, image_opts=session.image_opts and bool(path))
    session.open(opening.replace(trust=session.trust))


def _close(session: Session, call: Call) -> None:
    session.close()


def _reopen(session: Session, call: Call) -> None:
    if "r" in call and "w" in call:
        raise Failure("Only one -r/-w option may be given")
    opening = session.opening
    if "c" in call:
        opening = opening.replace(cache=cache_name(call, "c", ""))
    if "r" in call or "w" in call:
        opening = opening.replace(read_only="r" in call)
    options = _driver_options(call)
    modes = _changed_modes(_disk(session), options)
    if modes:
        opening = opening.replace(options={**opening.options, **modes})
    for name, value in options.items():
        if name == "cache" and isinstance(value, dict):
            opening = opening.replace(cache=_changed_cache(call, opening.cache, value))
        elif name == "read-only":
            if "r" in call or "w" in call:
                raise Failure("Cannot set both -r/-w and 'read-only'")
            opening = opening.replace(read_only=parse_bool(value, name))
        else:
            _require_as_it_is(_disk(session).node, name, value)
    session.reopen(opening)


def _changed_modes(disk: Disk, options: OptionTree) -> OptionTree:
    """Take what a reopening says of discards and zeroes; nothing else of it needs the file."""
    before = (disk.discard_mode, disk.detect_zeroes)
    modes = take_modes(options, *before)
    _take_auto_read_only(options)
    return dict(zip(("discard", "detect-zeroes"), modes, strict=True)) if modes != before else {}


def _take_auto_read_only(options: OptionTree) -> None:
    """Nothing becomes read-only by itself here, so that nothing has to be undone."""
    if "auto-read-only" in options:
        parse_bool(options.pop("auto-read-only"), "auto-read-only")


def _require_as_it_is(node: Node, name: str, value: object) -> None:
    """Raise `Failure` for an option that would be another one."""
    child = node.children.get(name)
    if name in ("file", "backing") and isinstance(value, str):
        raise Failure(f"Cannot find device='' nor node-name='{value}'")
    if child is None or not isinstance(value, dict):
        inner = f".{next(iter(value))}" if isinstance(value, dict) and value else ""
        if {"driver": node.driver, "filename": node.filename}.get(name) != value:
            raise Failure(f"Cannot change the option '{name}{inner}'")
        return
    inside = dict(value)
    take_modes(inside, "unmap", "off")
    _take_auto_read_only(inside)
    for each, wanted in inside.items():
        _require_as_it_is(child, each, wanted)


def _changed_cache(call: Call, name: str, changes: dict[str, Any]) -> str:
    """The cache mode that differs from the one called `name` by cache.direct or cache.no-flush."""
    from blocklayer.core.opening import CACHE_MODES

    if "c" in call:
        raise Failure("Cannot set both -c and the cache options")
    known = {"direct": "direct", "no-flush": "no_flush"}
    for option in changes:
        if option not in known:
            raise Failure(f"Cannot change the option 'cache.{option}'")
    mode = CACHE_MODES[name].replace(
        **{known[option]: parse_bool(value, option) for option, value in changes.items()}
    )
    if mode.no_flush:
        return "unsafe"
    return next(each for each, candidate in CACHE_MODES.items() if candidate == mode)


def _disk(session: Session) -> Disk:
    assert session.disk is not None  # see `IoCommand.needs_disk`
    return session.disk


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line)


# --- what it looks like -------------------------------------------------------------------------


def _length(session: Session, call: Call) -> None:
    size = _disk(session).size
    _print(call.found([amount_text(size)], size=size))


def _info(session: Session, call: Call) -> None:
    disk = _disk(session)
    cluster_size = disk.info().get("cluster-size", 0)
    lines = (
        f"format name: {disk.format}",
        f"cluster size: {amount_text(cluster_size)}",
        "vm state offset: 0 bytes",
    )
    _print(call.found(lines, format=disk.format, cluster_size=cluster_size))


def _runs(disk: Disk, *, offset: int, length: int) -> list[tuple[int, int, bool]]:
    """(offset, length, whether the image itself has it), neighbours merged."""
    runs: list[tuple[int, int, bool]] = []
    for extent in disk.extents(offset, length):
        own = extent.present and extent.depth == 0
        if runs and runs[-1][2] == own:
            start, before, _ = runs[-1]
            runs[-1] = (start, before + extent.length, own)
        else:
            runs.append((extent.offset, extent.length, own))
    return runs


def _alloc(session: Session, call: Call) -> None:
    disk = _disk(session)
    offset = number_word(call.names[0])
    length = number_word(call.names[1]) if len(call.names) > 1 else SECTOR
    length = max(0, min(length, disk.size - offset))
    runs = _runs(disk, offset=offset, length=length) if length else []
    allocated = sum(count for _, count, own in runs if own)
    line = f"{allocated}/{length} bytes allocated at offset {amount_text(offset)}"
    _print(call.found([line], offset=offset, length=length, allocated=allocated))


def _map(session: Session, call: Call) -> None:
    disk = _disk(session)
    runs = _runs(disk, offset=0, length=disk.size)
    members = ({"offset": at, "length": length, "allocated": own} for at, length, own in runs)
    extents = list(members) if call.for_programs else []
    _print(call.found((_map_line(*run) for run in runs), extents=extents))


def _map_line(offset: int, length: int, own: bool) -> str:
    state = "    allocated" if own else "not allocated"
    return (
        f"{amount_text(length)} ({length:#x}) bytes {state}"
        f" at offset {amount_text(offset)} ({offset:#x})"
    )


# --- break points -------------------------------------------------------------------------------


def _fault_node(session: Session, failure: str) -> Any:
    node = fault_node(_disk(session))
    if node is None:
        raise _unavailable(f"{failure}: Operation not supported")
    return node


def _unavailable(message: str) -> Failed:
    print(message)
    return Failed(message)


def _break(session: Session, call: Call) -> None:
    event, tag = call.names
    failure = "Could not set breakpoint"
    node = _fault_node(session, failure)
    try:
        node.add_break(event, tag)
    except InvalidArgument:
        raise _unavailable(f"{failure}: No such file or directory") from None
    session.tags.add(tag)


def _remove_break(session: Session, call: Call) -> None:
    tag = call.names[0]
    failure = f"Could not remove breakpoint {tag}"
    node = _fault_node(session, failure)
    try:
        node.remove_break(tag)
    except InvalidArgument:
        raise _unavailable(f"{failure}: No such file or directory") from None


def _resume(session: Session, call: Call) -> None:
    tag = call.names[0]
    failure = "Could not resume request"
    node = _fault_node(session, failure)
    try:
        node.resume(tag)
    except InvalidArgument:
        raise _unavailable(f"{failure}: No such file or directory") from None
    print(f"blkdebug: Resuming request '{tag}'")


def _wait_break(session: Session, call: Call) -> None:
    tag = call.names[0]
    _fault_node(session, "Could not wait for breakpoint").wait_break(tag)
    print(f"blkdebug: Suspended request '{tag}'")


# --- the program itself -------------------------------------------------------------------------


def _sleep(session: Session, call: Call) -> None:
    text = call.names[0]
    try:
        milliseconds = integer_argument(text, "number")
    except Failure:
        raise Refused(f"{text} is not a valid number") from None
    time.sleep(milliseconds / 1000)


def _flush_output() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _abort(session: Session, call: Call) -> None:
    _flush_output()
    os.abort()


def _sigraise(session: Session, call: Call) -> None:
    import signal

    number = number_word(call.names[0])
    _flush_output()
    try:
        signal.raise_signal(number)
    except (ValueError, OSError, OverflowError):
        raise Refused(f"{call.names[0]} is not the number of a signal") from None


def _quit(session: Session, call: Call) -> None:
    raise Quit


def _help(session: Session, call: Call) -> None:
    if not call.names:
        for command in sorted(set(session.commands.values()), key=lambda c: c.name):
            print(command.summary())
        print("\nUse 'help commandname' for extended help.")
        return
    name = call.names[0]
    found = session.commands.get(name)
    if found is None:
        raise Refused(f"command {name} not found")
    from blocklayer.cli.io_help import help_text

    print(help_text(found, name))


COMMANDS = (
    IoCommand(
        "open",
        "o",
        _open,
        "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        "open an image",
        words=(1, UNLIMITED),
        arguments=(0, 1),
        options=OPEN_OPTIONS,
        needs_disk=False,
    ),
    IoCommand("close", "c", _close, "", "close what is open"),
    IoCommand(
        "reopen",
        "",
        _reopen,
        "[(-r|-w)] [-c cache] [-o options]",
        "open the same image in another way",
        words=(0, UNLIMITED),
        arguments=(0, 0),
        options=(
            Option("-r", "", "read-only"),
            Option("-w", "", "read-write"),
            Option("-c", "CACHE", "cache mode"),
            Option("-o", "OPTIONS", "options of the driver"),
        ),
    ),
    IoCommand("length", "l", _length, "", "tell the size of the disk"),
    IoCommand("info", "i", _info, "", "tell about the image"),
    IoCommand("alloc", "a", _alloc, "offset [count]", "tell how much is allocated", words=(1, 2)),
    IoCommand("map", "", _map, "", "tell what is allocated"),
    IoCommand(
        "break", "", _break, "event tag", "suspend the next request at an event", words=(2, 2)
    ),
    IoCommand("remove_break", "", _remove_break, "tag", "remove a break point", words=(1, 1)),
    IoCommand(
        "wait_break", "", _wait_break, "tag", "wait until a request is suspended", words=(1, 1)
    ),
    IoCommand("resume", "", _resume, "tag", "let a suspended request go on", words=(1, 1)),
    IoCommand(
        "sleep",
        "",
        _sleep,
        "milliseconds",
        "do nothing for a while",
        words=(1, 1),
        needs_disk=False,
    ),
    IoCommand(
        "sigraise", "", _sigraise, "signal", "raise a signal", words=(1, 1), needs_disk=False
    ),
    IoCommand("abort", "", _abort, "", "crash with SIGABRT", needs_disk=False),
    IoCommand(
        "quit",
        "q",
        _quit,
        "",
        "leave the program",
        words=(0, UNLIMITED),
        needs_disk=False,
    ),
    IoCommand(
        "help", "?", _help, "[command]", "tell about the commands", words=(0, 1), needs_disk=False
    ),
)
