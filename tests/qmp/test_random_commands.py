"""Commands in any order, with arguments that are nearly right: answers of ours, and no chaos."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.qmp.daemon import Daemon
from blocklayer.qmp.dispatch import Session

NAMES = ["a", "b", "c", "d", "e"]
JOBS = ["j", "k"]
BITMAPS = ["x", "y"]
SIZE = 1 << 18


class Author:
    """Makes up commands."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def name(self) -> str:
        return self.rng.choice([*NAMES, "#block101", "nowhere"])

    def node(self, depth: int = 0) -> dict[str, Any]:
        rng = self.rng
        child: Any = rng.choice(NAMES) if depth > 2 or rng.random() < 0.5 else self.node(depth + 1)
        image = {"driver": "file", "filename": rng.choice(["a.qed", "b.qed", "a.raw", "no"])}
        options = rng.choice(
            [
                {"driver": "memory", "size": SIZE},
                {"driver": "null-co", "size": SIZE},
                {"driver": "raw", "file": child},
                {"driver": "raw", "file": image},
                {"driver": "qed", "file": image, "backing": rng.choice([None, *NAMES])},
                {"driver": "qed", "file": child},
                {"driver": "copy-on-read", "file": child},
                {"driver": "blkverify", "test": child, "raw": rng.choice(NAMES)},
                {"driver": "throttle", "throttle-group": "g", "file": child},
                {"driver": "blkdebug", "image": child,
                 "inject-error": [{"iotype": rng.choice(["read", "write"]), "once": True}]},
                image,
            ]
        )  # fmt: skip
        if depth == 0 or rng.random() < 0.3:
            options["node-name"] = rng.choice(NAMES)
        for option, values in (
            ("read-only", (True, False)),
            ("discard", ("unmap", "ignore")),
            ("detect-zeroes", ("off", "on", "unmap")),
        ):
            if rng.random() < 0.1:
                options[option] = rng.choice(values)
        return dict(options)

    def job(self) -> dict[str, Any]:
        rng = self.rng
        return {
            "job-id": rng.choice(JOBS),
            "device": self.name(),
            **({"speed": rng.choice([0, 1, 1 << 20])} if rng.random() < 0.5 else {}),
            **({"auto-dismiss": False} if rng.random() < 0.2 else {}),
            **({"auto-finalize": False} if rng.random() < 0.2 else {}),
        }

    def bitmap(self) -> dict[str, Any]:
        return {"node": self.name(), "name": self.rng.choice(BITMAPS)}

    def command(self) -> tuple[str, dict[str, Any]]:
        rng = self.rng
        verb = rng.choice(["pause", "resume", "cancel", "complete", "finalize", "dismiss"])
        block_verb = rng.choice(["pause", "resume", "cancel", "complete"])
        sync = rng.choice(["full", "top", "none", "incremental"])
        merge = {"node": self.name(), "target": "x", "bitmaps": [self.bitmap(), "y"]}
        bitmap_verb = rng.choice(["add", "remove", "clear", "enable", "disable"])
        choices: list[tuple[str, dict[str, Any]]] = [
            ("blockdev-add", self.node()),
            ("blockdev-add", self.node()),
            ("blockdev-del", {"node-name": self.name()}),
            ("blockdev-reopen", {"options": [self.node() for _ in range(rng.randrange(3))]}),
            ("blockdev-reopen", {"options": [{"driver": rng.choice(["raw", "qed"]),
                                              "node-name": self.name(), "file": self.name()}]}),
            ("block_resize", {"node-name": self.name(), "size": rng.choice([0, SIZE, 2 * SIZE])}),
            ("blockdev-snapshot", {"node": self.name(), "overlay": self.name()}),
            ("blockdev-snapshot-sync",
             {"node-name": self.name(), "snapshot-file": "s.qed", "snapshot-node-name": "e"}),
            ("blockdev-mirror", {**self.job(), "target": self.name(), "sync": sync}),
            ("blockdev-backup", {**self.job(), "target": self.name(), "sync": sync, "bitmap": "x"}),
            ("blockdev-backup", {**self.job(), "target": self.name(), "sync": "full"}),
            ("blockdev-backup", {**self.job(), "target": self.name(), "sync": "none"}),
            ("drive-backup", {**self.job(), "target": "n.qed", "format": "qed", "sync": sync}),
            ("drive-backup", {**self.job(), "target": "n.qed", "format": "qed", "sync": "none"}),
            ("block-commit", self.job()),
            ("block-stream", self.job()),
            ("drive-mirror", {**self.job(), "target": "m.raw", "sync": sync}),
            ("blockdev-create", {"job-id": "j", "options":
                                 {"driver": "qed", "file": self.name(), "size": SIZE}}),
            (f"job-{verb}", {"id": rng.choice(JOBS)}),
            (f"block-job-{block_verb}", {"device": rng.choice(JOBS)}),
            (f"block-dirty-bitmap-{bitmap_verb}", self.bitmap()),
            ("block-dirty-bitmap-merge", merge),
            ("change-backing-file", {"device": self.name(), "image-node-name": self.name(),
                                     "backing-file": "a.raw"}),
            ("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "nbd"}}}),
            ("nbd-server-stop", {}),
            ("block-export-add", {"type": "nbd", "id": rng.choice(JOBS), "node-name": self.name(),
                                  "writable": rng.random() < 0.5}),
            ("block-export-add", {"type": "nbd", "id": rng.choice(JOBS), "node-name": self.name(),
                                  "bitmaps": [rng.choice([self.bitmap(), "x"])]}),
            ("block-export-del", {"id": rng.choice(JOBS), "mode": "hard"}),
            ("block-set-write-threshold", {"node-name": self.name(), "write-threshold": 512}),
            ("query-named-block-nodes", {}),
            ("query-blockstats", {"query-nodes": True}),
            ("x-debug-query-block-graph", {}),
            ("query-jobs", {}),
            ("query-block-jobs", {}),
            ("query-block-exports", {}),
        ]  # fmt: skip
        if rng.random() < 0.1:
            actions: list[dict[str, Any]] = [
                {"type": "drive-backup",
                 "data": {**self.job(), "target": "o.qed", "format": "qed", "sync": sync}},
                {"type": f"block-dirty-bitmap-{bitmap_verb}", "data": self.bitmap()},
                {"type": "blockdev-snapshot", "data": {"node": self.name(), "overlay": "e"}},
                {"type": "blockdev-backup",
                 "data": {**self.job(), "target": self.name(), "sync": "full"}},
                {"type": "abort", "data": {}},
            ]  # fmt: skip
            return "transaction", {"actions": rng.sample(actions, rng.randrange(1, 5))}
        return rng.choice(choices)


@pytest.mark.parametrize("part", range(8))
def test_commands_in_any_order(
    rng: random.Random, tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.qed", "b.qed"):
        blocklayer.create(name, format="qed", size=SIZE)
    Path("a.raw").write_bytes(os.urandom(SIZE))
    author = Author(random.Random(rng.random() + part))
    daemon = Daemon()
    said: list[tuple[str, dict[str, Any]]] = []
    done = 0
    try:
        session = Session(daemon.context)
        session.answer({"execute": "qmp_capabilities"})
        for _ in range(150):
            command, arguments = author.command()
            said.append((command, arguments))
            answer = session.answer({"execute": command, "arguments": arguments})
            if "error" in answer:
                words = answer["error"]["desc"]
                assert not words.startswith(("Internal", "internal")), said
                assert "Bad file descriptor" not in words, said
            else:
                done += 1
        for job in daemon.context.jobs.all():
            assert "internal error" not in (job.error or ""), (job, job.error, said)
    finally:
        daemon.close()
        shutil.rmtree(tmp_path, ignore_errors=True)
    assert done > 10
