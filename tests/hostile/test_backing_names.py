# SPDX-License-Identifier: Apache-2.0
"""Backing file names of any bytes: an image says what is opened below it, and may say anything."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from blocklayer.base.units import MiB
from blocklayer.core import drivers
from blocklayer.core.opening import CHAIN_DEPTH_MAX
from tests.hostile.images import Image, make
from tests.hostile.prison import Prison
from tests.hostile.verbs import EVERYTHING

SMALL = make()
ROOMY = make(64 * 1024)
NAME_MAX = 4095


def attack(prison: Prison, directory: Path, image: Image) -> list[str]:
    """Do everything; how the verbs ended."""
    sentence = prison.run(directory, *EVERYTHING, image=image)
    assert sentence.broken() == []
    return [outcome.text for outcome in sentence.outcomes if outcome.kind == "refused"]


def nested(begin: str, inner: str, end: str, depth: int) -> str:
    return "json:" + begin * depth + inner + end * depth


def as_deep_as_fits(begin: str, inner: str, end: str) -> str:
    room = NAME_MAX - len("json:") - len(inner)
    return nested(begin, inner, end, room // (len(begin) + len(end)))


FILE = '{"driver":"file","filename":"image"}'
NAMES: dict[str, bytes | str] = {
    "a NUL": b"ba\0se",
    "only NULs": b"\0" * 16,
    "no UTF-8": b"\xff\xfe\xc0\x80",
    "a surrogate": b"\xed\xa0\x80",
    "control characters": b"\x1b[2J\r\n\t\x07",
    "a format string": b"%s%n{0}{message}{filename.__class__}",
    "as long as can be": b"a" * NAME_MAX,
    "many directories": b"a/" * (NAME_MAX // 2),
    "upwards": b"../" * 1000,
    "a colon": b"a:b",
    "one letter and a colon": b"c:base",
    "only a prefix": b"file:",
    "a prefix of many": b"file:" * 100 + b"base",
    "an unknown protocol": b"gopher://host/image",
    "the network": b"nbd://localhost:10809/x",
    "an empty JSON": b"json:",
    "an open JSON": b"json:{",
    "no object": b"json:[]",
    "an empty object": b"json:{}",
    "no driver": b'json:{"file":{}}',
    "an unknown driver": b'json:{"driver":"teapot"}',
    "not a driver's name": b'json:{"driver":["qed"]}',
    "a driver that is a dict": b'json:{"driver":{"driver":"qed"}}',
    "NaN": b'json:{"driver":"memory","size":NaN}',
    "infinity": b'json:{"driver":"memory","size":1e999}',
    "negative": b'json:{"driver":"memory","size":-1}',
    "true": b'json:{"driver":"memory","size":true}',
    "a huge number": 'json:{"driver":"memory","size":' + "9" * 4000 + "}",
    "a huge text": 'json:{"driver":"memory","size":"' + "9" * 4000 + '"}',
    "all the memory there is": b'json:{"driver":"memory","size":"8191P"}',
    "nothing, and much of it": b'json:{"driver":"null","size":"8191P"}',
    "nested lists": as_deep_as_fits("[", "", "]"),
    "nested files": as_deep_as_fits('{"file":', "{}", "}"),
    "nested raw": as_deep_as_fits('{"driver":"raw","file":', FILE, "}"),
    "nested backing": as_deep_as_fits('{"file":"base","backing":', "null", "}"),
    "nested names": "json:" + json.dumps({"file." * 800 + "filename": "base"}),
    "itself by JSON": 'json:{"driver":"qed","file.filename":"image"}',
    "names of itself": 'json:{"driver":"qed","file":' + FILE + "}",
    "locks off": b'json:{"driver":"file","filename":"base","locking":"off"}',
    "for writing": b'json:{"driver":"raw","read-only":false,"file":"base"}',
    "an option that is a list": b'json:{"driver":"raw","file":"base","offset":[]}',
    "a window out of the file": b'json:{"driver":"raw","file":"base","offset":"7E"}',
    "a window that is too large": b'json:{"driver":"raw","file":"base","size":"7E"}',
    "the same twice": b'json:{"file":"base","file.filename":"base"}',
    "an odd cache": b'json:{"driver":"raw","file":"base","cache":{"direct":{}}}',
    "O_DIRECT": b'json:{"driver":"raw","file":"base","cache.direct":true}',
    "the directory": b".",
    "the root": b"/",
    "a FIFO": b"fifo",
    "a socket": b"socket",
    "a device of zeroes": b"/dev/zero",
    "a device that is full": b"/dev/full",
    "a device of nothing": b"/dev/null",
    "a terminal": b"/dev/tty",
    "the standard input": b"/dev/stdin",
    "its own memory": b"/proc/self/mem",
    "its own descriptors": b"/proc/self/fd/0",
    "an endless file": b"/proc/kmsg",
    "a file without a length": b"/proc/self/status",
    "a file in sysfs": b"/sys/kernel/profiling",
    "nothing there": b"nothing",
}


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize("no_probe", [False, True], ids=["probed", "raw"])
def test_names(prison: Prison, memory_path: Path, what: str, no_probe: bool) -> None:
    os.mkfifo(memory_path / "fifo")
    name = NAMES[what]
    image = ROOMY.with_backing(name.encode() if isinstance(name, str) else name)
    if no_probe:
        image = image.with_field("features", 5)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(memory_path / "socket"))
        attack(prison, memory_path, image)


FILTERS = {
    "slow": {"driver": "throttle", "bps-total": 1, "file": "base"},
    "huge blocks": {"driver": "blkdebug", "align": 1 << 40, "image": "base"},
    "tiny transfers": {"driver": "blkdebug", "max-transfer": 1, "image": "base"},
    "a log over another file": {"driver": "blklogwrites", "file": "base", "log": "canary"},
    "a mirror": {"driver": "blkverify", "raw": "base", "test": "canary"},
    "copying": {"driver": "copy-on-read", "file": {"driver": "qed", "file": "image"}},
}


@pytest.mark.parametrize("what", FILTERS)
def test_filters_are_refused(prison: Prison, memory_path: Path, what: str) -> None:
    """They make requests slow, fail, or go to other files: nothing that an image may ask for."""

    def absolute(tree: object) -> object:
        if isinstance(tree, dict):
            return {key: absolute(value) for key, value in tree.items()}
        return str(memory_path / tree) if tree in ("base", "canary", "image") else tree

    for tree in (FILTERS[what], {"driver": "raw", "file": FILTERS[what]}):
        name = "json:" + json.dumps(absolute(tree))
        texts = attack(prison, memory_path, ROOMY.with_backing(name.encode()))
        assert any("cannot use driver" in text for text in texts)


LOOPS: dict[str, tuple[bytes, tuple[tuple[str, str], ...]]] = {
    "itself": (b"image", ()),
    "by another path": (b"./image", ()),
    "by a symbolic link": (b"link", (("symbolic", "link"),)),
    "by a hard link": (b"link", (("hard", "link"),)),
    "by way of the parent": (b"../{directory}/image", ()),
    "by an absolute path": (b"{absolute}/image", ()),
    "by file:": (b"file:{absolute}/image", ()),
    "by JSON": (b'json:{"driver":"qed","file":"{absolute}/image"}', ()),
}


@pytest.mark.parametrize("what", LOOPS)
def test_loops(prison: Prison, memory_path: Path, what: str) -> None:
    name, links = LOOPS[what]
    name = name.replace(b"{directory}", memory_path.name.encode())
    name = name.replace(b"{absolute}", bytes(memory_path))
    image = SMALL.with_backing(name)
    image = Image(image.pieces, image.length, links=links)
    texts = attack(prison, memory_path, image)
    loops = [text for text in texts if "ChainError" in text and "loop" in text]
    # Everything that opens what lies below, read-only or not: no lock of our own is in the way.
    assert len(loops) >= 8, texts


def test_a_loop_of_two(prison: Prison, memory_path: Path) -> None:
    SMALL.with_backing(b"image").write(memory_path / "below")
    texts = attack(prison, memory_path, SMALL.with_backing(b"below"))
    assert sum("loop" in text for text in texts) >= 8


def chain(directory: Path, layers: int, last: bytes = b"base") -> None:
    """Images 0 (the lowest) … layers - 1, each over the one before."""
    for number in range(layers):
        below = str(number - 1).encode() if number else last
        SMALL.with_backing(below).write(directory / str(number))


@pytest.mark.parametrize("more", [-1, 0, 1, 2, 100])
def test_depth(prison: Prison, memory_path: Path, more: int) -> None:
    """As many layers as are allowed work, one more is refused; nothing ends in between."""
    layers = CHAIN_DEPTH_MAX + more - 1
    chain(memory_path, layers)
    verbs = ("chain", "read", "write", "convert", "commit", "unbase", "command")
    image = SMALL.with_backing(str(layers - 1).encode())
    sentence = prison.run(memory_path, *verbs, image=image)
    assert sentence.broken() == []
    kinds = {verb: sentence.of(verb).kind for verb in verbs[:4]}
    if more <= 0:
        assert set(kinds.values()) == {"done"}
        assert sentence.of("chain").value == CHAIN_DEPTH_MAX + more + 1
    else:
        assert kinds["chain"] == kinds["write"] == "refused"
        assert "deeper than" in sentence.of("write").text


def test_a_tree_of_layers(prison: Prison, memory_path: Path) -> None:
    """Each layer opens the next one on two edges: 2**30 nodes, if nobody counts."""
    for number in range(30):
        below = str(memory_path / str(number + 1))
        tree = {"driver": "qed", "file": {"driver": "qed", "file": below}}
        ROOMY.with_backing(("json:" + json.dumps(tree)).encode()).write(memory_path / str(number))
    ROOMY.write(memory_path / "30")
    attack(prison, memory_path, ROOMY.with_backing(b"0"))


# --- random option trees --------------------------------------------------------------------------

KEYS = (
    *("driver", "file", "backing", "filename", "size", "offset", "read-only", "force-share"),
    *("locking", "cache", "cache.direct", "aio", "node-name", "file.driver", "file.filename"),
    *("file.file", "image", "raw", "test", "log", "limits", "bps-total", "align", "inject-error"),
    *("set-state", "config", "log-sector-size", "read-zeroes", "", ".", "x"),
)
VALUES: tuple[Callable[[random.Random], object], ...] = (
    lambda rng: rng.choice(list(drivers._MODULES)),
    lambda rng: rng.choice(["base", "image", "nothing", "", "on", "off", "\0", "\ud800", "8E"]),
    lambda rng: rng.choice([0, 1, -1, 512, 2**31, 2**63, 2**64, 0.5, 1e300, float("nan")]),
    lambda rng: rng.choice([True, False, None, [], {}, [{}], [[]]]),
)


def random_tree(rng: random.Random, depth: int) -> dict[str, object]:
    tree: dict[str, object] = {}
    for key in rng.sample(KEYS, rng.randrange(1, 5)):
        deeper = depth and rng.random() < 0.5
        tree[key] = random_tree(rng, depth - 1) if deeper else rng.choice(VALUES)(rng)
    if rng.random() < 0.8:
        tree["driver"] = rng.choice(list(drivers._MODULES))
    return tree


@pytest.mark.parametrize("count", [300, pytest.param(30000, marks=pytest.mark.long)])
def test_random_options(prison: Prison, memory_path: Path, rng: random.Random, count: int) -> None:
    """What users give may be wrong in any way: by name, as options, and below an image."""
    trees = [random_tree(rng, 3) for _ in range(count)]
    for start in range(0, count, 100):
        sentence = prison.run(
            memory_path, "open_trees", image=SMALL, trees=trees[start : start + 100]
        )
        assert sentence.broken() == []


def test_a_name_of_megabytes(prison: Prison, memory_path: Path) -> None:
    names = [
        "json:" + "[" * MiB,
        "json:" + '{"file":' * MiB,
        nested('{"file":', "{}", "}", 100_000),
        "json:" + json.dumps({"file." * 200_000 + "filename": "base"}),
        "json:" + json.dumps({"filename": "x" * MiB}),
        "x" * MiB,
        "file:" + "x/" * MiB,
        "json:" + "9" * MiB,
    ]
    sentence = prison.run(memory_path, "open_names", image=SMALL, names=names)
    assert sentence.broken() == []
    assert sentence.of("open_names").value == 0
