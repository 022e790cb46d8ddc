# SPDX-License-Identifier: Apache-2.0
"""Images in files with random content, each with the byte array that it has to be."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blocklayer
from blocklayer import CancelToken, Disk, Progress
from blocklayer.base.align import align_up
from blocklayer.base.units import SECTOR, KiB
from blocklayer.testing.model import ModelDisk

CLUSTER = 4 * KiB
SMALL: dict[str, Any] = {"cluster_size": CLUSTER, "table_size": 2}
"""Options of small QED images. DEFECT: QEMU does not open images whose tables are one cluster."""

LENGTHS = (1, 511, 512, 513, CLUSTER, CLUSTER + 1, 20 * KiB)


@dataclass
class Layer:
    """An image and what it reads as."""

    path: Path
    model: ModelDisk
    format: str

    @property
    def content(self) -> bytes:
        return bytes(self.model.content)

    def check(self) -> None:
        """The image is what its model says, every byte and every extent."""
        with blocklayer.open(self.path, format=self.format) as disk:
            self.model.check(disk)
        if self.format == "qed":
            assert not blocklayer.check(self.path).corruptions


def options_of(format: str) -> dict[str, Any]:
    """Create options that make small tables, where there are any."""
    return SMALL if format == "qed" else {}


def make(path: Path, content: bytes, format: str = "raw") -> Layer:
    """An image that has this content; a raw one is a file of this very length."""
    model = model_of(content)
    if format == "raw":
        path.write_bytes(content)
    else:
        blocklayer.create(path, format=format, size=len(content), **options_of(format))
        with blocklayer.open(path, mode="r+", format=format, detect_zeroes="on") as disk:
            disk.write(0, content)
    return Layer(path, model, format)


def model_of(content: bytes) -> ModelDisk:
    """A model that says nothing of layers; `content` is followed by zeroes."""
    model = ModelDisk(align_up(len(content), SECTOR))
    model.content[: len(content)] = content
    return model


def scribble(disk: Disk, model: ModelDisk, rng: random.Random, count: int = 10) -> None:
    """Random writes and zeroes to a disk and its model."""
    for _ in range(count if disk.size else 0):
        offset = rng.randrange(disk.size)
        if rng.random() < 0.5:
            offset -= offset % CLUSTER
        length = min(rng.choice(LENGTHS), disk.size - offset)
        if rng.random() < 0.3:
            for each in (disk, model):
                each.write_zeroes(offset, length)
        else:
            data = rng.randbytes(length)
            for each in (disk, model):
                each.write(offset, data)


def base(path: Path, size: int, rng: random.Random, format: str = "raw") -> Layer:
    """An image with nothing below it."""
    blocklayer.create(path, format=format, size=size, **options_of(format))
    layer = Layer(path, ModelDisk(align_up(size, SECTOR)), format)
    with blocklayer.open(path, mode="r+", format=format) as disk:
        scribble(disk, layer.model, rng)
    if format == "raw":
        layer.model.own[:] = bytes(layer.model.size)  # the file system may have made holes
    return layer


def overlay(path: Path, below: Layer, rng: random.Random, size: int | None = None) -> Layer:
    """A QED image over another one, named relative to itself."""
    blocklayer.create(
        path,
        format="qed",
        size=size,
        backing=below.path.name,
        backing_format=below.format,
        **SMALL,
    )
    wanted = below.model.size if size is None else align_up(size, SECTOR)
    layer = Layer(path, below.model.overlay(wanted), "qed")
    with blocklayer.open(path, mode="r+") as disk:
        scribble(disk, layer.model, rng)
    return layer


def chain(folder: Path, rng: random.Random, *sizes: int, bottom: str = "raw") -> list[Layer]:
    """Images over each other, the lowest first."""
    layers = [base(folder / f"0.{bottom}", sizes[0], rng, bottom)]
    for number, size in enumerate(sizes[1:], 1):
        layers.append(overlay(folder / f"{number}.qed", layers[-1], rng, size))
    return layers


def content(name: Any, format: str | None = None) -> bytes:
    """All that an image reads as."""
    with blocklayer.open(name, format=format) as disk:
        return disk.read(0, disk.size)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a directory."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def faulty(path: Path, format: str, *rules: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The option tree of an image whose file fails by rules."""
    file = {"driver": "fault", "file.filename": str(path), "inject-error": list(rules)}
    return {"driver": format, "file": file, **options}


class Watcher:
    """A progress callback that holds an operation to its promises; it can cancel, or fail."""

    def __init__(
        self,
        operation: str,
        *,
        cancel_at: int = 0,
        fail_at: int = 0,
    ) -> None:
        self.operation = operation
        self.seen: list[Progress] = []
        self.token = CancelToken()
        self._cancel_at = cancel_at
        self._fail_at = fail_at

    def __call__(self, progress: Progress) -> None:
        assert progress.operation == self.operation
        assert 0 <= progress.done <= progress.total
        if self.seen:
            assert progress.done >= self.seen[-1].done
            assert progress.total == self.seen[-1].total
        self.seen.append(progress)
        if len(self.seen) == self._cancel_at:
            self.token.cancel()
        if len(self.seen) == self._fail_at:
            raise ZeroDivisionError

    @property
    def finished(self) -> bool:
        return bool(self.seen) and self.seen[-1].fraction == 1.0


def cancelled_everywhere(operation: str, steps: int) -> Iterator[Watcher]:
    """Callbacks that cancel at the first step, at the second, …, at the last but one."""
    assert steps > 2, "nothing to be cancelled in the middle of"
    for step in range(1, steps):
        yield Watcher(operation, cancel_at=step)


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Nothing in a directory changes, appears or goes away."""
    before = files(folder)
    yield
    assert files(folder) == before
