# SPDX-License-Identifier: Apache-2.0
"""What a conversion into an existing name leaves of it: its owner, who may read it, a link."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import BlocklayerError, Cancelled, CreateError, LockError
from blocklayer.base.progress import CancelToken, Progress
from blocklayer.base.units import KiB, MiB

SIZE = 8 * MiB


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.mark.parametrize("resume", [False, True])
def test_a_private_target_stays_private(source: Path, tmp_path: Path, resume: bool) -> None:
    target = tmp_path / "target"
    target.touch(0o600)
    target.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(target, 65534, 65534)
    before = target.stat()
    seen = set()

    def look(_: Progress) -> None:
        for path in tmp_path.glob("target.partial"):
            seen.add(stat.S_IMODE(path.stat().st_mode))

    blocklayer.convert(source, target, resume=resume, progress=look)
    after = target.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert target.read_bytes() == source.read_bytes()
    assert seen == ({0o640} if resume else set())


def test_a_target_in_use_is_refused_before_anything_is_copied(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(bytes(KiB))
    with (
        blocklayer.open(target, mode="r+", format="raw"),
        pytest.raises((LockError, BlocklayerError), match="lock"),
    ):
        blocklayer.convert(source, target, resume=True)
    assert not (tmp_path / "target.partial").exists()
    assert target.read_bytes() == bytes(KiB)


def test_a_link_outlives_a_copy_that_is_stopped(source: Path, tmp_path: Path) -> None:
    """And the next copy goes where it leads."""
    folder = tmp_path / "volume"
    folder.mkdir()
    link = tmp_path / "link"
    link.symlink_to("volume/image")
    for _ in range(2):
        cancel = CancelToken()

        def stop(_: Progress, cancel: CancelToken = cancel) -> None:
            cancel.cancel()

        with pytest.raises(Cancelled) as caught:
            blocklayer.convert(source, link, progress=stop, cancel=cancel)
        assert "has been removed" in "".join(caught.value.__notes__)
        assert not any(folder.iterdir())
        assert link.is_symlink()
    blocklayer.convert(source, link)
    assert link.is_symlink()
    assert (folder / "image").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("name", "code", "options"),
    [
        ("missing/image", errno.ENOENT, {}),
        ("image", errno.ENOENT, {"backing": "nope", "backing_format": "raw"}),
        ("source/image", errno.ENOTDIR, {}),
        ("image", errno.EINVAL, {"cluster_size": 12345}),
    ],
)
def test_the_reason_is_a_number_too(
    source: Path, tmp_path: Path, name: str, code: int, options: dict[str, object]
) -> None:
    with pytest.raises(CreateError) as caught:
        blocklayer.create(tmp_path / name, format="qed", size=MiB, **options)  # type: ignore[arg-type]
    assert caught.value.errno == code
