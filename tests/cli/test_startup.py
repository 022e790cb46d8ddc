# SPDX-License-Identifier: Apache-2.0
"""Short commands start fast: what is expensive to import is not imported on their way."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB

EXPENSIVE = {
    *("argparse", "ast", "asyncio", "concurrent", "ctypes", "dataclasses", "enum", "fnmatch"),
    *("hashlib", "importlib", "inspect", "ipaddress", "json", "logging", "numpy", "pathlib"),
    *("pyroaring", "queue", "re", "signal", "subprocess", "tempfile", "tqdm", "typing", "urllib"),
}
"""Each costs from 3 to 700 percent of what the bare interpreter takes to start."""

PROGRAM = """
import sys
before = set(sys.modules)
import threading
threads = []
start = threading.Thread.start
threading.Thread.start = lambda thread: (threads.append(f"thread:{thread.name}"), start(thread))
from blocklayer.cli.main import main
code = main(sys.argv[1:])
print("\\n", *sorted(set(sys.modules) - before), *threads, file=sys.stderr)
sys.exit(code)
"""


def imported_by(*words: str, code: int = 0) -> set[str]:
    """The modules that a command has imported, and the threads it has started."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == code, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def threads(found: set[str]) -> set[str]:
    return {name for name in found if name.startswith("thread:")}


@pytest.fixture
def image(tmp_path: Path) -> str:
    """A small image: little data, on a disk that need not be small."""
    path = tmp_path / "disk.qed"
    blocklayer.create(path, format="qed", size="64M")
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(MiB, b"x" * 256 * KiB)
    return str(path)


@pytest.mark.parametrize(
    "words", [["--version"], ["info"], ["map"], ["create", "-f", "qed", "-q"]], ids=" ".join
)
def test_nothing_expensive_is_imported(words: list[str], image: str, tmp_path: Path) -> None:
    arguments = [image] if words[0] in ("info", "map") else []
    if words[0] == "create":
        arguments = [str(tmp_path / "new.qed"), "1M"]
    modules = imported_by(*words, *arguments)
    assert not modules & EXPENSIVE
    others = {"blocklayer.cli.convert", "blocklayer.ops.convert"}
    assert not modules & others


CLEANER = "thread:Thread-1"
"""A timer: marks an image that was written to as clean after a while."""

COMMANDS: dict[str, tuple[str, set[str], int]] = {
    "info": ("info --untrusted IMAGE", set(), 0),
    "map": ("map IMAGE", set(), 0),
    "check": ("check IMAGE", {"pyroaring"}, 0),
    "compare": ("compare IMAGE COPY", set(), 0),
    "measure": ("measure -O qed IMAGE", set(), 0),
    "digest": ("digest IMAGE", {"hashlib"}, 0),
    "convert": ("convert IMAGE TARGET", set(), 0),
    "convert-qed": ("convert -O qed IMAGE TARGET", {CLEANER}, 0),
    "verify": ("convert --verify IMAGE TARGET", set(), 0),
    "resume": ("convert --resume IMAGE TARGET", set(), 0),
    "mirror": ("mirror IMAGE TARGET", {"thread:blocklayer-mirror"}, 0),
    "dd": ("dd if=IMAGE of=TARGET bs=64k count=20", set(), 0),
    "resize": ("resize COPY 128M", set(), 0),
    "rebase": ("rebase -u -b COPY IMAGE", set(), 1),
    "commit": ("commit IMAGE", set(), 1),
    "bitmap": ("bitmap --add IMAGE b", set(), 1),
    "amend": ("amend -o compat=1.1 IMAGE", set(), 1),
    "bench": ("bench -c 1 IMAGE", set(), 0),
    "snapshot": ("snapshot -l IMAGE", set(), 0),
    "io": ("io -c length IMAGE", {"queue"}, 0),
    "nbd": ("nbd --list --socket=TARGET", {"enum"}, 1),  # of sockets
    "completion": ("completion bash", {"enum", "queue", "re", "importlib"}, 0),
}
"""What is run, what of the expensive it needs, and how it ends."""


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_expensive_is_imported_for_small_images(
    name: str, image: str, tmp_path: Path
) -> None:
    line, needed, code = COMMANDS[name]
    copy = tmp_path / "copy.qed"
    shutil.copy(image, copy)
    places = {"IMAGE": image, "COPY": str(copy), "TARGET": str(tmp_path / "new")}
    words = [places.get(word, word) for word in line.split()]
    words = [word.replace("IMAGE", image).replace("TARGET", places["TARGET"]) for word in words]
    found = imported_by(*words, code=code)
    # Nor are there threads where one piece is all there is.
    assert (found & EXPENSIVE) | threads(found) <= needed


def test_only_the_command_that_runs_is_imported(image: str) -> None:
    modules = imported_by("info", image)
    commands = {name for name in modules if name.startswith("blocklayer.cli.")}
    assert commands == {
        f"blocklayer.cli.{name}"
        for name in ("failures", "getopt", "info", "main", "output", "parsing")
    }


def test_what_only_a_prompt_needs_is_not_imported(image: str) -> None:
    modules = imported_by("io", "-c", "length", image)
    assert "readline" not in modules
    prompt = {f"blocklayer.cli.io_{name}" for name in ("completion", "help", "terminal")}
    assert not modules & ((EXPENSIVE - {"queue"}) | prompt | {"blocklayer.cli.usage"})
