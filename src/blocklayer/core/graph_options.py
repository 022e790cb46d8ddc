# SPDX-License-Identifier: Apache-2.0
"""From the options of `blockdev-add` to nodes: children inline, or by the name of a node.

Each node of the tree is opened by itself, so that every one of them can have a name, settings of
its own, and users besides its parent.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from blocklayer.base.errors import BlocklayerError, InvalidArgument, OpenError
from blocklayer.base.options import OptionTree, nest, parse_bool
from blocklayer.base.record import Record
from blocklayer.core.graph_edges import detach
from blocklayer.core.modes import DISCARD_MODES, check_modes
from blocklayer.core.node import Node
from blocklayer.core.node_names import check_name
from blocklayer.core.opening import CHAIN_DEPTH_MAX, CacheMode, Opener, OpenFlags

CHILD_ROLES = ("file", "backing", "raw", "test", "image", "log", "target", "data-file")


class Settings(Record, frozen=True):
    """What `blockdev-add` says of a node and every node has.

    options  as they were given, children by name
    """

    discard: str = "ignore"
    detect_zeroes: str = "off"
    read_only: bool = False
    auto_read_only: bool = False
    force_share: bool = False
    cache: CacheMode = CacheMode()
    options: OptionTree = {}  # noqa: RUF012  # never changed


class Built(Record):
    """A node that has just been opened, not yet in the graph.

    name   None if the user gave it none
    below  nodes opened for it, by role; nodes that were there before are not among them
    given  its children, both those that were opened for it and those that were there before
    """

    name: str | None
    node: Node
    settings: Settings
    below: dict[str, Built]
    given: list[Node]

    def close(self) -> None:
        """Undo: close what was opened, and nothing else."""
        detach(self.node, self.given)
        try:
            self.node.close()
        finally:
            for child in self.below.values():
                child.close()


class Builder:
    """Opens one tree of options."""

    def __init__(self, find: Callable[[str], Node], is_taken: Callable[[str], bool]) -> None:
        self._find = find
        self._is_taken = is_taken
        self._names: set[str] = set()

    def build(self, options: OptionTree) -> Built:
        """Open a tree; on failure nothing of it stays open."""
        return self._build(nest(options), Settings(), backing=False, depth=0)

    def _build(self, options: OptionTree, parent: Settings, *, backing: bool, depth: int) -> Built:
        if depth > CHAIN_DEPTH_MAX:
            raise InvalidArgument(f"Nodes are nested deeper than {CHAIN_DEPTH_MAX} levels")
        options = dict(options)
        given = dict(options)
        name = self._take_name(options)
        settings = take_settings(options, parent, backing=backing)
        if "driver" not in options:
            raise InvalidArgument("Parameter 'driver' is missing")
        children: dict[str, Node] = {}
        below: dict[str, Built] = {}
        try:
            for role in [role for role in CHILD_ROLES if role in options]:
                child = options[role]
                if isinstance(child, dict):
                    below[role] = self._build(
                        child, settings, backing=role == "backing", depth=depth + 1
                    )
                    children[role] = below[role].node
                elif role == "backing" and child == "":
                    options[role] = None  # the older way to say it
                elif isinstance(child, str):
                    children[role] = self._child(child, role)
                elif child is not None or role != "backing":
                    raise InvalidArgument(
                        f"Invalid parameter type for '{role}', expected: BlockdevRef"
                    )
            with _kept_open(children.values()):
                node = _open({**options, **children}, settings, backing=backing)
        except BaseException:
            for built in below.values():
                built.close()
            raise
        return Built(name, node, settings.replace(options=given), below, list(children.values()))

    def _child(self, name: str, role: str) -> Node:
        try:
            return self._find(name)
        except InvalidArgument as error:
            if role == "backing":
                raise InvalidArgument(f"Could not open backing file: {error}") from None
            raise

    def _take_name(self, options: OptionTree) -> str | None:
        if "node-name" not in options:
            return None
        name = check_name(options.pop("node-name"))
        if name in self._names or self._is_taken(name):
            raise InvalidArgument(f"Duplicate nodes with node-name='{name}'")
        self._names.add(name)
        return name


def take_settings(options: OptionTree, parent: Settings, *, backing: bool = False) -> Settings:
    """Take what every node has; what is not said is as for the parent, or as QEMU defaults it."""

    def flag(name: str, default: bool) -> bool:
        return parse_bool(options.pop(name), name) if name in options else default

    discard = str(options.pop("discard", "ignore"))
    discard = DISCARD_MODES.get(discard, discard)
    detect = str(options.pop("detect-zeroes", "off"))
    check_modes(discard, detect)
    cache = options.pop("cache", {})
    if not isinstance(cache, dict):
        raise InvalidArgument("Invalid parameter type for 'cache', expected: object")
    mode = parent.cache
    for key, value in cache.items():
        if key not in ("direct", "no-flush", "writeback"):
            raise InvalidArgument(f"Parameter 'cache.{key}' is unexpected")
        on = parse_bool(value, f"cache.{key}")
        if key == "writeback":
            mode = mode.replace(writethrough=not on)
        else:
            mode = mode.replace(**{key.replace("-", "_"): on})
    return Settings(
        discard,
        detect,
        flag("read-only", backing or parent.read_only),
        flag("auto-read-only", parent.auto_read_only),
        flag("force-share", parent.force_share),
        mode,
    )


def flags_of(settings: Settings, *, backing: bool = False) -> OpenFlags:
    """How the opener has to open a node of such settings."""
    return OpenFlags(
        read_only=settings.read_only,
        cache=settings.cache,
        force_share=settings.force_share,
        backing_role=backing,
    )


@contextmanager
def _kept_open(nodes: Iterable[Node]) -> Iterator[None]:
    """Drivers close the children of what they could not open, but these are not theirs to close.

    Some were there before and have other users; the others are closed by who has opened them.
    """
    kept = list(nodes)
    for node in kept:
        vars(node)["close"] = lambda: None
    try:
        yield
    finally:
        for node in kept:
            vars(node).pop("close", None)


def _open(options: OptionTree, settings: Settings, *, backing: bool) -> Node:
    flags = flags_of(settings, backing=backing)
    try:
        return Opener(flags).open_options(dict(options))
    except BlocklayerError as error:
        refused = isinstance(error, OpenError) and error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
        )
        if not (refused and settings.auto_read_only and not settings.read_only):
            raise
    return Opener(flags.replace(read_only=True)).open_options(dict(options))
