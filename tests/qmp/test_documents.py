"""The examples of docs/daemon.md work as they stand there."""

import random
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import blocklayer
from tests.qmp.daemons import Client, connected
from tests.support import needs
from tests.support.source import ROOT

PAGE = (ROOT / "docs" / "daemon.md").read_text("utf-8")


def example(language: str, section: str = "") -> str:
    match = re.search(rf"{section}.*?```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert match is not None
    return match[1]


@contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon of the first example, on a disk of 1 MiB."""
    create = ["qemu-img", "create", "-q", "-f", "qed", "disk.qed", "1M"]
    subprocess.run(create, cwd=folder, check=True)
    program, *words = shlex.split(example("sh").replace("\\\n", " "))
    assert program == "blk"
    daemon = subprocess.Popen([sys.executable, "-m", "blocklayer", *words], cwd=folder)
    try:
        client = connected(folder / "qmp.sock", daemon)
        while not client.ask("query-block-exports", {})["return"]:  # of a later option
            time.sleep(0.01)
        client.close()
        yield daemon
    finally:
        daemon.kill()
        daemon.wait()


@needs("qemu-img", "nbdinfo")
def test_a_backup_is_pulled_by_the_example(tmp_path: Path) -> None:
    """What is written after each moment is not in its backup."""
    code = example("python", "## A backup that is pulled")
    stopping = "; print('moment', time, flush=True); input()"
    watched = code.replace("  # this is the moment", stopping)
    assert watched != code
    with running(tmp_path) as daemon:
        uri = f"nbd+unix:///disk?socket={tmp_path}/nbd.sock"
        with blocklayer.open(uri, mode="r+", format="raw") as disk:
            disk.write(0, random.Random(1).randbytes(1 << 19))
            program = subprocess.Popen(
                [sys.executable, "-c", watched],
                cwd=tmp_path,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert program.stdout is not None
            assert program.stdin is not None
            for number in range(3):
                assert program.stdout.readline() == f"moment {number}\n".encode()
                content = disk.read(0, 1 << 20)
                disk.write(number * 200_000, bytes([number + 1]) * 100_000)
                program.stdin.write(b"\n")
                program.stdin.flush()
            program.communicate(timeout=60)
            assert program.returncode == 0
        assert daemon.poll() is None
    assert (tmp_path / "backup.raw").read_bytes() == content


@needs("qemu-img")
def test_a_disk_is_moved_by_the_examples(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        subprocess.run(
            [sys.executable, "-c", example("python")], cwd=tmp_path, check=True, timeout=60
        )
        client = Client(tmp_path / "qmp.sock")
        while client.ask("query-jobs", {}) != {"return": []}:
            pass
        (export,) = client.ask("query-block-exports", {})["return"]
        assert export["id"] == "e"
        client.ask("quit", {})
        client.close()
        assert daemon.wait(30) == 0
    assert (tmp_path / "copy.raw").stat().st_size == 1 << 20
