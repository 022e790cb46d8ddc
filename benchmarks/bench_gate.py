# SPDX-License-Identifier: Apache-2.0
"""Batches, zeroing and zero detection.

- `gate/submit-...`: `disk.submit` of 16 or 64 allocating writes at once, into an empty QED image
  with and without a backing file. The peers keep as many requests in flight; how all sides are
  timed and verified, and what is not the same work, is told in `bench_allocate`.
- The backing file holds data wherever the pattern writes, so that each write of a part of a
  cluster has to copy the rest of it.
- `gate/zero-...`: one request of zeroes over a huge empty QED image or a sparse raw file. qemu-io
  takes at most 2 GiB less a sector at once and gets one command a GiB; on the raw file it has to
  unmap, since its other zeroing fills holes (ours leaves them alone). What came out is compared
  with an empty disk, and must not have grown to more than its tables.
- `gate/detect-...`: the same batches of random bytes with `detect_zeroes` on and off; the result is
  the ratio of their CPU. Both must leave the same disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import images
from benchmarks.bench_allocate import (
    BENCH_FILL,
    CLUSTER,
    METRICS,
    WRITES,
    empty_qed,
    less_idle,
    patterns,
    qemu_bench_side,
    qemu_io_side,
    sample,
    verified,
)
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
)
from benchmarks.images import MiB
from benchmarks.patterns import Pattern, fill_of
from benchmarks.process import run, run_worker

GiB = 1024 * MiB
TiB = 1024 * GiB
BATCHES = (16, 64)
SHAPES = ("4k-sequential", "4k-random", "64k-sequential", "64k-random")
BELOW = 0x55
"""The byte of the backing file."""
TABLES_MAX = 200 * MiB
"""What a tebibyte of zero clusters may occupy."""
ZERO_METRICS = [
    Metric("writes", "s", target=Target(1.0, strict=True)),
    Metric("with flush", "s"),
    Metric("CPU", "s"),
    Metric("peak RSS", "MiB", Kind.MAXIMUM, Target(100, strict=True)),
    Metric("allocated", "MiB", Kind.MAXIMUM),
]
DETECT_METRICS = [Metric("CPU", "s", target=Target(1.10, strict=True)), Metric("writes", "s")]


def worker_side(target: Path, job: dict[str, Any]) -> Callable[[int], Sample]:
    def run_side(_: int) -> Sample:
        usage, answer = run_worker("gate", {**job, "path": str(target)})
        if answer.get("failed"):
            raise VerificationFailed(f"{answer['failed']} requests have failed")
        found = sample(
            usage,
            target,
            writes=answer["writes"],
            total=answer["with_flush"],
            cpu=answer["cpu"],
        )
        values = {**found.values, "peak RSS": usage.peak_rss / MiB}
        return Sample(values, cpu=found.cpu, peak_rss=found.peak_rss)

    return run_side


# --- batches ------------------------------------------------------------------------------------


def write_base(path: Path, pattern: Pattern) -> None:
    """Data in each cluster that the pattern touches."""
    with path.open("wb") as file:
        file.truncate(pattern.virtual)
        for cluster in sorted({offset // CLUSTER for offset in pattern.offsets()}):
            file.seek(cluster * CLUSTER)
            file.write(bytes([BELOW]) * CLUSTER)


def write_over(path: Path, pattern: Pattern, fill: int | None) -> None:
    """What the pattern leaves behind, over what is there."""
    with path.open("r+b") as file:
        for number, offset in enumerate(pattern.offsets()):
            file.seek(offset)
            file.write(bytes([fill_of(number) if fill is None else fill]) * pattern.size)


def expected_file(path: Path, base: Path | None, pattern: Pattern, fill: int | None = None) -> Path:
    if base is None:
        with path.open("wb") as file:
            file.truncate(pattern.virtual)
    else:
        run(["cp", "--sparse=always", str(base), str(path)])
    write_over(path, pattern, fill)
    return path


def overlay_qed(target: Path, base: Path, virtual: int) -> Callable[[], None]:
    def prepare() -> None:
        target.unlink(missing_ok=True)
        options = ["-o", f"cluster_size={CLUSTER}", "-b", str(base), "-F", "raw"]
        run(["qemu-img", "create", "-q", "-f", "qed", *options, str(target), str(virtual)])

    return prepare


def submitting(context: Context, pattern: Pattern, batch: int, over: bool) -> Iterable[Comparison]:
    directory = context.directory
    base = directory / "base.raw" if over else None
    if base is not None:
        write_base(base, pattern)
    expected = expected_file(directory / "expected.raw", base, pattern)
    target = directory / "target.qed"
    prepare = empty_qed(target) if base is None else overlay_qed(target, base, pattern.virtual)

    def side(name: str, run_side: Callable[[int], Sample], what: Path) -> Side:
        return Side(name, run_side, prepare, verified(target, what))

    job = {"work": "submit", "batch": batch, "pattern": asdict(pattern)}
    ours = None
    if context.has_library:
        ours = side("blocklayer", worker_side(target, job), expected)
    peers = [side(f"qemu-io, {batch} at once", qemu_io_side(target, pattern, batch), expected)]
    if pattern.step is not None:
        one_byte = expected_file(directory / "one-byte.raw", base, pattern, BENCH_FILL)
        run_side = qemu_bench_side(target, pattern, batch)
        peers.append(side(f"qemu-img bench -d {batch}", run_side, one_byte))
    name = submit_name(pattern.name, batch, over)
    yield Comparison(
        name,
        METRICS if pattern.step is None else [WRITES, *METRICS],
        ours,
        peers,
        note=f"ours: disk.submit of {batch} requests; peers: {batch} requests in flight",
        page_cache=pattern.count * CLUSTER,
    )
    for path in directory.glob("*.raw"):
        if path.stem in ("base", "expected", "one-byte"):
            path.unlink()


def submit_name(shape: str, batch: int, over: bool) -> str:
    return f"gate/submit-{shape}-{batch}" + ("-backed" if over else "")


def submit_bench(shape: str, batch: int, over: bool) -> Callable[[Context], Iterable[Comparison]]:
    def run_bench(context: Context) -> Iterable[Comparison]:
        yield from submitting(context, patterns(quick=context.quick)[shape], batch, over)

    return run_bench


# --- zeroing ------------------------------------------------------------------------------------


def sparse_raw(path: Path, size: int) -> Callable[[], None]:
    def prepare() -> None:
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(size)

    return prepare


def new_qed(path: Path, size: int) -> Callable[[], None]:
    def prepare() -> None:
        path.unlink(missing_ok=True)
        run(["qemu-img", "create", "-q", "-f", "qed", str(path), str(size)])

    return prepare


def qemu_zero_side(target: Path, format_name: str) -> Callable[[int], Sample]:
    program = ["qemu-io", "-f", format_name, "-t", "writeback"]
    # Without -u qemu would allocate all of the sparse file, which few disks have room for.
    verb = "write -q -z -u" if format_name == "raw" else "write -q -z"
    commands = [f"{verb} {offset} {GiB}" for offset in range(0, TiB, GiB)]
    arguments = [word for command in commands for word in ("-c", command)]

    def run_side(_: int) -> Sample:
        idle = run([*program, "-c", "quit", str(target)])
        usage = run([*program, *arguments, str(target)])
        total, cpu = less_idle(usage, idle)
        values = {
            "writes": total,
            "with flush": total,
            "CPU": cpu,
            "peak RSS": usage.peak_rss / MiB,
            "allocated": images.allocated_mib(target),
        }
        return Sample(values, cpu=cpu, peak_rss=usage.peak_rss)

    return run_side


def zeroing(context: Context, format_name: str) -> Iterable[Comparison]:
    target, empty = context.directory / f"zero.{format_name}", context.directory / "empty.raw"
    sparse_raw(empty, TiB)()
    prepare = (new_qed if format_name == "qed" else sparse_raw)(target, TiB)

    def verify() -> None:
        images.same_guest_bytes(empty, "raw", target, format_name)
        if format_name == "qed":
            images.sound(target, format_name)
        if target.stat().st_blocks * 512 > TABLES_MAX:
            raise VerificationFailed(f"{target.name} has grown to {target.stat().st_blocks} blocks")
        target.unlink()

    ours = None
    if context.has_library:
        job = {"work": "zero", "format": format_name}
        ours = Side("blocklayer", worker_side(target, job), prepare, verify)
    peers = [Side("qemu-io", qemu_zero_side(target, format_name), prepare, verify)]
    note = "the time of qemu-io contains its flush; ours gives both"
    yield Comparison(f"gate/zero-{format_name}", ZERO_METRICS, ours, peers, note=note)
    empty.unlink()


def zero_bench(format_name: str) -> Callable[[Context], Iterable[Comparison]]:
    def run_bench(context: Context) -> Iterable[Comparison]:
        yield from zeroing(context, format_name)

    return run_bench


# --- detecting zeroes -----------------------------------------------------------------------------


def detecting(context: Context, shape: str) -> Iterable[Comparison]:
    pattern = patterns(quick=context.quick)[shape]
    target, kept = context.directory / "detect.qed", context.directory / "kept"
    kept.mkdir(exist_ok=True)

    def side(mode: str) -> Side:
        job = {
            "work": "submit",
            "batch": 16,
            "pattern": asdict(pattern),
            "noise": True,
            "detect": mode,
        }

        def verify() -> None:
            images.sound(target, "qed")
            os.replace(target, kept / f"{mode}.qed")

        return Side(f"detect_zeroes={mode}", worker_side(target, job), empty_qed(target), verify)

    def verify_round() -> None:
        images.same_guest_bytes(kept / "off.qed", "qed", kept / "on.qed", "qed")

    ours = side("on") if context.has_library else None
    yield Comparison(
        f"gate/detect-{shape}",
        DETECT_METRICS,
        ours,
        [side("off")] if context.has_library else [],
        verify_round=verify_round,
        rounds_factor=3,
        page_cache=pattern.count * pattern.size,
        note="both sides are ours: random bytes, with and without detection",
    )
    shutil.rmtree(kept)


def detect_bench(shape: str) -> Callable[[Context], Iterable[Comparison]]:
    def run_bench(context: Context) -> Iterable[Comparison]:
        yield from detecting(context, shape)

    return run_bench


for shape_name in SHAPES:
    for backed in (False, True):
        for batch_size in BATCHES:
            name = submit_name(shape_name, batch_size, backed)
            bench(name)(submit_bench(shape_name, batch_size, backed))
for zeroed in ("qed", "raw"):
    bench(f"gate/zero-{zeroed}")(zero_bench(zeroed))
for shape_name in ("4k-random", "64k-sequential"):
    bench(f"gate/detect-{shape_name}")(detect_bench(shape_name))
