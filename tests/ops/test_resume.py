# SPDX-License-Identifier: Apache-2.0
"""Conversions that are verified, and those that go on where they were interrupted."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer import (
    Cancelled,
    InvalidArgument,
    IoError,
    LockError,
    NotSupported,
    OpenError,
    Progress,
)
from blocklayer.base.units import KiB, MiB
from blocklayer.cli.main import main
from blocklayer.ops import resume, verify
from blocklayer.ops.resume_note import Note
from tests.ops.images import Layer, Watcher, chain, content, make, overlay, unchanged
from tests.ops.resuming import PART
from tests.support.source import ROOT

FORMATS = ("raw", "qed")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note after every few clusters; pieces stay as they are."""
    monkeypatch.setattr(resume, "NOTE_EVERY", PART)
    monkeypatch.setattr(verify, "PIECE", 64 * KiB)


@pytest.fixture
def layer(memory_path: Path, rng: random.Random) -> Layer:
    """3 MiB of data, with a hole in it."""
    data = rng.randbytes(MiB) + bytes(MiB) + rng.randbytes(MiB)
    return make(memory_path / "source", data)


class Spoiler:
    """A callback that changes a file at one step."""

    def __init__(self, path: Path, offset: int, at: float) -> None:
        self._path, self._offset, self._at = path, offset, at
        self._done = False

    def __call__(self, progress: Progress) -> None:
        if progress.fraction >= self._at and not self._done:
            self._done = True
            with open(self._path, "r+b") as file:
                file.seek(self._offset)
                byte = file.read(1)
                file.seek(self._offset)
                file.write(bytes([byte[0] ^ 1]))


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_reads_back(memory_path: Path, format: str, rng: random.Random) -> None:
    layers = chain(memory_path, rng, 300 * KiB, 700 * KiB)
    watcher = Watcher("convert")
    target = memory_path / "target"
    blocklayer.convert(layers[-1].path, target, format=format, verify=True, progress=watcher)
    assert watcher.finished
    assert content(target, format) == layers[-1].content
    both = [layers[-1].path, layers[0].path]
    blocklayer.convert(both, memory_path / "two", format=format, verify=True)


@pytest.mark.parametrize("offset", [0, 4095, MiB + 5, 2 * MiB, 3 * MiB - 1])
def test_a_difference_is_an_error(memory_path: Path, layer: Layer, offset: int) -> None:
    target = memory_path / "target"
    with pytest.raises(IoError) as caught:
        blocklayer.convert(
            layer.path,
            target,
            source_format="raw",
            verify=True,
            progress=Spoiler(target, offset, 0.5),
        )
    assert caught.value.offset == offset - offset % 512
    assert caught.value.operation == "verify"
    assert "failing" in str(caught.value)
    assert not target.exists()


def test_what_lies_behind_the_source_is_verified(memory_path: Path, layer: Layer) -> None:
    target = memory_path / "target"
    with pytest.raises(IoError, match="not zero behind the end"):
        blocklayer.convert(
            layer.path,
            target,
            source_format="raw",
            options={"size": "4M"},
            verify=True,
            progress=Spoiler(target, 3 * MiB + 77, 0.5),
        )
    assert not target.exists()


def test_a_target_that_was_there_is_kept(memory_path: Path, layer: Layer) -> None:
    target = memory_path / "target"
    target.write_bytes(bytes(4 * MiB))
    with pytest.raises(IoError):
        blocklayer.convert(
            layer.path,
            target,
            source_format="raw",
            create=False,
            verify=True,
            progress=Spoiler(target, 5, 0.5),
        )
    assert target.stat().st_size == 4 * MiB


# --- resume ---------------------------------------------------------------------------------------


def interrupt(layer: Layer, target: Path, at: float = 0.5, **options: Any) -> None:
    """Stop a conversion when it has done a part of its work."""
    token = blocklayer.CancelToken()

    def stop(progress: Progress) -> None:
        if progress.fraction >= at:
            token.cancel()

    with pytest.raises(Cancelled) as caught:
        blocklayer.convert(
            layer.path,
            target,
            source_format=layer.format,
            resume=True,
            progress=stop,
            cancel=token,
            **options,
        )
    noted = bool(json.loads(target.with_name(f"{target.name}.partial.json").read_text())["parts"])
    wanted = "goes on with it" if noted else "is too little to go on with"
    assert wanted in caught.value.__notes__[0]


def go_on(layer: Layer, target: Path, **options: Any) -> Any:
    return blocklayer.convert(
        layer.path, target, source_format=layer.format, resume=True, **options
    )


@pytest.mark.parametrize("at", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("options", [{}, {"sparse_size": 0}, {"verify": True}], ids=str)
def test_it_goes_on(
    memory_path: Path, layer: Layer, at: float, format: str, options: dict[str, Any]
) -> None:
    target = memory_path / "target"
    target.write_bytes(b"what was there before")
    interrupt(layer, target, at, format=format, **options)
    assert target.read_bytes() == b"what was there before"
    watcher = Watcher("convert")
    result = go_on(layer, target, format=format, progress=watcher, **options)
    assert watcher.finished
    assert bool(result.resumed) == (at > 0.05)
    assert content(target, format) == layer.content
    once = memory_path / "once"
    blocklayer.convert(layer.path, once, source_format="raw", format=format, **options)
    assert blocklayer.compare(
        once, target, first_format=format, second_format=format, strict=format == "raw"
    ).identical
    assert sorted(os.listdir(memory_path)) == ["once", "source", "target"]


def test_over_a_backing_file(memory_path: Path, rng: random.Random) -> None:
    layers = chain(memory_path, rng, MiB, MiB)
    top = overlay(memory_path / "top", layers[-1], rng)
    below = {"backing_file": layers[-1].path.name, "backing_fmt": "qed"}
    target = memory_path / "target"
    interrupt(top, target, 0.3, format="qed", options=below)
    go_on(top, target, format="qed", options=below, verify=True)
    assert content(target) == top.content
    assert blocklayer.info(target).backing_filename == layers[-1].path.name


def test_a_part_that_is_damaged_is_copied_again(memory_path: Path, layer: Layer) -> None:
    target = memory_path / "target"
    interrupt(layer, target, 0.9)
    partial = memory_path / "target.partial"
    for offset in (2 * MiB + 100, 5 * 64 * KiB):
        spoil = Spoiler(partial, offset, 0)
        spoil(Progress("", 1, 1))
        result = go_on(layer, target)
        assert result.resumed <= offset
        assert content(target, "raw") == layer.content
        interrupt(layer, target, 0.9)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_copied_again_counts_once(memory_path: Path, layer: Layer, format: str) -> None:
    target = memory_path / "target"
    once = blocklayer.convert(layer.path, memory_path / "once", source_format="raw", format=format)
    assert (once.data, once.zero) == (2 * MiB, MiB)
    interrupt(layer, target, 0.9, format=format)
    partial = memory_path / "target.partial"
    with blocklayer.open(partial, mode="r+", format=format) as disk:
        disk.write(5 * 64 * KiB, b"something else")
    result = go_on(layer, target, format=format)
    assert 0 < result.resumed < MiB
    assert (result.data, result.zero) == (once.data, once.zero)


def test_data_that_nobody_noted_is_not_taken_for_zeroes(memory_path: Path, layer: Layer) -> None:
    target = memory_path / "target"
    interrupt(layer, target, 0.2)
    with open(memory_path / "target.partial", "r+b") as file:
        file.seek(MiB)
        file.write(b"x" * MiB)
    go_on(layer, target)
    assert content(target, "raw") == layer.content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "qed"}, "format 'raw', not 'qed'"),
        ({"sparse_size": 0}, "sparse size 4096, not 0"),
        ({"options": {"size": "8M"}}, "size 3145728|options"),
    ],
)
def test_other_options_are_refused(
    memory_path: Path, layer: Layer, changes: dict[str, Any], message: str
) -> None:
    target = memory_path / "target"
    interrupt(layer, target)
    with unchanged(memory_path), pytest.raises(InvalidArgument, match=message):
        go_on(layer, target, **changes)


def test_a_source_that_has_changed_is_refused(memory_path: Path, layer: Layer) -> None:
    target = memory_path / "target"
    interrupt(layer, target)
    before = layer.path.stat()
    os.utime(layer.path, ns=(0, before.st_mtime_ns + 1))
    with pytest.raises(InvalidArgument, match=r"source .* has changed: its mtime_ns"):
        go_on(layer, target)
    os.utime(layer.path, ns=(0, before.st_mtime_ns))
    copy = memory_path / "copy"
    copy.write_bytes(layer.content)
    os.utime(copy, ns=(0, before.st_mtime_ns))
    copy.rename(layer.path)
    with pytest.raises(InvalidArgument, match="has changed: its inode"):
        go_on(layer, target)


def test_a_source_that_changes_meanwhile(memory_path: Path, layer: Layer) -> None:
    with pytest.raises(InvalidArgument, match="while it was copied"):
        go_on(layer, memory_path / "target", progress=Spoiler(layer.path, 3 * MiB - 1, 0.5))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 7}', '{"version": 1}'])
def test_a_note_that_nobody_can_read(memory_path: Path, layer: Layer, text: str) -> None:
    (memory_path / "target.partial.json").write_text(text, "utf-8")
    (memory_path / "target.partial").write_bytes(b"?")
    with unchanged(memory_path), pytest.raises(InvalidArgument, match="cannot be used to go on"):
        go_on(layer, memory_path / "target")


def test_a_file_of_somebody_else_is_not_overwritten(memory_path: Path, layer: Layer) -> None:
    (memory_path / "target.partial").write_bytes(b"mine")
    with unchanged(memory_path), pytest.raises(InvalidArgument, match="is in the way"):
        go_on(layer, memory_path / "target")


def test_a_partial_target_that_is_gone(memory_path: Path, layer: Layer) -> None:
    target = memory_path / "target"
    interrupt(layer, target)
    (memory_path / "target.partial").unlink()
    assert go_on(layer, target).resumed == 0
    assert content(target, "raw") == layer.content


def test_two_at_once(memory_path: Path, layer: Layer) -> None:
    target = memory_path / "target"
    interrupt(layer, target)
    with (
        blocklayer.open(memory_path / "target.partial", format="raw", mode="r+"),
        unchanged(memory_path),
        pytest.raises((LockError, OpenError), match="another process"),
    ):
        go_on(layer, target)


def test_an_image_in_use_is_not_replaced(memory_path: Path, layer: Layer) -> None:
    target = memory_path / "target"
    target.write_bytes(bytes(512))
    with blocklayer.open(target, format="raw"), pytest.raises(OpenError, match="another process"):
        go_on(layer, target)
    assert target.read_bytes() == bytes(512)
    assert go_on(layer, target).size == 3 * MiB  # all that was left to do
    assert content(target, "raw") == layer.content


def test_what_cannot_be_resumed(memory_path: Path, layer: Layer) -> None:
    (memory_path / "link").symlink_to("elsewhere")
    with pytest.raises(NotSupported, match="no regular file"):
        go_on(layer, memory_path / "link")
    with pytest.raises(NotSupported, match="is no file"):
        blocklayer.convert({"driver": "null", "size": MiB}, memory_path / "target", resume=True)
    for wrong in ({"salvage": True}, {"create": False}, {"salvage": True, "verify": True}):
        with pytest.raises(InvalidArgument):
            go_on(layer, memory_path / "target", **wrong)
    assert sorted(os.listdir(memory_path)) == ["link", "source"]


def test_a_difference_begins_again(memory_path: Path, layer: Layer) -> None:
    target = memory_path / "target"
    with pytest.raises(IoError, match="differs"):
        go_on(layer, target, verify=True, progress=Spoiler(memory_path / "target.partial", 9, 0.5))
    assert os.listdir(memory_path) == ["source"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("how", ["calls", "moments"])
def test_killed_again_and_again(
    memory_path: Path, how: str, format: str, rng: random.Random
) -> None:
    layers = chain(memory_path, rng, 300 * KiB, MiB)
    numbers = [str(rng.randrange(1 << 30)), "40"] if how == "moments" else []
    source, target = str(layers[-1].path), str(memory_path / "target")
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.resuming", how, format, source, target, *numbers],
        check=False,
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 20


def test_parts_grow_with_what_is_there(
    memory_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Little is lost of small images, and the notes on large ones are few."""
    monkeypatch.setattr(resume, "NOTE_FIRST", 4 * 64 * KiB)
    monkeypatch.setattr(resume, "NOTE_EVERY", 3 * MiB)
    source = make(memory_path / "source", rng.randbytes(16 * MiB))
    ends = []
    save = resume.Resumable.save

    def watch(self: resume.Resumable, note: Note) -> None:
        ends.append(note.parts[-1][0] if note.parts else 0)
        save(self, note)

    monkeypatch.setattr(resume.Resumable, "save", watch)
    result = go_on(source, memory_path / "target")
    assert (result.data, result.resumed) == (16 * MiB, 0)
    assert ends.pop() == 16 * MiB
    steps = [after - before for before, after in itertools.pairwise(ends)]
    assert steps[:4] == [256 * KiB] * 4
    assert steps == sorted(steps)
    assert steps[-1] == 3 * MiB
    for before, step in zip(ends, steps, strict=False):
        assert step <= max(256 * KiB, before // 4 + 64 * KiB)


def test_parts_as_they_are() -> None:
    """What the documents say."""
    assert subprocess.run(
        [
            *(sys.executable, "-c"),
            "from blocklayer.ops import resume as r; print(r.NOTE_FIRST, r.NOTE_EVERY, r.SECONDS)",
        ],
        capture_output=True,
        check=True,
    ).stdout.split() == [b"16777216", b"268435456", b"10"]


@pytest.mark.parametrize("verified", [False, True])
def test_what_is_too_little_begins_again(
    memory_path: Path, rng: random.Random, verified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when all of it was copied, and is read back: the last part is not noted."""
    monkeypatch.setattr(resume, "NOTE_EVERY", 16 * MiB)
    source = make(memory_path / "source", rng.randbytes(5 * MiB))
    target = memory_path / "target"
    interrupt(source, target, 0.75, verify=verified)
    result = go_on(source, target)
    assert (result.resumed, result.data) == (0, 5 * MiB)
    assert content(target, "raw") == source.content
    assert sorted(os.listdir(memory_path)) == ["source", "target"]


def test_the_command(memory_path: Path, layer: Layer, capsys: pytest.CaptureFixture[str]) -> None:
    target = memory_path / "target"
    interrupt(layer, target)
    line = ["convert", "-f", "raw", "--resume", "--verify", str(layer.path), str(target)]
    assert main([*line, "-O", "qed"]) == 1
    assert "Remove" in capsys.readouterr().err
    assert main(line) == 0
    assert content(target, "raw") == layer.content
    assert json.dumps(sorted(os.listdir(memory_path))) == '["source", "target"]'
