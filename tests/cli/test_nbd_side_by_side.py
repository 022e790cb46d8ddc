# SPDX-License-Identifier: Apache-2.0
"""Wrong command lines beside the real qemu-nbd: the same words and exit code, but where listed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.side_by_side import run_ours
from tests.support import needs

pytestmark = needs("qemu-nbd", "qemu-img")

LONG = "x" * 4097

LINES = f"""
a b
-v
nonexistent
-e x data.raw
-e -1 data.raw
-e '' data.raw
-o 1M data.raw
-o x data.raw
-k relative data.raw
-x {LONG} data.raw
-D {LONG} data.raw
--cache=bad data.raw
-n --cache=none data.raw
--cache=none --cache=none data.raw
-n -n data.raw
--aio=bad data.raw
--aio=threads --aio=threads data.raw
--discard=bad data.raw
--discard=unmap --discard=unmap data.raw
--detect-zeroes=bad data.raw
--detect-zeroes=unmap data.raw
-f bad data.raw
-f qed data.raw
-f qed -B b0 data.qed
--tls-creds=none data.raw
--tls-authz=a data.raw
--tls-hostname=a data.raw
-L data.raw
-L -x name
-L -o 3
-L -A
-L -B name
-L -D text
-L --fork
-L -k FOLDER/none
-L -t -k FOLDER/none
-L -r -k FOLDER/none
--bogus data.raw
--image-opts driver=bad
--image-opts -f raw data.raw
-f raw -k FOLDER/no/where data.raw
-f raw -k FOLDER/{"y" * 120} data.raw
-f raw -b 999.1.1.1 data.raw
-f raw --pid-file=FOLDER/no/where -k FOLDER/sock data.raw
--object bad data.raw
-p x data.raw
-p -1 data.raw
-f raw -o 20000000 data.raw
-l name data.qed
-s -l name data.qed
-f raw --aio=native data.raw
-Z data.raw
-P 1 data.raw
-d FOLDER/nbd0
--selinux-label=x data.raw
""".strip().splitlines()

OPENING = "the name of the file is told as everywhere in `blk`"
DIFFERENCES = {
    "-f bad data.raw": ("Failed to blk_new_open", OPENING),
    "-f qed data.raw": ("Failed to blk_new_open", OPENING),
    "--image-opts driver=bad": ("Failed to blk_new_open", OPENING),
    "--image-opts -f raw data.raw": ("mutually exclusive", "-f is called --format"),
    "-p x data.raw": ("Invalid port number 'x'", "QEMU asks the resolver for a service"),
    "-p -1 data.raw": ("Invalid port number '-1'", "QEMU asks the resolver for a service"),
    "-f raw -o 20000000 data.raw": ("lies behind the end", OPENING),
    "-l name data.qed": ("has no snapshots", "no format here has any"),
    "-s -l name data.qed": ("Use only one of -s or -l", "it makes no sense"),
    "-f raw --aio=native data.raw": (None, "accepted: how we read is our business"),
    "-Z data.raw": ("unrecognized option '-Z'", "`blk` says it the same for all options"),
    "-P 1 data.raw": ("unrecognized option '-P'", "`blk` says it the same for all options"),
    "-d FOLDER/nbd0": ("not available", "needs a kernel's device and ioctls"),
    "--selinux-label=x data.raw": ("not enabled", "there are no labels here"),
}
"""Lines where the words differ: what ours says (None: it serves), and why."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images."""
    folder = tmp_path_factory.mktemp("lines")
    for format in ("raw", "qed"):
        name = folder / f"data.{format}"
        subprocess.run(["qemu-img", "create", "-q", "-f", format, name, "1M"], check=True)
    return folder


def complaint(text: str) -> str:
    """The first line that is no warning, without the program's name."""
    lines = [line for line in text.splitlines() if line and not line.startswith(("WARN", "   "))]
    return re.sub(r"^(qemu-nbd|blk( nbd)?): ", "", lines[0]) if lines else ""


def words_of(line: str, folder: Path) -> list[str]:
    return [word.replace("FOLDER", str(folder)).replace("''", "") for word in line.split()]


@pytest.mark.parametrize("line", LINES, ids=[line[:40] for line in LINES])
def test_wrong_lines(line: str, folder: Path) -> None:
    words = words_of(line, folder)
    ours_says, reason = DIFFERENCES.get(line, ("", ""))
    if ours_says is None:
        assert reason
        return
    theirs = subprocess.run(
        ["qemu-nbd", *words], capture_output=True, text=True, cwd=folder, timeout=20, check=False
    )
    ours = run_ours(["nbd", *words], folder)
    assert ours.code == theirs.returncode == 1
    told = ours.complaint.replace("TOOL: ", "")
    expected = complaint(theirs.stderr)
    if reason:
        assert ours_says in told
        assert told != expected, "no difference any more"
    else:
        assert told.startswith(expected)  # it may say more
        assert expected
