# SPDX-License-Identifier: Apache-2.0
"""Allocating writes into an empty QED image.

What is compared, and how it is kept fair:

- Every side gets an empty image that qemu-img has just made, the page cache as its cache mode
  (writeback), no flush among the requests and one flush at the end (which qemu-io and `qemu-img
  bench` do when they close the image).
- `writes` is the time until the last request is acknowledged, without the flush. It is measured
  inside each program: by the worker around its loop, by `qemu-img bench` as "Run completed in",
  and for qemu-io as the sum of the timings of its requests, which leaves out the parsing of its
  commands and the filling of its buffers: the reading that is kindest to the peer. With more than
  one request in flight the timings of qemu-io overlap and cannot be summed up: `qemu-img bench`
  is the only peer then.
- `with flush` is the time from the first request to the closed image. The worker reads its clock;
  of the others it is the wall clock of the process less that of an idle run of the same program
  on the same image (no request; for `qemu-img bench`, which knows no zero, one read), made just
  before.
- qemu-io gets its commands as arguments, which is about twice as fast as on standard input.
- qemu writes a new cluster whole, blocklayer writes the request and lets the rest be a hole of
  the file, which reads as zeroes. The 4 KiB rows are therefore not the same work on the disk, and
  `allocated` shows by how much; in the 64 KiB rows it is the same.
- `qemu-img bench` knows strides but no random places, and one byte to write; random patterns have
  qemu-io as their only peer.

The peak RSS of our side contains the payloads of the worker (255 of them).

The images are read back: by qemu-img, against a raw file with what should be there, and
`qemu-img check` must find neither an error nor a leak.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from benchmarks import images
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
from benchmarks.images import KiB
from benchmarks.patterns import Pattern, fill_of, write_expected
from benchmarks.process import Usage, run, run_worker

GiB = 1024**3
VIRTUAL = 4 * GiB
CLUSTER = 64 * KiB
BATCH = 16
BENCH_FILL = 0xA5
AHEAD = Target(1.0, strict=True)
WRITES = Metric("writes", "s", target=AHEAD)
METRICS = [
    Metric("with flush", "s", target=AHEAD),
    Metric("CPU", "s"),
    Metric("allocated", "MiB"),
]
COMPLETED = re.compile(r"Run completed in ([0-9.]+) seconds")
NOTE_BATCH = "ours: disk.write_many of 16 requests; peers: 16 requests in flight"


def patterns(*, quick: bool) -> dict[str, Pattern]:
    def pattern(name: str, size: int, count: int, step: int | None) -> Pattern:
        count = count // 8 if quick else count
        return Pattern(name, size, count, VIRTUAL, CLUSTER, step)

    every = [
        pattern("4k-sequential", 4 * KiB, 8192, 4 * KiB),
        pattern("4k-strided", 4 * KiB, 8192, CLUSTER),
        pattern("4k-random", 4 * KiB, 8192, None),
        pattern("64k-sequential", 64 * KiB, 4096, 64 * KiB),
        pattern("64k-random", 64 * KiB, 4096, None),
    ]
    return {each.name: each for each in every}


def sample(usage: Usage, target: Path, *, writes: float | None, total: float, cpu: float) -> Sample:
    values = {"with flush": total, "CPU": cpu, "allocated": images.allocated_mib(target)}
    if writes is not None:
        values["writes"] = writes
    return Sample(values, cpu=cpu, peak_rss=usage.peak_rss)


def less_idle(usage: Usage, idle: Usage) -> tuple[float, float]:
    """Wall clock and CPU without those of the idle run."""
    return max(usage.wall - idle.wall, 1e-6), max(usage.cpu - idle.cpu, 1e-6)


def sum_of_timings(stdout: str) -> float:
    """The seconds of all requests in the machine-readable output of qemu-io.

    The last column is operations a second, of one operation; the duration itself is printed with
    hundredths of a second only.
    """
    rates = [float(line.rpartition(",")[2]) for line in stdout.splitlines() if line.count(",") == 4]
    return sum(1 / rate for rate in rates)


def qemu_io_commands(pattern: Pattern, batch: int) -> list[str]:
    verb = "aio_write -q" if batch else "write -C"
    commands = []
    for number, offset in enumerate(pattern.offsets()):
        commands.append(f"{verb} -P {fill_of(number)} {offset} {pattern.size}")
        if batch and number % batch == batch - 1:
            commands.append("aio_flush")
    return commands


def worker_side(target: Path, pattern: Pattern, batch: int) -> Callable[[int], Sample]:
    def run_side(_: int) -> Sample:
        job = {"path": str(target), "format": "qed", "batch": batch, "pattern": asdict(pattern)}
        usage, answer = run_worker("allocate", job)
        if "missing" in answer:
            raise Skipped(f"the library has no {answer['missing']} yet")
        return sample(
            usage,
            target,
            writes=answer["writes"],
            total=answer["with_flush"],
            cpu=answer["cpu"],
        )

    return run_side


def qemu_io_side(target: Path, pattern: Pattern, batch: int) -> Callable[[int], Sample]:
    program = ["qemu-io", "-f", "qed", "-t", "writeback"]
    arguments = [word for command in qemu_io_commands(pattern, batch) for word in ("-c", command)]

    def run_side(_: int) -> Sample:
        idle = run([*program, "-c", "quit", str(target)])
        usage = run([*program, *arguments, str(target)])
        total, cpu = less_idle(usage, idle)
        writes = None if batch else sum_of_timings(usage.stdout)
        return sample(usage, target, writes=writes, total=total, cpu=cpu)

    return run_side


def qemu_bench_side(target: Path, pattern: Pattern, batch: int) -> Callable[[int], Sample]:
    program = ["qemu-img", "bench", "-f", "qed", "-t", "writeback"]
    shape = ["-s", str(pattern.size), "-S", str(pattern.step), "-d", str(batch or 1)]
    what = ["-w", f"--pattern={BENCH_FILL}", "-c", str(pattern.count)]

    def run_side(_: int) -> Sample:
        idle = run([*program, "-c", "1", str(target)])
        usage = run([*program, *shape, *what, str(target)])
        found = COMPLETED.search(usage.stdout)
        if found is None:
            raise VerificationFailed(f"qemu-img bench said: {usage.stdout}")
        total, cpu = less_idle(usage, idle)
        return sample(usage, target, writes=float(found[1]), total=total, cpu=cpu)

    return run_side


def empty_qed(target: Path) -> Callable[[], None]:
    def prepare() -> None:
        target.unlink(missing_ok=True)
        options = f"cluster_size={CLUSTER}"
        run(["qemu-img", "create", "-q", "-f", "qed", "-o", options, str(target), str(VIRTUAL)])

    return prepare


def verified(target: Path, expected: Path) -> Callable[[], None]:
    def verify() -> None:
        images.same_guest_bytes(expected, "raw", target, "qed")
        images.sound(target, "qed")
        target.unlink()

    return verify


def comparison(context: Context, pattern: Pattern, batch: int) -> Iterable[Comparison]:
    directory = context.directory
    expected, expected_one_byte = directory / "expected.raw", directory / "expected-one-byte.raw"
    write_expected(expected, pattern)
    write_expected(expected_one_byte, pattern, fill=BENCH_FILL)

    def side(name: str, run_side: Callable[[int], Sample], target: Path, what: Path) -> Side:
        return Side(name, run_side, empty_qed(target), verified(target, what))

    target = directory / "target.qed"
    ours = None
    if context.has_library:
        ours = side("blocklayer", worker_side(target, pattern, batch), target, expected)
    peers = [side("qemu-io", qemu_io_side(target, pattern, batch), target, expected)]
    if pattern.step is not None:
        run_side = qemu_bench_side(target, pattern, batch)
        peers.append(side("qemu-img bench", run_side, target, expected_one_byte))
    timed_inside = not batch or pattern.step is not None
    metrics = [WRITES, *METRICS] if timed_inside else METRICS
    name = f"allocate/{pattern.name}" + ("-many" if batch else "")
    note = NOTE_BATCH if batch else ""
    page_cache = pattern.count * CLUSTER  # what qemu fills at most
    yield Comparison(name, metrics, ours, peers, note=note, page_cache=page_cache)
    expected.unlink()
    expected_one_byte.unlink()


def writes(name: str, batch: int) -> Callable[[Context], Iterable[Comparison]]:
    def run_bench(context: Context) -> Iterable[Comparison]:
        yield from comparison(context, patterns(quick=context.quick)[name], batch)

    return run_bench


for pattern_name in patterns(quick=True):
    bench(f"allocate/{pattern_name}")(writes(pattern_name, 0))
    bench(f"allocate/{pattern_name}-many")(writes(pattern_name, BATCH))
