# SPDX-License-Identifier: Apache-2.0
"""The main job, start to end: a real disk becomes a QED image, gets an overlay, survives a crash.

    python examples/main_job.py             makes a disk (partition table, ext4 with files) itself
    python examples/main_job.py IMAGE       uses yours; it is opened read-only

Everything happens in a temporary folder. Each step says how long it took and what was verified; the
exit code is 1 if anything was not as it should be. If qemu-img is installed, it is asked as well.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import blocklayer
from blocklayer.base.units import GiB, MiB, format_size

BLOCK = 4096
OVERLAY_WRITES = 200
CRASH_AFTER_WRITES = 600
CRASH_SPAN = GiB
SMALLEST_DISK = MiB
WIDTH = 22


class Show:
    """Steps on the terminal: a title, a line of progress while it runs, what was found."""

    def __init__(self) -> None:
        self.failed = False
        self._terminal = sys.stdout.isatty()
        self._number = 0

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One step with its time."""
        self._number += 1
        print(f"\n{self._bold(f'{self._number}. {title}')}", flush=True)
        started = time.perf_counter()
        yield
        self.fact("took", f"{time.perf_counter() - started:.2f} s")

    def fact(self, name: str, value: object) -> None:
        """Something worth knowing."""
        print(f"   {name:<{WIDTH}} {value}", flush=True)

    def verify(self, what: str, true: bool) -> None:
        """Something that must hold."""
        self.failed |= not true
        mark = self._colour("32", "ok") if true else self._colour("31", "WRONG")
        print(f"   {what:<{WIDTH + 34}} {mark}", flush=True)

    def progress(self, report: blocklayer.Progress) -> None:
        """A progress callback: one line that is overwritten, on terminals only."""
        if self._terminal:
            end = "\r" if report.done < report.total else "\r" + " " * 60 + "\r"
            bar = "#" * int(30 * report.fraction)
            print(f"   {report.operation:<8} [{bar:<30}] {report.fraction:4.0%}", end=end)

    def _bold(self, text: str) -> str:
        return self._colour("1", text)

    def _colour(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._terminal else text


# --- a real disk ----------------------------------------------------------------------------------


def make_disk(path: Path, files: Path) -> str:
    """A disk with a partition table and a file system with files; says what it could make."""
    size, start = 192 * MiB, MiB
    _make_files(files)
    with path.open("wb") as image:
        image.truncate(size)
    made = []
    sfdisk, mkfs = _tool("sfdisk"), _tool("mkfs.ext4")
    if sfdisk:
        _run([sfdisk, "--quiet", str(path)], text=f"label: dos\nstart={start // 512}, type=83\n")
        made.append("partition table by sfdisk")
    else:
        _write_partition_table(path, start, size)
        made.append("partition table written by hand (no sfdisk here)")
    if mkfs:
        blocks = str((size - start) // 1024)
        _run(
            [
                mkfs,
                "-q",
                "-F",
                "-b",
                "1024",
                "-E",
                f"offset={start}",
                "-d",
                str(files),
                str(path),
                blocks,
            ]
        )
        made.append("ext4 with files by mkfs.ext4")
    else:
        archive = shutil.make_archive(str(files), "tar", files)
        with path.open("r+b") as image, open(archive, "rb") as source:
            image.seek(start)
            shutil.copyfileobj(source, image)
        made.append("a tar archive in the partition (no mkfs.ext4 here)")
    return ", ".join(made)


def _make_files(folder: Path) -> None:
    rng = random.Random(2026)
    for index in range(40):
        path = folder / f"folder{index % 4}" / f"file{index}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(1, 2 * MiB)))
    (folder / "readme.txt").write_text("A disk made for showing blocklayer at work.\n")


def _write_partition_table(path: Path, start: int, size: int) -> None:
    entry = struct.pack(
        "<B3sB3sII", 0, b"\0" * 3, 0x83, b"\0" * 3, start // 512, (size - start) // 512
    )
    with path.open("r+b") as image:
        image.seek(446)
        image.write(entry + bytes(48) + b"\x55\xaa")


def _tool(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _run(command: list[str], text: str | None = None) -> None:
    subprocess.run(command, input=text, text=True, check=True, capture_output=True)


# --- the crash ------------------------------------------------------------------------------------


def writer(image: str, seed: int) -> None:
    """The process that will be killed: random allocating writes; says which are durable."""
    rng = random.Random(seed)
    with blocklayer.open(image, mode="r+", format="qed") as disk:
        number = 0
        while True:
            disk.write(block_of(disk.size, rng), pattern(seed, number))
            number += 1
            if number % 25 == 0:
                disk.flush()
                print(number, flush=True)


def block_of(size: int, rng: random.Random) -> int:
    """A random aligned offset in the part of the disk that the crash is about."""
    return rng.randrange(min(size, CRASH_SPAN) // BLOCK) * BLOCK


def pattern(seed: int, number: int) -> bytes:
    """The content of write `number`: nothing else looks like it."""
    return (b"%d:%d;" % (seed, number)).ljust(16, b".") * (BLOCK // 16)


def crash(image: Path, seed: int) -> int:
    """Run the writer, kill it without warning; how many of its writes were durable."""
    command = [sys.executable, __file__, "--writer", str(image), "--seed", str(seed)]
    durable = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            durable = int(line)
            if durable >= CRASH_AFTER_WRITES:
                break
        process.send_signal(signal.SIGKILL)
        # What it managed to say before it died is durable as well.
        for line in process.stdout:
            durable = int(line)
    return durable


def crash_survived(
    show: Show, image: Path, before: blocklayer.Disk, seed: int, durable: int
) -> None:
    """Every durable write is there; every block holds its old or its new content, nothing else."""
    rng = random.Random(seed)
    allowed: dict[int, list[bytes]] = {}
    newest: dict[int, bytes] = {}
    for number in range(durable + 100_000):
        offset = block_of(before.size, rng)
        allowed.setdefault(offset, []).append(pattern(seed, number))
        if number < durable:
            newest[offset] = pattern(seed, number)
            allowed[offset] = [newest[offset]]
    lost, foreign = 0, 0
    with blocklayer.open(image, format="qed") as disk:
        span = min(disk.size, CRASH_SPAN)
        for offset in range(0, span - span % BLOCK, BLOCK):
            found = disk.read(offset, BLOCK)
            if offset in newest and found not in allowed[offset]:
                lost += 1
            elif offset not in newest and found != before.read(offset, BLOCK):
                foreign += found not in allowed.get(offset, [])
    show.verify(f"{len(newest)} durable blocks are all there", lost == 0)
    show.verify("no block holds anything that nobody wrote", foreign == 0)


# --- the job --------------------------------------------------------------------------------------


def describe_check(show: Show, result: blocklayer.CheckResult) -> None:
    """A check's findings in a few lines."""
    allocated = f"{result.allocated_clusters} of {result.total_clusters} clusters"
    show.fact("allocated", allocated)
    show.fact("corruptions", f"{result.corruptions} left, {result.corruptions_fixed} repaired")
    show.fact("leaked clusters", f"{result.leaks} left, {result.leaks_fixed} given back")
    for problem in result.problems[:3]:
        show.fact("", problem.message)


def ask_qemu(show: Show, what: str, *arguments: str) -> None:
    """The same question to the real qemu-img."""
    if shutil.which("qemu-img"):
        done = subprocess.run(["qemu-img", *arguments], capture_output=True, check=False)
        show.verify(f"qemu-img agrees: {what}", done.returncode == 0)


def job(show: Show, folder: Path, image: Path | None) -> None:
    """All steps in order."""
    source, source_format = folder / "disk.raw", "raw"
    if image is None:
        with show.step("Make a real disk"):
            show.fact("made", make_disk(source, folder / "files"))
    else:
        source, source_format = image, blocklayer.probe(image)
        if blocklayer.info(image).virtual_size < SMALLEST_DISK:
            raise blocklayer.InvalidArgument(f"'{image}' is too small to show anything with")
    base, overlay, alone = folder / "base.qed", folder / "overlay.qed", folder / "alone.qed"

    with show.step(f"Convert {source.name} to QED"):
        blocklayer.convert(
            source, base, source_format=source_format, format="qed", progress=show.progress
        )
        show_info(show, base)
        same = blocklayer.compare(source, base, first_format=source_format, progress=show.progress)
        show.verify("the QED image reads as the disk", same.identical)
        ask_qemu(
            show,
            "the same content",
            "compare",
            "-q",
            "-U",
            "-f",
            source_format,
            str(source),
            str(base),
        )
        ask_qemu(show, "a clean image", "check", "-q", str(base))

    with show.step("Overlay it, and write to the overlay"):
        blocklayer.create(overlay, format="qed", backing=base.name, backing_format="qed")
        write_overlay(show, overlay, base)
        show_info(show, overlay)

    with show.step("Crash: kill a process in the middle of allocating writes"):
        blocklayer.create(alone, format="qed", size=blocklayer.info(base).virtual_size)
        for victim, seed in ((overlay, 1), (alone, 2)):
            before_copy = folder / "before.qed"
            shutil.copyfile(victim, before_copy)
            durable = crash(victim, seed)
            show.fact(victim.name, f"killed; {durable} writes were durable by then")
            show.fact("marked dirty", "yes" if blocklayer.info(victim).dirty_flag else "no")
            with blocklayer.open(before_copy) as before:
                crash_survived(show, victim, before, seed, durable)

    with show.step("Check and repair"):
        for victim in (overlay, alone):
            show.fact("image", victim.name)
            describe_check(show, blocklayer.check(victim, repair="all"))
            show.verify("a second check finds nothing", blocklayer.check(victim).clean)
            ask_qemu(show, "a clean image", "check", "-q", str(victim))

    with show.step("Map the overlay"):
        show_map(show, overlay)

    with show.step("Convert back"):
        back, flat = folder / "back.raw", folder / "flat.raw"
        blocklayer.convert(base, back, format="raw", progress=show.progress)
        same = blocklayer.compare(source, back, first_format=source_format, second_format="raw")
        show.verify("the base reads as the disk it was made from", same.identical)
        if source_format == "raw" and source.stat().st_size % 512 == 0:
            show.verify("byte for byte the same file", same_bytes(source, back))
        blocklayer.convert(overlay, flat, format="raw", progress=show.progress)
        same = blocklayer.compare(overlay, flat, second_format="raw", progress=show.progress)
        show.verify("the flattened overlay reads as the overlay", same.identical)
        ask_qemu(show, "the same content", "compare", "-q", str(overlay), "-F", "raw", str(flat))
        if image is None and (fsck := _tool("e2fsck")):
            check_file_system(show, fsck, back, folder / "partition.ext4")


def write_overlay(show: Show, overlay: Path, base: Path) -> None:
    """Writes at odd offsets, checked against what they must give."""
    rng = random.Random(7)
    with blocklayer.open(overlay, mode="r+") as disk, blocklayer.open(base) as below:
        expected = True
        for _ in range(OVERLAY_WRITES):
            length = min(disk.size, rng.randrange(1, 200_000))
            offset = rng.randrange(disk.size - length + 1)
            before = min(offset, 700)
            around = disk.read(offset - before, before)
            data = rng.randbytes(length)
            disk.write(offset, data)
            expected &= disk.read(offset - before, before + length) == around + data
        disk.flush()
        show.verify(f"{OVERLAY_WRITES} writes at odd offsets read back", expected)
        allocated = sum(extent.length for extent in disk.extents() if extent.depth == 0)
        show.fact("in the overlay", format_size(allocated))
        show.verify(
            "the base is as before", below.size == disk.size and blocklayer.check(base).clean
        )


def show_info(show: Show, image: Path) -> None:
    """Sizes of an image."""
    info = blocklayer.info(image)
    on_disk = format_size(info.actual_size or 0)
    show.fact(image.name, f"{format_size(info.virtual_size)} virtual, {on_disk} on disk")


def show_map(show: Show, image: Path) -> None:
    """How much of the disk lives where."""
    totals: dict[tuple[int, str], tuple[int, int]] = {}
    for extent in blocklayer.map(image):
        key = (extent.depth, extent.status)
        count, length = totals.get(key, (0, 0))
        totals[key] = (count + 1, length + extent.length)
    for (depth, status), (count, length) in sorted(totals.items()):
        show.fact(f"depth {depth}, {status}", f"{format_size(length)} in {count} extents")


def same_bytes(first: Path, second: Path) -> bool:
    """Whether two files are equal."""
    with first.open("rb") as one, second.open("rb") as two:
        while True:
            ours, theirs = one.read(MiB), two.read(MiB)
            if ours != theirs:
                return False
            if not ours:
                return True


def check_file_system(show: Show, fsck: str, disk: Path, partition: Path) -> None:
    """The file system inside is what it was."""
    if not _tool("mkfs.ext4"):
        return
    with disk.open("rb") as source, partition.open("wb") as target:
        source.seek(MiB)
        shutil.copyfileobj(source, target, MiB)
    done = subprocess.run([fsck, "-f", "-n", str(partition)], capture_output=True, check=False)
    show.verify("e2fsck finds the file system clean", done.returncode == 0)


def main() -> int:
    """Run the job, or be the writer that is killed in it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("image", nargs="?", type=Path, help="your own image, used read-only")
    parser.add_argument("--writer", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.writer:
        writer(arguments.writer, arguments.seed)
    show = Show()
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="blocklayer-") as folder:
            print(f"blocklayer {blocklayer.__version__}, working in {folder}")
            job(show, Path(folder), arguments.image)
    except (blocklayer.BlocklayerError, OSError) as error:
        print(f"main_job: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmain_job: interrupted; the temporary folder was removed", file=sys.stderr)
        return 130
    outcome = "something was WRONG, see above" if show.failed else "everything was verified"
    print(f"\nDone in {time.perf_counter() - started:.1f} s: {outcome}.")
    return int(show.failed)


if __name__ == "__main__":
    raise SystemExit(main())
