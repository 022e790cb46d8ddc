# SPDX-License-Identifier: Apache-2.0
"""`blk map`, `check` and `compare` beside `qemu-img`'s.

The fragmented images have every other cluster allocated, out of order: half a million of them in 64
GiB, eight millions in 1 TiB. What is judged is the time beyond start-up: that of the same command
on an empty image is measured in the same round and taken off. On a machine that others use as well,
the CPU time beyond it tells more. Both must print the same.

`compare` reads two images of the same bytes; `cmp` shows what that costs for two plain files.
"""

from __future__ import annotations

import hashlib
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
from benchmarks.process import Usage, run

GiB = 1024 * MiB
METRICS = [
    Metric("beyond start-up", "s", target=Target(1.0)),
    Metric("CPU beyond", "s"),
    Metric("wall", "s"),
    Metric("CPU", "s"),
    Metric("peak RSS", "MiB", Kind.MAXIMUM, Target(256, strict=True)),
]
COMPARE_METRICS = [
    Metric("wall", "s", target=Target(1 / 1.3)),
    Metric("CPU", "s"),
    Metric("peak RSS", "MiB", Kind.MAXIMUM, Target(100, strict=True)),
]


def beyond_start(usage: Usage, idle: Usage) -> Sample:
    beyond = {
        "beyond start-up": max(usage.wall - idle.wall, 1e-6),
        "CPU beyond": max(usage.cpu - idle.cpu, 1e-6),
    }
    return process_sample(usage, **beyond)


def inspecting(
    context: Context, name: str, words: Sequence[str], size: int, said: Callable[[str], str]
) -> Iterable[Comparison]:
    image = context.images.fragmented(size)
    empty = context.directory / "empty.qed"
    run(["qemu-img", "create", "-q", "-f", "qed", str(empty), str(size)])
    answers: dict[str, str] = {}

    def side(label: str, program: Sequence[str]) -> Side:
        def run_side(_: int) -> Sample:
            idle = run([*program, *words, str(empty)])
            # QEMU finds a leak in large images where there is none: exit code 3.
            usage = run([*program, *words, str(image)], allowed=(0, 3))
            answers[label] = said(usage.stdout)
            return beyond_start(usage, idle)

        def prepare() -> None:
            images.warm_data(image)

        return Side(label, run_side, prepare)

    def verify_round() -> None:
        if len(set(answers.values())) > 1:
            raise VerificationFailed(f"{name}: they do not say the same: {answers}")

    ours = side("blk", context.blk) if context.blk is not None else None
    peers = [side("qemu-img", ["qemu-img"])]
    yield Comparison(name, METRICS, ours, peers, verify_round=verify_round)


def digest(output: str) -> str:
    return hashlib.sha256(output.encode()).hexdigest()


def last_line(output: str) -> str:
    """Of a check: how much is allocated, and how fragmented that is."""
    return next(line for line in output.splitlines() if "allocated" in line)


INSPECTIONS: dict[str, tuple[Sequence[str], Callable[[str], str]]] = {
    "map": (["map", "-f", "qed"], digest),
    "map-json": (["map", "--output=json", "-f", "qed"], digest),
    "check": (["check", "-f", "qed"], last_line),
}
SIZES = {"64g": 64 * GiB, "1t": 1024 * GiB}


def inspection_bench(verb: str, size: str) -> Callable[[Context], Iterable[Comparison]]:
    words, said = INSPECTIONS[verb]

    def run_bench(context: Context) -> Iterable[Comparison]:
        length = context.pick(SIZES[size], quick=SIZES[size] // 16)
        yield from inspecting(context, f"inspect/{verb}-{size}", words, length, said)

    return run_bench


for inspected in INSPECTIONS:
    for image_size in SIZES:
        bench(f"inspect/{inspected}-{image_size}")(inspection_bench(inspected, image_size))


# --- comparing ------------------------------------------------------------------------------------


def comparing(context: Context, name: str, raw: Path) -> Iterable[Comparison]:
    qed = context.images.qed(raw)

    def prepare() -> None:
        images.warm(raw)
        images.warm(qed)

    def side(label: str, argv: Sequence[str], says: str) -> Side:
        def run_side(_: int) -> Sample:
            usage = run(argv)
            if says not in usage.stdout:
                raise VerificationFailed(f"{label} does not find them identical: {usage.stdout}")
            return process_sample(usage)

        return Side(label, run_side, prepare)

    words = ["compare", "-f", "raw", "-F", "qed", str(raw), str(qed)]
    ours = None
    if context.blk is not None:
        ours = side("blk", [*context.blk, *words], "Images are identical.")
    peers = [side("qemu-img", ["qemu-img", *words], "Images are identical.")]
    reference = side("cmp", ["cmp", str(raw), str(raw.with_suffix(".copy"))], "")
    run(["cp", "--sparse=always", str(raw), str(raw.with_suffix(".copy"))])
    yield Comparison(name, COMPARE_METRICS, ours, peers, references=[reference])
    raw.with_suffix(".copy").unlink()


@bench("inspect/compare-random")
def compare_random(context: Context) -> Iterable[Comparison]:
    raw = context.images.random(context.pick(1024 * MiB, quick=128 * MiB))
    yield from comparing(context, "inspect/compare-random", raw)


@bench("inspect/compare-mixed")
def compare_mixed(context: Context) -> Iterable[Comparison]:
    raw = context.images.mixed(context.pick(2048 * MiB, quick=256 * MiB))
    yield from comparing(context, "inspect/compare-mixed", raw)
