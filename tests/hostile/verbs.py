# SPDX-License-Identifier: Apache-2.0
"""What is done to hostile images, each by itself on a fresh copy. Run inside `prison`.

A verb may end with an error of the package; an assertion here, or any other exception, is a defect.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import blocklayer
from blocklayer.base.errors import BlocklayerError, Cancelled, Closed
from blocklayer.base.progress import CancelToken
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.ops.info import info_chain
from tests.hostile.images import BASE_BYTES, BASES, Image
from tests.hostile.reference import Reference

Verb = Callable[..., object]
VERBS: dict[str, Verb] = {}

EXTENTS_MAX = 2000
READ_MAX = 8 * MiB
COPY_MAX = 256 * MiB
"""Disks up to this size are copied as a whole."""
CANARY = b"not to be touched" * 100


def verb(function: Verb) -> Verb:
    """Make a function callable by name."""
    VERBS[function.__name__] = function
    return function


def prepare(directory: Path, image: Image | None) -> Path:
    """Put a fresh copy of the image, and what stands around it, into the directory."""
    path = directory / "image"
    if image is not None:
        image.write(path)
        (directory / "base").write_bytes(BASE_BYTES)
        (directory / "other").write_bytes(BASE_BYTES[::-1])
        (directory / "canary").write_bytes(CANARY)
    return path


# --- invariants -----------------------------------------------------------------------------------


def fingerprint(path: Path) -> tuple[int, str]:
    """Length and content of a sparse file."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        length = os.lseek(descriptor, 0, os.SEEK_END)
        position = 0
        while position < length:
            try:
                position = os.lseek(descriptor, position, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(descriptor, position, os.SEEK_HOLE)
            while position < end:
                data = os.pread(descriptor, min(MiB, end - position), position)
                if data.strip(b"\0"):
                    digest.update(b"%d:" % position)
                    digest.update(data)
                position += len(data)
    finally:
        os.close(descriptor)
    return length, digest.hexdigest()


@contextlib.contextmanager
def untouched(*paths: Path) -> Iterator[None]:
    """Nothing changes these files."""
    before = [fingerprint(path) if is_file(path) else None for path in paths]
    try:
        yield
    finally:
        after = [fingerprint(path) if is_file(path) else None for path in paths]
        for path, one, two in zip(paths, before, after, strict=True):
            assert one == two, f"{path.name} was changed"


def is_file(path: Path) -> bool:
    """Whether there is a regular file."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def is_the_image(path: Path) -> bool:
    """Whether a name, or what it links to, is the image itself."""
    try:
        return path.samefile(path.parent / "image")
    except OSError:
        return False


@contextlib.contextmanager
def surroundings_untouched(directory: Path) -> Iterator[None]:
    """No file but the image is changed, and none appears."""
    names = set(os.listdir(directory))
    others = [directory / name for name in names if not is_the_image(directory / name)]
    with untouched(*others):
        yield
    assert set(os.listdir(directory)) == names


@contextlib.contextmanager
def refusal_changes_nothing(path: Path) -> Iterator[None]:
    """If opening is refused, the file is as it was."""
    before = fingerprint(path) if is_file(path) else None
    try:
        yield
    except BlocklayerError:
        after = fingerprint(path) if is_file(path) else None
        assert before == after, "the open was refused, and changed the file"
        raise


def places_to_read(disk: Disk) -> Iterator[tuple[int, int]]:
    """Ranges within a cluster each: all of a small disk, or what is near its tables' entries."""
    unit = disk.info().get("cluster-size", 64 * KiB)
    if disk.size <= READ_MAX:
        starts = list(range(0, disk.size, unit))
    else:
        span = unit * unit * disk.info().get("table-size", 1) // 8
        near = [start + step * unit for start in (0, span, 2 * span) for step in range(-2, 10)]
        starts = sorted({start for start in near if 0 <= start < disk.size})
    for start in starts:
        yield start, min(512, disk.size - start)
        if unit > 4 * KiB and start + unit <= disk.size:
            yield start + unit - 512, 512


def read_all(disk: Disk) -> list[tuple[int, bytes | None]]:
    """What a guest sees, where it looks; None where it is refused."""
    seen: list[tuple[int, bytes | None]] = []
    for offset, length in places_to_read(disk):
        try:
            seen.append((offset, disk.read(offset, length)))
        except BlocklayerError:
            seen.append((offset, None))
    return seen


def backing_of(path: Path) -> bytes | None:
    """What lies below; None if it is not the backing file of these tests."""
    return {None: b"", b"base": BASE_BYTES}.get(Reference(path).backing_name())


def check_against_reference(path: Path, disk: Disk) -> int:
    """What is read is what the specification says, and what is impossible is refused."""
    reference = Reference(path)
    backing = backing_of(path)
    refused = 0
    for offset, data in read_all(disk):
        length = min(512, disk.size - offset)
        if backing is None and reference.cluster(offset).kind == "unallocated":
            continue
        expected = reference.bytes_at(offset, length, backing or b"")
        assert data == expected, (hex(offset), data and data[:16], expected and expected[:16])
        refused += data is None
    return refused


# --- looking --------------------------------------------------------------------------------------


@verb
def probe(directory: Path, image: Image | None) -> object:
    path = prepare(directory, image)
    with untouched(path), surroundings_untouched(directory):
        return blocklayer.probe(path)


@verb
def info(directory: Path, image: Image | None) -> object:
    path = prepare(directory, image)
    with untouched(path), surroundings_untouched(directory):
        return json.loads(json.dumps(blocklayer.info(path).as_dict()))


@verb
def chain(directory: Path, image: Image | None) -> object:
    path = prepare(directory, image)
    with untouched(path), surroundings_untouched(directory):
        return len(info_chain(path))


@verb
def read(directory: Path, image: Image | None) -> object:
    """Whether it opens, and what it shows, is compared with the specification."""
    path = prepare(directory, image)
    reference = Reference(path)
    with untouched(path), surroundings_untouched(directory):
        try:
            disk = blocklayer.open(path, format="qed")
        except BlocklayerError:
            opens = reference.is_valid() and reference.backing_name() in (None, b"base")
            assert not opens, "refused, and nothing is wrong with it"
            raise
        with disk:
            assert reference.is_valid(), "opened, and must not be"
            return check_against_reference(path, disk)


@verb
def extents(directory: Path, image: Image | None) -> object:
    """They cover the disk from its start without gaps; what they call zero reads as zeroes."""
    path = prepare(directory, image)
    with untouched(path), blocklayer.open(path) as disk:
        end = 0
        for extent in islice(disk.extents(), EXTENTS_MAX):
            assert extent.offset == end
            assert 0 < extent.length <= disk.size - end
            end = extent.end
            data = disk.read(extent.offset, min(512, extent.length))
            assert not (extent.zero and any(data))
        return end


@verb
def first_extents(directory: Path, image: Image | None) -> object:
    """The beginning of a walk that may never end."""
    path = prepare(directory, image)
    with blocklayer.open(path) as disk:
        return sum(extent.length for extent in islice(disk.extents(), 3))


@verb
def map_it(directory: Path, image: Image | None) -> object:
    path = prepare(directory, image)
    with untouched(path):
        return len(list(islice(blocklayer.map(path), EXTENTS_MAX)))


@verb
def measure(directory: Path, image: Image | None) -> object:
    path = prepare(directory, image)
    with untouched(path):
        if blocklayer.info(path).virtual_size <= COPY_MAX:
            return blocklayer.measure(path, format="qed").required
        return blocklayer.measure(path).required


@verb
def compare(directory: Path, image: Image | None) -> object:
    """A disk is the same as itself, and not the same as its neighbour."""
    path = prepare(directory, image)
    with untouched(path), surroundings_untouched(directory):
        if blocklayer.info(path).virtual_size <= COPY_MAX:
            assert blocklayer.compare(path, path).identical
            assert not blocklayer.compare(path, directory / "canary").identical
        return None


# --- checking -------------------------------------------------------------------------------------


@verb
def check(directory: Path, image: Image | None) -> object:
    path = prepare(directory, image)
    with untouched(path), surroundings_untouched(directory):
        result = blocklayer.check(path)
    assert result.corruptions_fixed == result.leaks_fixed == 0
    return result.corruptions, result.leaks


@verb
def repair_leaks(directory: Path, image: Image | None) -> object:
    """Giving leaks back changes nothing that anybody reads, and mends nothing else."""
    path = prepare(directory, image)
    before = shown(path)
    with surroundings_untouched(directory), refusal_changes_nothing(path):
        result = blocklayer.check(path, repair="leaks")
    assert not result.corruptions_fixed
    assert shown(path) == before
    return result.leaks, result.leaks_fixed


@verb
def repair_all(directory: Path, image: Image | None) -> object:
    """What could be read before reads the same; what could not is empty, or still refused."""
    path = prepare(directory, image)
    before = shown(path)
    backing = backing_of(path) if Reference(path).is_valid() else b""
    with surroundings_untouched(directory), refusal_changes_nothing(path):
        result = blocklayer.check(path, repair="all")
    after = shown(path)
    if before is not None and after is not None:
        for (offset, old), (same_offset, new) in zip(before, after, strict=True):
            assert offset == same_offset
            if old is None and new is not None:
                if backing is None:
                    continue
                old = backing[offset : offset + len(new)].ljust(len(new), b"\0")
            assert old == new, f"repair changed what is at {offset:#x}"
    again = blocklayer.check(path)
    assert again.corruptions <= result.corruptions
    if not result.corruptions and not result.check_errors:
        assert again.leaks == result.leaks
        assert after is None or all(data is not None for _, data in after)
    return result.corruptions, result.corruptions_fixed


def shown(path: Path) -> list[tuple[int, bytes | None]] | None:
    """What a guest sees; None where there is nothing to open."""
    try:
        with blocklayer.open(path, backing_chain=backing_can_be_opened(path)) as disk:
            return read_all(disk)
    except BlocklayerError:
        return None


def is_sound(path: Path) -> bool:
    """No cluster has two users: writing to one place changes no other."""
    return not blocklayer.check(path).corruptions


def backing_can_be_opened(path: Path) -> bool:
    """Checks do not open backing files, so what is compared with them must not depend on it."""
    try:
        with blocklayer.open(path):
            return True
    except BlocklayerError:
        return False


# --- changing -------------------------------------------------------------------------------------


@verb
def write(directory: Path, image: Image | None) -> object:
    """What is written is read again; nothing beside the image changes."""
    path = prepare(directory, image)
    sound = is_sound(path)
    with surroundings_untouched(directory), refusal_changes_nothing(path):
        disk = blocklayer.open(path, mode="r+")
    written = 0
    with surroundings_untouched(directory), disk:
        for offset in (disk.size // 2, max(0, disk.size - 512), 3 * 4096 + 100):
            if disk.size - offset >= 512:
                with contextlib.suppress(BlocklayerError):
                    disk.write(offset, b"w" * 512)
                    assert disk.read(offset, 512) == b"w" * 512 or not sound
                    written += 1
    return written


@verb
def zero(directory: Path, image: Image | None) -> None:
    path = prepare(directory, image)
    sound = is_sound(path)
    with surroundings_untouched(directory), blocklayer.open(path, mode="r+") as disk:
        length = min(disk.size, MiB)
        disk.write_zeroes(0, length)
        assert not any(disk.read(0, length)) or not sound
        disk.discard(0, length)


@verb
def grow(directory: Path, image: Image | None) -> object:
    """What is gained reads as zeroes."""
    path = prepare(directory, image)
    with surroundings_untouched(directory):
        old = blocklayer.info(path).virtual_size
        size = blocklayer.resize(path, old + 64 * KiB)
        with blocklayer.open(path) as disk:
            assert not any(disk.read(old, size - old))
    return size


@verb
def shrink(directory: Path, image: Image | None) -> object:
    """Refused, or shorter; never both."""
    path = prepare(directory, image)
    with surroundings_untouched(directory):
        old = blocklayer.info(path).virtual_size
        wanted = old // 1024 * 512
        try:
            size = blocklayer.resize(path, wanted, shrink=True)
        except BlocklayerError:
            with contextlib.suppress(BlocklayerError):
                assert blocklayer.info(path).virtual_size == old
            raise
    return size


@verb
def unbase(directory: Path, image: Image | None) -> None:
    path = prepare(directory, image)
    with surroundings_untouched(directory):
        blocklayer.rebase(path, None, unsafe=True)
        assert blocklayer.info(path).backing_filename is None


@verb
def rebase(directory: Path, image: Image | None) -> object:
    """What a guest sees stays as it is."""
    path = prepare(directory, image)
    with surroundings_untouched(directory):
        if blocklayer.info(path).virtual_size > COPY_MAX:
            return None
        before = shown(path) if is_sound(path) else None
        blocklayer.rebase(path, "other", backing_format="raw")
        assert before is None or shown(path) == before
    return None


@verb
def commit(directory: Path, image: Image | None) -> object:
    """What the overlay showed is in its backing file."""
    path = prepare(directory, image)
    with untouched(directory / "canary", directory / "other"):
        if blocklayer.info(path).virtual_size > COPY_MAX:
            return None
        # An image that says that it needs a check is repaired when it is opened for writing.
        before = None if blocklayer.info(path).dirty_flag else shown(path)
        base = blocklayer.commit(path)
        with blocklayer.open(base) as disk:
            for offset, data in before or []:
                assert data is not None
                assert disk.read(offset, len(data)) == data
    return None


@verb
def convert(directory: Path, image: Image | None) -> object:
    """The copy shows the same disk, or there is no copy."""
    path = prepare(directory, image)
    target = directory / "target"
    with untouched(path):
        if blocklayer.info(path).virtual_size > COPY_MAX:
            return None
        for format in ("raw", "qed"):
            with surroundings_untouched(directory):
                try:
                    blocklayer.convert(path, target, format=format)
                    assert blocklayer.compare(path, target, second_format=format).identical
                finally:
                    existed = target.exists()
                    target.unlink(missing_ok=True)
            assert existed
    return None


# --- stopping -------------------------------------------------------------------------------------

SOON = 0.2
"""Seconds until an operation is asked to stop, on the clock."""
AT_ONCE = 5.0
"""Seconds within which it obeys, on a busy machine."""


def cancelled_soon(action: Callable[[CancelToken], object]) -> None:
    """Run an operation and ask it to stop; it does so without delay."""
    token = CancelToken()
    timer = threading.Timer(SOON, token.cancel)
    timer.start()
    started = time.monotonic()
    try:
        action(token)
    except Cancelled:
        assert time.monotonic() - started < SOON + AT_ONCE
    else:
        raise AssertionError("it was done before anybody could stop it")
    finally:
        timer.cancel()
        timer.join()


@verb
def cancel_convert(directory: Path, image: Image | None) -> None:
    """No target is left."""
    path = prepare(directory, image)
    target = directory / "target"
    with surroundings_untouched(directory):
        cancelled_soon(lambda token: blocklayer.convert(path, target, format="qed", cancel=token))


@verb
def cancel_compare(directory: Path, image: Image | None) -> None:
    path = prepare(directory, image)
    with untouched(path):
        cancelled_soon(lambda token: blocklayer.compare(path, path, cancel=token))


@verb
def cancel_rebase(directory: Path, image: Image | None) -> None:
    """An overlay of the image gets another backing file, and keeps the one it has."""
    path = prepare(directory, image)
    overlay = directory / "overlay"
    blocklayer.create(overlay, format="qed", backing="image", backing_format="qed")
    cancelled_soon(lambda token: blocklayer.rebase(overlay, "other", cancel=token))
    assert blocklayer.info(overlay).backing_filename == path.name
    overlay.unlink()


@verb
def close_meanwhile(directory: Path, image: Image | None) -> None:
    """Closing a disk does not wait for somebody who walks it from end to end."""
    path = prepare(directory, image)
    disk = blocklayer.open(path)
    ends: list[str] = []

    def walk() -> None:
        try:
            for _ in disk.extents():
                pass
        except Closed:
            ends.append("closed")

    thread = threading.Thread(target=walk)
    thread.start()
    time.sleep(SOON)
    started = time.monotonic()
    disk.close()
    thread.join()
    assert time.monotonic() - started < AT_ONCE
    assert ends == ["closed"]


# --- the command ----------------------------------------------------------------------------------


EXIT_CODES = (0, 1, 2, 3, 63)
"""Done, refused, and of check: corruptions, leaks, a format without a check."""
LINES = (
    ("info", "image"),
    ("info", "--backing-chain", "--output", "json", "image"),
    ("check", "image"),
    ("check", "--output", "json", "image"),
    ("io", "-r", "-c", "read 0 512", "image"),
    ("io", "-c", "write 0 512", "image"),
)


@verb
def command(directory: Path, image: Image | None) -> object:
    """It answers with an exit code and a line, never with a traceback."""
    from blocklayer.cli.main import main

    codes = []
    path = prepare(directory, image)
    for name, *line in LINES:
        arguments = [str(path) if word == "image" else word for word in line]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([name, *arguments])
        assert "Traceback" not in err.getvalue()
        assert code in EXIT_CODES, code
        assert code != 1 or out.getvalue() or err.getvalue()
        codes.append(code)
    return codes


# --- names and options that users give ------------------------------------------------------------


@verb
def open_names(directory: Path, image: Image | None, names: list[str]) -> object:
    """How many of the names can be opened, in all ways."""
    prepare(directory, image)
    os.chdir(directory)
    opened = 0
    for name in names:
        for action in (blocklayer.probe, blocklayer.info, info_chain, blocklayer.check):
            with contextlib.suppress(BlocklayerError):
                action(name)
        with contextlib.suppress(BlocklayerError), blocklayer.open(name) as disk:
            disk.read(0, min(disk.size, 512))
            opened += 1
    return opened


@verb
def open_trees(directory: Path, image: Image, trees: list[dict[str, object]]) -> object:
    """Option trees as such, as JSON names, and as the backing file of an image."""
    path = prepare(directory, image)
    os.chdir(directory)
    opened = 0
    for tree in trees:
        name = "json:" + json.dumps(tree)
        below: dict[str, object] = {"driver": "qed", "file": str(path), "backing": tree}
        for choice in (copy.deepcopy(tree), name, below):
            with contextlib.suppress(BlocklayerError), blocklayer.open(choice) as disk:
                opened += 1
                with contextlib.suppress(BlocklayerError):
                    disk.read(0, min(disk.size, 512))
        with contextlib.suppress(BlocklayerError):
            info_chain(name)
        image.with_backing(name.encode("utf-8", "surrogatepass")[:4000]).write(path)
        with contextlib.suppress(BlocklayerError), blocklayer.open(path, mode="r+") as disk:
            opened += 1
    return opened


def warm_up() -> None:
    """Import and compute once what every verb needs, so that children find it done."""
    with tempfile.TemporaryDirectory() as name:
        for function in EVERYTHING:
            with contextlib.suppress(BlocklayerError):
                VERBS[function](Path(name), BASES["small"])


LOOKING = ("probe", "info", "chain", "read", "extents", "map_it", "measure", "compare", "check")
CHANGING = ("repair_leaks", "repair_all", "write", "zero", "grow", "shrink", "unbase")
COPYING = ("rebase", "commit", "convert")
EVERYTHING = (*LOOKING, *CHANGING, *COPYING, "command")
