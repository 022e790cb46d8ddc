# SPDX-License-Identifier: Apache-2.0
"""Images that are not trusted: whatever they name, nothing outside the folder is touched.

What was touched is told by Python's audit events, and by a tracer of system calls.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer import Refused, Trust
from blocklayer.base.units import EiB, KiB, MiB, TiB
from tests.hostile.images import Image, make
from tests.hostile.test_backing_names import NAMES
from tests.hostile.untrusted import BEGIN, END
from tests.support.source import ROOT
from tests.support.tools import needs

INSIDE, SECRET = b"INSIDE! ", b"SECRET! "
ROOMY = make(64 * KiB)
EMPTY = Image(
    tuple(piece for piece in ROOMY.pieces if piece[0] == 0),
    ROOMY.length,
)
"""The header alone: everything reads from the backing file."""

RAW = 5
"""Feature bits: there is a backing file, and it is raw."""

PLACES = (
    *("", "./", ".//./", "../", "../../", "../folder/", "/", "//", "sub/", "sub/../", "sub/../../"),
    *("{folder}/", "{folder}/../", "{folder}/sub/../", "{outside}/", "{folder}x/"),
    *("link_in/", "link_in/../", "link_out/", "link_abs_in/", "link_abs_out/", "link_up/"),
    *("link_around/", "loop/", "nothing/"),
)
FILES = (
    *("base", "base/", "base/.", "secret", "file_in", "file_out", "file_abs_out", "file_abs_in"),
    *("fifo", "socket", "sub", ".", "..", "", "hole", "base\x1b[2J", "loop"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with files and links of every kind, and something worth stealing beside it."""
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    for place in (outside, folder, folder / "sub", tmp_path / "folderx"):
        place.mkdir()
        content = INSIDE if place.is_relative_to(folder) else SECRET
        for name in ("base", "secret"):
            (place / name).write_bytes(content * (128 * KiB // 8))
        os.mkfifo(place / "fifo")
    (tmp_path / "secret").write_bytes(SECRET * 1024)
    (tmp_path / "base").write_bytes(SECRET * 1024)
    links = {
        "link_in": "sub",
        "link_out": "../outside",
        "link_abs_in": str(folder / "sub"),
        "link_abs_out": str(outside),
        "link_up": "..",
        "link_around": "../folder/sub",
        "loop": "loop",
        "file_in": "base",
        "file_out": "../secret",
        "file_abs_out": str(outside / "secret"),
        "file_abs_in": str(folder / "base"),
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)  # names of sockets must be short
        server.bind("socket")
        os.chdir(here)
        yield folder


def stored_names(folder: Path) -> list[bytes]:
    outside = folder.parent / "outside"
    names = [place + file for place, file in product(PLACES, FILES)]
    filled = [n.format(folder=folder, outside=outside).encode() for n in names if n]
    hostile = [name.encode() if isinstance(name, str) else name for name in NAMES.values()]
    return filled + hostile


def overlays(folder: Path, names: list[bytes]) -> list[Path]:
    """An image for each name; QED images over nothing but it."""
    paths = []
    for number, name in enumerate(names):
        path = folder / f"image{number}"
        EMPTY.with_field("image_size", 64 * KiB).with_backing(name).with_field(
            "features", RAW
        ).write(path)
        paths.append(path)
    return paths


def run(what: str, folder: Path, paths: list[Path], *tracer: str) -> list[dict[str, Any]]:
    command = [*tracer, sys.executable, "-m", "tests.hostile.untrusted", what, str(folder)]
    done = subprocess.run(
        [*command, *map(str, paths)], cwd=ROOT, capture_output=True, check=True, timeout=100
    )
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(answer) == len(paths)
    return answer


def is_inside(folder: Path, name: bytes) -> bool:
    """The oracle: where the name really leads, as the system resolves it."""
    try:
        path = os.path.realpath(os.path.join(os.fsencode(folder), name), strict=True)
    except (OSError, ValueError):
        return False
    trailing = name.endswith((b"/", b"/."))
    return path.startswith(os.fsencode(folder) + b"/") and os.path.isfile(path) and not trailing


def test_what_is_opened_lies_in_the_folder(folder: Path) -> None:
    names = stored_names(folder)
    paths = overlays(folder, names)
    results = run("open", folder, paths)
    opened = 0
    for name, path, result in zip(names, paths, results, strict=True):
        outcome = result["outcome"]
        if outcome == INSIDE.decode():
            assert is_inside(folder, name), name
            opened += 1
        else:
            assert outcome.startswith(("refused", "error")), (name, outcome)
            straight = b".." not in name and b"link_around" not in name
            assert not (straight and is_inside(folder, name)), (name, outcome)
        for touched in result["opened"]:
            # By its part below a directory that is open, without a slash.
            assert touched in (str(path), str(folder)) or "/" not in touched, (name, touched)
            assert touched != "..", name
    assert opened > 20


def test_info_opens_the_image_alone(folder: Path) -> None:
    paths = overlays(folder, stored_names(folder))
    for path, result in zip(paths, run("info", folder, paths), strict=True):
        assert set(result["opened"]) == {str(path)}


CALL = re.compile(
    r'^\d+ +(\w+)\((?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"([^"]*)"(.*)$'  # call(directory, "name"…
)
OPENED = re.compile(r"= \d+<([^>]*)>$")


def calls(trace: str) -> Iterator[list[tuple[str, str, str, str]]]:
    """For each image (call, directory, name, rest of the line) of the calls with names."""
    current: list[tuple[str, str, str, str]] | None = None
    for line in trace.splitlines():
        if BEGIN in line:
            current = []
        elif END in line:
            assert current is not None
            yield current
            current = None
        elif current is not None and (found := CALL.match(line)):
            call, directory, name, rest = found.groups()
            current.append((call, directory or "", name, rest))


@needs("strace")
@pytest.mark.parametrize("what", ["open", "info"])
def test_no_system_call_names_anything_outside(what: str, folder: Path, tmp_path: Path) -> None:
    names = stored_names(folder)
    paths = overlays(folder, names)
    log = tmp_path / "trace"
    tracer = ("strace", "-f", "-y", "-s", "8192", "-e", "trace=%file", "-o", str(log))
    run(what, folder, paths, *tracer)
    traced = list(calls(log.read_text("utf-8", "surrogateescape")))
    assert len(traced) == len(paths)
    watched = {touched for seen in traced for _, _, touched, _ in seen}
    assert watched >= set(map(str, paths)), "the tracer sees nothing"
    assert what == "info" or {"base", "secret", "sub", "link_out", "loop"} <= watched
    for name, path, seen in zip(names, paths, traced, strict=True):
        for call, directory, touched, rest in seen:
            if became := OPENED.search(rest):
                assert became[1].startswith(str(folder)), (name, call, touched, became[1])
            if not directory or not directory.startswith(str(folder)):
                # The image itself, and the way to the folder, which the user has named.
                assert str(path).startswith(touched) or not touched, (name, call, touched)
            else:
                assert "/" not in touched, (name, call, directory, touched)
                assert touched != "..", (name, call, directory)
                assert not touched or "NOFOLLOW" in rest or call == "readlinkat", (name, rest)
                assert what == "open" or touched == "", (name, call, touched)


def test_a_folder_that_is_exchanged_all_the_time(folder: Path) -> None:
    """The name is good at one moment, and leads out at the next."""
    [path] = overlays(folder, [b"moving/base"])
    moving, good, bad = folder / "moving", folder / "sub", folder / "link_out"
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            good.rename(moving)
            moving.rename(good)
            bad.rename(moving)
            moving.rename(bad)

    thread = threading.Thread(target=exchange)
    thread.start()
    opened = 0
    try:
        for _ in range(1500):
            try:
                with blocklayer.open(path, trust=Trust(folder)) as disk:
                    assert disk.read(0, 8) == INSIDE
                    opened += 1
            except blocklayer.OpenError:
                continue
    finally:
        stop.set()
        thread.join()
    assert opened, "the good moment was never met"


# --- formats, sizes, depth ------------------------------------------------------------------------


def chain(folder: Path, layers: int) -> Path:
    """So many images over each other."""
    for number in range(layers + 1):
        image = EMPTY.with_backing(b"layer%d" % (number - 1)) if number else EMPTY
        image.write(folder / f"layer{number}")
    return folder / f"layer{layers}"


def test_chains_end_after_a_few_layers(tmp_path: Path) -> None:
    path = chain(tmp_path, 9)
    blocklayer.open(path, trust=Trust(probe=True, depth_max=9)).close()
    with pytest.raises(Refused, match="more than the 8 layers"):
        blocklayer.open(path, trust=Trust(probe=True))
    with blocklayer.open(tmp_path / "layer8", trust=Trust(probe=True)):
        pass


def test_formats_are_not_guessed(tmp_path: Path) -> None:
    path = chain(tmp_path, 1)
    with pytest.raises(Refused, match="format that is guessed"):
        blocklayer.open(path, trust=Trust())
    blocklayer.open(path, trust=Trust(probe=True)).close()


@pytest.mark.parametrize(
    ("image", "trust", "message"),
    [
        (make(64 * KiB, 4).with_field("image_size", 65 * TiB), Trust(), None),  # more than it maps
        (make(MiB, 4).with_field("image_size", 65 * TiB), Trust(), "65 TiB.*'size'"),
        (make(MiB, 4).with_field("image_size", 65 * TiB), Trust(size_max=EiB), ""),
        (make(64 * MiB, 16), Trust(size_max=EiB), "1 GiB.*'table-size'"),
        (make(64 * MiB, 16), Trust(table_max=1024 * MiB, size_max=EiB * 8), ""),
    ],
)
def test_absurd_sizes(tmp_path: Path, image: Image, trust: Trust, message: str | None) -> None:
    path = tmp_path / "image"
    image.write(path)
    if message == "":
        blocklayer.open(path, trust=trust).close()
        return
    with pytest.raises(blocklayer.OpenError, match=message):
        blocklayer.open(path, trust=trust)
    if message:
        for operation in (blocklayer.check, blocklayer.measure):
            with pytest.raises(Refused, match=message):
                operation(path, trust=trust)
        found = blocklayer.info(path, trust=trust)
        assert any(reach.what == "size" and reach.refused for reach in found.reaches or ())


def test_a_loop_is_told_as_one(tmp_path: Path) -> None:
    EMPTY.with_backing(b"image").write(tmp_path / "image")
    with pytest.raises(blocklayer.ChainError, match="infinite loop"):
        blocklayer.open(tmp_path / "image", trust=Trust(probe=True))


def test_names_that_are_no_paths_are_refused(tmp_path: Path) -> None:
    path = chain(tmp_path, 0)
    for name in ('json:{"file":"/etc/passwd"}', "null-co://", "nbd:localhost"):
        with pytest.raises(Refused, match="is no path"):
            blocklayer.open(name, trust=Trust())
    blocklayer.open(f"file:{path}", trust=Trust()).close()
    blocklayer.open({"driver": "qed", "file": str(path)}, trust=Trust()).close()


def test_what_is_told_before_anything_is_opened(tmp_path: Path) -> None:
    inner = '{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}'
    image = tmp_path / "image"
    ROOMY.with_backing(f"json:{inner}".encode()).write(image)
    found = blocklayer.info(image, trust=Trust()).reaches
    assert found is not None
    assert [(reach.what, reach.refused is None) for reach in found] == [
        ("backing file", False),
        ("name in a backing file's options", False),
    ]
    assert found[1].name == "/etc/shadow"
    ROOMY.with_backing(b"../up").with_field("features", RAW).write(image)
    [reach] = blocklayer.info(image, trust=Trust()).reaches or []
    assert reach.path == str(tmp_path.parent / "up")
    assert "outside the folder" in (reach.refused or "")
    [reach] = blocklayer.info(image, trust=Trust(tmp_path.parent)).reaches or []
    assert reach.refused is None


def test_folders_are_named_as_users_name_them(folder: Path, monkeypatch: Any) -> None:
    """Relative, through links of the user's own, or another folder than the image's."""
    [image] = overlays(folder / "sub", [b"../base"])
    with pytest.raises(Refused, match="outside the folder"):
        blocklayer.open(image, trust=Trust())
    away = folder.parent / "away"
    away.symlink_to(folder)
    for name, trust in (
        (image, Trust(folder)),
        (away / "sub" / image.name, Trust(folder)),
        (image, Trust(away)),
        (f"sub/{image.name}", Trust(".")),
        (f"../away/sub/{image.name}", Trust(folder)),
    ):
        monkeypatch.chdir(folder)
        with blocklayer.open(name, trust=trust) as disk:
            assert disk.read(0, 8) == INSIDE
            assert disk.backing is not None
            assert os.path.normpath(disk.backing.filename) == str(folder / "base")


def test_operations_trust_as_little(folder: Path) -> None:
    [image] = overlays(folder, [b"../secret"])
    for attempt in (
        lambda: list(blocklayer.map(image, trust=Trust())),
        lambda: blocklayer.convert(image, folder / "copy", trust=Trust()),
        lambda: blocklayer.compare(image, image, trust=Trust()),
        lambda: blocklayer.measure(image, trust=Trust()),
    ):
        with pytest.raises(Refused, match="outside the folder"):
            attempt()
    assert not (folder / "copy").exists()


def test_what_lies_below_is_reopened_by_its_descriptor(folder: Path) -> None:
    """Its name leads out of the folder by now."""
    [image] = overlays(folder, [b"base"])
    with blocklayer.open(image, trust=Trust()) as disk:
        backing = disk.backing
        assert backing is not None
        (folder / "base").unlink()
        (folder / "base").symlink_to("../secret")
        backing.node.reopen(read_only=False)
        backing.node.writev(0, [memoryview(b"changed!")])
        assert disk.read(0, 8) == b"changed!"
    assert (folder.parent / "secret").read_bytes()[:8] == SECRET


def test_without_its_descriptors_what_lies_below_stays_read_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [image] = overlays(folder, [b"base"])
    with blocklayer.open(image, trust=Trust()) as disk:
        backing = disk.backing
        assert backing is not None
        monkeypatch.setattr("blocklayer.protocols.file.OPEN_FILES", "/nothing")
        with pytest.raises(blocklayer.ReadOnly, match="not trusted"):
            backing.node.reopen(read_only=False)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from blocklayer.cli.main import main

    good, bad = overlays(folder, [b"base", b"../\x1b[2Jsecret"])
    assert main(["compare", "--untrusted", str(good), str(good)]) == 0
    assert main(["info", "--untrusted=/nonexistent", str(good)]) == 1
    assert main(["compare", "--untrusted", str(bad), str(good)]) == 2
    assert "lies outside the folder" in capsys.readouterr().err
    assert main(["info", "--untrusted", str(bad)]) == 0
    told = capsys.readouterr().out
    assert "refused: its backing file '../\\x1b[2Jsecret' lies outside" in told
    assert "\x1b" not in told
    assert main(["info", f"--untrusted={folder.parent}", "--output=json", str(bad)]) == 0
    assert json.loads(capsys.readouterr().out)["reaches"][0]["allowed"]
    for command in ("map", "measure", "info", "check"):
        assert main([command, "--untrusted", "--allow", "size=1k", str(good)]) in (0, 1)
        ended = capsys.readouterr()
        assert "raise the limit 'size'" in ended.err + ended.out
    assert main(["map", "--allow", "size=1k", str(good)]) == 1
    assert main(["map", "--untrusted", "--allow", "siez=1k", str(good)]) == 1
    assert "Invalid limit 'siez'" in capsys.readouterr().err


def test_names_cannot_move_a_terminal_s_cursor(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor forge lines, where images are not trusted."""
    from blocklayer.cli.main import main

    [path] = overlays(folder, [b"gone\x1b[2J\x07\nblk all is well\xc2\x9b"])
    with pytest.raises(blocklayer.OpenError, match=r"gone\\x1b\[2J\\x07\\nblk all is well\\x9b"):
        blocklayer.open(path, trust=Trust())
    for words in (["map"], ["map", "--untrusted"], ["compare", str(path)]):
        assert main([*words, str(path)]) in (1, 2)
        told = capsys.readouterr()
        assert told.out == ""
        assert all(c.isprintable() or c == "\n" for c in told.err)
        assert ("\nblk all" in told.err) == ("--untrusted" not in words)
