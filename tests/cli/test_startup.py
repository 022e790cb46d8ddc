# SPDX-License-Identifier: Apache-2.0
"""Short commands start fast: what is expensive to import is not imported on their way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import blocklayer

EXPENSIVE = {
    *("argparse", "ast", "asyncio", "concurrent", "ctypes", "dataclasses", "enum", "fnmatch"),
    *("inspect", "json", "logging", "queue", "re", "signal", "subprocess", "tempfile", "tqdm"),
    "typing",
}
"""Each costs from 5 to 100 percent of what the bare interpreter takes to start."""

PROGRAM = """
import sys
before = set(sys.modules)
from blocklayer.cli.main import main
code = main(sys.argv[1:])
print(*sorted(set(sys.modules) - before), file=sys.stderr)
sys.exit(code)
"""


def imported_by(*words: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, encoding="utf-8", check=True
    )
    return set(done.stderr.split())


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk.qed"
    blocklayer.create(path, format="qed", size="1M")
    return str(path)


@pytest.mark.parametrize(
    "words", [["--version"], ["info"], ["map"], ["create", "-f", "qed", "-q"]], ids=" ".join
)
def test_nothing_expensive_is_imported(words: list[str], image: str, tmp_path: Path) -> None:
    arguments = [image] if words[0] in ("info", "map") else []
    if words[0] == "create":
        arguments = [str(tmp_path / "new.qed"), "1M"]
    modules = imported_by(*words, *arguments)
    assert not modules & EXPENSIVE
    others = {"blocklayer.cli.convert", "blocklayer.ops.convert"}
    assert not modules & others


@pytest.mark.parametrize("words", [["convert", "-O", "qed"], ["compare"], ["check"], ["digest"]])
def test_nothing_expensive_is_imported_for_small_images(
    words: list[str], image: str, tmp_path: Path
) -> None:
    second = {"convert": [str(tmp_path / "new.qed")], "compare": [image]}.get(words[0], [])
    modules = imported_by(*words, image, *second)
    assert not modules & EXPENSIVE
    # Nor are there threads where one piece is all there is.
    assert "blocklayer.core.copy_by_sharing" not in modules


def test_only_the_command_that_runs_is_imported(image: str) -> None:
    modules = imported_by("info", image)
    commands = {name for name in modules if name.startswith("blocklayer.cli.")}
    assert commands == {
        f"blocklayer.cli.{name}"
        for name in ("failures", "getopt", "info", "main", "output", "parsing")
    }


def test_what_only_a_prompt_needs_is_not_imported(image: str) -> None:
    modules = imported_by("io", "-c", "length", image)
    assert "readline" not in modules
    prompt = {f"blocklayer.cli.io_{name}" for name in ("completion", "help", "terminal")}
    assert not modules & ((EXPENSIVE - {"queue"}) | prompt | {"blocklayer.cli.usage"})
