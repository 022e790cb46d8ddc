# SPDX-License-Identifier: Apache-2.0
"""Checking by name: what each mode of repair may do, and that nothing else is opened or changed."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer import InvalidArgument, IoError, LockError, NotSupported, OpenError
from blocklayer.base.units import MiB
from tests.foreign import qemu
from tests.ops.images import CLUSTER, Layer, base, chain, content, faulty, unchanged
from tests.support import needs


@pytest.fixture
def image(tmp_path: Path, rng: random.Random) -> Layer:
    return base(tmp_path / "image", MiB, rng, "qed")


def leak(layer: Layer) -> None:
    with layer.path.open("ab") as file:
        file.write(bytes(3 * CLUSTER))


def corrupt(layer: Layer) -> None:
    """An entry of the first table points behind the end of the file."""
    with layer.path.open("r+b") as file:
        file.seek(CLUSTER + 8 * 100)
        file.write((1 << 40).to_bytes(8, "little"))


def test_nothing_is_wrong(image: Layer, tmp_path: Path) -> None:
    with unchanged(tmp_path):
        for repair in ("none", "leaks", "all"):
            result = blocklayer.check(image.path, repair=repair)
            assert result.clean
            assert result.failure is None
            assert not result.problems
            assert (result.filename, result.format) == (str(image.path), "qed")
    own = sum(extent.length for extent in blocklayer.map(image.path) if extent.data)
    assert result.allocated_clusters * CLUSTER == own
    assert result.total_clusters * CLUSTER == MiB


@needs("qemu-img")
def test_each_mode_mends_what_it_says(image: Layer, tmp_path: Path) -> None:
    leak(image)
    corrupt(image)
    with unchanged(tmp_path):
        result = blocklayer.check(image.path)
        assert (result.leaks, result.corruptions) == (3, 1)
        assert not result.clean
        assert {problem.kind for problem in result.problems} == {"leak", "corruption"}
        assert not any(problem.fixed for problem in result.problems)
    result = blocklayer.check(image.path, repair="leaks")
    assert result.corruptions == 1
    result = blocklayer.check(image.path, repair="all")
    assert (result.corruptions_fixed, result.leaks_fixed) == (1, 0)
    assert blocklayer.check(image.path, repair="leaks").leaks_fixed
    assert blocklayer.check(image.path).clean
    assert content(image.path) == image.content
    qemu.img("check", "-f", "qed", image.path)


def test_leaks_alone(image: Layer) -> None:
    length = image.path.stat().st_size
    leak(image)
    result = blocklayer.check(image.path, repair="leaks")
    assert (result.leaks, result.leaks_fixed, result.clean) == (0, 3, True)
    assert image.path.stat().st_size == length
    image.check()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"repair": "everything"}, "Invalid repair mode"),
        ({"repair": ""}, "Invalid repair mode"),
        ({"repair": "all", "force_share": True}, "force_share"),
        ({"cache": "hot"}, "Invalid cache option"),
    ],
)
def test_arguments_that_are_refused(image: Layer, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        blocklayer.check(image.path, **arguments)


@pytest.mark.parametrize("cache", ["writeback", "none", "writethrough", "directsync", "unsafe"])
def test_cache_modes(image: Layer, cache: str) -> None:
    leak(image)
    assert blocklayer.check(image.path, repair="all", cache=cache).leaks_fixed == 3


@pytest.mark.parametrize("repair", ["none", "all"])
def test_formats_without_tables(tmp_path: Path, repair: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x" * 512)
    with unchanged(tmp_path), pytest.raises(NotSupported, match="does not support checks"):
        blocklayer.check(path, repair=repair)
    with pytest.raises(NotSupported, match="does not support checks"):
        blocklayer.check({"driver": "fault", "file.filename": str(path)})


def test_what_lies_below_need_not_be_there(tmp_path: Path, rng: random.Random) -> None:
    top = chain(tmp_path, rng, 50000, 90000)[-1]
    (tmp_path / "0.raw").unlink()
    for repair in ("none", "all"):
        assert blocklayer.check(top.path, repair=repair).clean


def test_images_in_use(image: Layer) -> None:
    with blocklayer.open(image.path):
        assert blocklayer.check(image.path).clean
        with pytest.raises(OpenError) as caught:
            blocklayer.check(image.path, repair="all")
        assert isinstance(caught.value.__cause__, LockError)
    with blocklayer.open(image.path, mode="r+"):
        with pytest.raises(OpenError, match="lock"):
            blocklayer.check(image.path)
        assert blocklayer.check(image.path, force_share=True).clean
        assert blocklayer.check(image.path, locking="off").clean


def test_storage_that_fails(image: Layer, tmp_path: Path) -> None:
    """Every request in turn: an error of its own, or a count in the result; never a clean image."""
    for nth in range(1, 50):
        rule = {"nth": nth, "iotype": "read"}
        with unchanged(tmp_path):
            try:
                result = blocklayer.check(faulty(image.path, "qed", rule))
            except (IoError, OpenError):
                continue
        if result.clean:
            break
        assert result.check_errors
        assert result.failure
    assert nth > 1
    assert result.clean


@pytest.mark.parametrize("name", ["missing", "."])
def test_what_cannot_be_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(OpenError):
        blocklayer.check(tmp_path / name)


def test_without_permission(
    public_path: Path, rng: random.Random, as_nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    image = base(public_path / "image", MiB, rng, "qed")
    leak(image)
    image.path.chmod(0o444)
    with unchanged(public_path), as_nobody():
        assert blocklayer.check(image.path).leaks == 3
        with pytest.raises(OpenError, match="Permission denied"):
            blocklayer.check(image.path, repair="leaks")
