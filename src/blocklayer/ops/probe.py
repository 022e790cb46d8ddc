# SPDX-License-Identifier: Apache-2.0
"""Finding out an image's format."""

from __future__ import annotations

from blocklayer.core.names import FilenameLike
from blocklayer.core.opening import Opener, OpenFlags


def probe(name: FilenameLike) -> str:
    """The format of an image by its signature; ``raw`` if it has none.

    Raises `OpenError`, also for formats that are known but cannot be opened here.
    """
    flags = OpenFlags(force_share=True, backing_chain=False)
    node = Opener(flags).open_name(name)
    try:
        return node.driver
    finally:
        node.close()
