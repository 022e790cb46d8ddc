# SPDX-License-Identifier: Apache-2.0
"""The order of the tests, what any of them may ask for, and a last word about missing tools."""

import os
import random
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import NEEDS, chosen_seed
from tests.support.seeds import SEED_VARIABLE

TESTS = Path(__file__).parent
FACADE = ""
"""Stands for the tests beside this file."""
ORDER = (
    *("base", "core", "gate", "testing", "protocols", "formats", "filters"),
    *("nbd", "ops", "jobs", "export", "qmp", FACADE, "cli"),
)
"""From the ground up, so that the first test that fails is the cause."""

COUNTED = "states after a crash"
"""A property with a number that tests report; the summary of the run adds it up."""


def pytest_configure() -> None:
    # mkfs and sfdisk are found by every user, and the peers speak English.
    os.environ["PATH"] += os.pathsep + "/usr/sbin:/sbin"
    os.environ["LC_ALL"] = "C.UTF-8"


def rank(path: Path) -> int:
    """The place of a test file in the order; directories that it does not name come last."""
    directory = path.relative_to(TESTS).parts[0] if path.parent != TESTS else FACADE
    return ORDER.index(directory) if directory in ORDER else len(ORDER)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: rank(item.path))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Reports cross from the workers of pytest-xdist as UTF-8, and names of files need not be."""
    return as_utf_8((yield))


def as_utf_8(value: Any) -> Any:
    """`value` with what UTF-8 has not escaped, in every text in it."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {as_utf_8(key): as_utf_8(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(as_utf_8(inner) for inner in value)  # why a test is skipped is a tuple
    return value


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of a random test; shown, with how to use it again, if the test fails."""
    seed = chosen_seed()
    request.node.add_report_section("setup", "seed", f"to repeat this: {SEED_VARIABLE}={seed}")
    return seed


@pytest.fixture
def rng(seed: int) -> random.Random:
    """A random generator that a failing test's seed makes again."""
    return random.Random(seed)


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one: no flushes, and files of any length."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as name:
        yield Path(name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skips = (report.longrepr for report in terminalreporter.stats.get("skipped", ()))
    reasons = (skip[2].removeprefix("Skipped: ") for skip in skips if isinstance(skip, tuple))
    counts = Counter(reason for reason in reasons if reason.startswith(NEEDS))
    if counts:
        terminalreporter.section("MISSING TOOLS", red=True, bold=True)
        terminalreporter.line(f"{counts.total()} tests were SKIPPED, their tools are not there:")
        for reason, count in counts.most_common():
            terminalreporter.line(f"{count:6} {reason}")
    ended = [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())]
    properties = [pair for report in ended for pair in report.user_properties]
    if any(name == COUNTED for name, _ in properties):
        total = sum(count for name, count in properties if name == COUNTED)
        terminalreporter.line(f"{total} {COUNTED} were examined")
