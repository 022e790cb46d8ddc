# SPDX-License-Identifier: Apache-2.0
"""Write a pattern with blocklayer, one request at a time or in batches, and flush once.

The clock starts before the first write and is read after the last one, and again after the flush
and the close.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from benchmarks.patterns import Pattern, batches, fill_of


def work(job: dict[str, Any]) -> dict[str, Any]:
    import blocklayer

    pattern, batch = Pattern(**job["pattern"]), job["batch"]
    payloads = [bytes([byte]) * pattern.size for byte in range(256)]
    requests = [(offset, payloads[fill_of(n)]) for n, offset in enumerate(pattern.offsets())]
    groups = batches(requests, batch or 1)
    with blocklayer.open(job["path"], mode="r+", format=job["format"]) as disk:
        if batch and not hasattr(disk, "write_many"):
            return {"missing": "disk.write_many"}
        cpu, start = time.process_time(), time.perf_counter()
        if batch:
            for group in groups:
                disk.write_many(group)
        else:
            for offset, data in requests:
                disk.write(offset, data)
        written = time.perf_counter()
        disk.flush()
    end = time.perf_counter()
    cpu = time.process_time() - cpu
    return {"writes": written - start, "with_flush": end - start, "cpu": cpu}


if __name__ == "__main__":
    print(json.dumps(work(json.loads(sys.argv[1]))))
