# SPDX-License-Identifier: Apache-2.0
"""Copies from and to NBD servers of others: `blk convert` beside nbdcopy and `qemu-img convert`.

Source and target are files in the page cache; the server is nbdkit's file plugin or qemu-nbd, over
a Unix socket. "Mixed" images have data and holes in pieces of all sizes. The peers start, negotiate
and copy as whole programs, as ours does. Every target is compared with its source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import images
from benchmarks.harness import (
    Comparison,
    Context,
    Kind,
    Metric,
    Sample,
    Side,
    Target,
    VerificationFailed,
    bench,
    process_sample,
)
from benchmarks.images import MiB
from benchmarks.process import run
from benchmarks.servers import NbdServer

METRICS = [
    # "About as fast": the peers are C programs, and ours also looks for zeroes in the data.
    Metric("wall", "s", target=Target(1.0)),
    Metric("CPU", "s"),
    Metric("peak RSS", "MiB", Kind.MAXIMUM, Target(150, strict=True)),
]
PEERS: dict[str, Callable[[str, str], Sequence[str]]] = {
    "nbdcopy": lambda source, target: ["nbdcopy", source, target],
    "qemu-img": lambda source, target: [
        *("qemu-img", "convert", "-n", "-W", "-m", "16"),
        *("-f", "raw", "-O", "raw", source, target),
    ],
}


def serving(kind: str, socket: Path, image: Path) -> NbdServer:
    if kind == "nbdkit":
        return NbdServer(["nbdkit", "-f", "-U", str(socket), "file", str(image)], socket)
    argv = ["qemu-nbd", "-t", "-e", "0", "-f", "raw", "-k", str(socket), str(image)]
    return NbdServer(argv, socket)


def copying(context: Context, name: str, raw: Path, kind: str, *, out: bool) -> Comparison:
    """Copies from a server (`out`) into a file, or from a file to a server."""
    target = context.directory / "target.raw"
    server = serving(kind, context.directory / "bench.sock", raw if out else target)

    def prepare() -> None:
        server.stop()
        with target.open("wb") as file:
            file.truncate(raw.stat().st_size)
        images.warm(raw)
        server.start()

    def verify() -> None:
        server.stop()
        if images.sha256(target) != images.sha256(raw):
            raise VerificationFailed(f"{target.name} is not {raw.name}")

    def side(label: str, command: Callable[[str, str], Sequence[str]]) -> Side:
        def run_side(_: int) -> Sample:
            ends = (server.uri, str(target)) if out else (str(raw), server.uri)
            return process_sample(run(list(command(*ends))))

        return Side(label, run_side, prepare, verify)

    ours = None
    if context.blk is not None:
        convert = (*context.blk, "convert", "-n", "-f", "raw", "-O", "raw")
        ours = side("blk", lambda source, end: [*convert, source, end])
    peers = [side(label, command) for label, command in PEERS.items()]
    size = int(images.allocated_mib(raw)) * MiB
    return Comparison(name, METRICS, ours, peers, page_cache=2 * size)


def register(what: str, kind: str, *, out: bool) -> None:
    name = f"nbd-client/{what}-{'from' if out else 'to'}-{kind}"

    @bench(name)
    def compare(context: Context) -> Iterable[Comparison]:
        make = getattr(context.images, what)
        raw = make(context.pick(1024 * MiB, quick=256 * MiB))
        yield copying(context, name, raw, kind, out=out)
        (context.directory / "target.raw").unlink(missing_ok=True)


for _what in ("random", "mixed"):
    for _kind in ("nbdkit", "qemu-nbd"):
        register(_what, _kind, out=True)
        register(_what, _kind, out=False)
