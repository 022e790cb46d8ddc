# SPDX-License-Identifier: Apache-2.0
"""The public face: what there is, what it costs, and how its objects behave as Python objects."""

from __future__ import annotations

import ast
import asyncio
import copy
import errno
import gc
import importlib
import inspect
import io
import itertools
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer import (
    BlocklayerError,
    CancelToken,
    Closed,
    Disk,
    Extent,
    InvalidArgument,
    IoError,
    LockError,
    OpenError,
    OutOfRange,
    Progress,
    ReadOnly,
)
from blocklayer.base.units import KiB, MiB
from tests.support.crew import run_together
from tests.support.source import ROOT

SIZE = MiB
CLUSTER = 4 * KiB
FUNCTIONS = sorted(
    name for name in blocklayer.__all__ if inspect.isfunction(getattr(blocklayer, name))
)
CLASSES = sorted(name for name in blocklayer.__all__ if inspect.isclass(getattr(blocklayer, name)))
PAGE = (ROOT / "docs" / "library.md").read_text("utf-8")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size=SIZE, cluster_size=CLUSTER)
    return path


def descriptors() -> list[str]:
    """Files that this process has open."""
    folder = "/proc/self/fd"
    links = (f"{folder}/{name}" for name in os.listdir(folder))
    return sorted(os.path.realpath(link) for link in links if os.path.exists(link))


# --- names ---


def test_every_name_is_there() -> None:
    assert sorted(blocklayer.__all__) == list(blocklayer.__all__) == dir(blocklayer)
    assert len(set(blocklayer.__all__)) == len(blocklayer.__all__)
    assert {*FUNCTIONS, *CLASSES, "__version__"} == set(blocklayer.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", blocklayer.__version__)
    everything: dict[str, Any] = {}
    exec("from blocklayer import *", everything)
    assert everything.keys() >= set(blocklayer.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        blocklayer.nonsense  # noqa: B018


def test_type_checkers_see_what_is_imported() -> None:
    """The imports for them and those on first use are written separately."""
    source = Path(blocklayer.__file__).read_text("utf-8")
    seen = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("blocklayer."):
            for alias in node.names:
                suffix = f":{alias.name}" if alias.asname else ""
                seen[alias.asname or alias.name] = f"{node.module}{suffix}"
    del seen["__version__"]
    assert seen == blocklayer._ORIGINS
    assert {*seen, "__version__"} == set(blocklayer.__all__)
    assert Path(blocklayer.__file__).with_name("py.typed").exists()


def modules_after(statement: str) -> set[str]:
    """What a new interpreter has loaded."""
    code = f"{statement}\nimport sys\nsys.stdout.write(' '.join(sys.modules))"
    finished = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(blocklayer.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(finished.stdout.split())


def test_names_are_imported_when_they_are_used() -> None:
    idle = {name for name in modules_after("import blocklayer") if name.startswith("blocklayer.")}
    assert idle == {"blocklayer._version"}
    used = modules_after("import blocklayer\nblocklayer.info\nblocklayer.open")
    assert "blocklayer.ops.info" in used
    for name in ("typing", "dataclasses", "asyncio", "blocklayer.ops.convert"):
        assert name not in used
    assert not any(name.startswith("blocklayer.formats.qed") for name in used)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_typed_and_documented(name: str) -> None:
    function = getattr(blocklayer, name)
    signature = inspect.signature(function)
    assert inspect.getdoc(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        if parameter.default is not inspect.Parameter.empty:
            by_name = parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert by_name or (name, parameter.name) == ("measure", "name")
    assert re.search(rf"\b{name}\b", PAGE)


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_typed_and_documented(name: str) -> None:
    cls = getattr(blocklayer, name)
    assert inspect.getdoc(cls)
    assert cls.__name__ == name
    for attribute, value in vars(cls).items():
        if attribute.startswith("_"):
            continue
        function = value.fget if isinstance(value, property) else value
        if isinstance(function, types.FunctionType):
            assert inspect.getdoc(function), f"{name}.{attribute}"
            assert "return" in function.__annotations__, f"{name}.{attribute}"


def test_the_page_names_every_error_and_verb() -> None:
    errors = {name for name in CLASSES if issubclass(getattr(blocklayer, name), BlocklayerError)}
    rows = PAGE.split("## Errors")[1].split("## asyncio")[0].splitlines()
    cells = [row.split("|")[1] for row in rows if row.startswith("| `")]
    told = {word for cell in cells for word in re.findall(r"`(\w+)`", cell)}
    assert told == errors - {"BlocklayerError"}
    verbs = PAGE.split("| verb |")[1].split("\n\n")[0]
    for verb in re.findall(r"`(\w+)\(", verbs):
        assert callable(getattr(Disk, verb, None)) or verb == "Extent"


@pytest.mark.parametrize("name", CLASSES)
def test_errors_have_one_base(name: str) -> None:
    cls = getattr(blocklayer, name)
    if issubclass(cls, Exception):
        assert issubclass(cls, BlocklayerError)
        assert cls.exit_code == 1
        assert cls.qmp_class


# --- examples of the page ---


def test_the_page_s_first_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocklayer.create("overlay.qed", format="qed", size=MiB)
    blocklayer.create("top.qed", format="qed", size=MiB)
    for name in ("dump.raw", "disk.raw", "base"):
        blocklayer.create(name, size=2 * MiB)
    example = PAGE.split("```python")[1].split("```")[0]
    opened = [
        eval(compile(ast.Expression(node.value), "library.md", "eval"), {"blocklayer": blocklayer})
        for node in ast.parse(example).body
        if isinstance(node, ast.Expr)
    ]
    assert [disk.format for disk in opened] == ["qed", "raw", "raw", "qed"]
    assert opened[2].size == 512000
    assert opened[3].backing.filename == "base"
    for disk in opened:
        disk.close()


# --- errors that really happen ---


def failures(path: Path) -> Iterator[Callable[[], object]]:
    """Calls that fail, each in a way of its own."""
    missing = path.with_name("missing")
    bad = path.with_name("bad")
    bad.write_bytes(b"QED\0" * 100)
    disk = blocklayer.open(path)
    yield lambda: disk.read(SIZE, 1)
    yield lambda: disk.write(0, b"x")
    yield lambda: blocklayer.open(path, mode="r+")
    disk.close()
    yield lambda: disk.read(0, 1)
    yield lambda: blocklayer.open(missing)
    yield lambda: blocklayer.open(bad)
    yield lambda: blocklayer.open(path, mode="w")
    yield lambda: blocklayer.create(missing, size="x")
    yield lambda: blocklayer.check({"driver": "raw", "file.filename": str(path)})
    token = CancelToken()
    token.cancel()
    yield lambda: blocklayer.compare(path, path, cancel=token)
    rules = [{"iotype": "read", "sector": 0}]
    file = {"driver": "fault", "file.filename": str(path), "inject-error": rules}
    with blocklayer.open({"driver": "raw", "file": file}) as broken:
        yield lambda: broken.read(0, 50)
    loop = path.with_name("loop")
    blocklayer.create(loop, format="qed", size=512, backing="loop", check_backing=False)
    yield lambda: blocklayer.open(loop)


def test_errors_can_be_sent_elsewhere(path: Path) -> None:
    kinds = set()
    for call in failures(path):
        with pytest.raises(BlocklayerError) as caught:
            call()
        error = caught.value
        kinds.add(type(error).__name__)
        assert error.errno in errno.errorcode
        copies = [pickle.loads(pickle.dumps(error, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)]
        for other in (*copies, copy.copy(error), copy.deepcopy(error)):
            assert type(other) is type(error)
            assert str(other) == str(error)
            assert other.as_dict() == error.as_dict()
            assert (other.errno, other.exit_code) == (error.errno, error.exit_code)
    assert kinds == {
        *("OutOfRange", "ReadOnly", "OpenError", "Closed", "InvalidArgument", "CreateError"),
        *("NotSupported", "Cancelled", "IoError", "ChainError"),
    }


def test_errors_carry_their_fields(path: Path) -> None:
    rules = [{"iotype": "read", "sector": 0, "errno": 5}]
    file = {"driver": "fault", "file.filename": str(path), "inject-error": rules}
    with (
        blocklayer.open({"driver": "raw", "file": file}) as disk,
        pytest.raises(IoError) as caught,
    ):
        disk.read(0, 50)
    error = caught.value
    assert (error.operation, error.offset, error.length) == ("read", 0, 50)
    assert (error.errno, error.code, error.filename) == (5, 5, str(path))
    with pytest.raises(OpenError) as opening:
        blocklayer.open(path.with_name("missing"))
    assert opening.value.errno == errno.ENOENT
    assert opening.value.filename == str(path.with_name("missing"))
    with blocklayer.open(path, mode="r+"), pytest.raises(OpenError) as locked:
        blocklayer.open(path)
    assert isinstance(locked.value.__cause__, LockError)
    assert locked.value.__cause__.filename == str(path)


@pytest.mark.parametrize(
    "value",
    [
        Extent(0, 512, True, False, True, 0, 4096, "file"),
        Progress("convert", 1, 2),
        blocklayer.CompareResult(False, 512, "content"),
        blocklayer.Measurement(1, 2),
        blocklayer.Problem("leak", "words"),
    ],
)
def test_answers_are_values(value: Any) -> None:
    for other in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert other == value
        assert hash(other) == hash(value)
        assert repr(other) == repr(value)
    assert value != object()


def test_answers_about_images_can_be_sent_elsewhere(path: Path) -> None:
    for value in (blocklayer.info(path), blocklayer.check(path), next(blocklayer.map(path))):
        assert pickle.loads(pickle.dumps(value)) == value


# --- a disk as an object ---


@pytest.mark.parametrize("name", ["raw", "qed"])
def test_a_disk_has_no_copies(path: Path, name: str) -> None:
    """They would be second owners of one open file."""
    disk = blocklayer.open(path, mode="r+", format=name)
    calls: list[Callable[[Disk], object]] = [copy.copy, copy.deepcopy]
    calls += [lambda disk, p=p: pickle.dumps(disk, p) for p in range(pickle.HIGHEST_PROTOCOL + 1)]  # type: ignore[misc]
    for call in calls:
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            call(disk)
    disk.write(512, b"still open")
    disk.close()
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copy.copy(disk)
    assert len({disk, disk}) == 1


def test_context_managers(path: Path) -> None:
    before = descriptors()
    with blocklayer.open(path, mode="r+") as disk:
        assert not disk.closed
        with disk:  # closes; the outer one has nothing left to do
            disk.write(0, b"x")
        assert disk.closed
    with pytest.raises(ZeroDivisionError), blocklayer.open(path) as disk:
        raise ZeroDivisionError
    assert disk.closed
    with pytest.raises(ZeroDivisionError), blocklayer.open(path) as disk, disk.drain():
        raise ZeroDivisionError
    with blocklayer.open(path) as disk, disk.as_file() as stream:
        assert stream.read(1) == b"x"
    assert stream.closed
    assert descriptors() == before


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_forgotten_disk(path: Path, mode: str) -> None:
    before = descriptors()

    def forget() -> None:
        blocklayer.open(path, mode=mode).read(0, 1)
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed disk .*image"):
        forget()
    assert descriptors() == before
    with blocklayer.open(path, mode="r+"):
        pass


def test_what_belongs_to_a_disk_is_not_forgotten(path: Path) -> None:
    """A backing disk and a stream are closed with the disk that they are of."""
    top = path.with_name("top")
    blocklayer.create(top, format="qed", backing="image")
    with blocklayer.open(top) as disk:
        below, stream = disk.backing, disk.as_file()
        assert below is not None
        assert below.read(0, 1) == b"\0"
        with pytest.raises(ReadOnly):
            below.write(0, b"x")
        del stream
        gc.collect()
        assert disk.read(0, 1) == b"\0"
    with pytest.raises(Closed):
        below.read(0, 1)
    del below
    gc.collect()


def test_a_disk_that_could_not_be_opened_is_no_resource(path: Path) -> None:
    before = descriptors()
    for arguments in ({"mode": "w"}, {"discard": "x"}, {"format": "nonsense"}, {"cache": "x"}):
        with pytest.raises((InvalidArgument, OpenError)):
            blocklayer.open(path, **arguments)  # type: ignore[arg-type]
    gc.collect()
    assert descriptors() == before


# --- threads ---


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_two_threads_close(path: Path, mode: str) -> None:
    before = descriptors()
    for _ in range(40):
        disk = blocklayer.open(path, mode=mode)
        run_together(disk.close, disk.close, disk.close)
        assert disk.closed
        assert descriptors() == before
    assert blocklayer.check(path).clean


def test_closing_while_others_work(path: Path, rng: random.Random) -> None:
    """Each request is done or refused."""
    before = descriptors()
    for _ in range(15):
        disk = blocklayer.open(path, mode="r+")
        done: list[int] = []
        seeds = [rng.getrandbits(32) for _ in range(2)]

        def work(
            number: int, disk: Disk = disk, done: list[int] = done, seeds: Any = seeds
        ) -> None:
            own = random.Random(seeds[number])
            for step in itertools.count():
                cluster = own.randrange(SIZE // CLUSTER // 2) * 2 + number
                try:
                    disk.write(cluster * CLUSTER, b"done")
                    assert disk.read(cluster * CLUSTER, 4) == b"done"
                    next(disk.extents(cluster * CLUSTER, 4))
                except Closed:
                    return
                done.append(cluster)
                assert step < 100000

        def close(disk: Disk = disk, done: list[int] = done) -> None:
            while len(done) < 10:
                os.sched_yield()
            disk.close()

        run_together(lambda: work(0), lambda: work(1), close, close)
        assert descriptors() == before
        with blocklayer.open(path) as disk:
            for cluster in done:
                assert disk.read(cluster * CLUSTER, 4) == b"done"
    assert blocklayer.check(path).clean


def test_operations_at_the_same_time(path: Path) -> None:
    """They share nothing but the files."""
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(1000, b"content" * 1000)
        content = disk.read(0, SIZE)

    def convert(name: str, format: str) -> None:
        for _ in range(5):
            blocklayer.convert(path, path.with_name(name), format=format)
            with blocklayer.open(path.with_name(name), format=format) as disk:
                assert disk.read(0, SIZE) == content

    run_together(
        lambda: convert("one", "raw"),
        lambda: convert("two", "qed"),
        lambda: [blocklayer.check(path) for _ in range(20)],
        lambda: [blocklayer.info(path) for _ in range(20)],
    )


# --- a disk as a file ---


def test_libraries_take_a_disk_as_a_file(path: Path, rng: random.Random) -> None:
    (path.parent / "a").write_bytes(rng.randbytes(100000))
    with (
        blocklayer.open(path, mode="r+") as disk,
        io.BufferedRandom(disk.as_file()) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.write(path.parent / "a", "a")
        archive.writestr("b", b"x" * 50000)
    with blocklayer.open(path) as disk, io.BufferedReader(disk.as_file()) as reader:
        whole = reader.read()
        assert whole == disk.read(0, SIZE)
        assert reader.read(1) == b""
        reader.seek(-10, os.SEEK_END)
        assert len(reader.peek(100)) == 10
    packed = io.BytesIO(whole.rstrip(b"\0") + bytes(22))
    with zipfile.ZipFile(packed) as archive:
        assert archive.read("a") == (path.parent / "a").read_bytes()
        assert archive.read("b") == b"x" * 50000


def test_an_archive_on_a_disk(path: Path, rng: random.Random) -> None:
    (path.parent / "a").write_bytes(rng.randbytes(300000))
    with blocklayer.open(path, mode="r+") as disk:
        with disk.as_file() as stream, tarfile.open(fileobj=stream, mode="w") as archive:
            archive.add(path.parent / "a", "a")
        with disk.as_file() as stream, tarfile.open(fileobj=stream) as archive:
            assert archive.getnames() == ["a"]
            member = archive.extractfile("a")
            assert member is not None
            assert member.read() == (path.parent / "a").read_bytes()


def test_copying_files_and_disks(path: Path, tmp_path: Path, rng: random.Random) -> None:
    content = rng.randbytes(SIZE)
    with blocklayer.open(path, mode="r+") as disk:
        with disk.as_file() as stream:
            shutil.copyfileobj(io.BytesIO(content), stream, 10007)
            assert stream.tell() == SIZE
        with disk.as_file() as stream, (tmp_path / "copy").open("wb") as file:
            shutil.copyfileobj(stream, file, 4099)
        with disk.as_file() as one, disk.as_file() as two:
            one.seek(1000)
            assert two.tell() == 0
            assert (one.read(10), two.read(10)) == (content[1000:1010], content[:10])
    assert (tmp_path / "copy").read_bytes() == content
    assert disk.closed


# --- after closing ---


def test_everything_is_refused_after_closing(path: Path) -> None:
    disk = blocklayer.open(path, mode="r+")
    bitmap = disk.add_bitmap("b")
    stream, walk = disk.as_file(), disk.extents()
    next(walk)
    disk.close()
    calls: list[Callable[[], object]] = [
        lambda: disk.read(0, 1),
        lambda: disk.read_into(0, bytearray(1)),
        lambda: disk.read_many([(0, 1)]),
        lambda: disk.write(0, b"x"),
        lambda: disk.write(0, b""),
        lambda: disk.write_many([(0, b"x")]),
        lambda: disk.write_zeroes(0, 1),
        lambda: disk.discard(0, 1),
        lambda: disk.submit([]),
        disk.flush,
        lambda: disk.resize(2 * SIZE),
        lambda: list(disk.extents()),
        lambda: disk.reopen("r"),
        lambda: disk.add_bitmap("c"),
        lambda: disk.drain().__enter__(),
    ]
    for call in calls:
        with pytest.raises(Closed):
            call()
    with pytest.raises(OSError, match="closed"):
        stream.read(1)
    stream.close()
    with pytest.raises(Closed):
        list(walk)
    assert list(bitmap.runs()) == []
    disk.close()
    assert "closed" in repr(disk)
    assert (disk.size, disk.format, disk.filename) == (SIZE, "qed", str(path))
    with pytest.raises((Closed, OutOfRange)):
        disk.read(SIZE, 1)


def test_the_asyncio_face_is_found() -> None:
    aio = importlib.import_module("blocklayer.aio")
    verbs = [name for name in vars(aio.AsyncDisk) if not name.startswith("_")]
    for name in verbs:
        assert hasattr(Disk, name) or name == "disk"
        ours, theirs = getattr(aio.AsyncDisk, name), getattr(Disk, name, None)
        if asyncio.iscoroutinefunction(ours):
            assert inspect.getdoc(ours)
            known = inspect.signature(theirs).parameters  # type: ignore[arg-type]
            assert set(inspect.signature(ours).parameters) <= set(known)
