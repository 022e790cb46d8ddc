# SPDX-License-Identifier: Apache-2.0
"""The named nodes of one process, and who uses whom.

    add        a node tree from the options of `blockdev-add`
    open_disk  a disk on a node, for an export or a job: with permissions, until it is closed
    replace    everybody above one node stands on another one afterwards; no request notices

A node lives as long as somebody wants it: the one who added it, a parent, a disk on it, or a job
that works with it. Changes of the graph exclude each other and happen while everything above the
changed place is drained.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from blocklayer.base.errors import BlocklayerError, InvalidArgument, ReadOnly
from blocklayer.base.options import OptionTree
from blocklayer.core import graph_edges as edges
from blocklayer.core import graph_uses
from blocklayer.core.disk import Disk
from blocklayer.core.filter import FilterNode
from blocklayer.core.graph_disk import GraphDisk
from blocklayer.core.graph_lookers import Lookers
from blocklayer.core.graph_options import Builder, Built, Settings
from blocklayer.core.hurry import hurried
from blocklayer.core.node import FormatNode, Node
from blocklayer.core.node_names import check_name
from blocklayer.core.permissions import ALL, READ, RESIZE, WRITE, Use
from blocklayer.core.requests import Tracker

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.graph_edges import Edge


class Entry:
    """A node of the graph.

    name      given, or made up (``#block123``)
    owned     somebody added it, and has not removed it yet
    settings  discard, detect-zeroes … of disks on it
    disks     those that are on it now
    blocked   why it cannot be removed or used by other jobs, by who says so
    written_by  those of them that write to it, without a disk on it
    vouched_by  jobs that see to it that what reads through this image finds the same as ever,
                while they change what lies below it
    """

    def __init__(self, name: str, node: Node, settings: Settings, *, owned: bool) -> None:
        self.name = name
        self.node = node
        self.settings = settings
        self.owned = owned
        self.disks: list[GraphDisk] = []
        self.blocked: dict[object, str] = {}
        self.written_by: set[object] = set()
        self.vouched_by: set[object] = set()

    def __repr__(self) -> str:
        return f"<Entry {self.name} {self.node.driver}>"


class Graph:
    """All nodes of a process. Thread-safe."""

    def __init__(self) -> None:
        self._changing = threading.RLock()
        self._lookers = Lookers(self._changing)
        self._entries: dict[str, Entry] = {}
        self._by_node: dict[int, Entry] = {}
        self._filters: dict[int, Node] = {}
        """Filters that were put above nodes, by the identity of these."""
        self._drains: list[ExitStack] = []
        """The `drained` sections that the thread is in which changes the graph."""
        self._counter = 100

    # --- looking --------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Of all nodes, those with made-up names included, in the order of their coming."""
        return list(self._entries)

    def named(self) -> list[Entry]:
        """All nodes."""
        return list(self._entries.values())

    def find(self, name: str) -> Node:
        """The node of that name. Raises `InvalidArgument`."""
        entry = self._entries.get(name)
        if entry is None:
            raise InvalidArgument(f"Cannot find device='{name}' nor node-name='{name}'")
        return entry.node

    def find_node(self, name: str) -> Node:
        """The same in the words of commands that take node names only."""
        entry = self._entries.get(name)
        if entry is None:
            raise InvalidArgument(f"Failed to find node with node-name='{name}'")
        return entry.node

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def entry(self, name_or_node: str | Node) -> Entry:
        """What is known of a node. Raises `InvalidArgument`."""
        node = self.find(name_or_node) if isinstance(name_or_node, str) else name_or_node
        entry = self._by_node.get(id(node))
        if entry is None:
            raise InvalidArgument(f"The node of '{node.filename}' is not in the graph")
        return entry

    def name_of(self, node: Node) -> str:
        """The node's name."""
        return self.entry(node).name

    def parents(self, node: Node) -> list[Edge]:
        """Edges of other nodes that lead to `node`."""
        return [edge for edge in self._all_edges() if edge.child is node]

    def children(self, node: Node) -> list[Edge]:
        """Edges of `node` that lead to other nodes of the graph."""
        return edges.edges_of(node, self._by_node)

    def uses(self, node: Node) -> list[Use]:
        """Who uses a node, and how: disks on it and parents."""
        return graph_uses.uses_of(self, node)

    def backing_chain(self, node: Node) -> list[Node]:
        """`node` and what lies below it, layer by layer; filters on the way are left out."""
        chain = []
        below: Node | None = node
        while below is not None:
            below = edges.skip_filters(below)
            chain.append(below)
            below = below.backing if isinstance(below, FormatNode) else None
        return chain

    def _all_edges(self) -> Iterator[Edge]:
        for entry in list(self._entries.values()):
            yield from edges.edges_of(entry.node, self._by_node)

    # --- adding and removing --------------------------------------------------------------------

    def add(self, options: OptionTree) -> Node:
        """Open a node tree from `blockdev-add`'s options; its top stays until `remove`.

        Children are given inline or by the name of a node; ``backing`` may be None. Raises the
        package's errors, and then nothing has changed.
        """
        with self._changing:
            built = Builder(self.find_top, self._entries.__contains__).build(options)
            before = set(self._entries)
            try:
                node = self._register(built)
                graph_uses.require_edges(self, node)
            except BaseException:
                for name in self._entries.keys() - before:
                    entry = self._entries.pop(name)
                    del self._by_node[id(entry.node)]
                built.close()
                raise
            self.entry(node).owned = True
            return node

    def find_top(self, name: str) -> Node:
        """Where who names a node has to stand: above the filters of jobs."""
        return self.top_of(self.find(name))

    def top_of(self, node: Node) -> Node:
        """Where who wants a node has to stand: above the filters that were put there."""
        while id(node) in self._filters:
            node = self._filters[id(node)]
        return node

    def add_node(
        self, node: Node, name: str | None = None, settings: Settings | None = None
    ) -> Node:
        """Make a node that is open already part of the graph, with everything below it."""
        with self._changing:
            if name is not None:
                self.check_new_name(name)
            self._note(name, node, settings or Settings(read_only=node.read_only), owned=True)
            self._note_below(node)
            return node

    def check_new_name(self, name: str) -> None:
        """Raise `InvalidArgument` unless a new node may have this name."""
        if check_name(name) in self._entries:
            raise InvalidArgument(f"Duplicate nodes with node-name='{name}'")

    def remove(self, name: str) -> None:
        """Undo `add`: the node is closed. Raises `InvalidArgument` while somebody uses it."""
        with self._changing:
            entry = self._entries.get(name)
            if entry is None:
                raise InvalidArgument(f"Failed to find node with node-name='{name}'")
            used = entry.blocked and any(disk.use.role != "target" for disk in entry.disks)
            if used or any(_has_disk_there(edge) for edge in self.parents(entry.node)):
                raise InvalidArgument(f"Node {name} is in use")
            parents = self.parents(entry.node)
            if entry.owned:
                self.require_no_overlay(entry.node)
            self.require_unblocked(entry.node)
            if not entry.owned:
                raise InvalidArgument(f"Node {name} is not owned by the monitor")
            if parents:
                raise InvalidArgument(f"Block device {name} is in use")
            if entry.disks:
                raise InvalidArgument(f"Node {name} is in use")
            entry.owned = False
            self.let_go(entry.node)

    def disown(self, node: Node) -> None:
        """Who added a node does not want it: it lives as long as others use it."""
        with self._changing:
            self.entry(node).owned = False
            self.let_go(node)

    def close(self) -> None:
        """Close everything; the first error is raised when all is done."""
        failures: list[BlocklayerError] = []
        with self._changing:
            for entry in list(self._entries.values()):
                entry.blocked.clear()
                for disk in list(entry.disks):
                    disk.close()
            while self._entries:
                # Whoever has no parents first: formats before their files.
                used = {id(edge.child) for edge in self._all_edges()}
                tops = [entry for entry in self._entries.values() if id(entry.node) not in used]
                for entry in tops:
                    entry.owned = False
                    try:
                        self.let_go(entry.node, recurse=False)
                    except BlocklayerError as error:
                        failures.append(error)
        if failures:
            raise failures[0]

    def _register(self, built: Built) -> Node:
        self._note(built.name, built.node, built.settings, owned=False)
        for child in built.below.values():
            self._register(child)
        self._note_below(built.node)
        return built.node

    def _note_below(self, node: Node) -> None:
        """Nodes that were opened on the way, such as the backing file that a header names."""
        for child in edges.public_children(node):
            if id(child) not in self._by_node:
                self._note(None, child, Settings(read_only=child.read_only), owned=False)
            self._note_below(child)

    def _note(self, name: str | None, node: Node, settings: Settings, *, owned: bool) -> Entry:
        entry = Entry(name or self._new_name(), node, settings, owned=owned)
        self._entries[entry.name] = self._by_node[id(node)] = entry
        return entry

    def _new_name(self) -> str:
        while True:
            self._counter += 1
            name = f"#block{self._counter}"
            if name not in self._entries:
                return name

    def let_go(self, node: Node, *, recurse: bool = True) -> None:
        """Close a node that nobody wants any more, and then what only it wanted."""
        entry = self.entry(node)
        if entry.owned or entry.disks or entry.blocked or self.parents(node):
            return
        below = [edge.child for edge in self.children(node)]
        del self._entries[entry.name], self._by_node[id(node)]
        edges.detach(node, below)
        try:
            node.close()
        finally:
            if recurse:
                for child in below:
                    if id(child) in self._by_node:
                        self.let_go(child)

    # --- blocking -------------------------------------------------------------------------------

    def block(self, node: Node, owner: object, reason: str, *, writes: bool = False) -> None:
        """`owner` (a job) works with a node: others must not remove, resize or use it for jobs.

        The node stays open until `unblock`, and can be written to if the owner `writes`.
        """
        entry = self.entry(node)
        entry.blocked[owner] = reason
        if writes:
            entry.written_by.add(owner)

    def unblock(self, owner: object) -> None:
        """Undo every `block` of an owner; nodes that nobody else wants are closed."""
        with self._changing:
            blocked = [entry for entry in self.named() if owner in entry.blocked]
            for entry in blocked:
                del entry.blocked[owner]
                entry.written_by.discard(owner)
            for entry in blocked:
                if id(entry.node) in self._by_node:
                    self.let_go(entry.node)

    def require_unblocked(
        self, name_or_node: str | Node, *, but: Callable[[object], bool] | None = None
    ) -> None:
        """Raise `InvalidArgument` if somebody blocks the node, `but` owners that do not matter."""
        entry = self.entry(name_or_node)
        for owner, reason in list(entry.blocked.items()):
            if but is None or not but(owner):
                raise InvalidArgument(f"Node '{entry.name}' is busy: {reason}")

    def require_no_overlay(self, node: Node) -> None:
        """Raise `InvalidArgument` if an image lies over the node."""
        for edge in self.parents(node):
            if edge.role == "backing":
                raise InvalidArgument(
                    f"Node '{self.name_of(node)}' is busy: node is used as backing hd of"
                    f" '{self.name_of(edge.parent)}'"
                )

    def vouch(self, node: Node, owner: object) -> None:
        """`owner` (a job) changes what a node lies over, and not what is read through the node."""
        self.entry(node).vouched_by.add(owner)

    def vouch_no_more(self, owner: object) -> None:
        """Undo every `vouch` of an owner."""
        for entry in self.named():
            entry.vouched_by.discard(owner)

    # --- disks ----------------------------------------------------------------------------------

    def open_disk(
        self,
        name_or_node: str | Node,
        *,
        writable: bool = False,
        user: str = "an unnamed block device",
        role: str = "root",
        resizes: bool = False,
        shares: frozenset[str] = ALL,
        follows: bool = True,
        stats: bool = False,
        writethrough: bool | None = None,
    ) -> GraphDisk:
        """A disk on a node, until its `close`, which leaves the node open.

        user      how errors call the one who wants it: ``mirror job 'j'``
        resizes   it changes the size
        shares    what others may do meanwhile (`core/permissions`)
        follows   whether `replace` takes it to the new node; a job's own disks stay
        stats     count requests: the disk has `stats`
        """
        with self._changing:
            entry = self.entry(name_or_node)
            if follows:
                entry = self.entry(self.top_of(entry.node))
            if writable and entry.node.read_only:
                raise ReadOnly(f"Block node is read-only: '{entry.name}'")
            needs = {READ, *([WRITE] if writable else []), *([RESIZE] if resizes else [])}
            use = Use(user, role, frozenset(needs), shares)
            graph_uses.require_use(self, entry.node, use)
            kind = _disk_class(stats)
            disk = kind(self, entry, use, follows=follows, writethrough=writethrough)
            entry.disks.append(disk)
            return disk

    def forget_disk(self, disk: GraphDisk) -> None:
        """A disk was closed."""
        with self._changing:
            for entry in self.named():
                if disk in entry.disks:
                    entry.disks.remove(disk)
                    self.let_go(entry.node)

    # --- changes --------------------------------------------------------------------------------

    @contextmanager
    def drained(self, *nodes: Node) -> Iterator[None]:
        """No request is in flight on the nodes, nor on anything above them.

        From the top downwards, since requests above wait for those below. Those that wait go on
        waiting until the outermost section has ended, also if their disk is moved meanwhile.
        """
        with self._changing, ExitStack() as stack:
            self._drains.append(stack)
            try:
                entered: list[Tracker] = []
                from_the_top = self._from_the_top(nodes)
                stack.enter_context(hurried(from_the_top))
                for node in from_the_top:
                    if node.tracker not in entered:
                        entered.append(node.tracker)
                        stack.enter_context(node.tracker.drained_section())
                yield
            finally:
                self._drains.pop()

    def unchanged(self) -> AbstractContextManager[None]:
        """Inside a `drained` section: nothing changes for now, and `looking` does not wait."""
        return self._lookers.unchanged()

    def looking(self) -> AbstractContextManager[None]:
        """The graph stays as it is meanwhile; for who is soon done, and changes nothing."""
        return self._lookers.looking()

    @contextmanager
    def recording_changes(self, node: Node) -> Iterator[Disk]:
        """A disk on which to add or remove dirty bitmaps of a node.

        Nobody writes meanwhile, and every disk above learns that its way past the node is closed.
        """
        with self.drained(node):
            yield Disk(node, owns_node=False)
            self.refresh_above(node)

    def _from_the_top(self, nodes: tuple[Node, ...]) -> list[Node]:
        """The nodes and all that stand above them, parents before children."""
        order: list[Node] = []

        def visit(node: Node) -> None:
            if any(node is each for each in order):
                return
            for edge in self.parents(node):
                visit(edge.parent)
            order.append(node)

        for node in nodes:
            visit(node)
        return order

    def replace(self, old: Node, new: Node) -> None:
        """Whoever stands on `old` stands on `new`: disks that follow, and edges of parents.

        Both are drained around it; requests that wait for that run on the new node. `new` itself,
        and what belongs to it, may go on standing on `old`.
        """
        with self.drained(old, new):
            old_entry, new_entry = self.entry(old), self.entry(new)
            for edge in self.parents(old):
                if edge.parent is not new and not self.is_below(new, edge.parent):
                    edges.turn(edge, new)
            moving = [disk for disk in old_entry.disks if disk.follows]
            shared = old.tracker is new.tracker
            gone = old.tracker
            for disk in moving:
                old_entry.disks.remove(disk)
                new_entry.disks.append(disk)
                settings = new_entry.settings
                disk.switch(new, discard=settings.discard, detect_zeroes=settings.detect_zeroes)
            if moving and not shared:
                self._renew_tracker(gone, new.tracker)
            self.refresh_above(new)

    def is_below(self, node: Node, below: Node) -> bool:
        """Whether a node stands on another one, whatever lies between them."""
        return any(
            edge.child is below or self.is_below(edge.child, below) for edge in self.children(node)
        )

    def _renew_tracker(self, gone: Tracker, taken: Tracker) -> None:
        """Requests that wait at the old place must look for their disk's new one, and wait there.

        What the graph's change consists of besides may still be undone, and with it their effect.
        """
        fresh = Tracker()
        for tracker in (fresh, taken):
            self._drains[0].enter_context(tracker.drained_section())
            self._drains[0].enter_context(tracker.calling_out())
        for entry in self.named():
            if entry.node.tracker is gone:
                entry.node.tracker = fresh
                for disk in entry.disks:
                    disk.follow_tracker()
        gone.retire()

    def refresh_above(self, node: Node) -> None:
        """Every disk above a node finds its ways past nodes anew."""
        for each in self._from_the_top((node,)):
            for disk in list(each.users):
                disk._refresh_inline()

    def resized_together(self, node: Node) -> list[Node]:
        """The node, and what shows its bytes, or whose bytes it shows: filters and raw nodes."""
        found = [node]
        for each in found:
            found += [
                edge.parent if edge.child is each else edge.child
                for edge in (*self.parents(each), *self.children(each))
                if edges.passes_on(edge) and not (edge.parent in found and edge.child in found)
            ]
        return found

    def follow_size(self, node: Node) -> None:
        """A node, which is drained, may have another size: so may what shows the same bytes."""
        for each in (*self.stored_in(node)[:0:-1], *self._from_the_top((node,))[::-1]):
            each.follow_child_size()
            if each.hooks is not None:
                each.hooks.follow(each.size)

    def insert_filter(self, node: Node, below: Node, name: str | None = None) -> None:
        """Put a filter, whose child is `below`, between `below` and everybody above it."""
        with self.drained(below):
            if name is not None:
                self.check_new_name(name)
            if isinstance(node, FilterNode) and node.reads_itself:
                graph_uses.require_use(self, below, Use("a filter", "file"))
            settings = self.entry(below).settings
            self._note(name, node, settings, owned=True)
            self.replace(below, node)
            if id(below) in self._filters:
                self._filters[id(node)] = self._filters[id(below)]
            self._filters[id(below)] = node

    def remove_filter(self, node: FilterNode, to: Node | None = None) -> None:
        """Undo `insert_filter`; `to` is what those above shall stand on, if not what is below."""
        with self._changing, ExitStack() as stack:
            below = node.child if to is None else to  # with the lock: filters come and go there
            stack.enter_context(self.drained(node, below))
            self.replace(node, below)
            for below_id, above in list(self._filters.items()):
                if above is node:
                    del self._filters[below_id]
            if (above_it := self._filters.pop(id(node), None)) is not None:
                self._filters[id(below)] = above_it
            entry = self.entry(node)
            children = [edge.child for edge in self.children(node)]
            del self._entries[entry.name], self._by_node[id(node)]
            edges.detach(node, children)
            for child in children:
                self.let_go(child)

    def snapshot(self, node: Node, overlay: Node) -> Callable[[], None]:
        """`graph_snapshot.snapshot`."""
        from blocklayer.core.graph_snapshot import snapshot

        return snapshot(self, node, overlay)

    def set_backing(self, overlay: FormatNode, backing: Node | None) -> None:
        """Change what lies below an image, in this process; the image's header is not touched."""
        with self.drained(overlay):
            before = edges.backing_of(overlay)
            overlay.attach_backing(backing)
            self.refresh_above(overlay)
            if before is not None and id(before) in self._by_node and before is not backing:
                self.let_go(before)

    def set_read_only(self, node: Node, read_only: bool, kept: Iterable[Node] = ()) -> None:
        """Open a node, and what it is stored in, again in the other mode.

        What others may write to, or is `kept`, does not become read-only. Files get other
        descriptors. So nobody is at work on them or above meanwhile, and every disk above finds its
        ways anew: the number of a closed one is soon that of another file.
        """
        stored = self.stored_in(node)
        with self.drained(*stored):
            staying = [*kept, *(each for each in stored[1:] if self._is_shared(each, stored))]
            try:
                for each in staying:
                    each.stays_writable = True
                node.reopen(read_only)
            finally:
                for each in staying:
                    each.stays_writable = False
                for each in stored:
                    self.refresh_above(each)

    def _is_shared(self, node: Node, users: list[Node]) -> bool:
        """Whether others than `users` write to a node, or could."""
        return any(WRITE in disk.use.needs for disk in self.entry(node).disks) or any(
            edge.role != "backing" and not edge.parent.read_only and edge.parent not in users
            for edge in self.parents(node)
        )

    @contextmanager
    def made_writable(self, node: Node) -> Iterator[None]:
        """A node that may be read-only can be written to meanwhile."""
        was_read_only = node.read_only
        if was_read_only:
            self.set_read_only(node, False)
        try:
            yield
        finally:
            if was_read_only:
                self.set_read_only(node, True)

    def stored_in(self, node: Node) -> list[Node]:
        """The node and all that `Node.reopen` opens again with it."""
        nodes = [node]
        for edge in self.children(node):
            if edge.role != "backing":
                nodes += self.stored_in(edge.child)
        return nodes

    def reopen(self, options: list[OptionTree]) -> None:
        """`blockdev-reopen`: other options for nodes, all or none of them."""
        from blocklayer.core.graph_reopen import reopen

        reopen(self, options)


def _has_disk_there(edge: Edge) -> bool:
    """Whether a job writes to a node itself, and not its filter: this is told in other words."""
    above = edge.parent
    by_filter = isinstance(above, FilterNode) and above.writes_target
    return edge.role == "target" and not by_filter


def _disk_class(stats: bool) -> type[GraphDisk]:
    if not stats:
        return GraphDisk
    from blocklayer.core.graph_stats import CountingGraphDisk

    return CountingGraphDisk
