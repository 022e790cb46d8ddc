# SPDX-License-Identifier: Apache-2.0
"""The `copy-on-read` filter: what is read from a backing file is stored in the overlay as well."""

from __future__ import annotations

from blocklayer.base.buffers import Vector, vector_length
from blocklayer.base.errors import InvalidArgument
from blocklayer.base.options import OptionTree
from blocklayer.core import io as core_io
from blocklayer.core.drivers import FILTER, Driver
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import FormatNode, Node
from blocklayer.core.opening import Opener


class CopyOnReadNode(FilterNode):
    """Copies up before it reads. A layer that cannot be written to is only read."""

    driver = "copy-on-read"

    def __init__(self, child: FormatNode) -> None:
        super().__init__(child)
        self._layer = child

    def readv(self, offset: int, vector: Vector) -> None:
        """Copy up what is below, then read it from the layer."""
        if not self._layer.read_only and self._layer.backing is not None:
            core_io.copy_up(self._layer, offset, vector_length(vector))
        self._layer.readv(offset, vector)


def _open(opener: Opener, options: OptionTree) -> Node:
    child = opener.open_child(options, "file")
    if not isinstance(child, FormatNode):
        child.close()
        raise InvalidArgument("copy-on-read needs an image of a format with backing files below")
    return CopyOnReadNode(child)


DRIVER = Driver(name="copy-on-read", kind=FILTER, open=_open)
