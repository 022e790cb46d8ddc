# SPDX-License-Identifier: Apache-2.0
"""`blockdev-reopen`: other settings and other children for nodes, all of them or none.

Settings that are left out are what they are by default. ``backing`` may become another node or
none; given inline, it stays what it is, and its settings may be others. ``file`` may become another
node that shows the same bytes: so a filter is put below a node that is in use, or taken out. Of the
other options, those may be others that their driver declares to be `changeable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from blocklayer.base.errors import BlocklayerError, InvalidArgument
from blocklayer.base.options import OptionTree, nest
from blocklayer.core import graph_edges as edges
from blocklayer.core.graph_options import Settings, take_settings
from blocklayer.core.graph_uses import require_peace
from blocklayer.core.node import FormatNode, Node
from blocklayer.core.permissions import WRITE

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeAlias

    from blocklayer.core.graph import Entry, Graph
    from blocklayer.core.graph_edges import Edge

    Undo: TypeAlias = Callable[[], None]

HEAD = 4096
"""Bytes by which an image is recognised in another node."""

_NOT_FOUND = "Cannot find device='' nor node-name='%s'"


class _Plan:
    """What is to be done with one node.

    children  by role, those that are to be others
    changes   all options that the driver can give another value, if one of them gets one
    """

    def __init__(self, entry: Entry, settings: Settings) -> None:
        self.entry = entry
        self.settings = settings
        self.children: dict[str, Node | None] = {}
        self.changes: OptionTree | None = None


def reopen(graph: Graph, options: Iterable[OptionTree]) -> None:
    """Change nodes. Raises `InvalidArgument` and others, and then nothing has changed."""
    with graph.drained():  # of nothing yet: the graph stays as it is meanwhile
        plans = [plan for each in options for plan in _plan(graph, dict(nest(each)))]
        new = [child for plan in plans for child in plan.children.values() if child is not None]
        undoes: list[Undo] = []
        left: list[Node] = []
        with graph.drained(*(plan.entry.node for plan in plans), *new):
            try:
                for plan in plans:
                    _apply(graph, plan, undoes, left)
            except BaseException:
                for undo in reversed(undoes):
                    undo()
                raise
        for node in left:
            graph.let_go(node)


def _plan(graph: Graph, options: OptionTree, *, backing: bool = False) -> list[_Plan]:
    """What is to be done with a node, and with the images below it that are given inline."""
    name = options.pop("node-name", None)
    if name is None:
        raise InvalidArgument("node-name not specified")
    if name not in graph:
        raise InvalidArgument(f"Failed to find node with node-name='{name}'")
    entry = graph.entry(str(name))
    node = entry.node
    forced = "force-share" in options
    settings = take_settings(options, Settings(), backing=backing)
    if forced and settings.force_share != entry.settings.force_share:
        raise InvalidArgument("Cannot change the option 'force-share'")
    plan = _Plan(entry, settings.replace(options=entry.settings.options))
    plans = [plan]
    if "backing" in options and isinstance(node, FormatNode):
        below = options.pop("backing")
        if isinstance(below, dict):
            plans += _plan_inline(graph, node, below)
        else:
            _plan_backing(graph, plan, node, below)
    known = _known(entry)
    for key, value in options.items():
        if key == "driver" and value == node.driver:
            continue
        if key == "file" and isinstance(value, str):
            _plan_file(graph, plan, value)
            continue
        if isinstance(value, dict) and (edge := _edge(graph, node, key)) is not None:
            known[key] = _known(graph.entry(edge.child))
            if "node-name" not in value:
                known[key].pop("node-name", None)
        if known.get(key) != value and key not in node.changeable:
            raise InvalidArgument(f"Cannot change the option '{_differing(key, known, value)}'")
    _plan_changes(graph, plan, known, options)
    if settings.read_only and any(WRITE in use.needs for use in graph.uses(node)):
        raise InvalidArgument(f"Read-only block node '{name}' cannot support read-write users")
    if settings.read_only and entry.written_by:
        raise InvalidArgument("Cannot make block node read-only, there is a writer on it")
    return plans


def _known(entry: Entry) -> OptionTree:
    """The options of a node; of one that was opened on the way, what they would have been."""
    options = dict(nest(entry.settings.options))
    if not options:
        options = {"driver": entry.node.driver}
        if not entry.node.children:
            options["filename"] = entry.node.filename
    return options


def _plan_inline(graph: Graph, node: FormatNode, options: OptionTree) -> list[_Plan]:
    """What is below stays there, and gets the settings that are given with it."""
    below = edges.backing_of(node)
    if below is None or graph.entry(below).owned:
        raise InvalidArgument("Cannot change the option 'backing.driver'")
    name = graph.name_of(below)
    if options.get("node-name", name) != name:
        raise InvalidArgument("Cannot change the option 'backing.node-name'")
    return _plan(graph, {**options, "node-name": name}, backing=True)


def _plan_changes(graph: Graph, plan: _Plan, known: OptionTree, options: OptionTree) -> None:
    """Other values of options that the driver declares to be changeable; left out is default."""
    node = plan.entry.node
    before, after = (
        {k: tree[k] for k, default in node.changeable.items() if tree.get(k, default) != default}
        for tree in (known, options)
    )
    if before == after:
        return
    used = plan.entry.disks or plan.entry.blocked or graph.parents(node) or node.hooks
    if used and not node.changes_in_use:
        key = next(key for key in node.changeable if before.get(key) != after.get(key))
        raise InvalidArgument(f"Cannot change the option '{key}' of a node that is in use")
    plan.changes = after


def _differing(key: str, known: OptionTree, value: object) -> str:
    """The option that would be another one, with the names of those it is inside."""
    inside = known.get(key)
    if isinstance(value, dict) and isinstance(inside, dict):
        for name, each in value.items():
            if inside.get(name) != each:
                return _differing(f"{key}.{name}", {f"{key}.{name}": inside.get(name)}, each)
    return key


def _plan_backing(graph: Graph, plan: _Plan, node: FormatNode, wanted: object) -> None:
    if isinstance(wanted, str) and wanted not in graph:
        raise InvalidArgument(_NOT_FOUND % wanted)
    below = graph.find(wanted) if isinstance(wanted, str) else None
    if below is edges.backing_of(node):
        return
    if plan.entry.blocked and (now := edges.backing_of(node)) is not None:
        raise InvalidArgument(
            f"Cannot change frozen 'backing' link from '{plan.entry.name}' to"
            f" '{graph.name_of(now)}'"
        )
    graph.require_unblocked(node)
    plan.children["backing"] = below


def _plan_file(graph: Graph, plan: _Plan, name: str) -> None:
    edge = _edge(graph, plan.entry.node, "file")
    if edge is None:
        raise InvalidArgument("Cannot change the option 'file'")
    if name not in graph:
        raise InvalidArgument(_NOT_FOUND % name)
    if graph.find(name) is edge.child or graph.find_top(name) is edge.child:
        return
    if plan.entry.blocked:
        raise InvalidArgument(
            f"Cannot change frozen 'file' link from '{plan.entry.name}' to"
            f" '{graph.name_of(edge.child)}'"
        )
    plan.children["file"] = graph.find_top(name)


def _edge(graph: Graph, node: Node, role: str) -> Edge | None:
    return next((edge for edge in graph.children(node) if edge.role == role), None)


# --- doing it -----------------------------------------------------------------------------------


def _apply(graph: Graph, plan: _Plan, undoes: list[Undo], left: list[Node]) -> None:
    node, before = plan.entry.node, plan.entry.settings
    read_only, was_read_only = plan.settings.read_only, node.read_only
    given = plan.children.get("file")  # by its name, with a mode of its own
    stored = [*graph.stored_in(node)[1:], *([] if given is None else graph.stored_in(given))]
    writable = [each for each in stored if not each.read_only]

    def change_mode() -> None:
        undoes.append(lambda: _set_mode(graph, node, was_read_only, writable))
        _set_mode(graph, node, read_only, () if given is None else writable)

    if read_only:  # what has to be written before belongs into the old file
        change_mode()
    for role, child in plan.children.items():
        if child is not None and (child is node or graph.is_below(child, node)):
            raise InvalidArgument(
                f"Making '{graph.name_of(child)}' a {role} child of '{plan.entry.name}'"
                " would create a cycle"
            )
        if role == "backing":
            assert isinstance(node, FormatNode)
            _turn_backing(graph, node, child, undoes, left)
        else:
            assert child is not None
            _turn_file(graph, plan, child, undoes, left)
    if plan.changes is not None:
        undoes.append(node.change(plan.changes))
        others = {k: v for k, v in plan.settings.options.items() if k not in node.changeable}
        options = {**others, **plan.changes}
        plan.settings = plan.settings.replace(options=options)
    if not read_only:
        change_mode()
    undoes.append(lambda: _set(plan.entry, before))
    _set(plan.entry, plan.settings)


def _set_mode(graph: Graph, node: Node, read_only: bool, kept: Iterable[Node]) -> None:
    if read_only != node.read_only:
        if read_only:
            node.flush()
        graph.set_read_only(node, read_only, kept)


def _set(entry: Entry, settings: Settings) -> None:
    entry.settings = settings
    for disk in entry.disks:
        disk.switch(entry.node, discard=settings.discard, detect_zeroes=settings.detect_zeroes)


def _turn_backing(
    graph: Graph, node: FormatNode, child: Node | None, undoes: list[Undo], left: list[Node]
) -> None:
    before = node.backing
    named = edges.backing_of(node)

    def turn(below: Node | None) -> None:
        node.attach_backing(below)
        graph.refresh_above(node)

    undoes.append(lambda: turn(before))
    turn(child)
    if child is not None:
        require_peace(graph, child)
    if named is not None:
        left.append(named)


def _turn_file(
    graph: Graph, plan: _Plan, child: Node, undoes: list[Undo], left: list[Node]
) -> None:
    node = plan.entry.node
    edge = _edge(graph, node, "file")
    assert edge is not None
    before = edge.child
    if not node.read_only:
        node.flush()
    _require_same(node, before, child)

    def turn(old: Node, to: Node) -> None:
        now = _edge(graph, node, "file")
        assert now is not None
        assert now.child is old
        edges.turn(now, to)
        _rename(graph, node, old.filename, to.filename)
        graph.refresh_above(node)

    undoes.append(lambda: turn(child, before))
    turn(before, child)
    was_read_only = node.read_only
    try:
        node.read_only = plan.settings.read_only  # as it is going to be
        require_peace(graph, child)
    finally:
        node.read_only = was_read_only
    left.append(before)
    options = {**plan.settings.options, "file": graph.name_of(child)}
    plan.settings = plan.settings.replace(options=options)


def _rename(graph: Graph, node: Node, old: str, new: str) -> None:
    """Nodes are called by the file in which they are stored."""
    if node.filename == old:
        node.filename = new
        for edge in graph.parents(node):
            if edge.role == "file":
                _rename(graph, edge.parent, old, new)


def _require_same(node: Node, before: Node, child: Node) -> None:
    """Raise unless a node would find in its new child what it knows of the old one."""
    if child.size != before.size:
        raise InvalidArgument(
            f"Node '{node.filename}' cannot be put on storage of another size:"
            f" {child.size} bytes instead of {before.size}"
        )
    if node.driver == "raw" or not isinstance(node, FormatNode):
        return
    heads = []
    for storage in (before, child):
        head = bytearray(min(HEAD, storage.size))
        try:
            storage.readv(0, [memoryview(head)])
        except BlocklayerError as error:
            raise InvalidArgument(f"The image cannot be recognised: {error}") from error
        heads.append(head)
    if heads[0] != heads[1]:
        raise InvalidArgument(f"The new file does not hold the image '{node.filename}'")
