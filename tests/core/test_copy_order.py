# SPDX-License-Identifier: Apache-2.0
"""Copies by two threads that each read and write: nothing is lost, told twice, or left running."""

from __future__ import annotations

import contextlib
import errno
import random
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import Cancelled, IoError
from blocklayer.base.progress import CancelToken, Progress, Reporter
from blocklayer.base.units import KiB, MiB
from blocklayer.core import copy as engine
from blocklayer.core.copy import _Copy, _has_no_order
from blocklayer.core.copy_loads import Loader
from blocklayer.testing.model import ModelDisk

SIZE = 6 * MiB + 512 * 3


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The second thread comes at once; none is left."""
    monkeypatch.setattr(engine, "ALONE", 0)
    monkeypatch.setattr(engine, "OWN_PIECE", 64 * KiB)
    yield
    assert not [t for t in threading.enumerate() if t.name == "blocklayer-copy"]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the threads that have written; the first one waits for another, once."""
    seen: set[str] = set()
    another = threading.Event()
    original = _Copy._write

    def write(self: _Copy, load: Any) -> None:
        seen.add(threading.current_thread().name)
        if len(seen) > 1:
            another.set()
        another.wait(2)
        another.set()  # nobody waits again
        original(self, load)

    monkeypatch.setattr(_Copy, "_write", write)
    return seen


def filled(path: Path, rng: random.Random, format: str, **options: Any) -> ModelDisk:
    """An image of data, zeroes and holes of all sizes."""
    blocklayer.create(str(path), format=format, size=SIZE, **options)
    model = ModelDisk(SIZE)
    with blocklayer.open(str(path), mode="r+", format=format) as disk:
        position = 0
        while position < SIZE:
            count = min(SIZE - position, rng.choice([512, 5000, 70_000, 300_000]))
            kind = rng.randrange(4)
            if kind:
                data = bytes(count) if kind == 1 else rng.randbytes(count)
                disk.write(position, data)
                model.write(position, data)
            position += count
    return model


@pytest.mark.parametrize("format", ["raw", "qed"])
@pytest.mark.parametrize("sparse", [0, 4 * KiB, 64 * KiB])
def test_everything_arrives(
    tmp_path: Path, rng: random.Random, threads: set[str], format: str, sparse: int
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for _ in range(6):
        source.unlink(missing_ok=True)
        model = filled(source, rng, format)
        told: list[Progress] = []
        blocklayer.convert(
            str(source),
            str(target),
            source_format=format,
            format="raw",
            sparse_size=sparse,
            progress=told.append,
        )
        assert target.read_bytes() == model.content
        assert (told[-1].done, told[-1].total) == (SIZE, SIZE)
        assert all(a.done <= b.done for a, b in pairwise(told))
        target.unlink()
    assert len(threads) == 2


def test_a_chain(tmp_path: Path, rng: random.Random, threads: set[str]) -> None:
    model = filled(tmp_path / "base", rng, "qed").overlay()
    top = tmp_path / "top"
    blocklayer.create(
        str(top), format="qed", size=SIZE, backing=str(tmp_path / "base"), backing_format="qed"
    )
    with blocklayer.open(str(top), mode="r+") as disk:
        for _ in range(40):
            data = rng.randbytes(rng.choice([512, 9000, 65536]))
            offset = rng.randrange(SIZE - len(data))
            disk.write(offset, data)
            model.write(offset, data)
    blocklayer.convert(str(top), str(tmp_path / "target"), format="raw")
    assert (tmp_path / "target").read_bytes() == model.content
    assert len(threads) == 2


@pytest.mark.parametrize("place", [0, 3 * MiB, SIZE - 1024])
@pytest.mark.parametrize(("kind", "verb"), [(Loader, "fill"), (_Copy, "_write")])
@pytest.mark.parametrize("where", ["MainThread", "blocklayer-copy", ""])
def test_errors_end_both(
    tmp_path: Path,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    place: int,
    kind: type,
    verb: str,
    where: str,
) -> None:
    source = tmp_path / "source"
    source.write_bytes(rng.randbytes(SIZE))
    original = getattr(kind, verb)

    def broken(self: Any, load: Any) -> Any:
        name = threading.current_thread().name
        if (name == where or not where) and any(p + n > place for p, n, _ in load.pieces):
            raise IoError("broken", "source", errno.EIO, "read", place)
        return original(self, load)

    monkeypatch.setattr(kind, verb, broken)
    target = tmp_path / "target"
    arguments: dict[str, Any] = {"source_format": "raw", "format": "raw"}
    if where:
        # Which thread gets the place is not known; if it is the other one, all is well.
        with contextlib.suppress(IoError):
            blocklayer.convert(str(source), str(target), **arguments)
        assert not target.exists() or target.read_bytes() == source.read_bytes()
        return
    with pytest.raises(IoError, match="broken"):
        blocklayer.convert(str(source), str(target), **arguments)
    assert not target.exists()


@pytest.mark.parametrize("after", [1, 5, 50])
def test_cancelling_ends_both(tmp_path: Path, rng: random.Random, after: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(rng.randbytes(SIZE))
    cancel = CancelToken()
    calls = 0

    def progress(told: Progress) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            cancel.cancel()

    with pytest.raises(Cancelled):
        blocklayer.convert(
            str(source),
            str(tmp_path / "target"),
            source_format="raw",
            format="raw",
            progress=progress,
            cancel=cancel,
        )
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("format", ["raw", "qed"])
def test_without_another_thread(
    tmp_path: Path,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    threads: set[str],
    format: str,
) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    model = filled(tmp_path / "source", rng, "qed")
    told: list[Progress] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        blocklayer.convert(
            str(tmp_path / "source"),
            str(tmp_path / "target"),
            format=format,
            sparse_size=8 * KiB,
            progress=told.append,
        )
    with blocklayer.open(str(tmp_path / "target"), format=format) as disk:
        assert disk.read(0, SIZE) == model.content
    assert told[-1].done == SIZE
    assert threads == {"MainThread"}


@pytest.mark.parametrize("format", ["raw", "qed"])
def test_an_interrupt_while_the_other_thread_starts(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """It has begun already: it is told to end, and waited for."""
    (tmp_path / "source").write_bytes(rng.randbytes(SIZE))
    blocklayer.create(str(tmp_path / "target"), format=format, size=SIZE)
    start, fill = threading.Thread.start, Loader.fill

    def interrupted(self: threading.Thread) -> None:
        start(self)
        if self.name == "blocklayer-copy":
            raise KeyboardInterrupt

    def filled(self: Loader, load: Any) -> Any:
        self._stop.wait(10)
        return fill(self, load)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    monkeypatch.setattr(Loader, "fill", filled)
    with (
        blocklayer.open(str(tmp_path / "source"), format="raw") as source,
        blocklayer.open(str(tmp_path / "target"), mode="r+", format=format) as target,
    ):
        options = engine.CopyOptions(share=False)
        with pytest.raises(KeyboardInterrupt):
            engine.copy(source, target, options, Reporter("copy", SIZE))
        assert not [t for t in threading.enumerate() if t.name == "blocklayer-copy"]


def test_where_order_matters(tmp_path: Path) -> None:
    for name, format in (("raw", "raw"), ("qed", "qed"), ("other", "raw")):
        blocklayer.create(str(tmp_path / name), format=format, size=MiB)
    usual = engine.CopyOptions()
    with (
        blocklayer.open(str(tmp_path / "raw"), mode="r+", format="raw") as raw,
        blocklayer.open(str(tmp_path / "qed"), mode="r+", format="qed") as qed,
        blocklayer.open(str(tmp_path / "other"), mode="r+", format="raw") as other,
        blocklayer.open({"driver": "memory", "size": MiB}, mode="r+") as memory,
    ):
        assert _has_no_order(qed, raw, usual)
        assert _has_no_order(other, raw, usual)
        assert not _has_no_order(raw, qed, usual), "its clusters would not be in the guest's order"
        assert not _has_no_order(memory, raw, usual)
        for options in ({"salvage": True}, {"rate_limit": 1}, {"only_differences": True}):
            assert not _has_no_order(qed, raw, engine.CopyOptions(**options))
