# SPDX-License-Identifier: Apache-2.0
"""Command lines put together at random end as QEMU's do: with that exit code, output and images.

What is said about a wrong line depends on which mistake is found first, and is not compared here.
"""

from __future__ import annotations

import random
import shlex
from pathlib import Path

import pytest

from tests.cli.side_by_side import differing_files, give_both, make_pair, make_template
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-io")

ROUNDS = 15
"""Lines for each command."""

FORMATS = ("-f qed", "-f raw", "-fqed", "-f foo", "-f")
NAMES = ("data.qed", "empty.qed", "longer.qed", "over.qed", "data.raw", "nonexistent", "")
CACHES = ("-t none", "-t writethrough", "-t foo")
SOURCE_CACHES = ("-T none", "-T foo")
OPTIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "info": (FORMATS, ("--output=human", "--output=foo"), ("-U",), ("--backing-chain",), ("-z",)),
    "check": (FORMATS, ("-q",), ("-r all", "-r leaks", "-r foo"), SOURCE_CACHES, ("-U",)),
    "map": (
        FORMATS,
        ("-s 64k", "-s foo", "-s 1000"),
        ("-l 4k", "-l -1", "--max-length=1M"),
        ("--output=json",),
        ("-U",),
    ),
    "create": (
        ("-f qed", "-f raw", "-f foo"),
        ("-q",),
        ("-o cluster_size=4k", "-o foo=1", "-o ,"),
        ("-b data.qed", "-b nonexistent"),
        ("-F qed", "-F raw"),
        ("-u",),
    ),
    "compare": (FORMATS, ("-F qed", "-F raw"), ("-q",), SOURCE_CACHES, ("-U",)),
    "convert": (
        FORMATS,
        ("-O qed", "-O raw", "-O foo"),
        ("-q",),
        ("-n",),
        ("-S 0", "-S 64k", "-S 1"),
        ("-m 3", "-m 99"),
        ("-W",),
        ("-c",),
        ("-C",),
        CACHES,
        SOURCE_CACHES,
        ("-B data.qed -F qed", "-B data.qed"),
        ("--target-is-zero",),
        ("-r 1G",),
        ("--salvage",),
        ("-U",),
    ),
    "resize": (FORMATS, ("--shrink",), ("-q",), ("--preallocation=off", "--preallocation=foo")),
    "rebase": (
        FORMATS,
        ("-b data.qed", "-b empty.qed", "-b nonexistent", "-b ''"),
        ("-F qed", "-F foo"),
        ("-u",),
        ("-q",),
        CACHES,
        SOURCE_CACHES,
    ),
    "commit": (FORMATS, ("-b data.qed", "-b nonexistent"), ("-d",), ("-q",), CACHES, ("-r 1G",)),
    "measure": (
        ("-f qed", "-f foo"),
        ("-O raw", "-O foo"),
        ("--size 1M", "--size foo"),
        ("--output=human", "--output=foo"),
        ("-o foo=1",),
    ),
}
ARGUMENTS = {"compare": 2, "convert": 2}
SHRINKING = "--shrink"
"""Left out for QED: QEMU cannot, and the list of differences says so."""


def random_line(command: str, rng: random.Random) -> str:
    chosen = rng.sample(OPTIONS[command], k=rng.randint(0, min(3, len(OPTIONS[command]))))
    options = [rng.choice(alternatives) for alternatives in chosen]
    parts = options + [shlex.quote(name) for name in random_arguments(command, rng)]
    if command != "resize":  # whose last argument is the size
        rng.shuffle(parts)
    return " ".join([command, *parts])


def random_arguments(command: str, rng: random.Random) -> list[str]:
    if command == "create":
        sizes = rng.choices(("1M", "2M", "foo"), k=rng.choice((0, 1, 1, 1, 2)))
        return [rng.choice(("new.img", "new.img", "none/new.img")), *sizes]
    if command == "resize":
        sizes = rng.choices(("2M", "+1M", "-512k", "foo", "0"), k=rng.choice((0, 1, 1, 1, 2)))
        return [rng.choice(NAMES), *sizes]
    count = ARGUMENTS.get(command, 1) + rng.choice((-1, 0, 0, 0, 0, 0, 1))
    names = rng.choices(NAMES, k=count)
    if command == "convert" and names:
        names[-1] = rng.choice(("new.img", "new.img", "longer.qed"))
    return names


def is_comparable(line: str) -> bool:
    """Not about what the list of differences is about."""
    return not (SHRINKING in line and "raw" not in line)


@pytest.mark.parametrize("command", OPTIONS)
def test_random_lines(command: str, tmp_path: Path, rng: random.Random) -> None:
    template = tmp_path / "template"
    template.mkdir()
    make_template(template)
    lines = {random_line(command, rng) for _ in range(ROUNDS)}
    for number, line in enumerate(sorted(filter(is_comparable, lines))):
        directory = tmp_path / str(number)
        make_pair(template, directory)
        theirs, ours = give_both("qemu-img", line, directory)
        assert ours.code == theirs.code, (line, theirs, ours)
        if theirs.code == 0:
            assert ours.stdout == theirs.stdout, line
            assert differing_files(directory) == [], line
