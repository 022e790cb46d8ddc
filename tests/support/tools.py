# SPDX-License-Identifier: Apache-2.0
"""Foreign tools: a test says which it needs, and is skipped where one is missing."""

import os
import shutil
from pathlib import Path

import pytest

PEERS = Path(__file__).parents[2] / "tools" / "peers.txt"
NEEDS = "needs "
"""Begins the reason of every skip for a missing tool; the summary of the run counts by it."""


def read_packages(peers: str) -> dict[str, str]:
    """The tools and their Debian packages, from lines of "tool package"."""
    packages = {}
    for line in peers.splitlines():
        if line and not line.startswith("#"):
            tool, package = line.split()
            packages[tool] = package
    return packages


PACKAGES = read_packages(PEERS.read_text("utf-8"))


def needs(*tools: str) -> pytest.MarkDecorator:
    """Skip a test (as a decorator) or a module (as its `pytestmark`) where a tool is missing."""
    for tool in tools:
        assert tool in PACKAGES, f"{tool}: name it and its package in {PEERS.name}"
    missing = [tool for tool in tools if shutil.which(tool) is None]
    wanted = ", ".join(f"{tool} (package {PACKAGES[tool]})" for tool in missing)
    return pytest.mark.skipif(bool(missing), reason=NEEDS + wanted)


def needs_root() -> pytest.MarkDecorator:
    """Skip a test or a module where the user is not root."""
    return pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this")
