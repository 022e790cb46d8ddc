# SPDX-License-Identifier: Apache-2.0
"""Requests that are only being delayed are let go while somebody waits for them.

A drain waits for every request in flight. Those that a limit holds back would make it wait for as
long as the limit likes, and everybody who wants to change something with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from blocklayer.core.node import Node


@contextmanager
def hurried(nodes: Iterable[Node]) -> Iterator[None]:
    """Nothing on the nodes, or below them, delays requests meanwhile."""
    with ExitStack() as stack:
        for node in _delaying(nodes):
            stack.callback(node.hurry())
        yield


def _delaying(nodes: Iterable[Node]) -> list[Node]:
    found: dict[int, Node] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found[id(node)] = node
            waiting += node.children.values()
    return [node for node in found.values() if node.delays]
