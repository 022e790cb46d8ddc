# SPDX-License-Identifier: Apache-2.0
"""What `blk io` holds between two commands: the open disk, and requests that are under way."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable

from blocklayer.base.errors import BlocklayerError, FormatError, InvalidArgument, OpenError
from blocklayer.base.record import Record, fresh
from blocklayer.cli.failures import Failure
from blocklayer.cli.output import warn_of_guess

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from blocklayer.base.options import OptionTree
    from blocklayer.cli.io_language import Call, IoCommand
    from blocklayer.core.batch import Request
    from blocklayer.core.disk import Disk
    from blocklayer.core.trust import Trust

    Told: TypeAlias = Callable[[Request, float], list[str]]
    Finished: TypeAlias = list[tuple[Call, list[str]]]
    """Commands whose requests are done, and what is printed of them."""


class Opening(Record):
    """How a disk is opened. The defaults are qemu-io's: what is written is flushed at once."""

    path: str = ""
    options: dict[str, Any] = fresh(factory=dict)
    image_opts: bool = False
    """The path is an option string."""
    format: str | None = None
    read_only: bool = False
    cache: str = "writethrough"
    discard: str = "unmap"
    force_share: bool = False
    snapshot: bool = False
    """Writes go to a temporary overlay, and are forgotten."""
    copy_on_read: bool = False
    trust: Trust | None = None
    """Somebody else made the image: what it may ask for."""

    def name(self) -> str | OptionTree:
        """What to open: a name, or an option tree if there are options."""
        from blocklayer.cli.parsing import option_tree
        from blocklayer.core.names import parse_name

        name: str | OptionTree = option_tree(self.path) if self.image_opts else self.path
        if not self.options and not self.copy_on_read:
            return name
        tree = parse_name(name) if self.path else {}
        for key, value in self.options.items():
            if isinstance(value, dict) and isinstance(tree.get(key), dict):
                tree[key] = {**tree[key], **value}
            else:
                tree[key] = value
        if self.format is not None:
            tree["driver"] = self.format
        if not self.copy_on_read:
            return tree
        modes = ("discard", "detect-zeroes")
        top: OptionTree = {name: tree.pop(name) for name in modes if name in tree}
        return {"driver": "copy-on-read", **top, "file": tree}


GATHER_SECONDS = 0.002
"""How long a write that was begun waits for others to be submitted with it."""


class Batch:
    """Writes that were begun together: submitted when the last of them is known, or soon."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._writes: list[tuple[Call, Callable[[], Request], Told, float]] = []
        self._lock = threading.Lock()
        self._complete = threading.Event()

    def add(self, call: Call, make: Callable[[], Request], told: Told) -> bool:
        """Add a write; False if the batch has been submitted already."""
        with self._lock:
            if self._complete.is_set():
                return False
            self._writes.append((call, make, told, time.perf_counter()))
            return True

    def submit(self) -> None:
        """Do not wait for more."""
        self._complete.set()

    def run(self) -> Finished:
        """Gather, write, and what is printed of it."""
        self._complete.wait(GATHER_SECONDS)
        with self._lock:
            self._complete.set()
        try:
            requests = [make() for _, make, _, _ in self._writes]
        except MemoryError as error:
            return self._failed(error)
        try:
            self._disk.submit(requests)
        except BlocklayerError as error:
            for request in requests:
                request.error = request.error or error
        end = time.perf_counter()
        return [
            (call, told(request, end - start))
            for request, (call, _, told, start) in zip(requests, self._writes, strict=True)
        ]

    def _failed(self, error: MemoryError) -> Finished:
        """None of them was submitted."""
        for call, *_ in self._writes:
            call.error = error
        return [(call, ["not enough memory"]) for call, *_ in self._writes]


class Session:
    """The state of one run."""

    def __init__(
        self,
        commands: dict[str, IoCommand],
        tell: Callable[[Call, list[str]], None] | None = None,
    ) -> None:
        self.commands = commands
        self._tell = _print if tell is None else tell
        """Of what was under way and is done."""
        self.disk: Disk | None = None
        self.opening = Opening()
        self.image_opts = False
        """File names are option strings, as the program was told."""
        self.trust: Trust | None = None
        """Images are somebody else's, as the program was told."""
        self.tags: set[str] = set()
        """Of break points that have been set."""
        self._gathering: Batch | None = None
        self._running: list[threading.Thread] = []
        self._finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()

    # --- the disk -------------------------------------------------------------------------------

    def open(self, opening: Opening) -> None:
        """Open a disk. Raises `Failure`."""
        if self.disk is not None:
            raise Failure("file open already, try 'help close'")
        try:
            self.disk = _open(opening)
        except BlocklayerError as error:
            named = opening.path and not opening.image_opts
            what = f"can't open device {opening.path}" if named else "can't open"
            raise Failure(f"{what}: {_reason(error, named=bool(named))}") from None
        self.opening = opening
        if not opening.read_only and opening.path and getattr(self.disk.node, "probed", False):
            warn_of_guess(opening.path)

    def reopen(self, opening: Opening) -> None:
        """Open the same disk in another way. Raises `Failure`; then the old way holds."""
        disk, old = self.disk, self.opening
        assert disk is not None
        self.wait()
        if opening.replace(read_only=old.read_only, options=old.options) == old:
            disk.reopen("r" if opening.read_only else "r+")
            self.opening = opening
            self._change_modes(disk, opening.options)
            return
        self.close()
        try:
            self.open(opening)
        except Failure:
            self.open(old)
            raise

    def _change_modes(self, disk: Disk, options: OptionTree) -> None:
        """What a disk does with discards and zeroes, as its options say it by now."""
        from blocklayer.core.modes import take_modes

        discard, zeroes = take_modes(dict(options), disk.discard_mode, disk.detect_zeroes)
        if (discard, zeroes) != (disk.discard_mode, disk.detect_zeroes):
            with disk.drain():
                disk.switch(disk.node, discard=discard, detect_zeroes=zeroes)

    def require_writable(self) -> None:
        """Raises `Failure` if the disk is open read-only."""
        if self.disk is not None and self.disk.read_only:
            raise Failure("Block node is read-only")

    def close(self) -> None:
        """Wait for what is under way, and close the disk if one is open."""
        disk, self.disk = self.disk, None
        if disk is None:
            return
        try:
            self._release_suspended(disk)
            self._join()
        finally:
            disk.close()

    def _release_suspended(self, disk: Disk) -> None:
        """Let go on whoever waits at a break point: nobody else will."""
        node = fault_node(disk)
        while self.tags and node is not None:
            with contextlib.suppress(InvalidArgument):
                node.remove_break(self.tags.pop())

    # --- requests under way ---------------------------------------------------------------------

    def start(self, work: Callable[[], Finished]) -> None:
        """Do `work` while other commands run; what it returns is told later."""

        def run() -> None:
            self._finished.put(work())

        thread = threading.Thread(target=run, name="blk-io", daemon=True)
        self._running.append(thread)
        thread.start()

    def begin_write(self, call: Call, make: Callable[[], Request], told: Told) -> None:
        """Begin a write, in one batch with those that are begun just before and after it.

        `told` gives the lines to print of the finished request and the seconds it took.
        """
        assert self.disk is not None
        call.is_later = True
        if self._gathering is not None and self._gathering.add(call, make, told):
            return
        self._gathering = Batch(self.disk)
        self._gathering.add(call, make, told)
        self.start(self._gathering.run)

    def submit_gathered(self) -> None:
        """No more writes belong to what was begun."""
        if self._gathering is not None:
            self._gathering.submit()
            self._gathering = None

    def wait(self) -> None:
        """Wait for everything that is under way, and print what became of it."""
        self._join()
        self.print_finished()

    def _join(self) -> None:
        self.submit_gathered()
        for thread in self._running:
            thread.join()
        self._running.clear()

    def print_finished(self) -> None:
        """Print what became of requests that are done by now."""
        with contextlib.suppress(queue.Empty):
            while True:
                for call, lines in self._finished.get_nowait():
                    self._tell(call, lines)


def _print(_: Call, lines: list[str]) -> None:
    for line in lines:
        print(line)


def fault_node(disk: Disk) -> Any:
    """The node with break points in a disk's graph; None without one."""
    node = disk.node
    while True:
        if hasattr(node, "add_break"):
            return node
        below = [child for role, child in node.children.items() if role != "backing"]
        if not below:
            return None
        node = below[0]


def _reason(error: BlocklayerError, *, named: bool) -> str:
    """Why opening has failed; the file's name is not said again where the error is not its own."""
    about_content = isinstance(error.__cause__, FormatError | InvalidArgument)
    if isinstance(error, OpenError) and about_content and named:
        return error.message
    return str(error)


def _open(opening: Opening) -> Disk:
    from blocklayer.ops.open_image import open_disk

    if opening.copy_on_read and opening.read_only:
        raise InvalidArgument("Can't use copy-on-read on read-only device")
    if opening.snapshot:
        return _open_overlay(opening)
    name = opening.name()
    if opening.trust is not None and not opening.image_opts:
        opening.trust.check_given(opening.path)  # the name may be a tree by now
    return open_disk(
        name,
        mode="r" if opening.read_only else "r+",
        format=None if isinstance(name, dict) and "driver" in name else opening.format,
        cache=opening.cache,
        discard=opening.discard,
        force_share=opening.force_share,
        trust=opening.trust,
    )


def _open_overlay(opening: Opening) -> Disk:
    """A new overlay that vanishes when it is closed."""
    import tempfile

    from blocklayer.core.names import parse_name
    from blocklayer.ops.create import create
    from blocklayer.ops.open_image import open_disk

    with _open(opening.replace(snapshot=False, read_only=True)) as below:
        size, driver, filename = below.size, below.node.driver, below.filename
    trust = opening.trust
    if trust is not None:
        trust = trust.anchored(filename)  # the image's folder, and not the overlay's
    with tempfile.TemporaryDirectory(prefix="blk-io-") as directory:
        overlay = os.path.join(directory, "overlay.qed")
        create(overlay, format="qed", size=size)
        # The open file outlives its name.
        return open_disk(
            {
                "driver": "qed",
                "file": {"driver": "file", "filename": overlay},
                "backing": {
                    **parse_name(opening.name()),
                    "driver": driver,
                    "force-share": opening.force_share,
                },
            },
            mode="r" if opening.read_only else "r+",
            cache="unsafe",
            trust=trust,
        )
