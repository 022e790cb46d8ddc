# SPDX-License-Identifier: Apache-2.0
"""A kernel's file system on a disk that is mirrored, under load, until it stands on the target."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import MiB
from tests.qmp.daemons import OURS, Conversation
from tests.support import needs, needs_root
from tests.support.file_load import Load, check_ledgers
from tests.support.mounts import mounted, needs_loop, run, shown_as_device, shown_as_file

pytestmark = [needs("nbdfuse", "mkfs.ext4"), needs_root(), needs_loop()]

SIZE = 192 * MiB
BALLAST = 48 * MiB
"""What lies there before the load begins, so that a mirror has something to do."""

SPEED = 48 * MiB
"""Bytes a second: the load meets every part of the job, however fast the machine is."""

VARIANTS = [
    ("raw", "qed", "background"),
    ("raw", "raw", "write-blocking"),
    ("qed", "raw", "background"),
    ("qed", "qed", "write-blocking"),
]


class Scene:
    """A daemon whose node `source` has a mounted file system under load."""

    def __init__(self, folder: Path, formats: tuple[str, str], talk: Conversation) -> None:
        self.folder = folder
        self.formats = dict(zip(("source", "target"), formats, strict=True))
        self.talk = talk
        self.load: Load

    def image(self, name: str) -> Path:
        return self.folder / f"{name}.{self.formats[name]}"

    def whole(self, name: str) -> Path:
        """An image's guest bytes as a plain file."""
        path = self.folder / f"{name}.whole"
        path.unlink(missing_ok=True)
        format = self.formats[name]
        blocklayer.convert(self.image(name), path, source_format=format, force_share=True)
        return path

    def digest(self, name: str) -> str:
        """Of an image's guest bytes, which somebody may have open."""
        with self.whole(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def mirror(self, copy_mode: str, device: str = "source", target: str = "target") -> None:
        """Start, and wait until it is ready; the load goes on all the time."""
        talk, load = self.talk, self.load
        load.wait_for_steps(5)
        before, written = load.steps, self.writes()
        talk.do(
            "blockdev-mirror",
            job_id="j",
            device=device,
            target=target,
            sync="full",
            copy_mode=copy_mode,
            speed=SPEED,
        )
        load.wait_for_steps(5)
        (job,) = talk.do("query-block-jobs")
        assert not job["ready"], "the load came too late"
        talk.event("BLOCK_JOB_READY", device="j")
        assert load.steps > before
        assert self.writes() > written, "nothing has reached the disk meanwhile"
        load.wait_for_steps(20)

    def end(self, command: str) -> None:
        """Complete or cancel; it must end well."""
        self.talk.do(command, device="j")
        ended = self.talk.event("BLOCK_JOB_COMPLETED", device="j")
        assert "error" not in ended

    def writes(self) -> int:
        """How often nodes were written to."""
        stats = self.talk.do("query-blockstats", query_nodes=True)
        return sum(each["stats"]["wr_operations"] for each in stats)


@contextmanager
def under_load(
    folder: Path, formats: tuple[str, str], seed: int, threads: int = 3
) -> Iterator[Scene]:
    """A file system on node `source`; leaving this stops the load, and unmounts."""
    options: list[str] = []
    for name, kind in zip(("source", "target"), formats, strict=True):
        path = folder / f"{name}.{kind}"
        blocklayer.create(path, format=kind, size=SIZE)
        node = f"driver={kind},node-name={name},discard=unmap,file.driver=file,file.filename={path}"
        options += ["--blockdev", f"{node},file.discard=unmap,cache.no-flush=on"]
    socket = folder / "nbd.sock"
    options += ["--nbd-server", f"addr.type=unix,addr.path={socket}"]
    options += ["--export", "type=nbd,id=e,node-name=source,name=disk,writable=on"]
    with Conversation(folder, OURS, tuple(options)) as talk:
        scene = Scene(folder, formats, talk)
        uri = f"nbd+unix:///disk?socket={socket}"
        with shown_as_file(uri, folder / "fuse") as file:
            run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", file)
            with (
                shown_as_device(file) as device,
                mounted(device, folder / "mount", "-o", "discard") as mount,
            ):
                (mount / "ballast").write_bytes(bytes(range(1, 256)) * (BALLAST // 255))
                run("sync", "-f", mount)
                scene.load = Load(mount, seed, threads)
                try:
                    yield scene
                finally:
                    scene.load.stop()


def replayed(path: Path) -> None:
    """What a kernel does after a crash is all that a copy of one moment needs.

    `-p` gives up where the journal, and inodes that were to go, do not explain what it finds.
    """
    run("e2fsck", "-f", "-p", path, codes=(0, 1))
    run("e2fsck", "-f", "-n", path)


@pytest.mark.parametrize(("source", "target", "copy_mode"), VARIANTS)
def test_pivot(tmp_path: Path, seed: int, source: str, target: str, copy_mode: str) -> None:
    with under_load(tmp_path, (source, target), seed) as scene:
        scene.mirror(copy_mode)
        promised = scene.load.promised
        scene.end("block-job-complete")
        left = scene.digest("source")
        scene.load.wait_for_steps(30)
    assert scene.digest("source") == left, "somebody still writes to the old disk"
    whole = scene.whole("target")
    run("e2fsck", "-f", "-n", whole)
    with mounted(whole, tmp_path / "again", "-o", "loop,ro") as mount:
        scene.load.check(mount)
    old = scene.whole("source")
    replayed(old)
    with mounted(old, tmp_path / "again", "-o", "loop,ro") as mount:
        check_ledgers(mount, promised)
    for name, kind in scene.formats.items():
        if kind == "qed":
            assert blocklayer.check(scene.image(name)).clean


@pytest.mark.parametrize(("source", "target", "copy_mode"), VARIANTS[:1] + VARIANTS[3:])
def test_copy_of_a_moment(
    tmp_path: Path, seed: int, source: str, target: str, copy_mode: str
) -> None:
    """Cancelled when it is ready: the target is the disk at one moment, as after a crash."""
    with under_load(tmp_path, (source, target), seed) as scene:
        scene.mirror(copy_mode)
        promised = scene.load.promised
        scene.end("block-job-cancel")
        left = scene.digest("target")
        scene.load.wait_for_steps(30)
    assert scene.digest("target") == left, "somebody still writes to the copy"
    whole = scene.whole("target")
    replayed(whole)
    with mounted(whole, tmp_path / "again", "-o", "loop,ro") as mount:
        check_ledgers(mount, promised)
    whole = scene.whole("source")
    run("e2fsck", "-f", "-n", whole)
    with mounted(whole, tmp_path / "again", "-o", "loop,ro") as mount:
        scene.load.check(mount)


@pytest.mark.long
@pytest.mark.parametrize("formats", [("raw", "qed"), ("qed", "qed"), ("raw", "raw")])
def test_moved_again_and_again(tmp_path: Path, seed: int, formats: tuple[str, str]) -> None:
    """There and back, in both copy modes."""
    with under_load(tmp_path, formats, seed, threads=6) as scene:
        for _ in range(5):
            for there, back in (("source", "target"), ("target", "source")):
                for mode in ("background", "write-blocking"):
                    scene.mirror(mode, there, back)
                    scene.end("block-job-cancel")
                scene.mirror("background", there, back)
                scene.end("block-job-complete")
    whole = scene.whole("source")
    run("e2fsck", "-f", "-n", whole)
    with mounted(whole, tmp_path / "again", "-o", "loop,ro") as mount:
        scene.load.check(mount)
