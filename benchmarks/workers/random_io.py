# SPDX-License-Identifier: Apache-2.0
"""Random reads or in-place writes, by blocklayer or by the bare system call.

The loops of all sides have the same shape: the requests are made before the clock starts, the
results are dropped. `reference` is a raw image that has the bytes which a read must answer; what
was read is compared after the clock stopped, what was written is left to the caller.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.patterns import batches, random_blocks, random_payloads

PAYLOADS = 64
WARMUP = 2000  # requests before the clock starts: tables are loaded, code is specialised

Loop = Callable[[int, int], None]  # over the requests [first, last)


def clocked(loop: Loop, count: int) -> dict[str, float]:
    """CPU (of all threads) and wall clock of the loop, per request."""
    loop(0, min(WARMUP, count))
    wall, cpu = time.perf_counter(), time.process_time()
    loop(0, count)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_us": cpu / count * 1e6, "wall_us": wall / count * 1e6}


def bare_reads(fd: int, offsets: Sequence[int], block: int) -> Loop:
    pread = os.pread

    def loop(first: int, last: int) -> None:
        for offset in offsets[first:last]:
            pread(fd, block, offset)

    return loop


def bare_writes(fd: int, requests: Sequence[tuple[int, bytes]]) -> Loop:
    pwrite = os.pwrite

    def loop(first: int, last: int) -> None:
        for offset, data in requests[first:last]:
            pwrite(fd, data, offset)

    return loop


def library_reads(disk: Any, offsets: Sequence[int], *, block: int, batch: int) -> Loop:
    if batch:
        read_many = disk.read_many
        prepared = batches([(offset, block) for offset in offsets], batch)

        def loop(first: int, last: int) -> None:
            for requests in prepared[first // batch : -(-last // batch)]:
                read_many(requests)

    else:
        read = disk.read

        def loop(first: int, last: int) -> None:
            for offset in offsets[first:last]:
                read(offset, block)

    return loop


def library_writes(disk: Any, requests: Sequence[tuple[int, bytes]], batch: int) -> Loop:
    if batch:
        write_many = disk.write_many
        prepared = batches(requests, batch)

        def loop(first: int, last: int) -> None:
            for group in prepared[first // batch : -(-last // batch)]:
                write_many(group)

    else:
        write = disk.write

        def loop(first: int, last: int) -> None:
            for offset, data in requests[first:last]:
                write(offset, data)

    return loop


def wrong_reads(disk: Any, offsets: Sequence[int], job: dict[str, Any]) -> int:
    """How many answers differ from the reference image."""
    block, batch = job["block"], job["batch"]
    fd = os.open(job["reference"], os.O_RDONLY)
    wrong = 0
    for group in batches(offsets, batch or 1):
        if batch:
            answers = disk.read_many([(offset, block) for offset in group])
        else:
            answers = [disk.read(group[0], block)]
        for offset, answer in zip(group, answers, strict=True):
            wrong += bytes(answer) != os.pread(fd, block, offset)
    os.close(fd)
    return wrong


def run_bare(job: dict[str, Any], offsets: list[int], requests: list[tuple[int, bytes]]) -> Any:
    fd = os.open(job["path"], os.O_RDWR)
    writing = job["verb"] == "write"
    loop = bare_writes(fd, requests) if writing else bare_reads(fd, offsets, job["block"])
    answer = clocked(loop, len(offsets))
    os.close(fd)
    return answer


def run_library(job: dict[str, Any], offsets: list[int], requests: list[tuple[int, bytes]]) -> Any:
    import blocklayer

    batch, verb = job["batch"], job["verb"]
    with blocklayer.open(job["path"], mode="r+", format=job["format"]) as disk:
        method = f"{verb}_many" if batch else verb
        if not hasattr(disk, method):
            return {"missing": f"disk.{method}"}
        if verb == "write":
            return clocked(library_writes(disk, requests, batch), len(offsets))
        answer = clocked(
            library_reads(disk, offsets, block=job["block"], batch=batch), len(offsets)
        )
        return {**answer, "wrong": wrong_reads(disk, offsets, job)}


def main() -> None:
    job = json.loads(sys.argv[1])
    block, count, seed = job["block"], job["count"], job["seed"]
    offsets = random_blocks(size=job["size"], block=block, count=count, seed=seed)
    payloads = random_payloads(block=block, count=PAYLOADS, seed=seed)
    requests = [(offset, payloads[n % PAYLOADS]) for n, offset in enumerate(offsets)]
    run = run_bare if job["side"] == "bare" else run_library
    print(json.dumps(run(job, offsets, requests)))


if __name__ == "__main__":
    main()
