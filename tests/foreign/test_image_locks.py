# SPDX-License-Identifier: Apache-2.0
"""Nobody changes an image that somebody else uses: QEMU and we refuse each other."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from tests.foreign import qemu, views
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-io", "qemu-nbd")

Action = Callable[[Path], object]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    qemu.create(path, MiB)
    qemu.io(path, "write -P 1 0 300k")
    return path


def other(path: Path) -> Path:
    return path.with_name("other")


def overlay(path: Path) -> Path:
    """An overlay of the image, made by whoever may."""
    top = path.with_name("overlay")
    qemu.create(top, MiB, backing=path)
    return top


# What we do to an image.


def we_open_to_read(path: Path) -> None:
    blocklayer.open(path).close()


def we_open_to_write(path: Path) -> None:
    blocklayer.open(path, mode="r+").close()


def we_create(path: Path) -> None:
    blocklayer.create(path, format="qed", size=MiB)


def we_convert_into(path: Path) -> None:
    other(path).write_bytes(bytes(MiB))
    blocklayer.convert(other(path), path, source_format="raw", format="qed", create=False)


def we_convert_to(path: Path) -> None:
    other(path).write_bytes(bytes(MiB))
    blocklayer.convert(other(path), path, source_format="raw", format="qed")


def we_convert_from(path: Path) -> None:
    blocklayer.convert(path, other(path), format="raw")


def we_check(path: Path) -> None:
    blocklayer.check(path)


def we_repair(path: Path) -> None:
    blocklayer.check(path, repair="all")


def we_map(path: Path) -> None:
    list(blocklayer.map(path))


def we_compare(path: Path) -> None:
    blocklayer.compare(path, path)


def we_look_at_it(path: Path) -> None:
    blocklayer.info(path)


def we_resize(path: Path) -> None:
    blocklayer.resize(path, 2 * MiB)


def we_rebase(path: Path) -> None:
    blocklayer.rebase(path, None)


OUR_READS: list[Action] = [
    we_open_to_read,
    we_convert_from,
    we_check,
    we_map,
    we_compare,
    we_look_at_it,
]
OUR_WRITES: list[Action] = [
    we_open_to_write,
    we_create,
    we_convert_into,
    we_convert_to,
    we_repair,
    we_resize,
    we_rebase,
]


def is_refused(action: Action, path: Path) -> None:
    """The action must fail for the lock, and leave every byte alone."""
    before = path.read_bytes()
    with pytest.raises(blocklayer.BlocklayerError) as caught:
        action(path)
    error = caught.value
    assert isinstance(error, blocklayer.LockError) or isinstance(
        error.__cause__, blocklayer.LockError
    )
    assert "Is another process using the image" in str(error)
    assert path.read_bytes() == before


# What QEMU does to an image.


def qemu_does(*words: str) -> Callable[[Path], qemu.Outcome]:
    """A command; `@` in its words stands for the image, `%` for another raw file."""

    def run(path: Path) -> qemu.Outcome:
        if not other(path).exists():
            other(path).write_bytes(bytes(MiB))
        names = {"@": str(path), "%": str(other(path))}
        return qemu.run(*(names.get(word, word) for word in words))

    return run


QEMU_READS = {
    "read": qemu_does("qemu-io", "-r", "-f", "qed", "-c", "read 0 1", "@"),
    "convert from": qemu_does("qemu-img", "convert", "-f", "qed", "-O", "raw", "@", "%"),
    "check": qemu_does("qemu-img", "check", "-f", "qed", "@"),
    "map": qemu_does("qemu-img", "map", "-f", "qed", "@"),
    "info": qemu_does("qemu-img", "info", "-f", "qed", "@"),
}
QEMU_WRITES = {
    "write": qemu_does("qemu-io", "-f", "qed", "-c", "write 0 1", "@"),
    "create": qemu_does("qemu-img", "create", "-f", "qed", "@", "1M"),
    "convert into": qemu_does("qemu-img", "convert", "-n", "-f", "raw", "-O", "qed", "%", "@"),
    "convert to": qemu_does("qemu-img", "convert", "-f", "raw", "-O", "qed", "%", "@"),
    "repair": qemu_does("qemu-img", "check", "-r", "all", "-f", "qed", "@"),
    "resize": qemu_does("qemu-img", "resize", "-f", "qed", "@", "2M"),
    "rebase": qemu_does("qemu-img", "rebase", "-u", "-f", "qed", "-b", "", "@"),
}


def qemu_is_refused(command: Callable[[Path], qemu.Outcome], path: Path) -> None:
    before = path.read_bytes()
    outcome = command(path)
    assert outcome.code == 1
    assert "lock" in outcome.output
    assert "Is another process using the image" in outcome.output
    assert path.read_bytes() == before


# QEMU has the image.


@contextmanager
def exported(path: Path) -> Iterator[None]:
    """The image served by `qemu-nbd`."""
    socket = path.with_name("socket")
    pid = path.with_name("pid")
    started = qemu.run(
        "qemu-nbd", "--fork", "-t", f"--pid-file={pid}", "-f", "qed", "-k", socket, path
    )
    assert started.code == 0, started
    try:
        yield
    finally:
        qemu.run("kill", pid.read_text("ascii").strip())


@contextmanager
def opened_by_qemu(path: Path, *, options: tuple[str, ...] = ()) -> Iterator[None]:
    with qemu.session(path, options=options):
        yield


@pytest.mark.parametrize("holder", [opened_by_qemu, exported])
@pytest.mark.parametrize("action", OUR_READS + OUR_WRITES)
def test_qemu_writes(
    image: Path, holder: Callable[[Path], AbstractContextManager[None]], action: Action
) -> None:
    with holder(image):
        is_refused(action, image)


@pytest.mark.parametrize("action", OUR_WRITES)
def test_qemu_reads_and_we_must_not_write(image: Path, action: Action) -> None:
    with opened_by_qemu(image, options=("-r",)):
        is_refused(action, image)


@pytest.mark.parametrize("action", OUR_READS)
def test_qemu_reads_and_we_may_too(image: Path, action: Action) -> None:
    with opened_by_qemu(image, options=("-r",)):
        action(image)


def test_we_read_in_spite_of_a_writer_if_asked(image: Path) -> None:
    with qemu.session(image) as session:
        session.tell("write -P 7 500k 1k")
        seen = views.content(image, force_share=True)
        assert seen[500 * KiB : 501 * KiB] == b"\7" * KiB
        assert views.check(image, force_share=True).clean
        assert blocklayer.info(image, force_share=True).virtual_size == MiB
        assert blocklayer.probe(image) == "qed"
        with blocklayer.open(image, locking="off") as disk:
            assert disk.read(0, MiB) == seen


def test_a_killed_qemu_holds_nothing(image: Path) -> None:
    with qemu.session(image) as session:
        is_refused(we_open_to_write, image)
        session.kill()
    we_open_to_write(image)


def test_qemus_overlay_keeps_writers_off_its_base(image: Path) -> None:
    with opened_by_qemu(overlay(image)):
        for action in OUR_WRITES:
            is_refused(action, image)
        for action in OUR_READS:
            action(image)
        # Another overlay of the same base disturbs nobody.
        second = image.with_name("second")
        blocklayer.create(second, format="qed", backing=image.name)
        with blocklayer.open(second, mode="r+") as disk:
            disk.write(0, b"mine")
        with pytest.raises(blocklayer.BlocklayerError) as caught:
            blocklayer.commit(second)
        assert isinstance(caught.value.__cause__ or caught.value, blocklayer.LockError)
        with blocklayer.open(second) as disk:
            assert disk.read(0, 5) == b"mine\1"


# We have the image.


@pytest.mark.parametrize("command", [*QEMU_READS, *QEMU_WRITES])
def test_we_write(image: Path, command: str) -> None:
    with blocklayer.open(image, mode="r+"):
        qemu_is_refused((QEMU_READS | QEMU_WRITES)[command], image)


@pytest.mark.parametrize("command", QEMU_WRITES)
def test_we_read_and_qemu_must_not_write(image: Path, command: str) -> None:
    with blocklayer.open(image):
        qemu_is_refused(QEMU_WRITES[command], image)


@pytest.mark.parametrize("command", QEMU_READS)
def test_we_read_and_qemu_may_too(image: Path, command: str) -> None:
    with blocklayer.open(image):
        assert QEMU_READS[command](image).code == 0


def test_modes_change_with_the_disk(image: Path) -> None:
    with blocklayer.open(image) as disk:
        assert QEMU_READS["read"](image).code == 0
        disk.reopen("r+")
        qemu_is_refused(QEMU_READS["read"], image)
        disk.reopen("r")
        assert QEMU_READS["read"](image).code == 0
        with opened_by_qemu(image, options=("-r",)), pytest.raises(blocklayer.LockError):
            disk.reopen("r+")
        assert disk.read(0, 1) == b"\1"
        disk.reopen("r+")
    assert QEMU_WRITES["write"](image).code == 0


def test_our_overlay_keeps_writers_off_its_base(image: Path) -> None:
    top = overlay(image)
    second = image.with_name("second")
    qemu.create(second, MiB, backing=image)
    with blocklayer.open(top, mode="r+") as disk:
        disk.write(0, b"ours")
        for command in QEMU_WRITES.values():
            qemu_is_refused(command, image)
        for command in QEMU_READS.values():
            assert command(image).code == 0
        qemu.io(second, "write -P 9 0 10")
        qemu_is_refused(lambda _: qemu.run("qemu-img", "commit", "-f", "qed", second), image)
    assert views.assert_same(top)[:5] == b"ours\1"


def test_while_we_convert_nobody_else_writes(image: Path) -> None:
    """Source and target are locked all the way; the progress callback looks at them meanwhile."""
    target = image.with_name("target")
    looks = []

    def look(progress: blocklayer.Progress) -> None:
        looks.append(progress.done)
        if len(looks) == 1:
            qemu_is_refused(QEMU_WRITES["write"], image)
            qemu_is_refused(QEMU_READS["read"], target)

    blocklayer.convert(image, target, format="qed", progress=look)
    assert looks
    qemu.compare(image, target)
