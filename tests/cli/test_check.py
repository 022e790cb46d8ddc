# SPDX-License-Identifier: Apache-2.0
"""`blk check`: what is told of problems, and of a repair before it is done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import blocklayer
from blocklayer.cli.main import main

CLUSTER = 1 << 16


@pytest.fixture
def wasteful(tmp_path: Path) -> Path:
    """An entry that takes another one's cluster, and a few leaks."""
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size="64M")
    with blocklayer.open(path, mode="r+") as disk:
        for cluster in range(40):
            disk.write(cluster * CLUSTER, b"data")
    with path.open("r+b") as file:
        file.seek(CLUSTER)
        table = int.from_bytes(file.read(8), "little")
        file.seek(table + 8 * 3)
        entry = file.read(8)
        file.seek(table + 8 * 5)
        file.write(entry)
        file.seek(table + 8 * 20)
        file.write(bytes(8 * 4))
    return path


@pytest.fixture
def damaged(wasteful: Path) -> Path:
    """The same, and an entry that cannot be."""
    with wasteful.open("r+b") as file:
        file.seek(CLUSTER)
        table = int.from_bytes(file.read(8), "little")
        file.seek(table + 8 * 9)
        file.write((7).to_bytes(8, "little"))
    return wasteful


def test_the_list(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(damaged)]) == 2
    told = capsys.readouterr()
    assert told.out.startswith("\n2 errors were found on the image.\n")
    lines = told.err.splitlines()
    assert lines[0].startswith("ERROR: L2 entry 5 of table 0 (guest offset 0x50000): the cluster")
    assert "; the entry is at 0x" in lines[0]
    assert all(line.startswith(("ERROR: ", "Leaked: ")) for line in lines)


def test_a_dry_run_and_what_it_tells_of(wasteful: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = wasteful.read_bytes()
    assert main(["check", "-r", "all", "--dry-run", str(wasteful)]) == 2
    planned = capsys.readouterr()
    assert wasteful.read_bytes() == before
    assert planned.err.count("repair would ") == len(planned.err.splitlines()) // 2
    assert "would be repaired" in planned.out
    assert "Nothing was changed." in planned.out
    _, _, end = planned.out.partition("a check would say:\n")
    size = int(planned.out.partition("The file would have ")[2].split()[0])

    assert main(["check", "-r", "all", str(wasteful)]) == 0
    done = capsys.readouterr()
    assert done.out.partition("image now...\n")[2] == end
    assert wasteful.stat().st_size == size
    listed = [line for line in planned.err.splitlines() if not line.startswith("    ")]
    assert [f"{line} (repaired)" for line in listed] == done.err.splitlines()


def test_a_dry_run_of_a_repair_that_keeps_leaks(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "-r", "all", "--dry-run", str(damaged)]) == 2
    planned = capsys.readouterr()
    assert planned.err.count("this repair would not mend it") == 3  # three runs of leaks
    _, _, end = planned.out.partition("a check would say:\n")
    assert "The file would have " in planned.out  # a copy longer

    assert main(["check", "-r", "all", str(damaged)]) == 3
    done = capsys.readouterr()
    assert done.out.partition("image now...\n")[2] == end
    assert done.err.count("(repaired)") == 2
    assert main(["check", "-r", "leaks", str(damaged)]) == 0


def test_a_dry_run_of_less(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-r", "leaks", "--dry-run", str(damaged)]) == 2
    told = capsys.readouterr()
    assert "this repair would not mend it" in told.err
    assert "would be repaired" not in told.out
    assert main(["check", "--dry-run", str(damaged)]) == 1
    assert "give -r leaks or -r all" in capsys.readouterr().err


def test_a_dry_run_as_json(wasteful: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "-r", "all", "--dry-run", "--output=json", str(wasteful)])
    told = capsys.readouterr()
    assert told.err == ""
    planned = json.loads(told.out)
    main(["check", "-r", "all", "--all-problems", "--output=json", str(wasteful)])
    done = json.loads(capsys.readouterr().out)
    assert planned["dry-run"] is True
    assert planned["plan"]["afterwards"]["check-errors"] == 0
    assert planned["plan"]["file-size-after"] == wasteful.stat().st_size
    assert planned["problems"] == done["problems"]
    for name in ("corruptions-fixed", "leaks-fixed"):
        assert planned[name] == done[name] > 0
    shared = planned["problems"][0]
    assert (shared["l1-index"], shared["l2-index"]) == (0, 5)
    assert shared["guest-offset"] == 5 * CLUSTER


def test_many_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size="256M")
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(0, b"data")
    with path.open("r+b") as file:
        file.seek(CLUSTER)
        table = int.from_bytes(file.read(8), "little")
        file.seek(table)
        file.write((7).to_bytes(8, "little") * 1500)
    assert main(["check", str(path)]) == 2
    told = capsys.readouterr()
    assert "\n1500 errors were found" in told.out
    assert len(told.err.splitlines()) == 21
    assert told.err.splitlines()[-1].startswith("... and others: --all-problems")
    assert main(["check", "--all-problems", str(path)]) == 2
    assert capsys.readouterr().err.count("ERROR: ") == 1500
    main(["check", "--output=json", "--all-problems", str(path)])
    members = json.loads(capsys.readouterr().out)
    assert len(members["problems"]) == 1501
    assert members["more-problems"] is False
    main(["check", "--output=json", "-r", "all", "--dry-run", str(path)])
    members = json.loads(capsys.readouterr().out)
    assert len(members["problems"]) == 1000
    assert members["more-problems"] is True
    assert members["corruptions-fixed"] == 1500


def test_a_check_that_fails(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = {"event": "none", "iotype": "read", "errno": 5, "sector": (4 * CLUSTER) // 512 + 8}
    with damaged.open("rb") as file:
        file.seek(CLUSTER)
        rule["sector"] = int.from_bytes(file.read(8), "little") // 512
    tree = {"driver": "fault", "file.filename": str(damaged), "inject-error": [rule]}
    name = "json:" + json.dumps({"driver": "qed", "file": tree})
    assert main(["check", name]) == 1
    assert capsys.readouterr().err.endswith("blk: Check failed\n")
    assert main(["check", "--output=json", name]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["check-errors"] == 1
    error = json.loads(told.err)["error"]
    assert error["message"] == "Check failed"
    assert "Cannot read L2 table 0" in error["hint"]


@pytest.mark.parametrize(
    ("backing", "said"),
    [
        ("backing.driver=raw,backing.file.filename=base.raw", ""),
        ("backing=", ""),
        ("backing.driver=raw,backing.file.filename=nope.raw", "'nope.raw': No such file"),
        ("backing.driver=bogus", "Unknown driver 'bogus'"),
    ],
)
def test_a_backing_file_that_is_described(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    backing: str,
    said: str,
) -> None:
    """It is opened, as qemu-img does; what the header names is not looked for."""
    monkeypatch.chdir(tmp_path)
    blocklayer.create("base.raw", size=1 << 20)
    blocklayer.create(
        "o.qed",
        format="qed",
        size=1 << 20,
        backing="gone.raw",
        backing_format="raw",
        check_backing=False,
    )
    image = f"driver=qed,file.filename=o.qed,{backing}"
    assert main(["check", "--image-opts", image]) == bool(said)
    assert said in capsys.readouterr().err


def test_output_in_one_file_is_in_order(damaged: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blocklayer", "check", damaged],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("ERROR: ")
    assert "errors were found" in done.stdout
