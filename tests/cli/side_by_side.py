# SPDX-License-Identifier: Apache-2.0
"""The same command line given to QEMU's tool and to `blk`, each in its own copy of a directory."""

from __future__ import annotations

import contextlib
import filecmp
import io
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blocklayer.cli.main import main

TIMEOUT = 60
THEIRS, OURS = "theirs", "ours"
VOLATILE = ("actual-size", "filename", "full-backing-filename")
"""Members of `info` that say where an image is, or how the file system stores it."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended; texts as both tools could have written them."""

    code: int
    stdout: str
    complaint: str
    """The first line of stderr: what scripts match. Hints below it are everybody's own."""


# --- running ------------------------------------------------------------------------------------


def run_theirs(tool: str, words: list[str], directory: Path, script: str = "") -> Outcome:
    """QEMU's tool in a directory."""
    finished = subprocess.run(
        [tool, *words],
        input=script.encode(),
        capture_output=True,
        cwd=directory,
        timeout=TIMEOUT,
        check=False,
    )
    return outcome(finished.returncode, finished.stdout.decode(), finished.stderr.decode())


def run_ours(words: list[str], directory: Path, script: str = "") -> Outcome:
    """`blk` in this process, in a directory."""
    stdout, stderr, stdin = io.StringIO(), io.StringIO(), sys.stdin
    with (
        contextlib.chdir(directory),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            sys.stdin = io.StringIO(script)
            code = main(words)
        finally:
            sys.stdin = stdin
    return outcome(code, stdout.getvalue(), stderr.getvalue())


def outcome(code: int, stdout: str, stderr: str) -> Outcome:
    """What is left when times, the program's name and its own words are taken out."""
    first = next((line for line in stderr.splitlines() if line.strip()), "")
    return Outcome(code, _normal(stdout), _once(_normal(first)))


def _normal(text: str) -> str:
    text = re.sub(r"^Run completed in .*$", "Run completed", text, flags=re.MULTILINE)
    text = re.sub(r"    \(\d+\.\d\d/100%\)\r", "", text)
    text = re.sub(r"\b(qemu-img|qemu-io|blk)(:|>)", r"TOOL\2", text)
    text = re.sub(r"; \d[\d:.]*( sec)? \(.* ops/sec\)", "; TIME", text)
    text = re.sub(r"^(\d+,1),[\d:.]+,[\d.]+,[\d.]+$", r"\1,TIME", text, flags=re.MULTILINE)
    return re.sub(r"^(\w+|\?) .* -- .*$", r"USAGE of \1", text, flags=re.MULTILINE)


def _once(text: str) -> str:
    """``Could not open 'x': Could not open 'x': ...`` says it twice."""
    return re.sub(r"(Could not open '[^']*': )\1", r"\1", text)


# --- directories --------------------------------------------------------------------------------


def qemu_img(directory: Path, *words: str) -> str:
    """A `qemu-img` that must succeed; what it prints."""
    command = ["qemu-img", *words]
    return subprocess.run(
        command, cwd=directory, check=True, capture_output=True, encoding="utf-8", timeout=TIMEOUT
    ).stdout


def qemu_io(directory: Path, image: str, *commands: str) -> None:
    """A `qemu-io` that must succeed."""
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(
        ["qemu-io", "-f", image.rpartition(".")[2], *words, image],
        cwd=directory,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=TIMEOUT,
    )


def make_template(directory: Path) -> None:
    """Small images of every kind that the command lines speak of."""
    small = ("-f", "qed", "-o", "cluster_size=4k,table_size=2")
    qemu_img(directory, "create", "-q", *small, "data.qed", "1M")
    qemu_io(directory, "data.qed", "write -P 1 64k 64k", "write -z 256k 64k", "write -P 2 1000k 8k")
    qemu_img(directory, "create", "-q", *small, "empty.qed", "1M")
    qemu_img(directory, "create", "-q", *small, "longer.qed", "2M")
    qemu_img(directory, "create", "-q", "data.raw", "512k")
    qemu_io(directory, "data.raw", "write -P 3 128k 4k")
    qemu_img(directory, "create", "-q", *small, "-b", "data.qed", "-F", "qed", "over.qed")
    qemu_io(directory, "over.qed", "write -P 4 60k 8k", "write -z 128k 64k")
    qemu_img(directory, "create", "-q", *small, "-b", "over.qed", "-F", "qed", "top.qed", "2M")
    qemu_io(directory, "top.qed", "write -P 5 72k 8k", "write -P 6 1536k 4k")
    (directory / "pattern").write_bytes(b"hello world")
    (directory / "nothing").touch()
    (directory / "folder").mkdir()
    qemu_img(directory, "create", "-q", *small, "-b", "../data.qed", "-F", "qed", "folder/far.qed")
    _damage(directory)


def _damage(directory: Path) -> None:
    """Images with a leak, with a wrong entry, and with a cluster referenced twice."""
    sound = (directory / "data.qed").read_bytes()
    (directory / "leaky.qed").write_bytes(sound + bytes(2 * 4096))
    l1_table = struct.unpack_from("<Q", sound, 40)[0]
    l2_table = struct.unpack_from("<Q", sound, l1_table)[0]
    entry = l2_table + 8 * 16
    wrong, twice = bytearray(sound), bytearray(sound)
    struct.pack_into("<Q", wrong, entry, 0x12345)
    (directory / "wrong.qed").write_bytes(wrong)
    twice[entry : entry + 8] = sound[entry + 8 : entry + 16]
    (directory / "twice.qed").write_bytes(twice)


def make_pair(template: Path, directory: Path) -> None:
    """A copy of the template for each."""
    for name in (THEIRS, OURS):
        shutil.copytree(template, directory / name)


# --- comparing ----------------------------------------------------------------------------------


def give_both(tool: str, line: str, directory: Path, script: str = "") -> tuple[Outcome, Outcome]:
    """Run one line in both; QEMU's outcome and ours. `$PWD` is the directory of each."""
    outcomes = []
    for name in (THEIRS, OURS):
        place = directory / name
        words = shlex.split(line.replace("$PWD", str(place)))
        if name == THEIRS:
            found = run_theirs(tool, words, place, script)
        else:
            found = run_ours(words if tool == "qemu-img" else ["io", *words], place, script)
        outcomes.append(_anywhere(found, place))
    return outcomes[0], outcomes[1]


def _anywhere(found: Outcome, place: Path) -> Outcome:
    """The outcome without the name of the directory."""
    texts = (text.replace(str(place), "$PWD") for text in (found.stdout, found.complaint))
    return Outcome(found.code, *texts)


def differing_files(directory: Path) -> list[str]:
    """Files that only one side has, or that show another disk there."""
    theirs, ours = ({*_files(directory / name)} for name in (THEIRS, OURS))
    found = sorted(theirs ^ ours)
    for name in sorted(theirs & ours):
        pair = (directory / THEIRS / name, directory / OURS / name)
        if not filecmp.cmp(*pair, shallow=False) and not _show_the_same(*pair):
            found.append(name)
    return found


def _files(directory: Path) -> Iterator[str]:
    for path, _, names in os.walk(directory):
        for name in names:
            yield os.path.relpath(os.path.join(path, name), directory)


def _show_the_same(one: Path, two: Path) -> bool:
    if _facts(one) != _facts(two):
        return False
    command = ["qemu-img", "compare", "-q", str(one), str(two)]
    done = subprocess.run(command, check=False, stderr=subprocess.DEVNULL, timeout=TIMEOUT)
    return done.returncode in (0, CANNOT_OPEN)


CANNOT_OPEN = 2
"""Of `qemu-img compare`: a backing file of both is not there, which a test may want."""


def _facts(image: Path) -> dict[str, object]:
    text = qemu_img(image.parent, "info", "--output=json", str(image))
    return {name: value for name, value in json.loads(text).items() if name not in VOLATILE}
