# SPDX-License-Identifier: Apache-2.0
"""What the request gate does, by blocklayer, timed around the work alone.

submit   a pattern of writes in batches of `Request`s, and one flush
zero     one write_zeroes over the whole disk, and one flush
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import blocklayer
from benchmarks.patterns import Pattern, batches, fill_of
from blocklayer.core.batch import Request


def payloads_of(job: dict[str, Any], size: int) -> list[bytes]:
    """What request number n writes is number `fill_of(n)`: one byte repeated, or noise."""
    if job.get("noise"):
        rng = random.Random(1)
        return [rng.randbytes(size) for _ in range(256)]
    return [bytes([byte]) * size for byte in range(256)]


def submitting(disk: Any, requests: Sequence[Request], batch: int) -> Callable[[], None]:
    groups = batches(requests, batch)

    def work() -> None:
        for group in groups:
            disk.submit(group)

    return work


def clocked(disk: Any, work: Callable[[], None]) -> dict[str, float]:
    cpu, start = time.process_time(), time.perf_counter()
    work()
    written = time.perf_counter()
    disk.flush()
    disk.close()
    end = time.perf_counter()
    cpu = time.process_time() - cpu
    return {"writes": written - start, "with_flush": end - start, "cpu": cpu}


def submit(job: dict[str, Any]) -> dict[str, float]:
    pattern = Pattern(**job["pattern"])
    payloads = payloads_of(job, pattern.size)
    requests = [
        Request.write(offset, payloads[fill_of(number)])
        for number, offset in enumerate(pattern.offsets())
    ]
    options = {"discard": "unmap", "detect_zeroes": job.get("detect", "off")}
    disk = blocklayer.open(job["path"], mode="r+", format="qed", **options)
    answer = clocked(disk, submitting(disk, requests, job["batch"]))
    return {**answer, "failed": sum(request.error is not None for request in requests)}


def zero(job: dict[str, Any]) -> dict[str, float]:
    disk = blocklayer.open(job["path"], mode="r+", format=job["format"])
    return clocked(disk, lambda: disk.write_zeroes(0, disk.size))


WORK = {"submit": submit, "zero": zero}

if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    print(json.dumps(WORK[wanted["work"]](wanted)))
