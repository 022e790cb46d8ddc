# SPDX-License-Identifier: Apache-2.0
"""A kernel's file system on an NBD export: nbdfuse shows it as a file, a loop device as a disk."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE = 60.0


def needs_loop() -> pytest.MarkDecorator:
    """Skip a test or a module where the kernel cannot mount what a program shows."""
    missing = not (os.path.exists("/dev/fuse") and os.path.exists("/dev/loop-control"))
    return pytest.mark.skipif(missing, reason="there is no FUSE or no loop device here")


def run(*words: object, codes: tuple[int, ...] = (0,)) -> str:
    """Run a program that ends with one of the codes; its output."""
    done = subprocess.run(
        [str(word) for word in words],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode in codes, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def shown_as_file(uri: str, folder: Path) -> Iterator[Path]:
    """An export as a file in a new folder."""
    folder.mkdir()
    nbdfuse = subprocess.Popen(["nbdfuse", str(folder), uri])
    try:
        path = folder / "nbd"
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            assert nbdfuse.poll() is None, "nbdfuse has ended"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield path
    finally:
        subprocess.run(["umount", str(folder)], check=False, capture_output=True)
        nbdfuse.terminate()
        nbdfuse.wait(PATIENCE)


@contextmanager
def shown_as_device(path: Path) -> Iterator[str]:
    """A file as a block device."""
    device = run("losetup", "--find", "--show", path).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextmanager
def mounted(device: str | Path, folder: Path, *options: str) -> Iterator[Path]:
    """A file system of a device; it is whole, and written, when this is left."""
    folder.mkdir(exist_ok=True)
    run("mount", *options, device, folder)
    try:
        yield folder
    finally:
        run("umount", folder)
