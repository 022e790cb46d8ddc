# SPDX-License-Identifier: Apache-2.0
"""What programs read: results, progress and errors as JSON, from every command that has them."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.progress import Progress
from blocklayer.cli import progress as display
from blocklayer.cli.main import COMMANDS, main
from blocklayer.cli.output import asks_for_json
from blocklayer.cli.parsing import Arguments

MIB = 1 << 20

RESULTS = {
    "bench": "bench -c 10 {data}",
    "check": "check {data}",
    "commit": "commit -d {over}",
    "compare": "compare {data} {over}",
    "convert": "convert -O qed {data} {new}",
    "create": "create -f qed {new} 1M",
    "dd": "dd if={data} of={new}",
    "digest": "digest {data}",
    "info": "info {data}",
    "map": "map {data}",
    "measure": "measure {data}",
    "rebase": "rebase -b {other} -F qed {over}",
    "resize": "resize {data} +1M",
    "snapshot": "snapshot -l {data}",
}
"""A line for each command that has a result, and succeeds."""

LONG = set(RESULTS) - {"create", "info", "snapshot"}
"""Those that tell how far they are."""

OTHERS = {"completion", "daemon", "help"}
"""They open no images, or talk in another way with programs."""


@pytest.fixture
def images(tmp_path: Path) -> dict[str, str]:
    names = {name: str(tmp_path / f"{name}.qed") for name in ("data", "over", "other", "new")}
    blocklayer.create(names["data"], format="qed", size="4M")
    with blocklayer.open(names["data"], mode="r+") as disk:
        disk.write(MIB, os.urandom(MIB))
    blocklayer.create(names["over"], format="qed", backing=names["data"], backing_format="qed")
    blocklayer.create(names["other"], format="qed", size="4M")
    return names


def words(line: str, images: dict[str, str], *options: str) -> list[str]:
    name, *rest = line.format(**images).split()
    return [name, *options, *rest]


def objects(text: str) -> list[dict[str, Any]]:
    """What stands in the lines of stderr."""
    return [json.loads(line) for line in text.splitlines()]


def test_every_command_is_here() -> None:
    known = OTHERS
    for name in COMMANDS.keys() - known:
        module = __import__(COMMANDS[name][0], fromlist=["COMMAND"])
        longs = {option.long for option in module.COMMAND.options}
        assert "output" in longs, f"{name} has no --output"


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_one_value(
    name: str, images: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(RESULTS[name], images, "--output=json")) == 0
    told = capsys.readouterr()
    assert isinstance(json.loads(told.out), dict | list)
    assert told.err == ""


@pytest.mark.parametrize("name", sorted(LONG))
def test_progress_as_objects(
    name: str, images: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--progress=json", "--prog=json"):
        line = RESULTS[name].replace("+1M", "--shrink 1M") if name == "resize" else RESULTS[name]
        assert main(words(line, images, option, "--output=json")) == 0
        told = capsys.readouterr()
        json.loads(told.out)
        check_stages(objects(told.err))


def check_stages(lines: list[dict[str, Any]]) -> None:
    """Each stage begins at 0, never runs backwards, and ends when everything is done."""
    assert lines
    for number, line in enumerate(lines):
        assert line.keys() == {
            *("operation", "done", "total", "zero", "skipped", "rate", "seconds", "left")
        }
        assert 0 <= line["zero"] + line["skipped"] <= line["done"] <= line["total"]
        begins = number == 0 or lines[number - 1]["operation"] != line["operation"]
        if begins:
            assert line["done"] == 0
        else:
            assert line["done"] >= lines[number - 1]["done"]
        ends = number + 1 == len(lines) or lines[number + 1]["operation"] != line["operation"]
        if ends:
            assert line["done"] == line["total"]


def test_zero_and_skipped_bytes(images: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    def last(line: str) -> tuple[int, int, int]:
        assert main(words(line, images, "--progress=json")) == 0
        end = objects(capsys.readouterr().err)[-1]
        return end["total"], end["zero"], end["skipped"]

    assert last("convert -O qed {data} {new}") == (4 * MIB, 3 * MIB, 0)
    assert last("convert -O qed -B {data} -F qed {over} {new}") == (4 * MIB, 3 * MIB, MIB)
    assert last("compare {data} {over}") == (4 * MIB, 3 * MIB, 0)
    assert last("measure -O qed {data}") == (4 * MIB, 3 * MIB, 0)
    assert last("commit -d {over}") == (4 * MIB, 0, 4 * MIB)
    assert last("rebase -b {other} -F qed {over}") == (4 * MIB, 0, 3 * MIB)


def test_objects_are_few(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    shown = display.Objects()
    for done in range(10001):
        shown.show(blocklayer.Progress("copy", done, 10000))
        now += 0.001
    shown.close(success=True)
    lines = objects(capsys.readouterr().err)
    assert 90 <= len(lines) <= 10 * 10 + 2
    check_stages(lines)
    assert lines[50]["rate"] == pytest.approx(1000, rel=0.01)
    assert lines[50]["left"] == pytest.approx(10 - lines[50]["seconds"], rel=0.02)


def test_what_fails_has_no_last_object(capsys: pytest.CaptureFixture[str]) -> None:
    shown = display.Objects()
    shown.show(blocklayer.Progress("copy", 0, 10))
    shown.show(blocklayer.Progress("copy", 5, 10))
    shown.close(success=False)
    assert [line["done"] for line in objects(capsys.readouterr().err)] == [0]


def test_values_of_progress(images: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("compare {data} {over}", images, "--progress=xml")) == 1
    assert "--progress takes 'json'" in capsys.readouterr().err
    assert main(words("compare {data} {over}", images, "--progress")) == 0
    assert capsys.readouterr().out.startswith("    (0.00/100%)\r")
    assert main(words("compare {data} {over}", images, "-q", "--progress=json")) == 0
    assert capsys.readouterr().err == ""
    for line in ("measure {data}", "map {data}", "check {data}"):  # their results stay readable
        assert main(words(line, images, "--progress")) == 0
        told = capsys.readouterr()
        assert "%" not in told.out.replace("% allocated", "").replace("% fragm", "").replace(
            "% compr", ""
        )
        assert told.err.startswith("    (0.00/100%)\r")


# --- errors -------------------------------------------------------------------------------------

ERRORS = [
    ("info {none}", "OpenError", "ENOENT", {"file": "{none}"}),
    ("info --nonsense {data}", "UsageError", "EINVAL", {}),
    ("info", "UsageError", "EINVAL", {}),
    ("convert -O nonsense {data} {new}", "InvalidArgument", "EINVAL", {}),
    ("convert {none} {new}", "OpenError", "ENOENT", {"file": "{none}"}),
    ("compare {data} {none}", "OpenError", "ENOENT", {"file": "{none}"}),
    ("create -f qed {none}/x 1M", "CreateError", None, {}),
    ("commit {data}", "InvalidArgument", "EINVAL", {}),
    ("check {raw}", "NotSupported", "ENOTSUP", {}),
    ("rebase -b {none} -F qed {over}", "OpenError", "ENOENT", {"file": "{none}"}),
    ("resize {data} 1M", "InvalidArgument", "EINVAL", {}),
    ("snapshot -c x {data}", "NotSupported", "ENOTSUP", {}),
    ("amend -o x=y {data}", "NotSupported", "ENOTSUP", {}),
    ("bitmap --add {data} x", None, None, {}),
    ("dd if={none} of={new}", "OpenError", "ENOENT", {"file": "{none}"}),
    ("bench {none}", "OpenError", "ENOENT", {"file": "{none}"}),
    ("map {none}", "OpenError", "ENOENT", {"file": "{none}"}),
    ("measure {none}", "OpenError", "ENOENT", {"file": "{none}"}),
    ("digest {none}", "OpenError", "ENOENT", {"file": "{none}"}),
    ("nonsense {data}", "UsageError", "EINVAL", {}),
]


@pytest.mark.parametrize(("line", "kind", "code", "members"), ERRORS, ids=str)
def test_errors(
    line: str,
    kind: str | None,
    code: str | None,
    members: dict[str, str],
    images: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "raw").write_bytes(b"x" * 512)
    names = {**images, "none": str(tmp_path / "none"), "raw": str(tmp_path / "raw")}
    plain = main(words(line, names))
    people = capsys.readouterr().err
    assert main(words(line, names, "--output=json")) == plain != 0
    told = capsys.readouterr()
    assert told.out == ""
    error = objects(told.err)[-1]["error"]
    assert kind in (None, error["class"])
    assert code in (None, error["code"])
    assert error["code"] in errno.errorcode.values()
    assert error["message"] in people
    assert error["exit-code"] == plain
    for name, value in members.items():
        assert error[name] == value.format(**names)


def test_where_a_request_failed(images: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    rule = {"event": "none", "iotype": "read", "errno": 5, "sector": 2048}
    file = {"driver": "fault", "file.filename": images["data"], "inject-error": [rule]}
    name = "json:" + json.dumps({"driver": "raw", "file": file}).replace(" ", "")
    code = main(["convert", "--output=json", name, images["new"]])
    error = objects(capsys.readouterr().err)[-1]["error"]
    assert code == 1
    assert (error["class"], error["code"], error["operation"]) == ("IoError", "EIO", "read")
    assert error["offset"] <= MIB < error["offset"] + error["length"]
    assert "has been removed" in error["hint"]
    assert not Path(images["new"]).exists()


def test_a_map_that_breaks_off_is_not_taken_for_the_whole(
    images: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with blocklayer.open(images["data"], mode="r+") as disk:
        disk.resize(3 << 30)
        disk.write((2 << 30) + 5, b"second table")
    with open(images["data"], "r+b") as file:
        file.seek((1 << 16) + 8)
        file.write((7).to_bytes(8, "little"))
    code = main(["map", "--output=json", images["data"]])
    told = capsys.readouterr()
    assert code == 1
    with pytest.raises(json.JSONDecodeError):
        json.loads(told.out)
    assert json.loads(told.out + "]")[0]["start"] == 0
    assert objects(told.err)[-1]["error"]["class"] == "CorruptImage"


def test_a_backing_file_that_is_the_image_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is its own cause."""
    path = str(tmp_path / "loop.qed")
    options: dict[str, Any] = {"backing": path, "backing_format": "qed", "check_backing": False}
    blocklayer.create(path, format="qed", size="1M", **options)
    assert main(["map", "--output=json", path]) == 1
    assert "infinite loop" in objects(capsys.readouterr().err)[-1]["error"]["message"]


def test_warnings(images: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    raw = Path(images["new"])
    raw.write_bytes(b"x" * 512)
    assert main(["resize", "--output=json", str(raw), "1M"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["virtual-size"] == MIB
    assert "probing guessed raw" in objects(told.err)[0]["warning"]["message"]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("info --output=json x", True),
        ("info --output json x", True),
        ("info --out=json x", True),
        ("info --ou json x", True),
        ("info --output=human x", False),
        ("info --output=json --output=human x", False),
        ("info -- --output=json", False),
        ("info --o=json x", False),
        ("info --output", False),
    ],
)
def test_who_asks_for_json(line: str, wanted: bool) -> None:
    assert asks_for_json(line.split()) == wanted


def test_a_wrong_output_is_refused_before_anything_is_done(
    images: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(images["data"]).read_bytes()
    assert main(["resize", "--output=xml", images["data"], "9M"]) == 1
    assert main(["create", "--output=xml", images["new"], "9M"]) == 1
    assert "--output must be used with" in capsys.readouterr().err
    assert Path(images["data"]).read_bytes() == before
    assert not Path(images["new"]).exists()


# --- full disks ---------------------------------------------------------------------------------


def limited(line: list[str], limit: int) -> subprocess.CompletedProcess[str]:
    """Run `blk` where files cannot become longer than `limit`."""
    return subprocess.run(
        [sys.executable, "-m", "blocklayer", *line],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "line",
    [
        "convert -O qed {data} {new}",
        "convert -O raw {data} {new}",
        "convert -O qed -S 0 {data} {new}",
        "create -o preallocation=full {new} 4M",
        "create -o preallocation=falloc {new} 4M",
        "dd if={data} of={new} -O qed",
        "dd if={data} of={new}",
    ],
)
def test_a_full_disk_leaves_nothing_that_looks_whole(line: str, images: dict[str, str]) -> None:
    for limit in (1000, 66000, 700_000):
        done = limited(words(line, images), limit)
        assert done.returncode == 1
        assert done.stderr.startswith("blk: ")
        assert "Traceback" not in done.stderr
        assert not Path(images["new"]).exists()
        done = limited(words(line, images, "--output=json"), limit)
        assert objects(done.stderr)[-1]["error"]["code"] in ("EFBIG", "ENOSPC")


def test_a_full_disk_spoils_no_image(images: dict[str, str]) -> None:
    """Commit and rebase run into the limit; both images still show what they did."""
    with blocklayer.open(images["over"], mode="r+") as disk:
        disk.write(2 * MIB, os.urandom(2 * MIB))
        content = disk.read(0, disk.size)
    for line, words_of_state in (
        ("commit {over}", "still shows the same"),
        ("rebase -b {other} -F qed {over}", "shows the same"),
    ):
        limit = Path(images["data" if "commit" in line else "over"]).stat().st_size
        done = limited(words(line, images), limit)
        assert done.returncode == 1
        assert words_of_state in done.stderr
        for name in ("over", "data", "other"):
            assert blocklayer.check(images[name]).corruptions == 0
        with blocklayer.open(images["over"]) as disk:
            assert disk.read(0, disk.size) == content


def test_arguments_of_running() -> None:
    """Quiet is quiet, whatever else is asked for."""
    shown = display.Running(Arguments([("progress", "json"), ("quiet", "")], []))
    assert type(shown._display) is display.Display


def test_an_object_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    """SIGUSR1 asks for one at once, however short the time since the last."""
    asking = Arguments([("progress", "json")], [])
    with display.Running(asking) as running:
        running.report(Progress("convert", 0, 100))
        running.report(Progress("convert", 10, 100))
        assert len(objects(capsys.readouterr().err)) == 1
        os.kill(os.getpid(), signal.SIGUSR1)
        running.report(Progress("convert", 20, 100, 5))
        running.report(Progress("convert", 30, 100, 5))
        [told] = objects(capsys.readouterr().err)
        assert (told["operation"], told["done"], told["total"], told["zero"]) == (
            *("convert", 20, 100, 5),
        )


@pytest.mark.slow
def test_objects_on_request_of_another_process(tmp_path: Path) -> None:
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    source.write_bytes(b"data" * (2 << 20))
    command = [sys.executable, "-m", "blocklayer", "convert", "--progress=json", "-r", "4M"]
    with subprocess.Popen(
        [*command, "-f", "raw", str(source), str(target)], stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        lines = [json.loads(process.stderr.readline())]
        for _ in range(5):
            process.send_signal(signal.SIGUSR1)
            lines.append(json.loads(process.stderr.readline()))
        lines += objects(process.stderr.read().decode())
    assert process.returncode == 0
    check_stages(lines)
