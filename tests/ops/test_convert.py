# SPDX-License-Identifier: Apache-2.0
"""Converting: the same bytes whatever the source and the target, or no target at all."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer import (
    BlocklayerError,
    Cancelled,
    CancelToken,
    CreateError,
    InvalidArgument,
    IoError,
    NotSupported,
    OpenError,
)
from blocklayer.base.align import align_up
from blocklayer.base.units import KiB, MiB
from blocklayer.ops.source_guard import refuse_same_file
from tests.foreign import qemu
from tests.ops.images import (
    CLUSTER,
    SMALL,
    Layer,
    Watcher,
    base,
    cancelled_everywhere,
    chain,
    content,
    faulty,
    files,
    make,
    model_of,
    options_of,
    overlay,
    unchanged,
)
from tests.support import needs
from tests.support.mounts import needs_loop, shown_as_device

FORMATS = ("raw", "qed")


def convert(source: Layer, target: Path, format: str = "qed", **options: Any) -> Layer:
    """Convert one image; the target as it has to be."""
    result = blocklayer.convert(
        source.path,
        target,
        source_format=source.format,
        format=format,
        options=options_of(format),
        **options,
    )
    assert result.size == source.model.size
    assert result.data + result.zero == result.size
    return Layer(target, model_of(source.content), format)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bottom", FORMATS)
def test_chains_become_one_image(
    tmp_path: Path, rng: random.Random, bottom: str, format: str
) -> None:
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        sizes = [rng.choice((0, 512, 30000, 70000, 3 * MiB)) for _ in range(3)]
        layers = chain(folder, rng, *sizes, bottom=bottom)
        with unchanged(folder):
            for layer in layers:
                convert(layer, tmp_path / "target", format).check()
                assert blocklayer.info(tmp_path / "target").backing_filename is None


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 4095, 4097, 100001, 2 * MiB + 1])
def test_files_of_odd_lengths(tmp_path: Path, rng: random.Random, length: int, format: str) -> None:
    source = make(tmp_path / "source", rng.randbytes(length))
    target = convert(source, tmp_path / "target", format)
    target.check()
    assert target.model.size == align_up(length, 512)
    assert source.path.read_bytes() == source.content[:length]


@needs("qemu-img")
def test_qemu_agrees(tmp_path: Path, rng: random.Random) -> None:
    top = chain(tmp_path, rng, 700000, 3 * MiB, 2 * MiB)[-1]
    convert(top, tmp_path / "target")
    qemu.img("check", "-f", "qed", tmp_path / "target")
    qemu.img("compare", "-f", "qed", "-F", "qed", top.path, tmp_path / "target")


def test_several_sources(tmp_path: Path, rng: random.Random) -> None:
    """One after the other, each rounded up to sectors; the empty ones do not matter."""
    layers = [
        make(tmp_path / str(number), rng.randbytes(length))
        for number, length in enumerate((1000, 0, 2 * MiB + 5, 512, 1))
    ]
    whole = b"".join(layer.content for layer in layers)
    for format in FORMATS:
        watch = Watcher("convert")
        result = blocklayer.convert(
            tuple(layer.path for layer in layers),
            tmp_path / "target",
            source_format="raw",
            format=format,
            progress=watch,
        )
        assert result.size == len(whole) == watch.seen[-1].total
        assert watch.finished
        assert content(tmp_path / "target", format) == whole
    twice = blocklayer.convert([layers[0].path] * 2, tmp_path / "target", source_format="raw")
    assert twice.size == 2 * layers[0].model.size
    with unchanged(tmp_path), pytest.raises(InvalidArgument, match="no source image"):
        blocklayer.convert([], tmp_path / "new")


# --- zeroes ---


def allocated(path: Path) -> int:
    return blocklayer.check(path).allocated_clusters


@pytest.mark.parametrize("sparse_size", [0, 512, 4096, 8192, 64 * KiB])
@pytest.mark.parametrize("format", FORMATS)
def test_runs_of_zeroes(tmp_path: Path, rng: random.Random, sparse_size: int, format: str) -> None:
    """Whole blocks of the granularity that are zero are not data; the bytes are the same."""
    size = 512 * KiB
    data = bytearray(size)
    for _ in range(20):
        start = rng.randrange(size)
        data[start : start + 700] = rng.randbytes(min(700, size - start))
    source = make(tmp_path / "source", bytes(data))
    target = tmp_path / "target"
    result = blocklayer.convert(
        source.path,
        target,
        source_format="raw",
        format=format,
        sparse_size=sparse_size,
        options=options_of(format),
    )
    assert content(target, format) == source.content
    blocks = range(0, size, sparse_size or size)
    expected = sum(any(data[start : start + (sparse_size or size)]) for start in blocks)
    assert result.data == expected * (sparse_size or size)
    assert result.zero == size - result.data
    if format == "qed" and not sparse_size:
        assert allocated(target) >= size // CLUSTER


@pytest.mark.parametrize("format", FORMATS)
def test_without_looking_for_zeroes_everything_is_allocated(tmp_path: Path, format: str) -> None:
    blocklayer.create(tmp_path / "empty", format="qed", size=MiB, **SMALL)
    target = tmp_path / "target"
    blocklayer.convert(
        tmp_path / "empty", target, format=format, sparse_size=0, options=options_of(format)
    )
    if format == "qed":
        assert all(extent.data for extent in blocklayer.map(target))
    assert target.stat().st_blocks * 512 >= MiB
    assert content(target, format) == bytes(MiB)


@pytest.mark.parametrize("sparse_size", [-512, 1, 511, 16 * MiB + 512, 1 << 40])
def test_granularities_that_are_refused(tmp_path: Path, sparse_size: int) -> None:
    make(tmp_path / "source", b"x")
    with unchanged(tmp_path), pytest.raises(InvalidArgument, match="multiples of 512"):
        blocklayer.convert(tmp_path / "source", tmp_path / "target", sparse_size=sparse_size)


# --- onto a backing file ---


@pytest.mark.parametrize("below_size", [0, 512, 100000, 700000])
def test_only_differences_are_written(tmp_path: Path, rng: random.Random, below_size: int) -> None:
    below = base(tmp_path / "below", below_size, rng)
    source = overlay(tmp_path / "source", below, rng, 300000)
    target = tmp_path / "folder" / "target"
    target.parent.mkdir()
    with unchanged(tmp_path):
        blocklayer.convert(
            source.path,
            target,
            format="qed",
            options={**SMALL, "backing_file": "../below", "backing_fmt": "raw"},
        )
    assert content(target) == source.content
    assert blocklayer.info(target).backing_filename == "../below"
    # Zeroes are written over whatever is not known to be zero, also if it is.
    common = min(len(source.content), len(below.content))
    for start in range(0, common - CLUSTER, CLUSTER):
        cluster = slice(start, start + CLUSTER)
        if source.content[cluster] == below.content[cluster] and any(source.content[cluster]):
            extent = next(blocklayer.map(target, offset=start, length=CLUSTER))
            assert extent.depth or not extent.present
    assert blocklayer.check(target).clean


def test_a_target_longer_than_its_source(tmp_path: Path, rng: random.Random) -> None:
    """Zeroes follow, not what the backing file has there."""
    below = make(tmp_path / "below", b"x" * 100000)
    source = make(tmp_path / "source", rng.randbytes(20000))
    for size in (source.model.size, 20992, 100352, 200192):
        blocklayer.convert(
            source.path,
            tmp_path / "target",
            source_format="raw",
            format="qed",
            options={"size": size, "backing_file": "below", "backing_fmt": "raw", **SMALL},
        )
        assert content(tmp_path / "target") == source.content.ljust(size, b"\0")
        blocklayer.convert(
            source.path, tmp_path / "plain", source_format="raw", options={"size": size}
        )
        assert content(tmp_path / "plain", "raw") == source.content.ljust(size, b"\0")
    with pytest.raises(InvalidArgument, match="smaller than input"):
        blocklayer.convert(source.path, tmp_path / "short", options={"size": 512})
    assert not (tmp_path / "short").exists()
    assert below.path.read_bytes() == b"x" * 100000


# --- targets ---


@pytest.mark.parametrize("format", FORMATS)
def test_a_target_that_exists_is_made_anew(tmp_path: Path, rng: random.Random, format: str) -> None:
    source = base(tmp_path / "source", 100000, rng)
    for old in FORMATS:
        make(tmp_path / "target", b"old" * 200000, old)
        convert(source, tmp_path / "target", format).check()
        assert b"oldold" not in (tmp_path / "target").read_bytes()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("told", [None, "the format"])
def test_into_an_image_that_is_there(
    tmp_path: Path, rng: random.Random, format: str, told: str | None
) -> None:
    """What lies behind the source stays."""
    source = base(tmp_path / "source", 100000, rng, "qed")
    target = make(tmp_path / "target", rng.randbytes(200192), format)
    for name in (target.path, {"driver": format, "file.filename": str(target.path)}):
        blocklayer.convert(
            source.path, name, format=format if told else None, create=False, cache="writeback"
        )
        expected = source.content + target.content[len(source.content) :]
        assert content(target.path, format) == expected
    short = make(tmp_path / "short", b"x" * 512, format)
    with pytest.raises(InvalidArgument, match="smaller than input"):
        blocklayer.convert(source.path, short.path, format=format, create=False)
    assert content(short.path, format) == b"x" * 512
    with pytest.raises(OpenError, match="No such file"):
        blocklayer.convert(source.path, tmp_path / "missing", create=False)


def test_into_an_overlay_that_is_there(tmp_path: Path, rng: random.Random) -> None:
    layers = chain(tmp_path, rng, 300000, 250000, 280000)
    source = base(tmp_path / "source", 200000, rng)
    before = layers[0].path.read_bytes(), layers[1].path.read_bytes()
    top = layers[-1]
    blocklayer.convert(source.path, top.path, source_format="raw", format="qed", create=False)
    assert content(top.path) == source.content + top.content[len(source.content) :]
    assert (layers[0].path.read_bytes(), layers[1].path.read_bytes()) == before


def test_a_target_that_is_known_to_be_zero(tmp_path: Path, rng: random.Random) -> None:
    source = base(tmp_path / "source", MiB, rng)
    for format in FORMATS:
        target = tmp_path / format
        blocklayer.create(target, format=format, size=MiB, **options_of(format))
        blocklayer.convert(
            source.path,
            target,
            source_format="raw",
            format=format,
            create=False,
            target_is_zero=True,
        )
        assert content(target, format) == source.content
        assert not any(
            extent.present and extent.zero and format == "qed" for extent in blocklayer.map(target)
        )
    with unchanged(tmp_path), pytest.raises(InvalidArgument, match="target-is-zero"):
        blocklayer.convert(source.path, tmp_path / "raw", target_is_zero=True)


def test_no_target_is_a_source_that_was_renamed(tmp_path: Path, rng: random.Random) -> None:
    """The file that is open counts, and not what its name means by now."""
    layer = make(tmp_path / "image", rng.randbytes(MiB))
    with blocklayer.open(layer.path, format="raw", force_share=True) as disk:
        layer.path.rename(tmp_path / "target")
        make(tmp_path / "image", b"x" * 512)
        with pytest.raises(InvalidArgument, match="part of the source"):
            refuse_same_file([disk], tmp_path / "target")
        refuse_same_file([disk], tmp_path / "image")


def test_no_target_is_a_part_of_its_source(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = chain(tmp_path, rng, 50000, 60000, 70000)
    other = make(tmp_path / "other", b"x" * 512)
    os.link(layers[0].path, tmp_path / "hard")
    (tmp_path / "soft").symlink_to("1.qed")
    monkeypatch.chdir(tmp_path)
    names: list[Any] = [layer.path for layer in layers]
    names += ["hard", "soft", "file:1.qed", Path("0.raw"), f"{tmp_path}/../{tmp_path.name}/2.qed"]
    for name in names:
        for sources in (layers[-1].path, [other.path, layers[-1].path]):
            with unchanged(tmp_path), pytest.raises(InvalidArgument, match="part of the source"):
                blocklayer.convert(sources, name, format="qed")
    # Nor where nothing is created, whatever the locks say and the options call it.
    image = {"driver": "qed", "file": {"driver": "file", "filename": str(tmp_path / "hard")}}
    for target in (*names, {"driver": "raw", "file": image["file"]}):
        with unchanged(tmp_path), pytest.raises(InvalidArgument, match="part of the source"):
            blocklayer.convert(layers[-1].path, target, format=None, create=False, force_share=True)


@needs_loop()
@pytest.mark.parametrize("create", [True, False])
def test_a_loop_device_is_the_file_that_it_shows(
    tmp_path: Path, rng: random.Random, create: bool
) -> None:
    layer = make(tmp_path / "image", rng.randbytes(MiB))
    with shown_as_device(layer.path) as device:
        for source, target in ((device, layer.path), (layer.path, device), (device, device)):
            with unchanged(tmp_path), pytest.raises(InvalidArgument, match="part of the source"):
                blocklayer.convert(
                    source, target, source_format="raw", create=create, force_share=True
                )


@needs_loop()
@pytest.mark.parametrize("create", [True, False])
def test_a_device_keeps_what_lies_behind_the_copy(
    tmp_path: Path, rng: random.Random, create: bool
) -> None:
    source, below = rng.randbytes(MiB), rng.randbytes(2 * MiB)
    (tmp_path / "source").write_bytes(source)
    (tmp_path / "below").write_bytes(below)
    with shown_as_device(tmp_path / "below") as device:
        blocklayer.convert(
            tmp_path / "source", device, source_format="raw", create=create, verify=True
        )
        with blocklayer.open(device, format="raw") as disk:
            assert disk.read(0, 2 * MiB) == source + below[MiB:]


def test_an_overlay_that_is_there_gets_everything(tmp_path: Path, rng: random.Random) -> None:
    """Unless its backing file is relied on, as the caller says: it may get another one."""
    for relied_on in (False, True):
        base_path, over = tmp_path / f"base{relied_on}", tmp_path / f"over{relied_on}"
        source = make(tmp_path / f"source{relied_on}", rng.randbytes(MiB) + bytes(MiB), "qed")
        below = bytearray(source.content)
        below[300000:310000] = b"x" * 10000
        make(base_path, bytes(below), "qed")
        blocklayer.create(over, format="qed", backing=base_path, backing_format="qed")
        blocklayer.convert(
            source.path,
            over,
            format="qed",
            create=False,
            options={"backing_file": base_path} if relied_on else {},
        )
        assert content(over) == source.content
        space = over.stat().st_blocks * 512
        blocklayer.rebase(over, None, unsafe=True)
        assert (content(over) == source.content) is not relied_on
        assert space < 256 * KiB if relied_on else space >= MiB


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_wrong_from_the_start_costs_no_file(tmp_path: Path, format: str) -> None:
    source = make(tmp_path / "source", b"s" * MiB)
    (tmp_path / "target").write_bytes(b"keep me")
    for size in ("512k", "7E"):
        with unchanged(tmp_path), pytest.raises(BlocklayerError):
            blocklayer.convert(
                source.path, tmp_path / "target", format=format, options={"size": size}
            )


def test_an_image_in_use_stays(tmp_path: Path, rng: random.Random) -> None:
    source = base(tmp_path / "source", 100000, rng)
    target = make(tmp_path / "target", b"x" * 100000)
    with (
        blocklayer.open(target.path),
        unchanged(tmp_path),
        pytest.raises(BlocklayerError, match="lock"),
    ):
        blocklayer.convert(source.path, target.path, source_format="raw")
    with blocklayer.open(source.path, mode="r+", format="raw") as disk:
        with unchanged(tmp_path), pytest.raises(OpenError, match="lock"):
            blocklayer.convert(source.path, tmp_path / "new", source_format="raw")
        disk.write(0, b"during")
        blocklayer.convert(source.path, tmp_path / "new", source_format="raw", force_share=True)
    assert content(tmp_path / "new", "raw")[:6] == b"during"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"format": "nonsense"}, InvalidArgument, "Unknown file format"),
        ({"format": "fault"}, InvalidArgument, "Unknown file format"),
        ({"source_format": "nonsense"}, OpenError, "Unknown driver"),
        ({"source_format": "qed"}, OpenError, "QED"),
        ({"options": {"nonsense": 1}}, CreateError, "Invalid parameter"),
        ({"options": {"size": "x"}}, CreateError, "Invalid image size"),
        ({"options": {"backing_file": "source"}}, CreateError, "not supported for file format"),
        ({"cache": "hot"}, InvalidArgument, "Invalid cache option"),
        ({"source_cache": "hot"}, InvalidArgument, "Invalid cache option"),
    ],
)
def test_arguments_that_are_refused(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    make(tmp_path / "source", b"x")
    with unchanged(tmp_path), pytest.raises(error, match=words):
        blocklayer.convert(tmp_path / "source", tmp_path / "target", **arguments)


@pytest.mark.parametrize("target", ["", "json:{}", "a\0b", b"bytes", {"filename": "x"}])
def test_targets_that_are_no_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any
) -> None:
    make(tmp_path / "source", b"x")
    monkeypatch.chdir(tmp_path)
    with unchanged(tmp_path), pytest.raises((InvalidArgument, CreateError, NotSupported)):
        blocklayer.convert("source", target)


@pytest.mark.parametrize("name", ["new\nline", "c:colon", os.fsdecode(b"\xff\xfe"), "with space"])
def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name, b"x" * 512)
    blocklayer.convert(name, f"{name} 2", source_format="raw", format="qed")
    blocklayer.convert(f"file:{name} 2", Path(f"{name} 3"))
    assert Path(f"{name} 3").read_bytes() == b"x" * 512


@pytest.mark.parametrize("cache", ["writeback", "none", "writethrough", "directsync", "unsafe"])
def test_cache_modes(tmp_path: Path, rng: random.Random, cache: str) -> None:
    source = base(tmp_path / "source", 100000, rng)
    for format in FORMATS:
        target = convert(source, tmp_path / format, format, cache=cache, source_cache=cache)
        target.check()


# --- progress, cancellation, failures ---


@pytest.fixture
def big(tmp_path: Path, rng: random.Random) -> Layer:
    """Data and holes, for a number of steps."""
    pieces = [rng.randbytes(MiB), bytes(3 * MiB), rng.randbytes(2 * MiB), bytes(MiB)]
    return make(tmp_path / "source", b"".join(pieces * 2))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("existed", ["no", "yes", "link"])
def test_cancelling_at_every_step(tmp_path: Path, big: Layer, format: str, existed: str) -> None:
    target = tmp_path / "folder" / "target"
    target.parent.mkdir()
    watch = Watcher("convert")
    convert(big, target, format, progress=watch)
    assert watch.finished
    assert watch.seen[0].done == 0
    assert content(target, format) == big.content
    for step in cancelled_everywhere("convert", len(watch.seen)):
        for name in os.listdir(target.parent):
            (target.parent / name).unlink()
        if existed == "yes":
            target.write_bytes(b"old")
        elif existed == "link":
            (target.parent / "real").write_bytes(b"old")
            target.symlink_to("real")
        with pytest.raises(Cancelled, match="convert was cancelled"):
            convert(big, target, format, progress=step, cancel=step.token)
        # A link stays: the next try goes where this one went.
        assert os.listdir(target.parent) == (["target"] if existed == "link" else [])
    assert big.path.read_bytes() == big.content


def test_a_cancelled_conversion_into_an_image_that_was_there(tmp_path: Path, big: Layer) -> None:
    """Its file is the user's: it stays."""
    target = make(tmp_path / "target", bytes(big.model.size), "qed")
    step = Watcher("convert", cancel_at=3)
    with pytest.raises(Cancelled):
        blocklayer.convert(
            big.path,
            target.path,
            source_format="raw",
            format="qed",
            create=False,
            progress=step,
            cancel=step.token,
        )
    assert not blocklayer.check(target.path).corruptions


def test_a_callback_that_fails(tmp_path: Path, big: Layer) -> None:
    for step in (1, 2, 3):
        with pytest.raises(ZeroDivisionError):
            convert(big, tmp_path / "target", progress=Watcher("convert", fail_at=step))
        assert list(files(tmp_path)) == ["source"]


def test_a_slow_copy_can_be_cancelled(tmp_path: Path, big: Layer) -> None:
    token = CancelToken()
    timer = threading.Timer(0.2, token.cancel)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        convert(big, tmp_path / "target", rate_limit=1000, cancel=token)
    timer.join()
    assert 0.2 <= time.monotonic() - started < 5
    assert list(files(tmp_path)) == ["source"]


def test_a_limit_on_the_rate(tmp_path: Path, rng: random.Random) -> None:
    """Of data: zeroes cost nothing."""
    source = make(tmp_path / "source", rng.randbytes(512 * KiB) + bytes(20 * MiB))
    started = time.monotonic()
    convert(source, tmp_path / "target", rate_limit=2 * MiB)
    assert 0.25 <= time.monotonic() - started < 5


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("link", [False, True])
def test_a_full_disk(
    tmp_path: Path,
    big: Layer,
    full_disk: Callable[[int], AbstractContextManager[None]],
    format: str,
    link: bool,
) -> None:
    target = tmp_path / "folder" / "target"
    target.parent.mkdir()
    for length in (0, 4096, 100000, 3 * MiB + 12345, 5 * MiB):
        if link:
            (target.parent / "real").write_bytes(b"")
            target.symlink_to("real")
        with full_disk(length), pytest.raises((IoError, CreateError), match="too large"):
            convert(big, target, format, sparse_size=0)
        assert os.listdir(target.parent) == (["target"] if link else [])
        target.unlink(missing_ok=True)


def test_a_source_that_fails(tmp_path: Path, big: Layer) -> None:
    """At any of its requests."""
    for nth in range(1, 30):
        try:
            result = blocklayer.convert(
                faulty(big.path, "raw", {"nth": nth}), tmp_path / "target", format="qed"
            )
        except (IoError, OpenError):
            assert list(files(tmp_path)) == ["source"]
        else:
            break
    assert nth > 3
    assert result.size == big.model.size
    assert content(tmp_path / "target") == big.content


def test_a_target_that_fails(tmp_path: Path, rng: random.Random) -> None:
    """Of an image that was there, whatever fails: it opens, and holds only old and new bytes."""
    source = make(tmp_path / "source", rng.randbytes(200 * KiB))
    for nth in range(1, 60):
        blocklayer.create(tmp_path / "target", format="qed", size=200 * KiB, **SMALL)
        rule = {"nth": nth, "errno": errno.ENOSPC}
        try:
            blocklayer.convert(
                source.path,
                faulty(tmp_path / "target", "qed", rule),
                source_format="raw",
                format="qed",
                create=False,
                cache="writeback",
            )
        except (IoError, OpenError):
            shown = content(tmp_path / "target")
            for start in range(0, len(shown), CLUSTER):
                piece = shown[start : start + CLUSTER]
                assert piece in (bytes(CLUSTER), source.content[start : start + CLUSTER])
            assert not blocklayer.check(tmp_path / "target").corruptions
        else:
            break
    assert nth > 3
    assert content(tmp_path / "target") == source.content


@pytest.mark.parametrize("sectors", [[], [0], [5, 6, 7], [3, 100, 399]])
def test_what_can_be_salvaged(tmp_path: Path, rng: random.Random, sectors: list[int]) -> None:
    source = make(tmp_path / "source", rng.randbytes(400 * 512))
    bad = faulty(source.path, "raw", *({"iotype": "read", "sector": sector} for sector in sectors))
    expected = bytearray(source.content)
    for sector in sectors:
        expected[sector * 512 : (sector + 1) * 512] = bytes(512)
    result = blocklayer.convert(bad, tmp_path / "target", format="qed", salvage=True)
    assert content(tmp_path / "target") == expected
    lost = {
        offset for start, length in result.salvaged for offset in range(start, start + length, 512)
    }
    assert lost == {sector * 512 for sector in sectors}
    if sectors:
        with pytest.raises(IoError, match="read failed"):
            blocklayer.convert(bad, tmp_path / "other", format="qed")
        assert not (tmp_path / "other").exists()


def test_without_permission(
    public_path: Path, rng: random.Random, as_nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    source = base(public_path / "source", 100000, rng)
    target = make(public_path / "target", b"x" * 200000)
    for layer in (source, target):
        layer.path.chmod(0o444)
    with unchanged(public_path), as_nobody():
        for name in ("target", "new"):
            with pytest.raises(CreateError, match="Permission denied"):
                blocklayer.convert(source.path, public_path / name, source_format="raw")
        with pytest.raises(OpenError, match="Permission denied"):
            blocklayer.convert(source.path, target.path, source_format="raw", create=False)
