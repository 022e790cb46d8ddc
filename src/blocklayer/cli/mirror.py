# SPDX-License-Identifier: Apache-2.0
"""`blk mirror`: an image, or a node of a running daemon, is brought to another place."""

from __future__ import annotations

from blocklayer.cli.failures import Failure
from blocklayer.cli.getopt import Option
from blocklayer.cli.numbers import size_argument
from blocklayer.cli.output import print_result
from blocklayer.cli.parsing import (
    ALLOW,
    FORCE_SHARE,
    FORMAT,
    OUTPUT,
    PROGRESS,
    QUIET,
    UNTRUSTED,
    Arguments,
    Command,
    cache_name,
    trust_argument,
)
from blocklayer.cli.progress import Running
from blocklayer.cli.targets import check_sizes, check_target, create_options

COMMAND = Command(
    "mirror",
    "SOURCE TARGET",
    "Bring an image, or a disk of a running daemon that is in use, to another place.",
    (
        FORMAT,
        Option("-O --target-format", "FMT", "format of the target (default raw)"),
        Option(
            "-o --target-format-options",
            "OPTIONS",
            "options of the target: name=value,...; 'help' lists them",
            key="options",
        ),
        Option("-n --no-create", "", "write into a target that exists"),
        Option("--target-is-zero", "", "with -n: the target reads as zeroes everywhere"),
        Option(
            "--sync",
            "MODE",
            "full (default), or top: only what the image's own layer holds",
            choices=("full", "top"),
        ),
        Option("--keep-space", "", "zeroes give no space of the target back"),
        Option("-r --rate-limit", "RATE", "at most so many bytes a second"),
        Option("-t --target-cache", "CACHE", "cache mode of the target (default writeback)"),
        Option("-T --source-cache", "CACHE", "cache mode of the source (default writeback)"),
        Option("--qmp", "SOCKET", "SOURCE and TARGET are nodes of the daemon that listens there"),
        Option("--move", "", "with --qmp: then let everybody use TARGET, without a pause"),
        Option("--write-blocking", "", "with --qmp: guests wait until TARGET has their writes"),
        OUTPUT,
        PROGRESS,
        QUIET,
        FORCE_SHARE,
        UNTRUSTED,
        ALLOW,
    ),
    details=(
        "What reads as zeroes is not written to a target that reads as zeroes already, so a sparse"
        " target stays sparse. A new target is as large as its source. One that is made with --sync"
        " top needs -o backing_file=FILE,backing_fmt=FMT to show what lies below.\n\n"
        "With --qmp the work is the daemon's (blk daemon, or qemu's): the disk may be written to"
        " meanwhile, and TARGET is a copy of it at the moment when the command ends, or with --move"
        " takes its place."
    ),
    examples=(
        ("mirror -p -O qed server.raw server.qed", "A raw disk as QED, with progress."),
        ("mirror -n -f qed -O raw disk.qed /dev/vg/disk", "Into a device that exists."),
        ("mirror --qmp /run/blk.sock --move disk0 new0", "A disk in use moves to another node."),
    ),
)


_OF_IMAGES = (
    *("format", "target-format", "options", "no-create", "keep-space"),
    *("target-cache", "source-cache", "force-share", "untrusted", "allow"),
)
"""Options that say how images are opened and made."""


def run(arguments: Arguments) -> int:
    """The command."""
    if len(arguments.names) != 2:
        raise Failure("Expecting a source and a target")
    source, target = arguments.names
    speed = size_argument(arguments.last("rate-limit", "0"), "rate limit")
    sync = arguments.last("sync", "full")
    if sync not in ("full", "top"):
        raise Failure(f"Invalid sync mode '{sync}': use 'full' or 'top'")
    if "qmp" in arguments:
        return _run_in_daemon(arguments, source, target, sync, speed)
    for name in ("move", "write-blocking"):
        if name in arguments:
            raise Failure(f"--{name} can only be used with --qmp")
    return _run_here(arguments, source, target, sync, speed)


def _run_here(arguments: Arguments, source: str, target: str, sync: str, speed: int) -> int:
    from blocklayer.jobs.images import mirror_images

    options = create_options(arguments)
    if options is None:
        from blocklayer.cli.create import options_help

        print(options_help(arguments.last("target-format", "raw"), target))
        return 0
    make = "no-create" not in arguments
    if not make and options:
        raise Failure("-o has no effect when skipping image creation")
    if make and "target-is-zero" in arguments:
        raise Failure("--target-is-zero requires use of -n flag")
    target_format = arguments.last("target-format", "raw")
    if make:
        check_target(target)
    check_sizes(target_format, options)
    if options.get("backing_file") is not None and not options.get("backing_fmt"):
        raise Failure("Use of backing file requires explicit backing format")
    with Running(arguments) as running:
        result = mirror_images(
            source,
            target,
            source_format=arguments.optional("format"),
            format=target_format,
            options=options,
            make=make,
            sync=sync,
            speed=speed,
            target_is_zero="target-is-zero" in arguments,
            cache=cache_name(arguments, "target-cache", "writeback"),
            source_cache=cache_name(arguments, "source-cache", "writeback", what="source "),
            discard="ignore" if "keep-space" in arguments else "unmap",
            force_share="force-share" in arguments,
            trust=trust_argument(arguments),
            progress=running.report,
            cancel=running.cancel,
        )
    members = {"filename": target, "virtual-size": result.size, "moved": result.moved}
    print_result(arguments, members)
    return 0


def _run_in_daemon(arguments: Arguments, source: str, target: str, sync: str, speed: int) -> int:
    from blocklayer.cli.qmp_client import QmpClient, mirror_nodes

    for name in _OF_IMAGES:
        if name in arguments:
            raise Failure("with --qmp, images are the daemon's: options of images have no effect")
    wanted = {"sync": sync, "speed": speed}
    if "write-blocking" in arguments:
        wanted["copy-mode"] = "write-blocking"
    if "target-is-zero" in arguments:
        wanted["target-is-zero"] = True
    with Running(arguments) as running, QmpClient(arguments.last("qmp")) as client:
        moved = mirror_nodes(
            client,
            source,
            target,
            wanted,
            move="move" in arguments,
            progress=running.report,
            cancel=running.cancel,
        )
    members = {"node": source, "target": target, "moved": moved}
    print_result(arguments, members)
    return 0
