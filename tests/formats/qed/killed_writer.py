# SPDX-License-Identifier: Apache-2.0
"""A process that writes to an image until it is killed, and tells what it has been promised.

What it does follows from a seed, so that who kills it knows what the last, unacknowledged request
was. Run as a program: image, seed.
"""

import os
import random
import sys
from collections.abc import Iterator

from blocklayer.core.disk import Disk
from blocklayer.ops.open_image import open_disk

CLUSTER = 4096
SIZE = 512 * CLUSTER + 1024

Change = tuple[int, bytes]
"""Bytes that one request puts at an offset."""


def requests(seed: int) -> Iterator[list[Change]]:
    """What the process asks for, one request at a time; an empty one is a flush."""
    rng = random.Random(seed)
    number = 0
    while True:
        number += 1
        kind = rng.choice(["write", "write", "write", "aligned", "batch", "zero", "flush"])
        if kind == "flush":
            yield []
        elif kind == "batch":
            clusters = rng.sample(range(SIZE // CLUSTER), rng.randint(2, 6))
            yield [(cluster * CLUSTER + 512, rng.randbytes(700)) for cluster in sorted(clusters)]
        else:
            length = rng.randint(1, 3 * CLUSTER)
            offset = rng.randrange(SIZE - length)
            if kind == "aligned":
                offset, length = offset - offset % CLUSTER, CLUSTER
            yield [(offset, bytes(length) if kind == "zero" else rng.randbytes(length))]


def carry_out(disk: Disk, changes: list[Change]) -> None:
    if not changes:
        disk.flush()
    elif len(changes) > 1:
        disk.write_many(changes)
    elif any(changes[0][1]):
        disk.write(*changes[0])
    else:
        disk.write_zeroes(changes[0][0], len(changes[0][1]))


def main(path: str, seed: str) -> None:
    disk = open_disk(path, mode="r+")
    for changes in requests(int(seed)):
        carry_out(disk, changes)
        os.write(1, b".")


if __name__ == "__main__":
    main(*sys.argv[1:])
