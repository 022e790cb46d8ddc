# SPDX-License-Identifier: Apache-2.0
"""The real QEMU tools as functions, and its known defects by name."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocklayer.formats.qed.layout import Header

TIMEOUT = 60
PROMPT = b"qemu-io> "
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Outcome:
    """What a command answered: its exit code, and both outputs together."""

    code: int
    output: str


def run(*arguments: PathLike | int, directory: Path | None = None) -> Outcome:
    """Run a command, which may fail."""
    finished = subprocess.run(
        [str(argument) for argument in arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="surrogateescape",
        cwd=directory,
        timeout=TIMEOUT,
        check=False,
    )
    return Outcome(finished.returncode, finished.stdout)


def img(*arguments: PathLike | int, directory: Path | None = None) -> str:
    """Run a `qemu-img` that must succeed; its output."""
    outcome = run("qemu-img", *arguments, directory=directory)
    assert outcome.code == 0, (arguments, outcome)
    return outcome.output


def create(
    path: PathLike,
    size: int | None = None,
    *,
    format: str = "qed",
    backing: PathLike | None = None,
    backing_format: str = "qed",
    directory: Path | None = None,
    **options: int | str,
) -> None:
    """Make an image."""
    words: list[PathLike | int] = []
    if options:
        words += ["-o", ",".join(f"{name}={value}" for name, value in options.items())]
    if backing is not None:
        words += ["-b", backing, "-F", backing_format]
    words.append(path)
    if size is not None:
        words.append(size)
    img("create", "-q", "-f", format, *words, directory=directory)


# --- qemu-io --------------------------------------------------------------------------------------


def io(
    path: PathLike,
    *commands: str,
    format: str = "qed",
    options: Sequence[str] = (),
    directory: Path | None = None,
) -> str:
    """Run `qemu-io` commands, all of which must succeed; their output."""
    outcome = try_io(path, *commands, format=format, options=options, directory=directory)
    assert outcome.code == 0, (commands, outcome)
    return outcome.output


def try_io(
    path: PathLike,
    *commands: str,
    format: str = "qed",
    options: Sequence[str] = (),
    directory: Path | None = None,
) -> Outcome:
    """Run `qemu-io` commands, which may fail."""
    words: list[PathLike] = [word for command in commands for word in ("-c", command)]
    return run("qemu-io", "-f", format, *options, *words, path, directory=directory)


class Session:
    """A `qemu-io` that keeps an image open and is told what to do, one command after the other."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._answer()

    def tell(self, command: str) -> str:
        """Have a command done; what it printed."""
        self.send(command)
        return self._answer()

    def send(self, command: str) -> None:
        """Give a command and do not wait for its end. Two unanswered ones would not be noticed."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode("utf-8") + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End the process at once, as a power failure of the machine would."""
        self.process.kill()
        self.process.wait()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        answer = b""
        deadline = time.monotonic() + TIMEOUT
        while not answer.endswith(PROMPT):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, left))
            assert ready, f"qemu-io does not answer: {answer!r}"
            piece = os.read(self.process.stdout.fileno(), 65536)
            assert piece, f"qemu-io has ended: {answer!r}"
            answer += piece
        return answer.removesuffix(PROMPT).decode("utf-8")


@contextmanager
def session(
    path: PathLike, *, format: str = "qed", options: Sequence[str] = ()
) -> Iterator[Session]:
    """An image that QEMU has open; it is closed at the end unless the process was killed."""
    with subprocess.Popen(
        ["qemu-io", "-f", format, *options, os.fspath(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield Session(process)
            if process.poll() is None:
                assert process.stdin is not None
                process.stdin.close()
                assert process.wait(TIMEOUT) == 0
        finally:
            process.kill()


# --- what QEMU says of an image -------------------------------------------------------------------


def content(path: Path, *, format: str = "qed", force_share: bool = False) -> bytes:
    """The whole disk as QEMU reads it."""
    copy = path.with_name(path.name + ".content")
    share = ["-U"] if force_share else []
    img("convert", *share, "-f", format, "-O", "raw", path, copy)
    try:
        return copy.read_bytes()
    finally:
        copy.unlink()


@dataclass(frozen=True)
class Check:
    """The findings of a `qemu-img check`, without QEMU's false leaks."""

    errors: int
    corruptions: int
    leaks: int
    allocated: int
    fragmented: int
    total: int
    corruptions_fixed: int = 0

    @property
    def clean(self) -> bool:
        return not (self.errors or self.corruptions or self.leaks)


def false_leaks(path: Path) -> int:
    """DEFECT: QEMU's check divides a file's length by cluster_size - 1 to count its clusters.

    Files of at least that many clusters (16 MiB with clusters of 4 KiB) seem to have one more,
    which nobody references.
    """
    with path.open("rb") as file:
        cluster_size = Header.unpack_from(file.read(Header.SIZE)).cluster_size
    clusters = path.stat().st_size // cluster_size
    return clusters * cluster_size // (cluster_size - 1) - clusters


def check(path: Path, *, repair: str | None = None, force_share: bool = False) -> Check:
    """Check an image, and repair it if asked."""
    options = (["-r", repair] if repair else []) + (["-U"] if force_share else [])
    # The human words of a repair and the JSON would be mixed on one stream.
    finished = subprocess.run(
        ["qemu-img", "check", "--output=json", "-f", "qed", *options, os.fspath(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert finished.returncode in (0, 2, 3), finished
    found = json.loads(finished.stdout)
    false = false_leaks(path)
    leaks = found.get("leaks", 0) - false
    result = Check(
        errors=found["check-errors"],
        corruptions=found.get("corruptions", 0),
        leaks=leaks,
        allocated=found.get("allocated-clusters", 0),
        fragmented=found.get("fragmented-clusters", 0),
        total=found.get("total-clusters", 0),
        corruptions_fixed=found.get("corruptions-fixed", 0),
    )
    expected = 2 if result.errors or result.corruptions else 3 if leaks + false else 0
    assert finished.returncode == expected, finished
    return result


def extents(
    path: PathLike, *, format: str = "qed", force_share: bool = False
) -> list[dict[str, Any]]:
    """What `qemu-img map` says."""
    share = ["-U"] if force_share else []
    answer: list[dict[str, Any]] = json.loads(
        img("map", *share, "--output=json", "-f", format, path)
    )
    return answer


def info(path: PathLike, *, format: str = "qed", force_share: bool = False) -> dict[str, Any]:
    """What `qemu-img info` says."""
    share = ["-U"] if force_share else []
    answer: dict[str, Any] = json.loads(img("info", *share, "--output=json", "-f", format, path))
    return answer


def compare(
    one: PathLike,
    two: PathLike,
    *,
    formats: tuple[str, str] = ("qed", "qed"),
    force_share: bool = False,
) -> None:
    """Both images must show the same disk, to QEMU."""
    share = ["-U"] if force_share else []
    img("compare", *share, "-f", formats[0], "-F", formats[1], one, two)
