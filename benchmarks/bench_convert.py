# SPDX-License-Identifier: Apache-2.0
"""`blk convert` beside `qemu-img convert`: from raw to QED and back, raw to raw, a chain to raw.

Both have the same options with the same defaults (the target is not flushed). qemu-img runs with
its defaults and with the options that make it faster; the best of them is the peer. `cp` shows
what the kernel needs for a plain copy. The source is in the page cache, the target does not exist.

The guest bytes of every target are compared with the source by qemu-img. Ours are hashed as well:
those of a QED target as blocklayer reads them, those of a raw target as they are in the file.
"""

from __future__ import annotations

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
from benchmarks.process import run, run_worker

QEMU_OPTIONS: dict[str, Sequence[str]] = {
    "qemu-img": (),
    "qemu-img -W": ("-W",),
    "qemu-img -m 16": ("-m", "16"),
    "qemu-img -W -m 16": ("-W", "-m", "16"),
}
METRICS = [
    Metric("wall", "s", target=Target(1.0)),
    Metric("CPU", "s"),
    Metric("peak RSS", "MiB", Kind.MAXIMUM, Target(100, strict=True)),
    Metric("allocated", "MiB"),
]


def guest_sha256(path: Path, format_name: str) -> str:
    """The digest of what an image holds, not asking qemu-img."""
    if format_name == "raw":
        return images.sha256(path)
    _, answer = run_worker("digest", {"path": str(path), "format": format_name})
    return str(answer["sha256"])


def one_way(
    context: Context,
    name: str,
    raw: Path,
    *,
    source_format: str,
    target_format: str,
    source: Path | None = None,
) -> Iterable[Comparison]:
    if source is None:
        source = raw if source_format == "raw" else context.images.qed(raw)
    target = context.directory / f"target.{target_format}"
    digest = images.sha256(raw)

    def prepare() -> None:
        target.unlink(missing_ok=True)
        images.warm(source)

    def verify() -> None:
        images.same_guest_bytes(raw, "raw", target, target_format)
        if target_format != "raw":
            images.sound(target, target_format)

    def verify_ours() -> None:
        verify()
        if guest_sha256(target, target_format) != digest:
            raise VerificationFailed(f"the SHA-256 of {target.name} is not that of {source.name}")

    def command(*argv: str) -> Callable[[int], Sample]:
        def run_side(_: int) -> Sample:
            usage = run(argv)
            return process_sample(usage, allocated=images.allocated_mib(target))

        return run_side

    def convert(program: Sequence[str], options: Sequence[str]) -> Callable[[int], Sample]:
        formats = ["-f", source_format, "-O", target_format]
        return command(*program, "convert", *options, *formats, str(source), str(target))

    ours = None
    if context.blk is not None:
        ours = Side("blk", convert(context.blk, ()), prepare, verify_ours)
    peers = [
        Side(label, convert(["qemu-img"], options), prepare, verify)
        for label, options in QEMU_OPTIONS.items()
    ]
    copy = Side("cp", command("cp", str(source), str(target)), prepare)
    page_cache = int(images.allocated_mib(source)) * MiB
    yield Comparison(name, METRICS, ours, peers, references=[copy], page_cache=page_cache)
    target.unlink(missing_ok=True)


@bench("convert/random-raw-qed")
def random_raw_qed(context: Context) -> Iterable[Comparison]:
    raw = context.images.random(context.pick(1024 * MiB, quick=128 * MiB))
    name = "convert/random-raw-qed"
    yield from one_way(context, name, raw, source_format="raw", target_format="qed")


@bench("convert/random-qed-raw")
def random_qed_raw(context: Context) -> Iterable[Comparison]:
    raw = context.images.random(context.pick(1024 * MiB, quick=128 * MiB))
    name = "convert/random-qed-raw"
    yield from one_way(context, name, raw, source_format="qed", target_format="raw")


@bench("convert/mixed-raw-qed")
def mixed_raw_qed(context: Context) -> Iterable[Comparison]:
    raw = context.images.mixed(context.pick(2048 * MiB, quick=256 * MiB))
    name = "convert/mixed-raw-qed"
    yield from one_way(context, name, raw, source_format="raw", target_format="qed")


@bench("convert/mixed-qed-raw")
def mixed_qed_raw(context: Context) -> Iterable[Comparison]:
    raw = context.images.mixed(context.pick(2048 * MiB, quick=256 * MiB))
    name = "convert/mixed-qed-raw"
    yield from one_way(context, name, raw, source_format="qed", target_format="raw")


@bench("convert/random-raw-raw")
def random_raw_raw(context: Context) -> Iterable[Comparison]:
    raw = context.images.random(context.pick(1024 * MiB, quick=128 * MiB))
    name = "convert/random-raw-raw"
    yield from one_way(context, name, raw, source_format="raw", target_format="raw")


@bench("convert/mixed-raw-raw")
def mixed_raw_raw(context: Context) -> Iterable[Comparison]:
    raw = context.images.mixed(context.pick(2048 * MiB, quick=256 * MiB))
    name = "convert/mixed-raw-raw"
    yield from one_way(context, name, raw, source_format="raw", target_format="raw")


@bench("convert/chain-raw")
def chain_raw(context: Context) -> Iterable[Comparison]:
    """Three layers: a raw file, and two overlays with a part of the clusters each."""
    below = context.images.mixed(context.pick(2048 * MiB, quick=256 * MiB))
    size = below.stat().st_size
    layers = [context.directory / "middle.qed", context.directory / "top.qed"]
    backing, backing_format = below, "raw"
    for number, layer in enumerate(layers, 1):
        options = ["-b", str(backing), "-F", backing_format]
        run(["qemu-img", "create", "-q", "-f", "qed", *options, str(layer), str(size)])
        writes = [
            word
            for start in range(number * MiB, size, 5 * MiB)
            for word in ("-c", f"write -q -P {number} {start} 300k")
        ]
        run(["qemu-io", "-f", "qed", "-t", "writeback", *writes, str(layer)])
        backing, backing_format = layer, "qed"
    flat = context.directory / "flat.raw"
    run(["qemu-img", "convert", "-f", "qed", "-O", "raw", str(layers[-1]), str(flat)])
    name = "convert/chain-raw"
    yield from one_way(
        context, name, flat, source_format="qed", target_format="raw", source=layers[-1]
    )
    for path in (*layers, flat):
        path.unlink()
