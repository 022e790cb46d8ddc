# SPDX-License-Identifier: Apache-2.0
"""One QED image under test for crashes: made, damaged, opened and recorded."""

import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from blocklayer.base.errors import IoError, OpenError
from blocklayer.base.units import SECTOR
from blocklayer.core.disk import Disk
from blocklayer.core.node import FormatNode, Node
from blocklayer.core.opening import OpenFlags
from blocklayer.formats.qed import create
from blocklayer.formats.qed.driver import QedNode
from blocklayer.formats.qed.layout import F_NEED_CHECK, SLICE_ENTRIES, Geometry
from blocklayer.testing.crash import CrashDisk, SectorDisk, Snapshot
from blocklayer.testing.crash_guest import Guest, stamp


class Lab:
    """One image under test, with the backing files that it may name."""

    def __init__(self, cluster: int, table: int, node_class: type[QedNode] = QedNode) -> None:
        self.c = cluster
        self.table = table
        self.geometry = Geometry(cluster, table)
        self.span = self.geometry.table_span
        self.node_class = node_class
        self.backings: dict[str, Snapshot] = {}
        self.image = Snapshot()
        self.ignored_flushes: set[int] = set()
        self.detect_zeroes = "off"
        self.damaged = False
        """The image has corruptions that only an explicit check with repair resolves."""

    # --- before recording -----------------------------------------------------------------------

    def add_backing(self, name: str, length: int, first: int = 0) -> None:
        """A raw backing file, with data from `first` on: small clusters full, large ones not."""
        disk = SectorDisk()
        step = SECTOR if self.c <= 4096 else self.c // 4
        for offset in range(first, length, step):
            data = stamp("backing", offset, min(SECTOR, length - offset))
            disk.writev(offset, [memoryview(data)])
        disk.truncate(length)
        self.backings[name] = disk.snapshot()

    def create(self, size: int, backing: str | None = None) -> None:
        """A new image."""
        options: dict[str, Any] = {"size": size}
        options |= {"cluster_size": self.c, "table_size": self.table}
        if backing is not None:
            options |= {"backing_file": backing, "backing_fmt": "raw"}
        storage = SectorDisk()
        create.create(storage, create.resolve(options))
        self.image = storage.snapshot()

    @contextmanager
    def prepared(self) -> Iterator[Disk]:
        """Use the image before the recording starts; it is clean and closed afterwards."""
        storage = SectorDisk(self.image)
        with Disk(self.open(storage, False), discard="unmap") as disk:
            yield disk
        self.image = storage.snapshot()

    @contextmanager
    def edited(self, *, dirty: bool = False) -> Iterator[QedNode]:
        """Damage the image's tables by hand."""
        storage = SectorDisk(self.image)
        node = QedNode(storage, OpenFlags(read_only=False, check=True))
        yield node
        if dirty:
            node._update_header(features=node.header.features | F_NEED_CHECK)
        self.image = storage.snapshot()

    def add_garbage(self, length: int) -> None:
        """Bytes behind the last cluster, as a crash leaves them."""
        storage = SectorDisk(self.image)
        storage.writev(storage.size, [memoryview(stamp("garbage", 0, length))])
        self.image = storage.snapshot()

    # --- recording ------------------------------------------------------------------------------

    def start(self) -> Guest:
        """Open the image and record from now on, the opening included."""
        self.storage = self.recorder()
        # What the guest may rely on is what the image holds before it is opened for writing.
        reader = self.open(SectorDisk(self.image, read_only=True), True)
        node = self.open(self.storage, False, self.node_class)
        disk = Disk(node, discard="unmap", detect_zeroes=self.detect_zeroes)
        self.guest = Guest(disk, self.storage, reader)
        return self.guest

    def recorder(self) -> CrashDisk:
        storage = CrashDisk(self.image)
        storage.ignored = self.ignored_flushes
        return storage

    def open(
        self, storage: Node, read_only: bool, node_class: type[QedNode] = QedNode
    ) -> FormatNode:
        """The image in `storage` over the backing file that it names."""
        node = node_class(storage, OpenFlags(read_only=read_only))
        if node.backing_filename is not None:
            below = self.backings.get(node.backing_filename)
            if below is None:
                raise OpenError("there is no such backing file", node.backing_filename)
            node.attach_backing(SectorDisk(below, read_only=True, name=node.backing_filename))
        node.activate()
        return node

    @property
    def node(self) -> QedNode:
        node = self.guest.disk.node
        assert isinstance(node, QedNode)
        return node

    # --- what guests do ---------------------------------------------------------------------------

    def write(self, offset: int, length: int, tag: str = "new") -> None:
        """One write of bytes that tell where they come from."""
        self.guest.write(offset, stamp(tag, offset, length))


def set_entry(node: QedNode, guest_offset: int, entry: int) -> None:
    """Change one L2 entry by hand."""
    geometry = node.geometry
    l1_index, index = geometry.l1_index(guest_offset), geometry.l2_index(guest_offset)
    number = l1_index * geometry.table_slices + index // SLICE_ENTRIES
    node.tables.write_l2(l1_index, {number: array("Q", [entry])}, {number: index % SLICE_ENTRIES})


def fail_at(lab: Lab, kind: str, number: int, *, done: bool) -> None:
    """Make the `number`-th operation of a kind from now on fail, `done` or not."""
    left = number

    def count(asked: str) -> None:
        nonlocal left
        left -= asked == kind
        if left == 0 and asked == kind:
            raise IoError("injected", "crash", operation=kind)

    if done:
        lab.storage.after = lambda operation: count(operation.kind)
    else:
        lab.storage.before = lambda asked, offset: count(asked)


def interleave(lab: Lab, first: Callable[[], None], second: Callable[[], None], pause: int) -> bool:
    """Run `first` up to its `pause`-th operation, then `second`, then the rest of `first`.

    Where `second` has to wait for `first`, that goes on as soon as this is seen. False if `first`
    has no such operation.
    """
    paused, resume = threading.Event(), threading.Event()
    done = 0

    def before(kind: str, offset: int) -> None:
        nonlocal done
        if threading.current_thread() is one:
            done += 1
            if done == pause:
                paused.set()
                resume.wait(10)

    def run_first() -> None:
        try:
            first()
        finally:
            ended.set()
            paused.set()

    ended = threading.Event()
    one, two = threading.Thread(target=run_first), threading.Thread(target=second)
    lab.storage.before = before
    one.start()
    paused.wait(10)
    reached = not ended.is_set()
    two.start()
    two.join(0.05)
    resume.set()
    one.join(10)
    two.join(10)
    assert not one.is_alive()
    assert not two.is_alive()
    lab.storage.before = None
    return reached
