# SPDX-License-Identifier: Apache-2.0
"""Fresh file systems of several kinds, in a file that is mounted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocklayer.base.units import MiB
from tests.support import needs, needs_root

SHARED_MEMORY = Path("/dev/shm")
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "ext2": ["mkfs.ext4", "-q", "-F", "-t", "ext2"],
}
IMAGE_SIZE = 384 * MiB


@pytest.fixture(scope="module")
def mounted(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A directory on a fresh file system of the kind that is asked for."""
    kind: str = request.param
    if kind == "shared memory":
        if not SHARED_MEMORY.is_dir():
            pytest.skip("there is no tmpfs here")
        path = SHARED_MEMORY / f"blocklayer-test-{os.getpid()}"
        path.mkdir()
        yield path
        path.rmdir()
        return
    directory = tmp_path_factory.mktemp(kind)
    image, path = directory / "image", directory / "mounted"
    with image.open("wb") as file:
        file.truncate(IMAGE_SIZE)
    subprocess.run([*MAKE[kind], str(image)], check=True, capture_output=True)
    path.mkdir()
    answer = subprocess.run(
        ["mount", "-t", kind, "-o", "loop", str(image), str(path)],
        check=False,
        capture_output=True,
        text=True,
    )
    if answer.returncode:
        pytest.skip(f"cannot mount {kind} here: {answer.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)
    image.unlink()


def on(kind: str) -> object:
    marks = [] if kind == "shared memory" else [needs_root(), needs(MAKE[kind][0])]
    return pytest.param(kind, marks=marks)
