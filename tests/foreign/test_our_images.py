# SPDX-License-Identifier: Apache-2.0
"""Images that we made, whatever was done to them: QEMU finds nothing wrong, and the same disk."""

import random
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from tests.foreign import qemu
from tests.foreign.lives import Life
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-io")

GEOMETRIES = [(4 * KiB, 2), (4 * KiB, 4), (8 * KiB, 16), (64 * KiB, 4), (256 * KiB, 2)]


def live(
    directory: Path,
    rng: random.Random,
    geometry: tuple[int, int],
    *,
    over_backing: bool,
    steps: int,
) -> None:
    life = Life(
        directory,
        rng,
        cluster_size=geometry[0],
        table_size=geometry[1],
        over_backing=over_backing,
    )
    try:
        life.live(steps, look_every=20)
    finally:
        life.disk.close()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("over_backing", [False, True], ids=["alone", "overlay"])
def test_lives(
    tmp_path: Path, rng: random.Random, geometry: tuple[int, int], over_backing: bool
) -> None:
    live(tmp_path, rng, geometry, over_backing=over_backing, steps=120)


@pytest.mark.parametrize(("cluster_size", "table_size"), [(4 * MiB, 4), (64 * MiB, 1)])
def test_images_too_large_to_be_counted(tmp_path: Path, cluster_size: int, table_size: int) -> None:
    """What their tables could map is no number of 64 bits; QEMU takes it for nothing."""
    path = tmp_path / "image"
    blocklayer.create(
        path, format="qed", size=MiB, cluster_size=cluster_size, table_size=table_size
    )
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(0, b"x" * 512)
        assert disk.read(0, 1024) == b"x" * 512 + bytes(512)
    assert blocklayer.check(path).clean
    outcome = qemu.run("qemu-img", "info", path)
    assert outcome.code == 1
    assert "QED image size is invalid" in outcome.output


@pytest.mark.long
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("over_backing", [False, True], ids=["alone", "overlay"])
def test_many_lives(
    tmp_path: Path, rng: random.Random, geometry: tuple[int, int], over_backing: bool
) -> None:
    for life in range(20):
        directory = tmp_path / str(life)
        directory.mkdir()
        live(directory, rng, geometry, over_backing=over_backing, steps=300)
