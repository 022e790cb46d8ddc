# SPDX-License-Identifier: Apache-2.0
"""The machine a run was made on: numbers without it mean nothing."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.process import CommandFailed, rss_floor, run

GiB = 1024**3


def cpu_model(cpuinfo: str) -> str:
    """The name in the text of /proc/cpuinfo, and whether a hypervisor is below."""
    model, flags = platform.machine(), ""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() == "flags":
            flags = value
    return f"{model} (virtual machine)" if "hypervisor" in flags.split() else model


def filesystem_of(path: Path, mountinfo: str) -> str:
    """Type and options of the mount `path` is on, from the text of /proc/self/mountinfo."""
    best, answer = -1, "unknown"
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 6 or len(kinds) < 2:
            continue
        point = Path(fields[4].replace("\\040", " "))
        depth = len(point.parts)
        if path.is_relative_to(point) and depth >= best:
            best, answer = depth, f"{kinds[0]} on {kinds[1]} ({fields[5]})"
    return answer


def first_line_of(argv: Sequence[str]) -> str:
    if shutil.which(argv[0]) is None:
        return "not installed"
    try:
        return run(argv).stdout.partition("\n")[0]
    except CommandFailed as error:
        return f"does not run: {error}"


def blocklayer_version() -> str:
    try:
        return importlib.metadata.version("blocklayer")
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def describe(directory: Path, blk: Sequence[str] | None) -> dict[str, str]:
    """What can be pasted above a table of results."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return {
        "Date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": cpu_model(cpuinfo),
        "Cores": str(len(os.sched_getaffinity(0))),
        "Memory": f"{memory / GiB:.1f} GiB",
        "Load before the run": load,
        "Kernel": f"{platform.system()} {platform.release()}",
        "Scratch filesystem": filesystem_of(directory.resolve(), mountinfo),
        "QEMU": first_line_of(["qemu-img", "--version"]),
        "cp": first_line_of(["cp", "--version"]),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "blocklayer": "not importable" if blk is None else blocklayer_version(),
        "Command": "-" if blk is None else " ".join(blk),
        "Smallest peak RSS seen": f"{rss_floor() / 1024**2:.0f} MiB",
    }
