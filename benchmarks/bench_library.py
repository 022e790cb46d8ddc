# SPDX-License-Identifier: Apache-2.0
"""What a call of the library costs above the system call it makes.

4 KiB requests at random places of a fully allocated QED image in the page cache. The peer is a
loop of bare `os.pread` or `os.pwrite`, one call a request (never batched), at the same offsets of
a raw twin of the same size; "own" is the difference: everything that is not the system call. Each
side is a process of its own and reads its own CPU clock (all threads), around the loop alone.

Writes go to both images, and qemu-img compares them after each round: what one side wrote by the
library and the other by pwrite must be the same disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import images
from benchmarks.harness import (
    Comparison,
    Context,
    Kind,
    Metric,
    Sample,
    Side,
    Skipped,
    Target,
    VerificationFailed,
    bench,
)
from benchmarks.images import MiB
from benchmarks.process import run_worker

BLOCK = 4096
BATCH = 64
SINGLE_TARGET = Target(5.0)  # microseconds of our own CPU a request
BATCH_TARGET = Target(2.0)
NOTE = (
    "ours is the CPU of the library's loop, peer that of the bare loop; the result is the "
    "difference, microseconds of CPU a request"
)


def side(
    name: str, image: Path, format_name: str, reference: Path, job: dict[str, int | str]
) -> Side:
    def run(number: int) -> Sample:
        seeded = {"path": str(image), "format": format_name, "reference": str(reference)}
        _, answer = run_worker("random_io", {**job, **seeded, "seed": number + 100})
        if "missing" in answer:
            raise Skipped(f"the library has no {answer['missing']} yet")
        if answer.get("wrong"):
            raise VerificationFailed(f"{answer['wrong']} reads answered other bytes")
        values = {"CPU/request": answer["cpu_us"], "wall/request": answer["wall_us"]}
        return Sample(values)

    def prepare() -> None:
        # Clean pages in the cache for both: a first write to a page costs more than a second.
        images.warm(image)
        images.write_out(image)

    return Side(name, run, prepare)


def comparison(
    context: Context, name: str, *, verb: str, batch: int, raw: Path, qed: Path, size: int
) -> Comparison:
    count = min(context.pick(131072, quick=16384), size // BLOCK)
    job: dict[str, int | str] = {
        "verb": verb,
        "block": BLOCK,
        "batch": batch,
        "count": count,
        "size": size,
    }
    ours = None
    if context.has_library:
        ours = side("blocklayer", qed, "qed", raw, {**job, "side": "library"})
    bare_name = f"bare os.p{verb}"
    bare = side(bare_name, raw, "raw", raw, {**job, "side": "bare"})
    metrics = [
        Metric("CPU/request", "µs", Kind.DIFFERENCE, BATCH_TARGET if batch else SINGLE_TARGET),
        Metric("wall/request", "µs", Kind.DIFFERENCE),
    ]

    def verify() -> None:
        if verb == "write":
            images.same_guest_bytes(raw, "raw", qed, "qed")

    return Comparison(name, metrics, ours, [bare], verify_round=verify, note=NOTE)


def random_access(verb: str, batch: int) -> Callable[[Context], Iterable[Comparison]]:
    def run(context: Context) -> Iterable[Comparison]:
        size = context.pick(1024 * MiB, quick=128 * MiB)
        raw = context.images.random(size)
        qed = context.images.qed(raw)
        name = f"library/{verb}" + ("-many" if batch else "")
        if verb == "read":
            yield comparison(context, name, verb=verb, batch=batch, raw=raw, qed=qed, size=size)
            return
        # Writes change the images: they get copies of their own.
        raw_copy, qed_copy = context.images.scratch("twin.raw"), context.images.scratch("twin.qed")
        shutil.copyfile(raw, raw_copy)
        shutil.copyfile(qed, qed_copy)
        yield comparison(
            context, name, verb=verb, batch=batch, raw=raw_copy, qed=qed_copy, size=size
        )
        raw_copy.unlink()
        qed_copy.unlink()

    return run


bench("library/read")(random_access("read", 0))
bench("library/write")(random_access("write", 0))
bench("library/read-many")(random_access("read", BATCH))
bench("library/write-many")(random_access("write", BATCH))
