# SPDX-License-Identifier: Apache-2.0
"""Images that we made, whatever was done to them: QEMU finds nothing wrong, and the same disk."""

import random
from pathlib import Path

import pytest

from blocklayer.base.units import KiB
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
