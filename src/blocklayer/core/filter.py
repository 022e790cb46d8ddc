# SPDX-License-Identifier: Apache-2.0
"""Base of filters: the same bytes as the child's, with some other behaviour.

Everything is passed on; a filter overrides what it is there for. Events of the parent are passed on
as well, so that a listener hears them wherever it stands in a stack of filters.
"""

from __future__ import annotations

from blocklayer.base.buffers import Vector
from blocklayer.base.extent import DATA
from blocklayer.core.node import Mapped, Node

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, ClassVar


class FilterNode(Node):
    """Passes requests on to one child."""

    sees_every_write: ClassVar[bool] = False
    """Whether nobody may write to the child past this node, or resize it."""

    nameless: ClassVar[bool] = False
    """Whether it belongs to what stands above it, and nobody else sees it."""

    reads_itself: ClassVar[bool] = False
    """Whether it reads the child when nobody above asks."""

    writes_target: ClassVar[bool] = False
    """Whether it writes to its ``target`` by itself; else its job does."""

    def __init__(self, child: Node, *, role: str = "file") -> None:
        super().__init__(child.filename, read_only=child.read_only)
        self.child = child
        self.limits.opt_transfer = child.limits.opt_transfer
        self.limits.zero_alignment = child.limits.zero_alignment
        self.attach(**{role: child})

    @property
    def size(self) -> int:  # type: ignore[override]
        """As the child."""
        return self.child.size

    @property
    def grows_zeroed(self) -> bool:
        """As the child."""
        return self.child.grows_zeroed

    @property
    def zero_ability(self) -> str:
        """As the child."""
        return self.child.zero_ability

    @property
    def hears(self) -> bool:  # type: ignore[override]
        """As the child."""
        return self.child.hears

    def on_event(self, node: Node, name: str, fields: dict[str, Any]) -> None:
        """Let the child hear."""
        self.child.on_event(node, name, fields)

    def map(self, offset: int, length: int) -> Mapped:
        """The same bytes, one node further down."""
        return DATA, length, self.child, offset

    def readv(self, offset: int, vector: Vector) -> None:
        """Read from the child."""
        self.child.readv(offset, vector)

    def writev(self, offset: int, vector: Vector) -> None:
        """Write to the child."""
        self.child.writev(offset, vector)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Zero by the child's means."""
        self.child.zero(offset, length, flags)

    def check_zero(self, offset: int, length: int, flags: int = 0) -> None:
        """As the child."""
        self.child.check_zero(offset, length, flags)

    def discard(self, offset: int, length: int) -> None:
        """Discard in the child."""
        self.child.discard(offset, length)

    def flush(self) -> None:
        """Flush the child."""
        self.child.flush()

    def begin_flush(self) -> bool:
        """As the child can."""
        return self.child.begin_flush()

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Resize the child."""
        self.child.truncate(size, preallocation)

    def info(self) -> dict[str, Any]:
        """As the child."""
        return self.child.info()
