# SPDX-License-Identifier: Apache-2.0
"""Changing images that are not trusted: nothing that they name outside the folder is written to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import blocklayer
from blocklayer import Refused, Trust
from blocklayer.base.units import KiB, MiB
from blocklayer.cli.docs import model
from blocklayer.cli.main import main
from blocklayer.jobs.images import mirror_images
from blocklayer.ops import commit as commit_module
from tests.hostile.images import Image, make

OLD, NEW = b"old! ", b"new! "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An overlay with data of its own over a raw file, both in a folder; a secret beside it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(OLD * 64 * KiB)
    (folder / "base").write_bytes(OLD * 64 * KiB)
    overlay(folder, b"base")
    return folder


def overlay(folder: Path, backing: bytes) -> Path:
    path = folder / "overlay"
    path.unlink(missing_ok=True)
    blocklayer.create(path, format="qed", size=MiB // 4, backing="base", backing_format="raw")
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(0, NEW * 1000)
    content = path.read_bytes()
    offset = int.from_bytes(content[56:60], "little")
    changed = bytearray(content)
    changed[offset : offset + len(backing)] = backing
    changed[60:64] = len(backing).to_bytes(4, "little")
    path.write_bytes(changed)
    return path


OPERATIONS: dict[str, Callable[[Path, Path], object]] = {
    "commit": lambda path, _: blocklayer.commit(path, trust=Trust()),
    "rebase": lambda path, _: blocklayer.rebase(path, None, trust=Trust()),
    "resize": lambda path, _: blocklayer.resize(path, MiB, trust=Trust()),
    "dd": lambda path, target: blocklayer.dd(path, target / "target", trust=Trust()),
    "mirror": lambda path, target: mirror_images(path, target / "target", trust=Trust()),
    "create": lambda path, target: blocklayer.create(
        target / "target", format="qed", backing=path, backing_format="qed", trust=Trust()
    ),
}

LINES: dict[str, list[str]] = {
    "commit": ["commit", "--untrusted", "overlay"],
    "rebase": ["rebase", "--untrusted", "-b", "", "overlay"],
    "resize": ["resize", "--untrusted", "overlay", "1M"],
    "dd": ["dd", "--untrusted", "if=overlay", "of=target"],
    "mirror": ["mirror", "--untrusted", "overlay", "target"],
    "create": ["create", "--untrusted", "-f", "qed", "-b", "overlay", "-F", "qed", "target"],
    "create -o": [
        *("create", "--untrusted", "-f", "qed"),
        *("-o", "backing_file=overlay,backing_fmt=qed", "target"),
    ],
    "snapshot": ["snapshot", "--untrusted", "-l", "overlay"],
    "bench": ["bench", "--untrusted", "-c", "1", "overlay"],
    "io": ["io", "--untrusted", "-c", "read 0 512", "overlay"],
    "io -s": ["io", "--untrusted", "-s", "-c", "read 0 512", "overlay"],
    "io -C": ["io", "--untrusted", "-C", "-c", "read 0 512", "overlay"],
    "io open": ["io", "--untrusted", "-c", "open overlay"],
    "io open -o": ["io", "--untrusted", "-c", "open -o driver=qed overlay"],
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_refuse_what_lies_outside(folder: Path, tmp_path: Path, name: str) -> None:
    path = overlay(folder, b"../secret")
    before = path.read_bytes()
    with pytest.raises(Refused, match="outside the folder"):
        OPERATIONS[name](path, folder)
    assert (tmp_path / "secret").read_bytes() == OLD * 64 * KiB
    assert path.read_bytes() == before
    assert sorted(os.listdir(folder)) == ["base", "overlay"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_do_what_stays_inside(folder: Path, name: str) -> None:
    path = folder / "overlay"
    with blocklayer.open(path) as disk:
        shown = disk.read(0, disk.size)
    OPERATIONS[name](path, folder)
    result = {"commit": folder / "base"}.get(name, path)
    if (folder / "target").exists():
        result = folder / "target"
    is_qed = name in ("rebase", "resize", "create")
    with blocklayer.open(result, format="qed" if is_qed else "raw") as disk:
        assert disk.read(0, len(shown)) == shown


@pytest.mark.parametrize("name", LINES)
def test_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    overlay(folder, b"../secret")
    assert main(LINES[name]) == 1
    printed = capsys.readouterr()
    assert "outside the folder" in printed.err + printed.out
    overlay(folder, b"base")
    assert main(LINES[name]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        ["amend", "-o", "x=1", "overlay"],
        ["snapshot", "-c", "s", "overlay"],
        ["bitmap", "--add", "overlay", "b"],
    ],
    ids=lambda line: line[0],
)
def test_commands_that_have_nothing_to_change(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert main([line[0], "--untrusted", *line[1:]]) == 1
    assert "outside the folder" not in capsys.readouterr().err
    overlay(folder, b"../secret")
    assert main([line[0], "--untrusted", *line[1:]]) == 1
    assert "outside the folder" in capsys.readouterr().err


def test_every_command_that_opens_images_by_name_can_be_told() -> None:
    others = {"completion", "daemon", "help"}
    for command in model.commands():
        names = {option.key for option in command.options}
        assert (command.name in others) != ({"untrusted", "allow"} <= names), command.name


@pytest.mark.parametrize("spelling", [["--untrusted="], ["--untrusted=", "--allow", "depth=1"]])
def test_an_empty_folder_is_none(
    folder: Path, spelling: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """``--untrusted=$FOLDER`` without a FOLDER must not mean another folder."""
    assert main(["convert", *spelling, str(folder / "overlay"), str(folder / "target")]) == 1
    assert "missing argument" in capsys.readouterr().err
    assert not (folder / "target").exists()


def test_names_given_to_io_are_paths(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    name = 'json:{"driver":"raw","file":{"driver":"file","filename":"../secret"}}'
    for line in (["-r", name], ["-C", name], ["-s", name], ["-c", f"open -o x=1 {name}"]):
        assert main(["io", "--untrusted", "-c", "read 0 512", *line]) == 1
        printed = capsys.readouterr()
        assert "is no path" in printed.err + printed.out, line


def test_a_backing_file_is_named_by_a_path(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its format is not found out by looking at it."""
    monkeypatch.chdir(folder)
    name = 'json:{"driver":"raw","file":{"driver":"file","filename":"../secret"}}'
    assert main(["create", "--untrusted", "-f", "qed", "-b", name, "-F", "raw", "new"]) == 1
    assert "is no path" in capsys.readouterr().err
    assert main(["create", "--untrusted", "-f", "qed", "-b", name, "new"]) == 1
    told = capsys.readouterr().err
    assert "without backing format" in told
    assert "Detected" not in told
    assert not (folder / "new").exists()


def test_a_commit_writes_to_the_file_that_was_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if its name leads out by the time it is opened for writing."""
    real = commit_module._find_base

    def exchange(*arguments: object) -> object:
        (folder / "base").rename(folder / "moved")
        (folder / "base").symlink_to(tmp_path / "secret")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(commit_module, "_find_base", exchange)
    blocklayer.commit(folder / "overlay", trust=Trust())
    assert (tmp_path / "secret").read_bytes() == OLD * 64 * KiB
    assert (folder / "moved").read_bytes()[: 1000 * len(NEW)] == NEW * 1000


def test_a_base_is_chosen_by_its_open_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that means the base now need not have meant it when the chain was opened."""
    real = commit_module._find_base

    def exchange(*arguments: object) -> object:
        (folder / "base").rename(folder / "moved")
        (folder / "base").write_bytes(OLD * 64 * KiB)
        return real(*arguments)  # type: ignore[arg-type]

    (folder / "same").symlink_to("base")
    monkeypatch.setattr(commit_module, "_find_base", exchange)
    with pytest.raises(blocklayer.InvalidArgument, match="Did not find"):
        blocklayer.commit(folder / "overlay", base=folder / "same")


def test_large_images_are_refused_before_they_are_changed(tmp_path: Path) -> None:
    path = tmp_path / "image"
    image: Image = make(64 * KiB)
    image.write(path)
    limited = Trust(size_max=4 * KiB)
    for change in (
        lambda: blocklayer.resize(path, MiB, trust=limited),
        lambda: blocklayer.rebase(path, None, trust=limited),
    ):
        with pytest.raises(Refused, match="'size'"):
            change()
