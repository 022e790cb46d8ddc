# SPDX-License-Identifier: Apache-2.0
"""How long `blk` takes to say what a small image is.

The peer is the interpreter that runs it, told to do nothing: what is above that is ours. The byte
code of both is cached (the warm-up run has compiled it).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from benchmarks.harness import (
    Comparison,
    Context,
    Metric,
    Sample,
    Side,
    Target,
    VerificationFailed,
    bench,
    process_sample,
)
from benchmarks.process import run

METRICS = [Metric("wall ms", "ms", target=Target(3.0)), Metric("CPU", "s")]
ROUNDS_FACTOR = 6  # a run takes milliseconds


def command(*argv: str, expect: str = "") -> Callable[[int], Sample]:
    def run_side(_: int) -> Sample:
        usage = run(argv)
        if expect not in usage.stdout:
            raise VerificationFailed(f"{' '.join(argv)} does not say {expect!r}: {usage.stdout}")
        return process_sample(usage)

    return run_side


@bench("startup/info")
def info(context: Context) -> Iterable[Comparison]:
    image = context.images.scratch("small.qed")
    run(["qemu-img", "create", "-q", "-f", "qed", str(image), "64M"])
    ours = None
    if context.blk is not None:
        run_side = command(*context.blk, "info", str(image), expect="file format: qed")
        ours = Side("blk info", run_side)
    nothing = Side("python3 -c pass", command(sys.executable, "-c", "pass"))
    reference = Side(
        "qemu-img info", command("qemu-img", "info", str(image), expect="file format: qed")
    )
    yield Comparison(
        "startup/info",
        METRICS,
        ours,
        [nothing],
        references=[reference],
        rounds_factor=ROUNDS_FACTOR,
    )
