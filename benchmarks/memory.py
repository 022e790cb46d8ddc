# SPDX-License-Identifier: Apache-2.0
"""Touch free memory before it is measured.

On a virtual machine a page of the guest has no page of the host behind it until it is touched
first, and that first touch costs more than copying the page: seconds a gibibyte were seen. The
side that runs first would pay for all. So a child process touches the free memory and leaves.
"""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

from benchmarks.process import run

GiB = 1024**3
STEP = 1024 * 1024
SPARE = GiB  # never touched: the machine has other users


def free_bytes() -> int:
    """Memory that is free now; the page cache is not counted, so no input is evicted."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemFree:"):
            return int(line.split()[1]) * 1024
    return 0


def touch_free_memory(limit: int | None = None) -> int:
    """Touch what is free, up to `limit`; answer how much it was."""
    amount = max(0, free_bytes() - SPARE)
    if limit is not None:
        amount = min(amount, limit)
    if amount >= STEP:
        run([sys.executable, "-m", "benchmarks.memory", str(amount)])
    return amount


def main() -> None:
    length = int(sys.argv[1]) // STEP * STEP
    with mmap.mmap(-1, length) as memory:
        filler = bytes(STEP)
        for offset in range(0, length, STEP):
            memory[offset : offset + STEP] = filler


if __name__ == "__main__":
    main()
