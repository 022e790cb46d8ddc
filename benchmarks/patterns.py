# SPDX-License-Identifier: Apache-2.0
"""Where the requests of a bench go, and what they write: the same for every side."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")

FILLS = 255  # byte patterns 1..255: a write that went astray differs from its neighbours


@dataclass(frozen=True, slots=True)
class Pattern:
    """`count` writes of `size` bytes to an image of `virtual` bytes.

    With a `step` they are strided, as those of `qemu-img bench`; without one, each goes to a
    cluster of its own, at random.
    """

    name: str
    size: int
    count: int
    virtual: int
    cluster: int
    step: int | None
    seed: int = 1

    def offsets(self) -> list[int]:
        if self.step is not None:
            return [number * self.step for number in range(self.count)]
        rng = random.Random(self.seed)
        clusters = rng.sample(range(self.virtual // self.cluster), self.count)
        places = self.cluster // self.size
        return [c * self.cluster + rng.randrange(places) * self.size for c in clusters]


def fill_of(number: int) -> int:
    """The byte that request `number` writes."""
    return number % FILLS + 1


def write_expected(path: Path, pattern: Pattern, fill: int | None = None) -> None:
    """The raw image a pattern leaves behind; `fill` stands for a peer that knows one byte only."""
    with path.open("wb") as file:
        file.truncate(pattern.virtual)
        for number, offset in enumerate(pattern.offsets()):
            file.seek(offset)
            file.write(bytes([fill_of(number) if fill is None else fill]) * pattern.size)


def random_blocks(*, size: int, block: int, count: int, seed: int) -> list[int]:
    """Offsets of `count` different blocks of an image, in random order."""
    blocks = random.Random(seed).sample(range(size // block), count)
    return [number * block for number in blocks]


def random_payloads(*, block: int, count: int, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(block) for _ in range(count)]


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
