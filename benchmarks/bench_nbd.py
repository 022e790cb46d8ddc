# SPDX-License-Identifier: Apache-2.0
"""NBD servers under fio's nbd engine, and under nbdcopy.

- `nbd/read-…`, `nbd/write-…`: microseconds a request, over a unix socket, of an image in the page
  cache that is allocated whole. Ours serves a QED image; the peers serve the same bytes as a raw
  file, which is the fastest that they have. The client shares the cores with the server.
- `nbd/allocate-…`: random and sequential writes into an empty QED image, with and without a
  backing file. nbdkit has no QED and is not there.
- `nbd/copy-…`: nbdcopy from and to a server.

Each peer has a target of its own, so there is a metric for each. After the timed run each server is
held to its word: what fio writes with `verify=crc32c` must read back, and a copy must be equal.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.harness import (
    Comparison,
    Context,
    Metric,
    Sample,
    Side,
    Skipped,
    Target,
    VerificationFailed,
    bench,
)
from benchmarks.images import MiB
from benchmarks.process import run
from benchmarks.servers import NbdServer

SECONDS = 2
SHAPES = {
    # name: (fio's rw, block size, depth, at most so much of qemu-nbd's time, of nbdkit's)
    "read-4k-1": ("randread", "4k", 1, 1 / 1.2, None),
    "read-4k-16": ("randread", "4k", 16, 1 / 4, 1 / 1.5),
    "read-4k-64": ("randread", "4k", 64, 1 / 4, 1 / 1.5),
    "write-4k-1": ("randwrite", "4k", 1, 1 / 1.2, None),
    "write-4k-16": ("randwrite", "4k", 16, 1 / 2, 1 / 1.1),
    "write-4k-64": ("randwrite", "4k", 64, 1 / 2, 1 / 1.1),
    "write-4k-sequential-32": ("write", "4k", 32, 1 / 3, None),
    "read-256k-8": ("randread", "256k", 8, 1 / 3, 1 / 1.3),
    "write-256k-8": ("randwrite", "256k", 8, 1 / 3, 1 / 1.3),
}
ALLOCATING = {
    "allocate-4k-sequential-16": ("write", False, None),
    "allocate-4k-random-16": ("randwrite", False, 1 / 2),
    "allocate-4k-sequential-16-backed": ("write", True, None),
    "allocate-4k-random-16-backed": ("randwrite", True, 1 / 2),
}
ALLOCATED = 32 * MiB
"""Bytes that an allocating run writes."""


def metrics(qemu: float | None, nbdkit: float | None) -> list[Metric]:
    return [
        Metric("us / qemu-nbd's", "us", target=Target(qemu) if qemu else None),
        Metric("us / nbdkit's", "us", target=Target(nbdkit) if nbdkit else None),
        Metric("server CPU us", "us"),
    ]


class Contestant:
    """A server in a comparison."""

    def __init__(self, name: str, server: NbdServer) -> None:
        self.name = name
        self.server = server

    def side(
        self,
        measure: Callable[[NbdServer], tuple[float, float]],
        verify: Callable[[NbdServer], None],
        prepare: Callable[[], None] = lambda: None,
    ) -> Side:
        """`measure` gives microseconds a request, and how many requests there were."""

        def prepare_all() -> None:
            self.server.stop()
            prepare()
            self.server.start()

        def run_side(_: int) -> Sample:
            before = self.server.cpu()
            microseconds, count = measure(self.server)
            cpu = self.server.cpu() - before
            values = {"server CPU us": cpu / max(count, 1) * 1e6}
            ours = self.name == "blk nbd"
            if ours or self.name == "qemu-nbd":
                values["us / qemu-nbd's"] = microseconds
            if ours or self.name == "nbdkit":
                values["us / nbdkit's"] = microseconds
            return Sample(values, cpu=cpu)

        def verify_all() -> None:
            verify(self.server)
            self.server.stop()

        return Side(self.name, run_side, prepare_all, verify_all)


def contestants(
    context: Context, ours: Path, peers: Path, *, qed: bool = False
) -> list[Contestant]:
    """Servers of images: ours of a QED one, the peers of a raw one, or of a QED one as well."""
    found = []
    folder = context.directory
    if context.blk is not None:
        socket = folder / "blk.sock"
        argv = [*context.blk, "nbd", "-t", "-e", "0", "-f", "qed", "-k", str(socket), str(ours)]
        found.append(Contestant("blk nbd", NbdServer(argv, socket)))
    socket = folder / "qemu.sock"
    kind = "qed" if qed else "raw"
    argv = ["qemu-nbd", "-t", "-e", "0", "-f", kind, "-k", str(socket), str(peers)]
    found.append(Contestant("qemu-nbd", NbdServer(argv, socket)))
    if not qed:
        socket = folder / "nbdkit.sock"
        argv = ["nbdkit", "-f", "-U", str(socket), "file", str(peers)]
        found.append(Contestant("nbdkit", NbdServer(argv, socket)))
    return found


def fio(server: NbdServer, kind: str, block: str, depth: int, *more: str) -> tuple[float, float]:
    usage = run(
        [
            "fio",
            "--name=bench",
            "--ioengine=nbd",
            f"--uri={server.uri}",
            f"--rw={kind}",
            f"--bs={block}",
            f"--iodepth={depth}",
            "--output-format=json",
            "--randrepeat=1",
            "--verify_state_save=0",
            *more,
        ]
    )
    job = json.loads(usage.stdout[usage.stdout.index("{") :])["jobs"][0]
    if job["error"]:
        raise VerificationFailed(f"fio: error {job['error']} with {server.argv[0]}")
    side = job["read"] if "read" in kind else job["write"]
    return 1e6 / side["iops"], side["total_ios"]


def reads_back(server: NbdServer) -> None:
    """What is written comes back; fio fails otherwise."""
    size = "--size=16m"
    fio(server, "randwrite", "4k", 16, size, "--verify=crc32c", "--do_verify=1", "--verify_fatal=1")


def comparison(
    name: str, found: list[Contestant], sides: list[Side], wanted: list[Metric], note: str = ""
) -> Comparison:
    ours = sides[0] if found[0].name == "blk nbd" else None
    return Comparison(
        f"nbd/{name}", wanted, ours, sides[1:] if ours is not None else sides, note=note
    )


def make_qed(context: Context, raw: Path, qed: Path) -> None:
    """A QED image by the same last step as the raw file: a plain copy.

    How a file was written decides how its pages lie in memory, and overwriting 4 KiB of what
    qemu-img has just converted costs the kernel several times as much.
    """
    made = context.images.scratch("made.qed")
    run(["qemu-img", "convert", "-f", "raw", "-O", "qed", str(raw), str(made)])
    shutil.copyfile(made, qed)
    made.unlink()


@bench("nbd/fio")
def in_place(context: Context) -> Iterable[Comparison]:
    if shutil.which("fio") is None or shutil.which("qemu-nbd") is None:
        raise Skipped("needs fio and qemu-nbd")
    size = context.pick(1024, quick=128) * MiB
    raw = context.images.scratch("served.raw")
    qed = context.images.scratch("served.qed")
    shutil.copyfile(context.images.random(size), raw)
    make_qed(context, raw, qed)
    found = contestants(context, qed, raw)
    for name, (kind, block, depth, qemu, nbdkit) in SHAPES.items():

        def measure(
            server: NbdServer, kind: str = kind, block: str = block, depth: int = depth
        ) -> tuple[float, float]:
            seconds = f"--runtime={SECONDS}"
            return fio(server, kind, block, depth, f"--size={size}", seconds, "--time_based")

        sides = [one.side(measure, reads_back) for one in found]
        yield comparison(name, found, sides, metrics(qemu, nbdkit))


@bench("nbd/allocate")
def allocate(context: Context) -> Iterable[Comparison]:
    size = 1024 * MiB
    base = context.images.random(context.pick(1024, quick=128) * MiB)
    for name, (kind, backed, qemu) in ALLOCATING.items():
        images = [context.images.scratch(f"allocated-{who}.qed") for who in ("ours", "peer")]
        found = contestants(context, images[0], images[1], qed=True)
        sides = []
        for one in found:
            image = images[0] if one.name == "blk nbd" else images[1]

            def prepare(image: Path = image, backed: bool = backed) -> None:
                image.unlink(missing_ok=True)
                backing = ["-b", str(base), "-F", "raw"] if backed else []
                run(["qemu-img", "create", "-q", "-f", "qed", *backing, str(image), str(size)])

            def measure(server: NbdServer, kind: str = kind) -> tuple[float, float]:
                return fio(server, kind, "4k", 16, f"--size={size}", f"--io_size={ALLOCATED}")

            sides.append(one.side(measure, reads_back, prepare))
        yield comparison(name, found, sides, metrics(qemu, None)[::2])


COPY_METRICS = [
    Metric("us / qemu-nbd's", "us", target=Target(1.0)),
    Metric("us / nbdkit's", "us", target=Target(1.0)),
    Metric("server CPU us", "us"),
]


@bench("nbd/copy")
def copy(context: Context) -> Iterable[Comparison]:
    if shutil.which("nbdcopy") is None:
        raise Skipped("needs nbdcopy")
    size = context.pick(1024, quick=128) * MiB
    source = context.images.random(size)
    out = context.images.scratch("copied.raw")
    raw = context.images.scratch("served.raw")
    qed = context.images.scratch("served.qed")
    shutil.copyfile(source, raw)
    make_qed(context, raw, qed)
    found = contestants(context, qed, raw)

    def read(server: NbdServer) -> tuple[float, float]:
        out.unlink(missing_ok=True)
        return run(["nbdcopy", server.uri, str(out)]).wall * 1e6, 1

    def check(_: NbdServer) -> None:
        run(["cmp", str(out), str(source)])

    yield comparison("copy-from", found, [one.side(read, check) for one in found], COPY_METRICS)

    def write(server: NbdServer) -> tuple[float, float]:
        return run(["nbdcopy", str(source), server.uri]).wall * 1e6, 1

    def check_image(_: NbdServer) -> None:
        read(_)
        check(_)

    yield comparison(
        "copy-to", found, [one.side(write, check_image) for one in found], COPY_METRICS
    )
    os.unlink(out)
