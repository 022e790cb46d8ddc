# SPDX-License-Identifier: Apache-2.0
"""`blk bench`: how long many requests of one kind take."""

from __future__ import annotations

from blocklayer.base.errors import BlocklayerError, Cancelled, os_reason
from blocklayer.cli.failures import Failure
from blocklayer.cli.getopt import Option
from blocklayer.cli.numbers import INT32_MAX, integer_argument, size_argument
from blocklayer.cli.output import print_json, warn_of_guess
from blocklayer.cli.parsing import (
    ALLOW,
    FORCE_SHARE,
    IMAGE_OPTS,
    LONG_PROGRESS,
    OUTPUT,
    QUIET,
    UNTRUSTED,
    Arguments,
    Command,
    one_image,
    trust_argument,
    wants_json,
)
from blocklayer.cli.progress import Running
from blocklayer.core.modes import AIO_MODES

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.core.disk import Disk
    from blocklayer.ops.bench import BenchPlan

COMMAND = Command(
    "bench",
    "FILE",
    "Send many requests of one kind, and tell how long it took. Writing destroys the content.",
    (
        Option("-f --format", "FMT", "format of the image; found by its signature if not given"),
        Option("-c --count", "COUNT", "how many requests (default 75000)"),
        Option("-d --depth", "DEPTH", "how many at a time (default 64)"),
        Option("-o --offset", "OFFSET", "of the first request (default 0)"),
        Option("-s --buffer-size", "SIZE", "bytes in a request (default 4096)"),
        Option(
            "-S --step-size",
            "SIZE",
            "bytes from one request to the next (default: bytes in a request)",
        ),
        Option("-w --write", "", "write instead of reading"),
        Option("--pattern", "BYTE", "what to write (default 0)"),
        Option("--flush-interval", "COUNT", "flush after so many writes (default: never)"),
        Option("--no-drain", "", "do not wait for writes in flight before flushing"),
        Option("-t --cache", "CACHE", "cache mode (default writeback)"),
        Option("-n --native", "", "kernel AIO (accepted; needs -t none, as everywhere)"),
        Option(
            "-i --aio",
            "MODE",
            "AIO mode: threads, native or io_uring (accepted)",
            choices=AIO_MODES,
        ),
        OUTPUT,
        LONG_PROGRESS,
        QUIET,
        IMAGE_OPTS,
        FORCE_SHARE,
        UNTRUSTED,
        ALLOW,
    ),
    details=(
        "Requests are sent to the image as to a disk: one after the other from the offset on, and"
        " from the beginning again at the end."
    ),
    examples=(
        ("bench -c 1000 disk.qed", "1000 reads of 4 KiB."),
        ("bench -w -c 1000 -s 64k -d 8 scratch.qed", "1000 writes of 64 KiB, 8 at a time."),
    ),
)

DIRECT_MODES = ("none", "directsync")

DIRECT_THREADS = 8
"""Past the host's cache every request waits for the storage; in it, threads hinder each other."""


def run(arguments: Arguments) -> int:
    """The command."""
    from blocklayer.ops.bench import bench_disk

    plan = _plan(arguments)
    with _open(arguments, plan) as disk, Running(arguments) as running:
        if not wants_json(arguments):
            _announce(plan)
        try:
            seconds = bench_disk(disk, plan, progress=running.report, cancel=running.cancel)
        except Cancelled:
            raise
        except BlocklayerError as error:
            raise Failure(f"Failed request: {os_reason(error)}") from None
    if wants_json(arguments):
        print_json(_members(plan, seconds))
    else:
        print(f"Run completed in {seconds:.3f} seconds.")
    return 0


def _members(plan: BenchPlan, seconds: float) -> dict[str, Any]:
    """What --output=json tells."""
    return {
        "requests": plan.count,
        "kind": "write" if plan.write else "read",
        "request-size": plan.size,
        "depth": plan.depth,
        "seconds": round(seconds, 6),
        "requests-per-second": round(plan.count / seconds, 3) if seconds else None,
        "bytes-per-second": round(plan.count * plan.size / seconds) if seconds else None,
    }


def _plan(arguments: Arguments) -> BenchPlan:
    from blocklayer.ops.bench import BenchPlan

    for key, what in (("count", "request count"), ("depth", "queue depth")):
        for text in arguments.all(key):  # those that do not count must be right, too
            integer_argument(text, what)
    size = size_argument(arguments.last("buffer-size", "4096"), "buffer size", most=INT32_MAX)
    step = size_argument(arguments.last("step-size", "0"), "step_size", most=INT32_MAX)
    plan = BenchPlan(
        count=integer_argument(arguments.last("count", "75000"), "request count"),
        depth=integer_argument(arguments.last("depth", "64"), "queue depth"),
        offset=size_argument(arguments.last("offset", "0"), "offset"),
        size=size,
        step=step or size,
        write="write" in arguments,
        pattern=integer_argument(arguments.last("pattern", "0"), "pattern byte", most=0xFF),
        flush_interval=integer_argument(arguments.last("flush-interval", "0"), "flush interval"),
        drain="no-drain" not in arguments,
        threads=DIRECT_THREADS if arguments.last("cache") in DIRECT_MODES else 1,
    )
    if not plan.depth:
        raise Failure("Invalid queue depth specified")
    _check_modes(arguments)
    one_image(arguments)
    if plan.flush_interval and not plan.write:
        raise Failure("--flush-interval is only available in write tests")
    if 0 < plan.flush_interval < plan.depth:
        raise Failure("Flush interval can't be smaller than depth")
    return plan


def _check_modes(arguments: Arguments) -> None:
    from blocklayer.core.opening import CACHE_MODES

    if arguments.last("cache", "writeback") not in CACHE_MODES:
        raise Failure("Invalid cache mode")
    aio = arguments.last("aio", "threads")
    if aio not in AIO_MODES:
        raise Failure(f"Invalid aio option: {aio}")


def _open(arguments: Arguments, plan: BenchPlan) -> Disk:
    from blocklayer.ops.open_image import open_disk

    name, format_name = one_image(arguments)
    shown = arguments.names[0]
    cache = arguments.last("cache", "writeback")
    native = "native" in arguments or arguments.last("aio") == "native"
    if native and cache not in DIRECT_MODES:
        raise Failure(
            f"Could not open '{shown}': aio=native was specified, but it requires"
            " cache.direct=on, which was not specified."
        )
    force_share = "force-share" in arguments
    if force_share and plan.write:
        raise Failure(
            f"Could not open '{shown}': force-share=on can only be used with read-only images"
        )
    mode = "r+" if plan.write else "r"
    disk = open_disk(
        name,
        mode=mode,
        format=format_name,
        cache=cache,
        force_share=force_share,
        trust=trust_argument(arguments),
    )
    if plan.write and getattr(disk.node, "probed", False):
        warn_of_guess(shown)
    return disk


def _announce(plan: BenchPlan) -> None:
    print(
        f"Sending {plan.count} {'write' if plan.write else 'read'} requests, {plan.size} bytes"
        f" each, {plan.depth} in parallel (starting at offset {plan.offset},"
        f" step size {plan.step})"
    )
    if plan.flush_interval:
        print(f"Sending flush every {plan.flush_interval} requests")
