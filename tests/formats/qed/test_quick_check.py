# SPDX-License-Identifier: Apache-2.0
"""The quick look at a whole image: it agrees with the careful check, or says nothing."""

from __future__ import annotations

import random

import pytest

from blocklayer.base.units import KiB, MiB
from blocklayer.core.checking import CheckResult
from blocklayer.formats.qed import quick_check, tally
from blocklayer.formats.qed.check import Checker
from blocklayer.formats.qed.quick_check import look
from tests.support.graphs import NO_REPAIR
from tests.support.qed_image import CLUSTER, QedImage, qed

SIZE = 5 * MiB + 3 * KiB
SPAN = 2 * MiB
"""Guest bytes that a table of one cluster maps."""


@pytest.fixture(params=["bitmap", "array"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of counting, in chunks of less than a table."""
    if request.param == "array":
        pytest.importorskip("numpy")
    worth = 0 if request.param == "array" else 1 << 62
    monkeypatch.setattr(tally, "ARRAY_WORTH_CLUSTERS", worth)
    monkeypatch.setattr(quick_check, "CHUNK_BYTES", 2 * KiB)
    return str(request.param)


def used_image(rng: random.Random) -> QedImage:
    image = QedImage(SIZE)
    with image.open() as disk:
        for _ in range(rng.randrange(1, 40)):
            offset = rng.randrange(0, SIZE // CLUSTER) * CLUSTER
            length = min(SIZE - offset, rng.randrange(1, 9) * CLUSTER)
            if rng.random() < 0.2:
                disk.write_zeroes(offset, length)
            else:
                disk.write(offset, b"x" * length)
    return image


def both(image: QedImage) -> tuple[CheckResult | None, CheckResult]:
    """What the quick look says, and the careful check."""
    with image.open(read_only=True) as disk:
        node = qed(disk)
        checker = Checker(node, NO_REPAIR)
        careful = checker.scan()
        checker.count_leaks()
        return look(node), careful


def assert_agree(image: QedImage) -> bool:
    """They say the same, or the quick look says nothing; whether it says something."""
    quick, careful = both(image)
    if quick is not None:
        assert careful.clean
        assert quick == careful
    return quick is not None


def test_flawless_images(kind: str, rng: random.Random) -> None:
    for _ in range(60):
        assert assert_agree(used_image(rng))


def entries_worth_trying(image: QedImage, rng: random.Random) -> list[int]:
    end = len(image.content)
    some = image.l1(rng.randrange(3) * SPAN)
    inside = rng.randrange(0, end // CLUSTER) * CLUSTER
    return [0, 1, 2, CLUSTER - 1, CLUSTER, some, inside, inside + 512, end, end - CLUSTER, 2**63]


def test_damaged_images(kind: str, rng: random.Random) -> None:
    """Each wrong entry is seen, and none is seen where there is none."""
    flawless = 0
    for _ in range(300):
        image = used_image(rng)
        for _ in range(rng.randrange(1, 3)):
            guest = rng.randrange(0, 3 * SPAN // CLUSTER) * CLUSTER
            value = rng.choice(entries_worth_trying(image, rng))
            if rng.random() < 0.3 or not image.l1(guest):
                image.set_l1(guest, value)
            elif image.l1(guest) % CLUSTER == 0 and image.l1(guest) < len(image.content):
                image.set_l2(guest, value)
        flawless += assert_agree(image)
    assert 3 < flawless < 250


def test_clusters_behind_the_end_of_the_disk(kind: str) -> None:
    image = used_image(random.Random(1))
    with image.open() as disk:
        disk.write(SIZE - 1, b"x")
    image.set_header(image_size=SIZE - 2 * CLUSTER)
    assert not assert_agree(image)


def test_a_file_of_absurd_length_is_left_to_the_careful_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = used_image(random.Random(1))
    monkeypatch.setattr(quick_check, "CLUSTERS_MAX", 2)
    assert both(image)[0] is None


def test_numpy_is_used_where_it_pays() -> None:
    assert isinstance(tally.make_tally(100, CLUSTER), tally.BitmapTally)
    pytest.importorskip("numpy")
    assert isinstance(tally.make_tally(1 << 20, CLUSTER), tally.ArrayTally)
    assert isinstance(tally.make_tally(1 << 31, CLUSTER), tally.BitmapTally)
