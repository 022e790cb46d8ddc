# SPDX-License-Identifier: Apache-2.0
"""How long the commands of `blk` take on a small image.

The peer is the interpreter that runs it, told to do nothing: what is above that is ours. The byte
code of both is cached (the warm-up run has compiled it). `qemu-img` is shown where it has the same
command.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

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

METRICS = [
    Metric("wall ms", "ms", target=Target(3.0)),
    Metric("CPU", "s"),
]
ROUNDS_FACTOR = 6  # a run takes milliseconds


@dataclass(frozen=True, slots=True)
class Case:
    """A command line. IMAGE, OTHER and OVERLAY are there; TARGET is not.

    says    what must be in its output
    code    how it ends
    qemu    whether qemu-img has the same
    """

    words: str
    says: str = ""
    code: int = 0
    qemu: bool = True


CASES = {
    "version": Case("--version", "blk"),
    "help": Case("help convert", "--resume", qemu=False),
    "info": Case("info IMAGE", "file format: qed"),
    "info-json": Case("info --output=json IMAGE", '"format": "qed"'),
    "info-untrusted": Case("info --untrusted IMAGE", "qed", qemu=False),
    "map": Case("map IMAGE", "Offset"),
    "map-json": Case("map --output=json IMAGE", '"start": 0'),
    "check": Case("check IMAGE", "No errors"),
    "compare": Case("compare IMAGE OTHER", "identical"),
    "measure": Case("measure -O qed IMAGE", "required size", qemu=False),
    "digest": Case("digest IMAGE", "tree-sha256", qemu=False),
    "convert": Case("convert IMAGE TARGET"),
    "convert-qed": Case("convert -O qed IMAGE TARGET"),
    "convert-verify": Case("convert --verify IMAGE TARGET", qemu=False),
    "convert-resume": Case("convert --resume IMAGE TARGET", qemu=False),
    "dd": Case("dd if=IMAGE of=TARGET bs=64k count=4"),
    "create": Case("create -q -f qed TARGET 64M"),
    "resize": Case("resize IMAGE 64M", "resized"),
    "rebase": Case("rebase -u -b OTHER -F qed OVERLAY"),
    "commit": Case("commit -q -d OVERLAY"),
    "bench": Case("bench -c 1 IMAGE", "completed"),
    "snapshot": Case("snapshot -l IMAGE"),
    "bitmap": Case("bitmap --add IMAGE b", code=1),
    "amend": Case("amend -o compat=1.1 IMAGE", code=1),
    "mirror": Case("mirror IMAGE TARGET", qemu=False),
    "io": Case("io -c length IMAGE", "64 MiB", qemu=False),
    "nbd-list": Case("nbd --list --socket=TARGET", code=1, qemu=False),
    "completion": Case("completion bash", "blk", qemu=False),
}


def side(program: Sequence[str], case: Case, places: dict[str, Path]) -> Side:
    words = case.words
    for name, path in places.items():
        words = words.replace(name, str(path))
    argv = [*program, *words.split()]

    def prepare() -> None:
        places["TARGET"].unlink(missing_ok=True)

    def run_side(_: int) -> Sample:
        usage = run(argv, allowed=(case.code,))
        if case.says not in usage.stdout:
            raise VerificationFailed(f"{argv} does not say {case.says!r}: {usage.stdout}")
        return process_sample(usage)

    return Side(f"{Path(program[-1]).name} {case.words}", run_side, prepare)


def nothing(_: int) -> Sample:
    return process_sample(run([sys.executable, "-c", "pass"]))


def small_images(context: Context) -> dict[str, Path]:
    places = {name: context.images.scratch(f"{name.lower()}.img") for name in NAMES}
    for name in ("IMAGE", "OTHER"):
        run(["qemu-img", "create", "-q", "-f", "qed", str(places[name]), "64M"])
        write = ["qemu-io", "-f", "qed", "-c", "write -q -P 1 0 256k", str(places[name])]
        run(write)
    below = ["-b", str(places["OTHER"]), "-F", "qed"]
    run(["qemu-img", "create", "-q", "-f", "qed", *below, str(places["OVERLAY"])])
    return places


NAMES = ("IMAGE", "OTHER", "OVERLAY", "TARGET")


def startup_bench(name: str, case: Case) -> Callable[[Context], Iterable[Comparison]]:
    def run_bench(context: Context) -> Iterable[Comparison]:
        places = small_images(context)
        references = [side(["qemu-img"], case, places)] if case.qemu else []
        yield Comparison(
            f"startup/{name}",
            METRICS,
            side(context.blk, case, places) if context.blk is not None else None,
            [Side("python3 -c pass", nothing)],
            references=references,
            rounds_factor=ROUNDS_FACTOR,
        )

    return run_bench


for case_name, each in CASES.items():
    bench(f"startup/{case_name}")(startup_bench(case_name, each))
