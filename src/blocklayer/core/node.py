# SPDX-License-Identifier: Apache-2.0
"""The node contract: what a driver tells, and what it may rely on.

A node is a vertex of the block graph. *Protocols* store bytes, *filters* pass requests on with
another behaviour, *formats* map guest offsets onto their children and never move a guest byte.

What drivers may rely on, because the gate (`core/disk`) and `core/io` see to it: requests lie
within `size`, are not empty, and vectors hold no empty view. Offsets and lengths are bytes at any
alignment; a protocol that needs alignment says so in `limits`, and `core/padding` stands before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from weakref import WeakSet

from blocklayer.base.buffers import Vector
from blocklayer.base.errors import BlocklayerError, NotSupported
from blocklayer.base.extent import DATA
from blocklayer.base.record import Record
from blocklayer.core.events import Sink, combined_sink
from blocklayer.core.requests import RangeLock, Retired, Tracker

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, ClassVar, Final, TypeAlias, TypeVar

    from blocklayer.base.options import OptionTree
    from blocklayer.base.progress import Reporter, Watch
    from blocklayer.core.checking import CheckResult, Repair
    from blocklayer.core.disk import Disk
    from blocklayer.core.hooks import WriteHooks

    T = TypeVar("T")

PROBLEMS_KEPT = 1000
"""Problems described one by one; more are counted only, so that no image fills memory."""

# Flags of `zero`. Plain integers for the same reason as extent kinds.
UNMAP: Final = 1
"""The range may be deallocated, as long as it reads as zeroes afterwards."""
NO_FALLBACK: Final = 2
"""Fail with `NotSupported` rather than write zeroes slowly."""
ALLOCATE: Final = 4
"""The range must be allocated afterwards."""

# Abilities.
NATIVE: Final = "native"
EMULATE: Final = "emulate"
NONE: Final = "none"

Mapped: TypeAlias = "tuple[int, int, Node | None, int]"
"""(kind, length, child, host offset): child and host offset matter for DATA alone."""

Span: TypeAlias = "tuple[int, Vector]"
"""An offset, and the memory that is read into or written from there."""

Lookup: TypeAlias = "Callable[[int, int], int]"
"""(offset, length) -> host offset, or -1 where the inline path must not go."""


class Inline(Record, frozen=True):
    """The licence for the inline path: a lookup in memory, and the descriptor it answers for."""

    read: Lookup
    write: Lookup | None
    descriptor: int
    written: Callable[[Sequence[tuple[int, memoryview]]], None] | None = None
    """Told of a batch that was written, while it still counts as in flight; also of one that may
    have been, if an interrupt came."""


class Limits(Record):
    """What a node's requests must look like; bytes."""

    request_alignment: int = 1
    max_transfer: int = 0
    """Longest single transfer; 0 is no limit."""
    zero_alignment: int = 1
    opt_transfer: int = 0


class Node:
    """Base of all nodes."""

    driver: str = ""
    """What it is called: a driver of several names by the one that it was opened by."""
    size: int
    """Bytes that the node's users see."""

    def __init__(self, filename: str = "", *, read_only: bool = True) -> None:
        self.filename = filename
        self.read_only = read_only
        self.children: dict[str, Node] = {}
        self.limits = Limits()
        self.tracker = Tracker()
        self.ranges = RangeLock()
        self.sink: Sink | None = None
        self.hooks: WriteHooks | None = None
        self.watch: Watch | None = None
        """Who wants to know of what this node does on its own, and may take long."""
        self.users: WeakSet[Disk] = WeakSet()
        """Disks on this node, which must know when its inline path opens or closes."""

    @property
    def watched(self) -> bool:
        """Whether somebody wants to know of every write to this node, or to the storage below."""
        file = self.children.get("file")
        return self.hooks is not None or (file is not None and file.watched)

    def set_hooks(self, hooks: WriteHooks | None) -> None:
        """Have these hooks see every write; None: nobody wants to. The node is drained."""
        from blocklayer.core.hooks import unwatch, watch

        self.hooks = hooks
        if hooks is None:
            unwatch(self)
        else:
            watch(self)

    # --- where bytes live ---------------------------------------------------------------------

    def map(self, offset: int, length: int) -> Mapped:
        """The first extent of the range: at least one byte, never more than `length`."""
        return DATA, length, None, offset

    def inline(self) -> Inline | None:
        """The inline path through this node, if it has one."""
        return None

    @property
    def zero_ability(self) -> str:
        """How a writable node zeroes: NATIVE (cheaply), EMULATE (by writing), NONE (it cannot)."""
        return EMULATE if type(self).zero is Node.zero else NATIVE

    @property
    def inline_descriptor(self) -> int | None:
        """The descriptor whose offsets are this node's, if requests may bypass the node."""
        return None

    @property
    def is_local(self) -> bool:
        """Whether all that is below is in files that the kernel has in its page cache."""
        children = self.children.values()
        if children:
            return all(child.is_local for child in children)
        return self.inline_descriptor is not None

    # --- moving bytes: protocols and filters ----------------------------------------------------

    def readv(self, offset: int, vector: Vector) -> None:
        """Fill `vector` with the bytes from `offset`. Raises `IoError`."""
        raise NotImplementedError

    def writev(self, offset: int, vector: Vector) -> None:
        """Write `vector` at `offset`. Raises `IoError`."""
        raise NotImplementedError

    def read_each(self, requests: Sequence[Span]) -> list[BlocklayerError | None]:
        """Read many; each one's own error. Storage that is far away has them all in flight."""
        return [_attempt(self.readv, offset, vector) for offset, vector in requests]

    def write_each(self, requests: Sequence[Span]) -> list[BlocklayerError | None]:
        """Write many that do not overlap, in the same way."""
        return [_attempt(self.writev, offset, vector) for offset, vector in requests]

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Make the range read as zeroes cheaply; `NotSupported` where only writing can.

        With `NO_FALLBACK` a refusal changes nothing; without, a part may have been zeroed.
        """
        raise NotSupported(f"{self.driver} cannot zero without writing")

    def check_zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Raise `NotSupported` if `zero` would, as far as that can be told; changes nothing."""
        if type(self).zero is Node.zero:
            raise NotSupported(f"{self.driver} cannot zero without writing")

    def share(self, descriptor: int, source_offset: int, offset: int, length: int) -> None:
        """Make a range refer to the blocks of an open file; `NotSupported` if that cannot be."""
        raise NotSupported(f"{self.driver} cannot share blocks with a file")

    def can_share(self, descriptor: int) -> bool:
        """Whether `share` with an open file has a chance; changes nothing."""
        return False

    delays: ClassVar[bool] = False
    """Whether requests wait here for no other reason than a limit, and `hurry` ends that."""

    def hurry(self) -> Callable[[], None]:
        """Somebody waits for the requests in flight here, until the result is called."""
        raise AssertionError(f"nothing is delayed by {self.driver}")

    def discard(self, offset: int, length: int) -> None:
        """Hint that nobody needs the range; its content is undefined afterwards."""

    def flush(self) -> None:
        """Everything written so far survives a power failure."""

    def begin_flush(self) -> bool:
        """Have the storage begin what a flush has to wait for; no promise, and no errors.

        False: this storage can do no less than a whole flush.
        """
        return False

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Change `size`; new bytes read as zeroes. Raises `NotSupported`, `IoError`."""
        raise NotSupported(f"Cannot resize: driver '{self.driver}' does not support it")

    def follow_child_size(self) -> None:
        """Somebody may have resized a child by itself, while no request is in flight."""

    @property
    def grows_zeroed(self) -> bool:
        """Whether bytes gained by `truncate` read as zeroes without being written."""
        return False

    # --- life -----------------------------------------------------------------------------------

    def run(self, action: Callable[..., T], *arguments: object) -> T:
        """Call `action` as a request on this node, for who has no disk on it. Raises `Closed`.

        One that waits while the node gets another tracker goes on with that one.
        """
        while True:
            try:
                return self.tracker.run(action, *arguments)
            except Retired:
                continue

    def attach(self, **children: Node | None) -> None:
        """Set children by role and hear their listeners."""
        self.children.update({role: node for role, node in children.items() if node is not None})
        self.refresh_sink()

    def refresh_sink(self) -> None:
        """Find out who listens: tracers, and children that want to know what the parent does."""
        self.sink = combined_sink(
            [child.on_event for child in self.children.values() if child.hears]
        )

    stays_writable = False
    """A parent that becomes read-only leaves it as it is."""

    hears: ClassVar[bool] = False
    """Whether `on_event` wants the parent's events."""

    def on_event(self, node: Node, name: str, fields: dict[str, Any]) -> None:
        """The parent `node` announces an event; raising makes the parent's operation fail."""

    def close(self) -> None:
        """Release everything, children included; the first error is raised when all is done."""
        self.tracker.close()
        failures = []
        for child in self.children.values():
            try:
                child.close()
            except BlocklayerError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def reopen(self, read_only: bool) -> None:
        """Change between read-only and read-write."""
        for role, child in self.children.items():
            if role != "backing" and not (read_only and child.stays_writable):
                child.reopen(read_only)
        self.read_only = read_only

    changeable: Mapping[str, object] = {}
    """Options that `change` gives another value, with their defaults."""
    changes_in_use = False
    """Whether it does so also while somebody uses the node."""

    def change(self, options: OptionTree) -> Callable[[], None]:
        """Other values of all `changeable` options, while no request is in flight; the undo."""
        raise AssertionError(f"nothing of {self.driver} can change: {options}")

    def reporter(self, operation: str, total: int) -> Reporter:
        """What counts the node's own work for `watch`."""
        from blocklayer.base.progress import Watch

        return (self.watch or Watch()).reporter(operation, total)

    def info(self) -> dict[str, Any]:
        """What `info` shows of this node beyond the common fields."""
        return {}


def _attempt(
    action: Callable[[int, Vector], None], offset: int, vector: Vector
) -> BlocklayerError | None:
    try:
        action(offset, vector)
    except BlocklayerError as error:
        return error
    return None


class WritePlan:
    """Clusters that a format gives to one run of guest bytes.

         start                    start + head                       start + length
           |--------- head ---------|------------ data ------------|------ tail ------|
           host                     host + head

    All of it is new space at `host`, a contiguous run of clusters. The core fills head and tail:
    with zeroes, or with what is below where `copy_head` / `copy_tail` say so. `fresh` space reads
    as zeroes already. For `zero` plans there is no space and no data: the clusters become zero.
    """

    __slots__ = (
        "copy_head",
        "copy_tail",
        "ended",
        "fresh",
        "head",
        "host",
        "length",
        "may_be_visible",
        "start",
        "tail",
        "zero",
    )

    def __init__(
        self,
        start: int,
        length: int,
        host: int = 0,
        *,
        head: int = 0,
        tail: int = 0,
        zero: bool = False,
    ) -> None:
        self.start = start
        self.length = length
        self.host = host
        self.head = head
        self.tail = tail
        self.copy_head = False
        self.copy_tail = False
        self.fresh = False
        self.zero = zero
        self.may_be_visible = False
        """Its commit has begun: the space may be in use, and must not be given out again."""
        self.ended = False
        """It is committed or abandoned."""


class FormatNode(Node):
    """Base of formats. Subclasses describe a mapping; `core/io` moves the bytes."""

    cluster_size: int = 1
    table_bytes: int = 0
    """The size of one mapping table: an image from a stranger can be refused for it."""
    probed: bool = False
    """Nobody named the format: it was guessed, because no signature was found."""
    problems_max: int | None = PROBLEMS_KEPT
    """Problems that a check describes one by one; None: all there are."""
    recurse_status: bool = False
    """Whether block status should also ask the storage below about holes inside DATA."""

    def __init__(self, file: Node, *, read_only: bool) -> None:
        super().__init__(file.filename, read_only=read_only)
        self.file = file
        self.backing: Node | None = None
        self.backing_filename: str | None = None
        self.backing_format: str | None = None
        self.attach(file=file)

    def attach_backing(self, backing: Node | None) -> None:
        """Set what lies below this layer."""
        self.backing = backing
        self.children.pop("backing", None)
        self.attach(backing=backing)

    def map_many(self, offset: int, length: int) -> list[Mapped]:
        """The first runs of the range, as many as the driver can tell at once: at least one.

        No two neighbours could be one run. What `map` would refuse is left to it.
        """
        return [self.map(offset, length)]

    @property
    def zero_when_new(self) -> bool:
        """Whether a disk that has just been created reads as zeroes."""
        return True

    def activate(self) -> None:
        """The graph below is complete: do what opening this image may have to write."""

    def place(self, offset: int, length: int) -> tuple[Node, int, int] | None:
        """(child, host offset, length) where a prefix of the range is written in place.

        None if its first byte has no place yet, and `plan_write` must find one.
        """
        raise NotImplementedError

    def plan_write(self, offset: int, length: int) -> WritePlan:
        """Find space for a prefix of the range, which has no place. The caller holds its lock."""
        raise NotImplementedError

    def can_merge(self, offset: int, length: int) -> bool:
        """Whether zeroes may be written to a gap between two allocating writes.

        Only where that changes no byte that anybody could read: the gap lies in one cluster, has no
        place yet, and reads as zeroes.
        """
        return False

    @property
    def has_zero_clusters(self) -> bool:
        """Whether `plan_zero` has an answer."""
        return type(self).plan_zero is not FormatNode.plan_zero

    def plan_zero(self, offset: int, length: int) -> WritePlan | None:
        """A plan that makes a prefix of the (cluster aligned) range zero without storing it.

        None if the first cluster has a place and must be zeroed there.
        """
        raise NotSupported(f"{self.driver} has no zero clusters")

    def commit_writes(self, plans: Sequence[WritePlan]) -> None:
        """The data of `plans` is written: make it visible, in the order the format needs."""
        raise NotImplementedError

    def abandon_writes(self, plans: Sequence[WritePlan]) -> None:
        """Writing the data of `plans` failed: forget them. Never raises."""

    def check(self, repair: Repair) -> CheckResult:
        """Consistency check, with repairs; the caller has the image to itself."""
        raise NotSupported("This image format does not support checks")

    def make_empty(self) -> None:
        """Drop everything this layer holds, so that it shows what is below."""
        raise NotSupported(f"Format '{self.driver}' cannot be emptied")

    def change_backing(self, name: str | None, format_name: str | None) -> None:
        """Store another backing file name (None removes it); the content is not touched."""
        raise NotSupported(f"Format '{self.driver}' has no backing files")

    def readv(self, offset: int, vector: Vector) -> None:
        """Read through the mapping."""
        from blocklayer.core import io

        io.read_mapped(self, offset, vector)

    def writev(self, offset: int, vector: Vector) -> None:
        """Write through the mapping, allocating where needed."""
        from blocklayer.core import io

        io.write_mapped(self, offset, vector)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Zero through the mapping."""
        from blocklayer.core import zeroing

        zeroing.zero_mapped(self, offset, length, flags)

    def check_zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Look at the mapping."""
        from blocklayer.core import zeroing

        zeroing.check_mapped(self, offset, length, flags)

    def discard(self, offset: int, length: int) -> None:
        """Discard what has a place; the mapping stays."""
        from blocklayer.core import io

        io.discard_mapped(self, offset, length)

    def flush(self) -> None:
        """Flush the storage; drivers that cache metadata write it first."""
        if self.sink is not None:
            self.sink(self, "flush_to_os", {})
            self.sink(self, "flush_to_disk", {})
        self.file.flush()

    def begin_flush(self) -> bool:
        """As the storage can."""
        return self.file.begin_flush()
