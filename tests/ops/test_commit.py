# SPDX-License-Identifier: Apache-2.0
"""Committing: the base reads as the overlay did, and so does the overlay, whatever happens."""

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
    Cancelled,
    CancelToken,
    InvalidArgument,
    IoError,
    LockError,
    OpenError,
)
from blocklayer.base.units import KiB, MiB
from tests.foreign import qemu
from tests.ops.images import (
    SMALL,
    Layer,
    Watcher,
    base,
    cancelled_everywhere,
    chain,
    content,
    faulty,
    make,
    overlay,
    unchanged,
)
from tests.support import needs

SIZES = (0, 512, 50 * KiB, 100 * KiB + 512, 200 * KiB)


def committed(top: Layer, below: Layer) -> bytes:
    """What the base has to be: the overlay, and its own rest if it is longer."""
    return top.content + below.content[len(top.content) :]


def is_empty(layer: Layer) -> bool:
    return not any(extent.present and not extent.depth for extent in blocklayer.map(layer.path))


@pytest.mark.parametrize("below_size", SIZES)
@pytest.mark.parametrize("top_size", SIZES)
@pytest.mark.parametrize("bottom", ["raw", "qed"])
def test_into_the_layer_below(
    tmp_path: Path, rng: random.Random, below_size: int, top_size: int, bottom: str
) -> None:
    below, top = chain(tmp_path, rng, below_size, top_size, bottom=bottom)
    expected = committed(top, below)
    watch = Watcher("commit")
    assert blocklayer.commit(top.path, progress=watch) == str(below.path)
    assert watch.finished
    assert content(below.path, bottom) == expected
    assert content(top.path) == top.content
    assert is_empty(top)
    assert blocklayer.check(top.path).clean
    if bottom == "qed":
        assert blocklayer.check(below.path).clean


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("attempt", range(4))
def test_into_any_layer_of_a_chain(
    tmp_path: Path, rng: random.Random, depth: int, attempt: int
) -> None:
    """Layers between, shorter and longer ones, are not touched; nor are those under the base."""
    layers = chain(tmp_path, rng, *(rng.choice(SIZES) for _ in range(4)), bottom="qed")
    top, below = layers[-1], layers[-1 - depth]
    expected = committed(top, below)
    others = [layer for layer in layers if layer not in (top, below)]
    before = [layer.path.read_bytes() for layer in others]
    name = rng.choice((below.path, below.path.name, str(below.path)))
    assert blocklayer.commit(top.path, base=name) == str(below.path)
    assert content(below.path) == expected
    assert content(top.path) == top.content
    assert [layer.path.read_bytes() for layer in others] == before
    assert is_empty(top) or depth > 1
    for layer in layers:
        assert blocklayer.check(layer.path).clean


@pytest.mark.parametrize("keep", [False, True])
def test_the_overlay_can_be_kept(tmp_path: Path, rng: random.Random, keep: bool) -> None:
    below, top = chain(tmp_path, rng, 100 * KiB, 100 * KiB)
    before = top.path.read_bytes()
    blocklayer.commit(top.path, keep=keep)
    assert (top.path.read_bytes() == before) is keep
    assert is_empty(top) is not keep
    assert content(top.path) == content(below.path, "raw") == top.content
    with blocklayer.open(top.path, mode="r+") as disk:
        disk.write(1000, b"again")
    blocklayer.commit(top.path)
    assert content(below.path, "raw")[1000:1005] == b"again"


@needs("qemu-img")
def test_qemu_agrees(tmp_path: Path, rng: random.Random) -> None:
    layers = chain(tmp_path, rng, 90 * KiB, 200 * KiB, 300 * KiB, bottom="qed")
    flat = make(tmp_path / "flat", layers[-1].content)
    for _ in range(2):
        blocklayer.commit(layers[-1].path)
        for layer in layers:
            qemu.img("check", "-f", "qed", layer.path)
        qemu.img("compare", "-f", "raw", "-F", "qed", flat.path, layers[-2].path)
        layers.pop()


def test_a_base_that_grows_over_a_longer_image(tmp_path: Path, rng: random.Random) -> None:
    """What lies under the base must not come up where the base had ended."""
    layers = [base(tmp_path / "0", 300 * KiB, rng)]
    layers.append(overlay(tmp_path / "1", layers[-1], rng, 50 * KiB))
    layers.append(overlay(tmp_path / "2", layers[-1], rng, 250 * KiB))
    blocklayer.commit(layers[2].path)
    assert content(layers[1].path) == content(layers[2].path) == layers[2].content
    layers[0].check()


def test_raw_bases_of_odd_lengths(tmp_path: Path, rng: random.Random) -> None:
    for length in (1, 511, 513, 5000):
        below = make(tmp_path / "below", rng.randbytes(length))
        blocklayer.create(tmp_path / "top", format="qed", backing="below", backing_format="raw")
        with blocklayer.open(tmp_path / "top", mode="r+") as disk:
            disk.write(disk.size - 1, b"x")
        blocklayer.commit(tmp_path / "top")
        assert content(below.path, "raw") == below.content[:-1] + b"x"


# --- finding the base ---


def test_names_of_the_base(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    layers = chain(tmp_path / "folder", rng, 50000, 60000, 70000)
    (tmp_path / "link").symlink_to("folder/0.raw")
    monkeypatch.chdir(tmp_path)
    for name in ("0.raw", "folder/0.raw", layers[0].path, "link", "folder/../folder/0.raw"):
        assert blocklayer.commit("folder/2.qed", base=name) == "folder/0.raw"
    for name in ("nowhere", "2.qed", "folder/2.qed", "", "a\0b"):
        with unchanged(tmp_path / "folder"), pytest.raises(InvalidArgument, match="Did not find"):
            blocklayer.commit("folder/2.qed", base=name)


@pytest.mark.parametrize("name", ["new\nline", "c:colon", os.fsdecode(b"\xff\xfe"), "with space"])
def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make(tmp_path / name, bytes(5120))
    monkeypatch.chdir(tmp_path)
    blocklayer.create("top", format="qed", backing=f"./{name}", backing_format="raw")
    for below in (None, Path(name), str(tmp_path / name)):
        with blocklayer.open("top", mode="r+") as disk:
            disk.write(0, b"new")
        blocklayer.commit("top", base=below)
        assert content(Path(name), "raw")[:3] == b"new"


def test_images_without_backing_files(tmp_path: Path, rng: random.Random) -> None:
    for format in ("raw", "qed"):
        layer = base(tmp_path / format, 50000, rng, format)
        for below in (None, layer.path):
            with (
                unchanged(tmp_path),
                pytest.raises(InvalidArgument, match="does not have a backing file"),
            ):
                blocklayer.commit(layer.path, format=format, base=below)


def test_images_in_use(tmp_path: Path, rng: random.Random) -> None:
    below, top = chain(tmp_path, rng, 50000, 60000)
    for layer in (below, top):
        with (
            blocklayer.open(layer.path, format=layer.format),
            unchanged(tmp_path),
            pytest.raises((LockError, OpenError), match="lock"),
        ):
            blocklayer.commit(top.path)
    blocklayer.create(tmp_path / "other", format="qed", backing="0.raw", backing_format="raw")
    with (
        blocklayer.open(tmp_path / "other"),
        unchanged(tmp_path),
        pytest.raises(LockError),
    ):
        blocklayer.commit(top.path)
    with pytest.raises(OpenError, match="No such file"):
        blocklayer.commit(tmp_path / "missing")
    below.path.unlink()
    with unchanged(tmp_path), pytest.raises(OpenError, match=r"0\.raw"):
        blocklayer.commit(top.path)


@pytest.mark.parametrize("cache", ["none", "writethrough", "directsync", "unsafe"])
def test_cache_modes(tmp_path: Path, rng: random.Random, cache: str) -> None:
    below, top = chain(tmp_path, rng, 50000, 60000)
    blocklayer.commit(top.path, cache=cache)
    assert content(below.path, "raw") == top.content
    with pytest.raises(InvalidArgument, match="Invalid cache option"):
        blocklayer.commit(top.path, cache="hot")


# --- cancellation and failures: the overlay reads as before, and the next commit succeeds ---


@pytest.fixture
def big(tmp_path: Path, rng: random.Random) -> Layer:
    make(tmp_path / "below", bytes(2 * MiB))
    blocklayer.create(
        tmp_path / "top",
        format="qed",
        size=9 * MiB,
        backing="below",
        backing_format="raw",
        **SMALL,
    )
    top = make(tmp_path / "model", rng.randbytes(5 * MiB) + bytes(MiB) + rng.randbytes(3 * MiB))
    with blocklayer.open(tmp_path / "top", mode="r+", detect_zeroes="on") as disk:
        disk.write(0, top.content)
    top.path.unlink()
    return Layer(tmp_path / "top", top.model, "qed")


def test_cancelling_at_every_step(tmp_path: Path, big: Layer) -> None:
    before = big.path.read_bytes()
    watch = Watcher("commit")
    blocklayer.commit(big.path, keep=True, progress=watch)
    assert watch.seen[-1].total == big.model.size
    for step in cancelled_everywhere("commit", len(watch.seen)):
        (tmp_path / "below").write_bytes(bytes(2 * MiB))
        with pytest.raises(Cancelled, match="commit was cancelled"):
            blocklayer.commit(big.path, progress=step, cancel=step.token)
        assert big.path.read_bytes() == before
        assert content(big.path) == big.content
    blocklayer.commit(big.path)
    assert content(tmp_path / "below", "raw") == content(big.path) == big.content


def test_cancelled_before_it_begins(tmp_path: Path, big: Layer) -> None:
    """The base does not even grow."""
    token = CancelToken()
    token.cancel()
    with unchanged(tmp_path), pytest.raises(Cancelled):
        blocklayer.commit(big.path, cancel=token)
    with unchanged(tmp_path), pytest.raises(ZeroDivisionError):
        blocklayer.commit(big.path, progress=Watcher("commit", fail_at=1))


def test_a_limit_on_the_rate(tmp_path: Path, big: Layer) -> None:
    token = CancelToken()
    timer = threading.Timer(0.1, token.cancel)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        blocklayer.commit(big.path, rate_limit=1000, cancel=token)
    timer.join()
    assert 0.1 <= time.monotonic() - started < 5
    started = time.monotonic()
    blocklayer.commit(big.path, rate_limit=32 * MiB)
    assert 0.2 <= time.monotonic() - started < 5
    assert content(tmp_path / "below", "raw") == big.content


def failing(top: Path, below: Layer, where: str, rule: dict[str, Any]) -> dict[str, Any]:
    """The overlay over its base, one of which fails."""
    if where == "overlay":
        return faulty(top, "qed", rule)
    backing = faulty(below.path, below.format, rule)
    return {"driver": "qed", "file.filename": str(top), "backing": backing}


@pytest.mark.parametrize("where", ["overlay", "base"])
@pytest.mark.parametrize("bottom", ["raw", "qed"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_whatever_fails_the_content_stays(
    tmp_path: Path, rng: random.Random, where: str, bottom: str, code: int
) -> None:
    failures = 0
    for nth in range(1, 100):
        below, top = chain(tmp_path, rng, 15 * KiB, 25 * KiB, bottom=bottom)
        expected = committed(top, below)
        try:
            blocklayer.commit(failing(top.path, below, where, {"nth": nth, "errno": code}))
        except (IoError, OpenError):
            failures += 1
            assert content(top.path) == top.content
            assert not blocklayer.check(top.path).corruptions
            blocklayer.commit(top.path)
        else:
            assert not failures or failures == nth - 1
            break
        assert content(below.path, bottom) == expected
        assert content(top.path) == top.content
    assert failures
    assert content(below.path, bottom) == expected


@pytest.mark.parametrize("bottom", ["raw", "qed"])
def test_a_full_disk(
    tmp_path: Path,
    rng: random.Random,
    full_disk: Callable[[int], AbstractContextManager[None]],
    bottom: str,
) -> None:
    """No room for the base to grow: the overlay keeps everything."""
    below, top = chain(tmp_path, rng, 15 * KiB, 200 * KiB, bottom=bottom)
    before = top.path.read_bytes()
    with full_disk(40 * KiB), pytest.raises(IoError, match="too large"):
        blocklayer.commit(top.path)
    assert top.path.read_bytes() == before
    assert content(top.path) == top.content
    blocklayer.commit(top.path)
    assert content(below.path, bottom) == top.content


def test_without_permission(
    public_path: Path, rng: random.Random, as_nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    below, top = chain(public_path, rng, 50000, 60000)
    for locked, other in ((below, top), (top, below)):
        locked.path.chmod(0o444)
        other.path.chmod(0o666)
        with (
            unchanged(public_path),
            as_nobody(),
            pytest.raises((OpenError, IoError), match="Permission denied"),
        ):
            blocklayer.commit(top.path)
