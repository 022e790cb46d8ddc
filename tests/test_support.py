# SPDX-License-Identifier: Apache-2.0
"""The test suite's own helpers."""

import os
import random
import subprocess
import sys
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
    assert told == {"longrepr": [("a\\udcff", 3)], "k\\udcfe": {"sections": ["ä", None]}}
    str(told).encode("utf-8")


def test_skips_in_workers_are_told(tmp_path: Path) -> None:
    """Where a tool or a file system is missing, the run still ends with what was skipped."""
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text("utf-8"), "utf-8")
    skipping = "import pytest\n\n\ndef test_it():\n    pytest.skip('not here')\n"
    (tmp_path / "test_one.py").write_text(skipping)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    words = ["-m", "pytest", "-ra", "-n", "1", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
    assert "not here" in done.stdout


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
