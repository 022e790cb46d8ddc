"""The examples of docs/daemon.md work as they stand there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.qmp.daemons import Client, connected
from tests.support import needs
from tests.support.source import ROOT

PAGE = (ROOT / "docs" / "daemon.md").read_text("utf-8")


def example(language: str) -> str:
    match = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert match is not None
    return match[1]


@needs("qemu-img")
def test_a_disk_is_moved_by_the_examples(tmp_path: Path) -> None:
    create = ["qemu-img", "create", "-q", "-f", "qed", "disk.qed", "1M"]
    subprocess.run(create, cwd=tmp_path, check=True)
    program, *words = shlex.split(example("sh").replace("\\\n", " "))
    assert program == "blk"
    daemon = subprocess.Popen([sys.executable, "-m", "blocklayer", *words], cwd=tmp_path)
    try:
        connected(tmp_path / "qmp.sock", daemon).close()
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
    finally:
        daemon.kill()
        daemon.wait()
    assert (tmp_path / "copy.raw").stat().st_size == 1 << 20
