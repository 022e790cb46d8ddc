# SPDX-License-Identifier: Apache-2.0
"""What an interrupted conversion had copied counts as skipped: nobody can go on at that rate."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import Cancelled
from blocklayer.base.progress import CancelToken, Progress
from blocklayer.base.units import MiB
from blocklayer.cli.progress import print_object


def test_what_was_there_is_skipped(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(48 * MiB))
    cancel = CancelToken()

    def stop(progress: Progress) -> None:
        if progress.done >= 40 * MiB:
            cancel.cancel()

    with pytest.raises(Cancelled):
        blocklayer.convert(source, target, resume=True, progress=stop, cancel=cancel)
    seen: list[Progress] = []
    result = blocklayer.convert(source, target, resume=True, progress=seen.append)
    assert result.resumed >= 16 * MiB
    assert seen[-1].skipped == result.resumed
    assert target.read_bytes() == source.read_bytes()


def test_the_rate_is_that_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    print_object(Progress("convert", 60 * MiB, 100 * MiB, 0, 40 * MiB), 2.0)
    told = json.loads(capsys.readouterr().err)
    assert (told["rate"], told["left"]) == (10 * MiB, 4.0)
