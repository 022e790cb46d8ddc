# SPDX-License-Identifier: Apache-2.0
"""What a QED image announces to blkdebug while it is written to: QEMU's events, in QEMU's order."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

import blocklayer
from tests.foreign import qemu
from tests.support import needs

pytestmark = needs("qemu-io")

EVENTS = {
    "l1_update": errno.EIO,
    "l2_load": errno.ENOSPC,
    "l2_update": errno.EPERM,
    "read_aio": errno.E2BIG,
    "read_backing_aio": errno.EDOM,
    "write_aio": errno.EBUSY,
    "cow_read": errno.EMFILE,
    "cow_write": errno.ENXIO,
}
"""Events, each with the error by which it shows itself."""

BELOW = {
    "nothing": None,
    "zeroes": bytes(4 << 20),
    "data": b"\7" * (4 << 20),
    "less": b"\7" * 563200,
}


def events(tool: list[str], folder: Path, below: bytes | None, command: str, *, first: bool) -> str:
    """Those of one command, found one by one: that which fails is the next one.

    Each event that is known moves the state on by one; in the last state every event has an error
    of its own, which the next request meets.
    """
    known: list[str] = []
    while True:
        image = _make(folder, below, first=first)
        states = [
            {"event": event, "state": state, "new_state": state + 1}
            for state, event in enumerate(known, 1)
        ]
        errors = []
        last = len(known) + 1
        for event, error in EVENTS.items():
            errors.append({"event": event, "state": last, "errno": error, "once": True})
            states.append({"event": event, "state": last, "new_state": 99})
        fault = {
            "driver": "blkdebug",
            "image": {"driver": "file", "filename": image},
            "set-state": states,
            "inject-error": errors,
        }
        name = "json:" + json.dumps({"driver": "qed", "file": fault})
        told = qemu.run(*tool, "-c", command, name).output
        met = [event for event, error in EVENTS.items() if os.strerror(error) in told]
        if not met:
            return " ".join(known)
        known += met


def _make(folder: Path, below: bytes | None, *, first: bool) -> str:
    image, base = folder / "image.qed", folder / "base.raw"
    image.unlink(missing_ok=True)
    if below is None:
        blocklayer.create(image, format="qed", size="4M")
    else:
        base.write_bytes(below)
        blocklayer.create(image, format="qed", size="4M", backing="base.raw", backing_format="raw")
    if not first:
        with blocklayer.open(image, mode="r+", format="qed") as disk:
            disk.write(0, bytes([1]) * 65536)
    return str(image)


@pytest.mark.parametrize("below", BELOW)
@pytest.mark.parametrize(
    ("command", "first"),
    [
        ("write 512k 512", True),
        ("write 513k 1k", False),
        ("write 540k 36k", True),
        ("write 520k 200k", False),
        ("write 512k 64k", True),
        ("write 0 1k", False),
        ("write -z 512k 64k", False),
    ],
)
def test_events_of_a_write(command: str, below: str, tmp_path: Path, *, first: bool) -> None:
    found = [
        events(tool, tmp_path, BELOW[below], command, first=first)
        for tool in (["qemu-io"], [sys.executable, "-m", "blocklayer", "io"])
    ]
    assert found[1] == found[0]
    assert found[0]
