# SPDX-License-Identifier: Apache-2.0
"""Scripts as people write them around qemu-img give the same with `blk` in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.side_by_side import OURS, THEIRS, make_pair, make_template
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-io")

SHELL = {
    "virtual size in bytes": r"""
        for image in data.qed over.qed data.raw; do
            $IMG info "$image" | sed -n 's/^virtual size: .*(\([0-9]*\) bytes)$/\1/p'
        done
    """,
    "format": r"""
        for image in *.qed *.raw; do
            echo "$image $($IMG info "$image" | awk -F': ' '/^file format/ {print $2}')"
        done
    """,
    "walk the chain": r"""
        image=top.qed
        while [ -n "$image" ]; do
            echo "$image"
            image=$($IMG info -U "$image" | sed -n 's/^backing file: \([^ ]*\).*/\1/p')
        done
    """,
    "count layers": r"$IMG info --backing-chain top.qed | grep -c '^image: '",
    "actual path": r"""
        $IMG info folder/far.qed | sed -n 's/.*(actual path: \(.*\))/\1/p'
    """,
    "allocated bytes": r"""
        total=0
        while read -r start length rest; do
            [ "$start" = Offset ] || total=$((total + length))
        done < <($IMG map top.qed)
        echo $total
    """,
    "where in which file": r"$IMG map top.qed | awk 'NR > 1 {print $4, $3}' | sort | uniq -c",
    "check, and repair what is needed": r"""
        for image in data.qed leaky.qed wrong.qed data.raw nonexistent; do
            $IMG check -q "$image" 2> messages
            case $? in
                0) echo "$image: clean" ;;
                2) echo "$image: corrupt" ;;
                3) echo "$image: leaks" ;;
                63) echo "$image: cannot be checked" ;;
                *) echo "$image: $(tail -n 1 messages | sed 's/.*: //')" ;;
            esac
        done
    """,
    "numbers of a check": r"""
        $IMG check data.qed | awk -F'[/ =%]+' '/allocated/ {print $1, $2, $3}'
        $IMG check leaky.qed 2>/dev/null | sed -n 's/^\([0-9]*\) leaked clusters.*/leaks=\1/p'
        $IMG check wrong.qed 2>/dev/null | sed -n 's/^\([0-9]*\) errors were found.*/errors=\1/p'
    """,
    "sizes to provide": r"""
        required=$($IMG measure -O raw data.qed | awk -F': ' '/^required/ {print $2}')
        full=$($IMG measure -O raw --size 1G | awk '/fully allocated size:/ {print $NF}')
        echo $((required / 1024)) $((full / 1048576))
    """,
    "convert if it differs": r"""
        $IMG convert -O qed data.raw copy.qed
        if $IMG compare -q data.raw copy.qed; then echo same; else echo differs; fi
        if $IMG compare -q data.qed copy.qed; then echo same; else echo "differs $?"; fi
        $IMG compare data.qed copy.qed | sed -n 's/.*offset \([0-9]*\)!.*/\1/p'
        $IMG compare data.qed nonexistent > /dev/null 2>&1 || echo "cannot: $?"
    """,
    "progress": r"""
        $IMG convert -p -O qed data.raw copy.qed | tr '\r' '\n' | grep -c '^    (.*/100%)$' \
            | sed 's/^[1-9][0-9]*$/some/'
        $IMG convert -p -O qed data.raw copy.qed | tr '\r' '\n' | grep '100.00' | sort -u
    """,
    "snapshot by overlay, commit, grow": r"""
        set -e
        $IMG create -q -f qed -b data.qed -F qed work.qed
        $IMG info work.qed | grep -E '^(backing file|virtual size)'
        $IMG commit -q work.qed
        $IMG resize -q data.qed +1M
        $IMG rebase -q -u -b empty.qed -F qed work.qed
        $IMG info work.qed | grep '^backing file:'
        $IMG rebase -q -b '' work.qed
        $IMG info work.qed | grep -c '^backing file' || echo none
    """,
    "first megabyte": r"""
        $IMG dd -f qed -O raw bs=64k count=2 if=data.qed of=head.raw && wc -c < head.raw
        od -A d -t x1 head.raw | awk '{print $1, $2}'
    """,
    "requests a second": r"""
        $IMG bench -c 100 -d 4 data.qed \
            | sed -n 's/^Run completed in \([0-9.]*\) seconds\.$/measured/p'
    """,
    "no snapshots": r"$IMG snapshot -l data.qed | awk 'NR > 2 {print $2}' | wc -l",
    "what is offered": r"""
        $IMG create -f qed -o help | grep -oE '^  (backing_file|cluster_size|table_size|size)='
        $IMG create -o preallocation=falloc -f raw full.raw 1M | cut -d, -f1
    """,
    "errors": r"""
        for words in "info nonexistent" "resize data.qed 1k" "create x.raw" "convert data.qed" \
            "foo" "rebase -b nonexistent -F qed over.qed" "info -f qed data.raw"; do
            $IMG $words 2>&1 >/dev/null | head -n 1 | sed 's/.*: //'
        done
    """,
    "read and write a pattern": r"""
        $IO -c 'write -P 7 0 64k' data.qed | awk '/^wrote/ {print $2, $NF}'
        $IO -c 'read -P 7 0 64k' data.qed > /dev/null && echo verified
        $IO -c 'read -P 8 0 64k' data.qed | grep -o '^Pattern verification failed at offset .*'
        $IO -c map over.qed | awk '/ allocated/ && !/not/ {print $NF}'
        printf 'length\nquit\n' | $IO data.qed | sed 's/^[a-z-]*> //' | head -n 1
    """,
}

PYTHON = {
    "info": """
        facts = json.loads(run("info", "--output=json", "over.qed"))
        print(facts["format"], facts["virtual-size"], facts["backing-filename"])
        print(facts.get("backing-filename-format"), facts.get("dirty-flag"), sorted(facts))
    """,
    "chain": """
        for layer in json.loads(run("info", "--backing-chain", "--output=json", "top.qed")):
            print(layer["filename"], layer.get("full-backing-filename"), layer["cluster-size"])
    """,
    "map": """
        extents = json.loads(run("map", "--output=json", "top.qed"))
        for extent in extents:
            assert extent["data"] or "offset" not in extent
            print(extent["start"], extent["length"], extent["depth"], extent["zero"])
        print(sum(e["length"] for e in extents if e["data"]), sorted(extents[0]))
    """,
    "check": """
        for name in ("data.qed", "leaky.qed", "wrong.qed"):
            done = subprocess.run([*TOOL, "check", "--output=json", name], stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, check=False)
            report = json.loads(done.stdout)
            print(name, done.returncode, report.get("leaks", 0), report.get("corruptions", 0),
                  report["allocated-clusters"], report["total-clusters"])
    """,
    "measure": """
        print(json.loads(run("measure", "--output=json", "-O", "raw", "data.qed")))
    """,
    "failure": """
        done = subprocess.run([*TOOL, "info", "nonexistent"], capture_output=True, check=False)
        print(done.returncode, b"No such file or directory" in done.stderr, done.stdout)
    """,
}
PRELUDE = """
import json, os, subprocess
TOOL = os.environ["IMG"].split()
def run(*words):
    return subprocess.run([*TOOL, *words], check=True, stdout=subprocess.PIPE).stdout
"""
BLK = f"{sys.executable} -m blocklayer"


def outputs(command: list[str], directory: Path) -> list[tuple[int, str]]:
    """Of a script, with QEMU's tools and with `blk`."""
    template = directory / "template"
    template.mkdir()
    make_template(template)
    make_pair(template, directory)
    found = []
    for place, image_tool, io_tool in (
        (THEIRS, "qemu-img", "qemu-io"),
        (OURS, BLK, f"{BLK} io"),
    ):
        done = subprocess.run(
            command,
            cwd=directory / place,
            env={**os.environ, "IMG": image_tool, "IO": io_tool},
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        found.append((done.returncode, done.stdout))
    return found


@pytest.mark.parametrize("name", SHELL)
def test_shell_scripts(name: str, tmp_path: Path) -> None:
    theirs, ours = outputs(["bash", "-c", SHELL[name]], tmp_path)
    assert ours == theirs
    assert theirs[1], "a script that prints nothing proves nothing"


@pytest.mark.parametrize("name", PYTHON)
def test_python_scripts(name: str, tmp_path: Path) -> None:
    import textwrap

    script = PRELUDE + textwrap.dedent(PYTHON[name])
    theirs, ours = outputs([sys.executable, "-c", script], tmp_path)
    assert ours == theirs
    assert theirs[0] == 0
    assert theirs[1]
