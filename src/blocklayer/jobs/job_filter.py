# SPDX-License-Identifier: Apache-2.0
"""The filter that a job puts above the node it works on, to see what is written to it.

It is its child's twin: it has the same tracker, disks and hooks. So putting it in and taking it out
moves no request from one tracker to another, a drain of either is a drain of both, and dirty
bitmaps of the child go on recording.
"""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument
from blocklayer.core.filter import FilterNode
from blocklayer.core.hooks import WriteHooks
from blocklayer.core.node import Inline, Node


class JobFilter(FilterNode):
    """Passes requests on, and lets its job see them."""

    reads_itself = True  # for its job, which has no disk there
    sees_every_write = True

    def __init__(self, child: Node, busy: str) -> None:
        super().__init__(child)
        self._busy = busy
        self.tracker = child.tracker
        self.users = child.users

    @property
    def hooks(self) -> WriteHooks | None:
        """Those of the child."""
        child: Node | None = self.__dict__.get("child")
        return None if child is None else child.hooks

    @hooks.setter
    def hooks(self, hooks: WriteHooks | None) -> None:
        child: Node | None = self.__dict__.get("child")
        if child is not None:
            child.hooks = hooks

    def set_hooks(self, hooks: WriteHooks | None) -> None:
        """The child's."""
        self.child.set_hooks(hooks)

    def inline(self) -> Inline | None:
        """Reads go straight to the child's storage; writes have to pass."""
        inline = self.child.inline()
        return None if inline is None else Inline(inline.read, None, inline.descriptor)

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Not while the job works with the size."""
        raise InvalidArgument(self._busy)
