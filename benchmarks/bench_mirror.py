# SPDX-License-Identifier: Apache-2.0
"""Mirror jobs of `blk daemon` beside those of qemu-storage-daemon.

Both are steered by the same QMP client, over a unix socket, with the same commands. What is
measured is the time from `blockdev-mirror` to BLOCK_JOB_READY, which includes the flush of the
target; starting the daemon is not. The source is in the page cache, the target is new and sparse.

- `mirror/raw`, `mirror/qed`: a disk of which a part holds data, raw to raw and QED to QED
- `mirror/nothing`: 8 TiB without data
- `mirror/guest-raw`, `mirror/guest-qed`: what a guest has of it, who writes 4 KiB at random places,
  16 at a time, through an export of the source (fio's nbd engine). The peer is the same daemon
  without a job; qemu-storage-daemon is shown beside it. In the end the guest stops, the job is
  completed, and source and target must be equal.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import statistics
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
    VerificationFailed,
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

GUEST_METRICS = [
    Metric("us until READY", "us", target=Target(1 / 0.8)),
    Metric("us when READY", "us", target=Target(1 / 0.8)),
    Metric("to READY", "s", Kind.MAXIMUM, Target(30)),
]
GUEST_WARM_SECONDS, GUEST_SECONDS = 1.0, 2.0
LOG_MILLISECONDS = 50


class Daemon:
    """A daemon with a QMP monitor."""

    def __init__(
        self, program: Sequence[str], directory: Path, options: Sequence[str] = ()
    ) -> None:
        self._address = directory / "mirror-qmp.sock"
        self._address.unlink(missing_ok=True)
        chardev = f"socket,id=monitor,path={self._address},server=on,wait=off"
        self._process = subprocess.Popen(
            [*program, *options, "--chardev", chardev, "--monitor", "chardev=monitor"],
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

    def wait_for(self, event: str, seconds: float | None = None) -> None:
        self._socket.settimeout(seconds)
        try:
            while self._receive().get("event") != event:
                pass
        except TimeoutError:
            raise VerificationFailed(f"no {event} in {seconds:g} s") from None
        finally:
            self._socket.settimeout(None)

    def kill(self) -> None:
        """After a failure."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()

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


# --- a guest who writes ---------------------------------------------------------------------------


class Guest:
    """fio, which writes through an export until it is stopped."""

    def __init__(self, directory: Path, socket_path: Path, size: int) -> None:
        self._log = directory / "guest_iops.1.log"
        self._log.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                *("fio", "--name=guest", "--ioengine=nbd"),
                f"--uri=nbd+unix:///disk?socket={socket_path}",
                *("--rw=randwrite", "--bs=4k", "--iodepth=16", f"--size={size}", "--randrepeat=1"),
                *("--time_based", "--runtime=600", "--log_unix_epoch=1"),
                *(f"--write_iops_log={directory / 'guest'}", f"--log_avg_msec={LOG_MILLISECONDS}"),
            ],
            cwd=directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def stop(self) -> None:
        """All that it has written was answered."""
        if self._process.poll() is not None:
            raise VerificationFailed(f"fio has ended: {self._process.communicate()[1]!r}")
        self._process.send_signal(signal.SIGINT)
        self._process.communicate()

    def kill(self) -> None:
        """After a failure."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def microseconds(self, start: float, end: float) -> float:
        """A request, on average between two moments of `time.time`."""
        rows = [line.split(",") for line in self._log.read_text(encoding="ascii").splitlines()]
        times = ((int(row[0]) / 1000, int(row[1])) for row in rows)
        rates = [rate for at, rate in times if start + LOG_MILLISECONDS / 1000 <= at <= end]
        if not rates:
            raise VerificationFailed("fio has written nothing")
        return 1e6 / max(statistics.fmean(rates), 1)


def guest_side(
    program: Sequence[str], directory: Path, formats: str, files: dict[str, Path], size: int
) -> Callable[[bool], Sample]:
    """Runs a guest, with a mirror or without."""
    address = directory / "guest.sock"

    def measure(daemon: Daemon, guest: Guest, *, mirroring: bool) -> dict[str, float]:
        time.sleep(GUEST_WARM_SECONDS)
        started = ready = time.time()
        if mirroring:
            daemon.call(
                "blockdev-mirror", job_id="j", device="source", target="target", sync="full"
            )
            daemon.wait_for("BLOCK_JOB_READY", 60)
            ready = time.time()
        time.sleep(GUEST_SECONDS)
        ended = time.time()
        guest.stop()
        if not mirroring:
            alone = guest.microseconds(started, ended)
            return {"us until READY": alone, "us when READY": alone}
        daemon.call("block-job-complete", device="j")
        daemon.wait_for("BLOCK_JOB_COMPLETED", 60)
        return {
            "us until READY": guest.microseconds(started, ready),
            "us when READY": guest.microseconds(ready, ended),
            "to READY": ready - started,
        }

    def run_side(mirroring: bool) -> Sample:
        address.unlink(missing_ok=True)
        options: list[str] = []
        for name, path in files.items():
            node = f"driver={formats},node-name={name},file.driver=file,file.filename={path}"
            options += ["--blockdev", node]
        options += ["--nbd-server", f"addr.type=unix,addr.path={address}"]
        options += ["--export", "type=nbd,id=e,node-name=source,name=disk,writable=on"]
        daemon = Daemon(program, directory, options)
        guest = Guest(directory, address, size)
        try:
            values = measure(daemon, guest, mirroring=mirroring)
            cpu, peak = daemon.stop()
        finally:
            guest.kill()
            daemon.kill()
        return Sample(values, cpu=cpu, peak_rss=peak)

    return run_side


def guest_comparison(context: Context, formats: str) -> Iterable[Comparison]:
    if shutil.which(DAEMON) is None or shutil.which("fio") is None:
        raise Skipped(f"needs {DAEMON} and fio")
    size = context.pick(512 * MiB, quick=128 * MiB)
    made = context.images.random(size)
    files = {name: context.directory / f"guest-{name}.{formats}" for name in ("source", "target")}
    if formats == "qed":
        made = context.images.qed(made)

    def prepare() -> None:
        for path in files.values():
            path.unlink(missing_ok=True)
        shutil.copyfile(made, files["source"])
        images.write_out(files["source"])
        blocklayer.create(files["target"], format=formats, size=size)

    def verify() -> None:
        images.same_guest_bytes(files["source"], formats, files["target"], formats)

    def sides(label: str, program: Sequence[str]) -> list[Side]:
        run_side = guest_side(program, context.directory, formats, files, size)
        return [
            Side(f"{label}, mirroring", lambda _: run_side(True), prepare, verify),
            Side(f"{label} alone", lambda _: run_side(False), prepare),
        ]

    theirs = sides(DAEMON, [DAEMON])
    ours = [] if context.blk is None else sides("blk daemon", [*context.blk, "daemon"])
    mirroring = ours[0] if ours else None
    name = f"mirror/guest-{formats}"
    yield Comparison(name, GUEST_METRICS, mirroring, ours[1:], theirs, page_cache=3 * size)
    for path in files.values():
        path.unlink(missing_ok=True)


@bench("mirror/guest-raw")
def guest_on_raw(context: Context) -> Iterable[Comparison]:
    yield from guest_comparison(context, "raw")


@bench("mirror/guest-qed")
def guest_on_qed(context: Context) -> Iterable[Comparison]:
    yield from guest_comparison(context, "qed")
