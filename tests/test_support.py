# SPDX-License-Identifier: Apache-2.0
"""The test suite's own helpers."""

import random
from pathlib import Path

import pytest

from tests.conftest import TESTS, as_utf_8, rank
from tests.support import NEEDS, chosen_seed, needs
from tests.support.tools import PACKAGES


def test_a_missing_tool_skips_and_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    mark = needs("qemu-img", "nbdinfo").mark
    assert mark.args == (True,)
    assert mark.kwargs["reason"] == (
        f"{NEEDS}qemu-img (package qemu-utils), nbdinfo (package libnbd-bin)"
    )


def test_tools_that_are_there_do_not_skip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for tool in PACKAGES:
        (tmp_path / tool).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert needs(*PACKAGES).mark.args == (False,)


def test_a_tool_without_a_package_is_refused() -> None:
    with pytest.raises(AssertionError, match="name it"):
        needs("no-such-tool")


def test_failures_with_names_that_are_no_utf_8_can_be_reported() -> None:
    """A worker that cannot send its report takes the whole run down."""
    report = {"longrepr": [("a\udcff", 3)], "k\udcfe": {"sections": ["ä", None]}}
    told = as_utf_8(report)
    assert told == {"longrepr": [["a\\udcff", 3]], "k\\udcfe": {"sections": ["ä", None]}}
    str(told).encode("utf-8")


def test_a_seed_is_repeated_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOCKLAYER_SEED", "0x2a")
    assert chosen_seed() == 42


def test_a_seed_is_fresh_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLOCKLAYER_SEED", raising=False)
    assert len({chosen_seed() for _ in range(4)}) > 1


def test_the_generator_follows_the_seed(seed: int, rng: random.Random) -> None:
    assert rng.random() == random.Random(seed).random()


def test_tests_run_from_the_ground_up() -> None:
    files = ["base/a.py", "formats/qed/a.py", "a.py", "cli/a.py", "new/a.py"]
    ranks = [rank(TESTS / file) for file in files]
    assert ranks == sorted(set(ranks))
