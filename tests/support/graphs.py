# SPDX-License-Identifier: Apache-2.0
"""Images in nodes: made and opened without names, so that tests choose what they stand on."""

from __future__ import annotations

from typing import Any

from blocklayer.base.options import OptionTree
from blocklayer.core import drivers
from blocklayer.core.checking import CheckResult, Repair
from blocklayer.core.disk import Disk
from blocklayer.core.node import PROBLEMS_KEPT, FormatNode, Node
from blocklayer.core.opening import Opener, OpenFlags
from blocklayer.protocols.memory import MemoryNode
from blocklayer.testing.liar import storage

NO_REPAIR = Repair()
LEAKS = Repair(leaks=True)
ALL = Repair(leaks=True, errors=True)


def memory(name: str = "memory", size: int = 0) -> MemoryNode:
    """Storage that nobody else has."""
    return MemoryNode(size, read_only=False, name=name)


def create(node: Node, format: str = "qed", **options: Any) -> None:
    """Make a new image in a node; options as `blocklayer.create` has them."""
    driver = drivers.load(format)
    assert driver.create is not None
    assert driver.resolve is not None
    driver.create(storage(node), driver.resolve(options))


def tree(node: Node, format: str = "qed", backing: OptionTree | None = None) -> OptionTree:
    """The option tree of an image in a node, over other images."""
    options: OptionTree = {"driver": format, "file": storage(node)}
    if format != "raw":
        options["backing"] = backing
    return options


def open_node(options: OptionTree, **flags: Any) -> FormatNode:
    """Open an option tree, read-write if nothing else is said."""
    node = Opener(OpenFlags(**{"read_only": False, **flags})).open_options(options)
    assert isinstance(node, FormatNode)
    return node


def open_disk(
    node: Node, format: str = "qed", backing: OptionTree | None = None, **flags: Any
) -> Disk:
    """A disk on an image in a node. It obeys discards."""
    return Disk(open_node(tree(node, format, backing), **flags), discard="unmap")


def check(
    node: Node,
    repair: Repair = NO_REPAIR,
    format: str = "qed",
    *,
    problems_max: int | None = PROBLEMS_KEPT,
) -> CheckResult:
    """Check the image in a node without opening what lies below it."""
    opened = open_node(
        {"driver": format, "file": storage(node)},
        read_only=not repair,
        check=True,
        backing_chain=False,
    )
    assert isinstance(opened, FormatNode)
    opened.problems_max = problems_max
    try:
        return opened.check(repair)
    finally:
        opened.close()


def snapshot(node: Node) -> bytes:
    """All bytes of a node."""
    data = bytearray(node.size)
    if data:
        node.readv(0, [memoryview(data)])
    return bytes(data)
