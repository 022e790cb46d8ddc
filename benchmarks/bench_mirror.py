# SPDX-License-Identifier: Apache-2.0
"""Mirror jobs of `blk daemon` beside those of qemu-storage-daemon.

Both are steered by the same QMP client, over a unix socket, with the same commands. What is
measured is the time from `blockdev-mirror` to BLOCK_JOB_READY, which includes the flush of the
target; starting the daemon is not. The source is in the page cache, the target is new and sparse.

- `mirror/raw`, `mirror/qed`: a disk of which a part holds data, raw to raw and QED to QED
- `mirror/nothing`: 8 TiB without data
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import blocklayer
from benchmarks import images
from benchmarks.harness import (
    Comparison,
    Context,
    Kind,
    Metric,
    Sample,
    Side,
    Skipped,
    Target,
    bench,
)
from benchmarks.images import MiB

DAEMON = "qemu-storage-daemon"
METRICS = [
    Metric("to READY", "s", target=Target(0.5)),
    Metric("CPU", "s"),
    Metric("peak RSS", "MiB", Kind.MAXIMUM, Target(150, strict=True)),
    Metric("allocated", "MiB"),
]
START_SECONDS = 20


class Daemon:
    """A daemon with a QMP monitor."""

    def __init__(self, program: Sequence[str], directory: Path) -> None:
        self._address = directory / "mirror-qmp.sock"
        self._address.unlink(missing_ok=True)
        chardev = f"socket,id=monitor,path={self._address},server=on,wait=off"
        self._process = subprocess.Popen(
            [*program, "--chardev", chardev, "--monitor", "chardev=monitor"],
            stdin=subprocess.DEVNULL,
        )
        self._socket = self._connect()
        self._file = self._socket.makefile("rw")
        self._receive()
        self.call("qmp_capabilities")

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + START_SECONDS
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self._address))
                return connection
            except OSError:
                connection.close()
                if time.monotonic() > deadline:
                    self._process.kill()
                    raise
                time.sleep(0.01)

    def _receive(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise Skipped("the daemon has gone")
        message: dict[str, Any] = json.loads(line)
        return message

    def call(self, command: str, **arguments: Any) -> Any:
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._file.write(json.dumps({"execute": command, "arguments": named}) + "\n")
        self._file.flush()
        while True:
            answer = self._receive()
            if "error" in answer:
                raise Skipped(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def wait_for(self, event: str) -> None:
        while self._receive().get("event") != event:
            pass

    def stop(self) -> tuple[float, int]:
        """CPU seconds and peak RSS in bytes of the whole process."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        self.call("quit")
        self._socket.close()
        _, _, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = 0
        return cpu_of(usage), int(peak.split()[1]) * 1024


def cpu_of(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def mirror_side(
    program: Sequence[str], directory: Path, formats: str, source: Path, target: Path
) -> Callable[[int], Sample]:
    def run_side(_: int) -> Sample:
        daemon = Daemon(program, directory)
        for name, path in (("source", source), ("target", target)):
            file = {"driver": "file", "filename": str(path)}
            daemon.call("blockdev-add", driver=formats, node_name=name, file=file)
        started = time.monotonic()
        daemon.call("blockdev-mirror", job_id="j", device="source", target="target", sync="full")
        daemon.wait_for("BLOCK_JOB_READY")
        elapsed = time.monotonic() - started
        daemon.call("block-job-cancel", device="j")
        daemon.wait_for("BLOCK_JOB_COMPLETED")
        cpu, peak = daemon.stop()
        values = {
            "to READY": elapsed,
            "CPU": cpu,
            "peak RSS": peak / MiB,
            "allocated": images.allocated_mib(target),
        }
        return Sample(values, cpu=cpu, peak_rss=peak)

    return run_side


def compare(
    context: Context, name: str, formats: str, source: Path, size: int, *, verified: bool = True
) -> Iterable[Comparison]:
    if shutil.which(DAEMON) is None:
        raise Skipped(f"{DAEMON} is not installed")
    target = context.directory / f"mirrored.{formats}"

    def prepare() -> None:
        target.unlink(missing_ok=True)
        blocklayer.create(target, format=formats, size=size)
        if verified:
            images.warm(source)

    def verify() -> None:
        if verified:
            images.same_guest_bytes(source, formats, target, formats)

    def side(label: str, program: Sequence[str]) -> Side:
        run_side = mirror_side(program, context.directory, formats, source, target)
        return Side(label, run_side, prepare, verify)

    ours = None if context.blk is None else side("blk daemon", [*context.blk, "daemon"])
    cache = int(images.allocated_mib(source)) * MiB
    metrics = METRICS if verified else METRICS[:3]  # nothing takes no space
    yield Comparison(name, metrics, ours, [side(DAEMON, [DAEMON])], page_cache=cache)
    target.unlink(missing_ok=True)


@bench("mirror/raw")
def raw_to_raw(context: Context) -> Iterable[Comparison]:
    size = context.pick(2048 * MiB, quick=256 * MiB)
    yield from compare(context, "mirror/raw", "raw", context.images.mixed(size), size)


@bench("mirror/qed")
def qed_to_qed(context: Context) -> Iterable[Comparison]:
    size = context.pick(2048 * MiB, quick=256 * MiB)
    source = context.images.qed(context.images.mixed(size))
    yield from compare(context, "mirror/qed", "qed", source, size)


@bench("mirror/nothing")
def nothing(context: Context) -> Iterable[Comparison]:
    size = 8 << 40
    source = context.directory / "nothing.raw"
    with source.open("wb") as file:
        file.truncate(size)
    yield from compare(context, "mirror/nothing", "raw", source, size, verified=False)
    source.unlink()
