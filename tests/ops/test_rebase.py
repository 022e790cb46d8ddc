# SPDX-License-Identifier: Apache-2.0
"""Rebasing: another backing file and the same bytes, or the old one if anything goes wrong."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import blocklayer
from blocklayer import (
    Cancelled,
    CancelToken,
    ChainError,
    InvalidArgument,
    IoError,
    LockError,
    NotSupported,
    OpenError,
    OutOfRange,
)
from blocklayer.base.align import align_up
from blocklayer.base.units import KiB, MiB, TiB
from tests.foreign import qemu
from tests.ops.images import (
    CLUSTER,
    Layer,
    Watcher,
    base,
    chain,
    content,
    faulty,
    make,
    model_of,
    overlay,
    unchanged,
)
from tests.support import needs


def variant(path: Path, of: Layer, size: int, rng: random.Random, format: str) -> Layer:
    """An image like another one, in which some clusters differ."""
    data = bytearray(of.content[:size].ljust(size, b"\0"))
    for start in range(0, size, CLUSTER):
        if rng.random() < 0.3:
            length = min(rng.choice((1, 512, CLUSTER)), size - start)
            data[start : start + length] = rng.choice((bytes(length), rng.randbytes(length)))
    return make(path, bytes(data), format)


@pytest.mark.parametrize("top_size", [512, 100 * KiB, 101 * KiB + 512, 300 * KiB])
@pytest.mark.parametrize("new_size", [0, 512, 90 * KiB + 512, 100 * KiB, 250 * KiB, 400 * KiB])
def test_the_content_stays(
    tmp_path: Path, rng: random.Random, top_size: int, new_size: int
) -> None:
    """Onto shorter and longer images that differ here and there, and off them."""
    layers = chain(tmp_path, rng, 100 * KiB, 200 * KiB, top_size)
    top = layers[-1]
    format = rng.choice(("raw", "qed"))
    new = variant(tmp_path / "new", layers[1], new_size, rng, format)
    others = [layer.path.read_bytes() for layer in (*layers[:2], new)]
    for name, stored in (
        ("new", "new"),
        ("0.raw", "0.raw"),
        (None, None),
        (new.path, str(new.path)),
    ):
        told = format if "new" in str(name) else "raw"
        watch = Watcher("rebase")
        blocklayer.rebase(top.path, name, backing_format=told if name else None, progress=watch)
        assert watch.finished
        assert blocklayer.info(top.path).backing_filename == stored
        assert content(top.path) == top.content
        assert blocklayer.check(top.path).clean
    assert [layer.path.read_bytes() for layer in (*layers[:2], new)] == others
    with blocklayer.open(top.path) as disk:
        model_of(top.content).check(disk)


def test_only_what_differs_is_copied(tmp_path: Path, rng: random.Random) -> None:
    below = base(tmp_path / "below", 200 * CLUSTER, rng)
    top = overlay(tmp_path / "top", below, rng)
    new = make(tmp_path / "new", below.content)
    allocated = blocklayer.check(top.path).allocated_clusters
    blocklayer.rebase(top.path, "new", backing_format="raw")
    assert blocklayer.check(top.path).allocated_clusters == allocated
    with new.path.open("r+b") as file:
        for cluster in (3, 50, 199):
            file.seek(cluster * CLUSTER + 100)
            file.write(b"differs")
    hidden = {
        cluster
        for extent in blocklayer.map(top.path)
        if extent.present and not extent.depth
        for cluster in range(extent.offset // CLUSTER, extent.end // CLUSTER)
    }
    seen = content(top.path)
    blocklayer.rebase(top.path, "below", backing_format="raw")
    assert content(top.path) == seen
    zero = {each for each in (3, 50, 199) if not any(seen[each * CLUSTER : (each + 1) * CLUSTER])}
    grown = len({3, 50, 199} - hidden - zero)
    assert blocklayer.check(top.path).allocated_clusters == allocated + grown


@needs("qemu-img")
def test_qemu_agrees(tmp_path: Path, rng: random.Random) -> None:
    layers = chain(tmp_path, rng, 90 * KiB, 200 * KiB, 300 * KiB)
    flat = make(tmp_path / "flat", layers[-1].content)
    for name in ("0.raw", ""):
        blocklayer.rebase(layers[-1].path, name, backing_format="raw" if name else None)
        qemu.img("check", "-f", "qed", layers[-1].path)
        qemu.img("compare", "-f", "raw", "-F", "qed", flat.path, layers[-1].path)


def sparse(path: Path, size: int, rng: random.Random) -> Layer:
    """A raw file with data, zeroes that are stored, and holes."""
    data = bytearray(align_up(size, 512))
    with path.open("wb") as file:
        file.truncate(size)
        for _ in range(rng.randrange(8)):
            start = rng.randrange(size)
            piece = rng.choice((bytes, rng.randbytes))(
                min(rng.choice((1, 512, 9000)), size - start)
            )
            file.seek(start)
            file.write(piece)
            data[start : start + len(piece)] = piece
    return make_layer(path, bytes(data))


def make_layer(path: Path, content: bytes) -> Layer:
    return Layer(path, model_of(content), "raw")


@needs("qemu-img")
@pytest.mark.parametrize("nth", range(12))
def test_random_chains_as_qemu_has_them(tmp_path: Path, rng: random.Random, nth: int) -> None:
    """Of different sizes, over holes and over parts that old and new backing file share."""
    sizes = [rng.randrange(1, 60) * 4 * KiB + rng.choice((0, 512, 700)) for _ in range(6)]
    bottom = rng.choice((sparse, base))(tmp_path / "bottom", sizes[0], rng)
    middle = overlay(tmp_path / "middle", bottom, rng, sizes[1])
    top = overlay(tmp_path / "top", middle, rng, sizes[2])
    beside = overlay(tmp_path / "beside", bottom, rng, sizes[3])
    (tmp_path / "again").hardlink_to(bottom.path)
    holes = sparse(tmp_path / "holes", sizes[4], rng)
    other = base(tmp_path / "other", sizes[5], rng, "qed")
    flat = make(tmp_path / "flat", top.content)
    for new in (beside, bottom, make_layer(tmp_path / "again", b""), holes, other, None):
        before = content(top.path)
        theirs = tmp_path / "theirs"
        theirs.write_bytes(top.path.read_bytes())
        name = new.path.name if new else ""
        format = new.format if new else None
        qemu.img("rebase", "-b", name, *(("-F", format) if format else ()), theirs)
        watch = Watcher("rebase")
        blocklayer.rebase(top.path, name, backing_format=format, progress=watch)
        assert watch.finished
        assert content(top.path) == content(theirs) == before == top.content
        assert blocklayer.check(top.path).clean
        qemu.img("check", "-f", "qed", top.path)
        qemu.img("compare", "-f", "raw", "-F", "qed", flat.path, top.path)
        ours, qemus = (blocklayer.check(path).allocated_clusters for path in (top.path, theirs))
        assert ours <= qemus, "not more is stored than QEMU stores"


def test_what_is_known_to_be_zero_is_not_read(tmp_path: Path) -> None:
    """A tebibyte of nothing over another one: reading it would take an hour."""
    for name in ("old", "new"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(TiB)
            file.seek(TiB // 3)
            file.write(name.encode())
    top = tmp_path / "top"
    blocklayer.create(top, format="qed", backing="old", backing_format="raw", cluster_size=MiB)
    for backing in ("new", "old", None):
        blocklayer.rebase(top, backing, backing_format="raw" if backing else None)
        with blocklayer.open(top) as disk:
            for start in (0, TiB // 2, TiB - MiB):
                assert disk.read(start, MiB) == bytes(MiB)
            assert disk.read(TiB // 3, 5) == b"old\0\0"
    assert blocklayer.check(top).allocated_clusters == 1


def test_what_both_backing_files_have_below_them_is_not_read(
    tmp_path: Path, rng: random.Random
) -> None:
    """Both are over one base, under two names, which cannot be read."""
    below = make(tmp_path / "below", rng.randbytes(8 * MiB))
    (tmp_path / "again").hardlink_to(below.path)
    blocklayer.create(tmp_path / "one", format="qed", backing="below", backing_format="raw")
    with blocklayer.open(tmp_path / "one", mode="r+") as disk:
        disk.write(MiB, b"one" * 65536)
    blocklayer.create(tmp_path / "top", format="qed", backing="one", backing_format="qed")
    seen = content(tmp_path / "top")
    fault = {"driver": "fault", "file.filename": str(below.path)}
    fault["inject-error"] = [{"iotype": "read", "sector": 4 * MiB // 512}]  # type: ignore[assignment]
    tree = {
        "driver": "qed",
        "file.filename": str(tmp_path / "top"),
        "backing": {
            "driver": "qed",
            "file.filename": str(tmp_path / "one"),
            "backing": {"driver": "raw", "file": fault},
        },
    }
    with blocklayer.open(tree) as disk, pytest.raises(IoError):
        disk.read(4 * MiB, 512)
    blocklayer.rebase(tree, str(tmp_path / "again"), backing_format="raw")
    assert blocklayer.info(tmp_path / "top").backing_filename == str(tmp_path / "again")
    assert content(tmp_path / "top") == seen
    assert blocklayer.check(tmp_path / "top").allocated_clusters == 3


def test_another_part_of_the_same_file(tmp_path: Path, rng: random.Random) -> None:
    below = make(tmp_path / "below", rng.randbytes(3 * MiB))
    blocklayer.create(
        tmp_path / "top", format="qed", size=2 * MiB, backing="below", backing_format="raw"
    )
    file = {"driver": "file", "filename": str(below.path)}
    window = {"driver": "raw", "offset": MiB, "size": 2 * MiB, "file": file}
    blocklayer.rebase(tmp_path / "top", f"json:{json.dumps(window)}", backing_format="raw")
    assert content(tmp_path / "top") == below.content[: 2 * MiB]


def test_formats_of_the_new_backing_file(tmp_path: Path, rng: random.Random) -> None:
    """Found out if it is not told, and stored so that it is not guessed again."""
    top = chain(tmp_path, rng, 50000, 60000)[-1]
    qed = base(tmp_path / "qed", 70000, rng, "qed")
    for name, told, stored in (
        ("qed", None, None),
        ("0.raw", None, "raw"),
        ("qed", "qed", None),
        (qed.path.name, "raw", "raw"),
    ):
        blocklayer.rebase(top.path, name, backing_format=told)
        assert blocklayer.info(top.path).backing_format == stored
        assert content(top.path) == top.content
    with unchanged(tmp_path), pytest.raises(OpenError):
        blocklayer.rebase(top.path, "0.raw", backing_format="qed")
    with unchanged(tmp_path), pytest.raises(OpenError, match="nonsense"):
        blocklayer.rebase(top.path, "0.raw", backing_format="nonsense")


def test_only_the_name_changes_if_that_is_asked_for(tmp_path: Path, rng: random.Random) -> None:
    layers = chain(tmp_path, rng, 50000, 60000)
    top = layers[-1]
    layers[0].path.rename(tmp_path / "moved")
    length = top.path.stat().st_size
    for name, format in (("moved", "raw"), ("nowhere", None), ("0.raw", None), (None, None)):
        blocklayer.rebase(top.path, name, backing_format=format, unsafe=True)
        info = blocklayer.info(top.path)
        assert (info.backing_filename, info.backing_format) == (name, format)
        assert top.path.stat().st_size == length
        if name == "moved":
            assert content(top.path) == top.content
    other = base(tmp_path / "other", 80000, rng)
    blocklayer.rebase(top.path, Path("other"), backing_format="raw", unsafe=True)
    # Now it shows what lies there, wherever it holds nothing itself.
    shown, below = content(top.path), other.content.ljust(top.model.size, b"\0")
    for extent in blocklayer.map(top.path):
        expected = top.content if extent.present and not extent.depth else below
        piece = slice(extent.offset, extent.end)
        assert shown[piece] == expected[piece]


@pytest.mark.parametrize("unsafe", [False, True])
def test_names_that_do_not_fit(tmp_path: Path, rng: random.Random, unsafe: bool) -> None:
    top = chain(tmp_path, rng, 50000, 60000)[-1]
    for name in ("a\0b", "\ud800", "x" * 5000):
        with unchanged(tmp_path), pytest.raises((InvalidArgument, OutOfRange, OpenError)):
            blocklayer.rebase(top.path, name, unsafe=unsafe)
    assert content(top.path) == top.content


@pytest.mark.parametrize("name", ["new\nline", "c:colon", os.fsdecode(b"\xff\xfe"), "with space"])
def test_odd_names(tmp_path: Path, rng: random.Random, name: str) -> None:
    top = chain(tmp_path, rng, 50000, 60000)[-1]
    make(tmp_path / name, b"x" * 70000)
    for form in (name, str(tmp_path / name), Path(name), f"file:{tmp_path / name}"):
        blocklayer.rebase(top.path, form, backing_format="raw")
        assert blocklayer.info(top.path).backing_filename == os.fspath(form)
        assert content(top.path) == top.content


def test_images_without_backing_files(tmp_path: Path, rng: random.Random) -> None:
    raw, qed = base(tmp_path / "raw", 50000, rng), base(tmp_path / "qed", 60000, rng, "qed")
    for unsafe in (False, True):
        with unchanged(tmp_path), pytest.raises(NotSupported):
            blocklayer.rebase(raw.path, "qed", format="raw", unsafe=unsafe)
    with pytest.raises(NotSupported, match="format with backing files"):
        blocklayer.rebase(faulty(raw.path, "raw")["file"], "qed")
    blocklayer.rebase(qed.path, "raw", backing_format="raw")
    assert content(qed.path) == qed.content
    blocklayer.rebase(qed.path, None)
    blocklayer.rebase(qed.path, "")
    assert content(qed.path) == qed.content


def test_an_image_cannot_lie_below_itself(tmp_path: Path, rng: random.Random) -> None:
    layers = chain(tmp_path, rng, 50000, 60000, 70000, bottom="qed")
    for layer in layers:
        for force_share in (False, True):
            with unchanged(tmp_path), pytest.raises((OpenError, ChainError)):
                blocklayer.rebase(layer.path, layers[-1].path.name, force_share=force_share)


def test_files_that_are_missing_or_in_use(tmp_path: Path, rng: random.Random) -> None:
    layers = chain(tmp_path, rng, 50000, 60000)
    top = layers[-1]
    other = base(tmp_path / "other", 60000, rng, "qed")
    with unchanged(tmp_path):
        with pytest.raises(OpenError, match="No such file"):
            blocklayer.rebase(top.path, "missing")
        with pytest.raises(OpenError, match="No such file"):
            blocklayer.rebase(tmp_path / "missing", "0.raw")
        with blocklayer.open(top.path), pytest.raises(OpenError) as caught:
            blocklayer.rebase(top.path, "other")
        assert isinstance(caught.value.__cause__, LockError)
    with (
        blocklayer.open(other.path, mode="r+"),
        unchanged(tmp_path),
        pytest.raises(OpenError, match="lock"),
    ):
        blocklayer.rebase(top.path, "other")
    layers[0].path.unlink()
    with unchanged(tmp_path), pytest.raises(OpenError, match="backing file"):
        blocklayer.rebase(top.path, "other")


@pytest.mark.parametrize("cache", ["none", "writethrough", "directsync", "unsafe"])
def test_cache_modes(tmp_path: Path, rng: random.Random, cache: str) -> None:
    top = chain(tmp_path, rng, 50000, 60000)[-1]
    blocklayer.rebase(top.path, None, cache=cache, source_cache=cache)
    assert content(top.path) == top.content
    for arguments in ({"cache": "hot"}, {"source_cache": "hot"}):
        with pytest.raises(InvalidArgument, match="Invalid cache option"):
            blocklayer.rebase(top.path, "0.raw", **arguments)  # type: ignore[arg-type]


# --- cancellation and failures: before the name changes, nothing that can be seen has changed ---


def test_cancelling_at_every_step(tmp_path: Path, rng: random.Random) -> None:
    below = make(tmp_path / "below", rng.randbytes(7 * MiB))
    blocklayer.create(
        tmp_path / "top", format="qed", backing="below", backing_format="raw", cluster_size=65536
    )
    steps = 0
    watch = Watcher("rebase", cancel_at=1)
    while True:
        try:
            blocklayer.rebase(tmp_path / "top", None, progress=watch, cancel=watch.token)
        except Cancelled:
            assert blocklayer.info(tmp_path / "top").backing_filename == "below"
            assert content(tmp_path / "top") == below.content
        else:
            break
        steps += 1
        watch = Watcher("rebase", cancel_at=steps + 1)
    assert steps > 3
    assert watch.finished
    assert content(tmp_path / "top") == below.content
    assert below.path.read_bytes() == below.content


def test_cancelled_before_it_begins(tmp_path: Path, rng: random.Random) -> None:
    top = chain(tmp_path, rng, 50000, 60000)[-1]
    token = CancelToken()
    token.cancel()
    with unchanged(tmp_path), pytest.raises(Cancelled):
        blocklayer.rebase(top.path, None, cancel=token)
    with unchanged(tmp_path), pytest.raises(ZeroDivisionError):
        blocklayer.rebase(top.path, None, progress=Watcher("rebase", fail_at=1))


@pytest.mark.parametrize("new", ["new", None])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_whatever_fails_the_content_stays(
    tmp_path: Path, rng: random.Random, new: str | None, code: int
) -> None:
    failures = 0
    for nth in range(1, 100):
        layers = chain(tmp_path, rng, 20 * KiB, 30 * KiB)
        top = layers[-1]
        variant(tmp_path / "new", layers[0], 40 * KiB, rng, "raw")
        try:
            blocklayer.rebase(
                faulty(top.path, "qed", {"nth": nth, "errno": code}), new, backing_format="raw"
            )
        except (IoError, OpenError):
            failures += 1
            info = blocklayer.info(top.path)
            assert info.backing_filename in ("0.raw", new)
            assert content(top.path) == top.content
            assert not blocklayer.check(top.path).corruptions
        else:
            break
    assert failures
    assert blocklayer.info(top.path).backing_filename == new
    assert content(top.path) == top.content


def test_without_permission(
    public_path: Path, rng: random.Random, as_nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    top = chain(public_path, rng, 50000, 60000)[-1]
    for path in public_path.iterdir():
        path.chmod(0o444)
    with unchanged(public_path), as_nobody(), pytest.raises(OpenError, match="Permission denied"):
        blocklayer.rebase(top.path, None)
    top.path.chmod(0o666)
    with as_nobody():
        blocklayer.rebase(top.path, None)
    assert content(top.path) == top.content


def test_onto_an_image_that_somebody_writes_to(tmp_path: Path, rng: random.Random) -> None:
    """With `force_share`, as with qemu-img's -U: what lies below the overlay now is not meant."""
    old = base(tmp_path / "old", 100 * KiB, rng, "qed")
    new = base(tmp_path / "new", 100 * KiB, rng, "qed")
    top = overlay(tmp_path / "top", old, rng)
    with blocklayer.open(new.path, mode="r+"):
        with unchanged(tmp_path), pytest.raises(OpenError, match="another process"):
            blocklayer.rebase(top.path, new.path, backing_format=new.format)
        blocklayer.rebase(top.path, new.path, backing_format=new.format, force_share=True)
    assert content(top.path) == top.content
    with (
        blocklayer.open(old.path, mode="r+"),
        blocklayer.open(new.path, mode="r+"),
        pytest.raises(OpenError, match="another process"),
    ):
        blocklayer.rebase(top.path, old.path, backing_format=old.format, force_share=True)


@needs("qemu-img", "qemu-io")
def test_the_command_onto_an_image_that_somebody_writes_to(
    tmp_path: Path, rng: random.Random
) -> None:
    from blocklayer.cli.main import main

    old = base(tmp_path / "old", 100 * KiB, rng, "qed")
    new = base(tmp_path / "new", 100 * KiB, rng, "qed")
    words = ["rebase", "-U", "-b", str(new.path), "-F", "qed"]
    for rebase in (qemu.img, lambda *line: main([*line])):
        top = overlay(tmp_path / "top", old, rng)
        with blocklayer.open(new.path, mode="r+"):
            rebase(*words, str(top.path))
        assert content(top.path) == top.content
        assert blocklayer.info(top.path).backing_filename == str(new.path)
