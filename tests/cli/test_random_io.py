# SPDX-License-Identifier: Apache-2.0
"""Sessions of `blk io` put together at random print what qemu-io prints, and leave its images."""

from __future__ import annotations

import random
import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.side_by_side import differing_files, give_both, make_pair, make_template
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-io")

ROUNDS = 25
MANY_ROUNDS = 3000
COMMANDS_MAX = 6
IMAGES = ("data.qed", "over.qed", "top.qed", "longer.qed", "-f raw data.raw", "-r data.qed")
OFFSETS = ("0", "512", "4k", "60k", "64k", "100000", "256k", "1000k", "1M", "0x1000", "7")
LENGTHS = ("1", "512", "4k", "10000", "64k", "128k", "0", "0x200")
WRONG = ("x", "1kk", "-- -1", "99999999999999999999", "3G", "1..5")
PATTERNS = ("0", "1", "7", "0xcd", "255")
WRONG_PATTERNS = ("256", "x", "''")
FORMS = (
    "read {quiet} {at} {len}",
    "read -C {at} {len}",
    "read -P {pattern} {at} {len}",
    "read -P {pattern} -s 512 -l 512 {at} 4k",
    "read -v {at} 40",
    "readv {quiet} {at} {len} {len}",
    "readv -P {pattern} {at} {len} 512",
    "write {quiet} {at} {len}",
    "write -P {pattern} {at} {len}",
    "write -f -P {pattern} {at} {len}",
    "write -z {at} {len}",
    "write -z -u {at} {len}",
    "write -s pattern {at} 512",
    "write -s pattern {at} 10000",
    "write -C {at} {len}",
    "writev {quiet} -P {pattern} {at} {len} {len}",
    "aio_write -P {pattern} {at} {len}; aio_flush",
    "aio_read -P {pattern} {at} {len}; aio_flush",
    "flush",
    "length",
    "map",
    "alloc {at} {len}",
    "alloc {at}",
    "info",
    "reopen -r",
    "reopen -w",
    "reopen -c none",
    "truncate 2M",
    "truncate 3M",
    "sleep 1",
    "close",
    "open data.qed",
    "nonsense {at}",
    "read {at}",
    "write -y {at} {len}",
)


def random_command(rng: random.Random) -> str:
    form = rng.choice(FORMS)
    wrong = rng.random() < 0.08
    fields = {
        "at": rng.choice(WRONG if wrong else OFFSETS),
        "len": rng.choice(LENGTHS),
        "pattern": rng.choice(WRONG_PATTERNS if rng.random() < 0.05 else PATTERNS),
        "quiet": rng.choice(("", "-q")),
    }
    return form.format(**fields)


def random_session(rng: random.Random) -> str:
    forms = [random_command(rng) for _ in range(rng.randint(1, COMMANDS_MAX))]
    commands = [part.strip() for form in forms for part in form.split(";")]
    words = " ".join(f"-c {shlex.quote(command)}" for command in commands)
    return f"{words} {rng.choice(IMAGES)}"


def is_comparable(line: str) -> bool:
    """Zeroing what reads as zeroes takes no space here, and QED disks can shrink.

    And where a part of a zero cluster is written, the rest stays zero: qemu-io 7.2 shows what the
    backing file has there.
    """
    if "truncate 3M" in line and "truncate 2M" in line:
        return False
    if "write -z" in line and line.count("write") > 1 and line.endswith(("over.qed", "top.qed")):
        return False
    return "write -z" not in line or not ("-c map" in line or "-c 'alloc" in line)


def run_sessions(count: int, directory: Path, rng: random.Random) -> None:
    template = directory / "template"
    template.mkdir()
    make_template(template)
    for number in range(count):
        line = random_session(rng)
        if not is_comparable(line):
            continue
        place = directory / str(number)
        make_pair(template, place)
        theirs, ours = give_both("qemu-io", line, place)
        if theirs.code < 0:
            continue  # QEMU has crashed
        assert (ours.code, ours.stdout) == (theirs.code, theirs.stdout), line
        assert ours.complaint.startswith(theirs.complaint), line
        assert differing_files(place) == [], line
        shutil.rmtree(place)


def test_random_sessions(tmp_path: Path, rng: random.Random) -> None:
    run_sessions(ROUNDS, tmp_path, rng)


@pytest.mark.long
def test_many_random_sessions(tmp_path: Path, rng: random.Random) -> None:
    run_sessions(MANY_ROUNDS, tmp_path, rng)
