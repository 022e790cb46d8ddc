# SPDX-License-Identifier: Apache-2.0
"""Arguments and results of the commands about dirty bitmaps."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from blocklayer.qmp.types import Answer, Members, UInt32


class BitmapOf(Members, kw_only=True):
    """Which bitmap.

    node  the node it belongs to
    name  its name
    """

    node: str
    name: str


class BitmapAdd(BitmapOf, kw_only=True):
    """A new bitmap.

    node         the node it records the writes of
    name         its name
    granularity  unit, bytes (default: 64 KiB)
    persistent   keep it in the image; no format here can
    disabled     do not record yet
    """

    granularity: UInt32 | None = None
    persistent: bool | None = None
    disabled: bool | None = None


BitmapSource: TypeAlias = Annotated[BitmapOf | str, Meta(title="BlockDirtyBitmapOrStr")]
"""A bitmap of the same node by its name, or of any node."""


class BitmapMerge(Members, kw_only=True):
    """What to merge.

    node     the node of the target
    target   the bitmap that gets the marks
    bitmaps  those that give them: names of bitmaps of the same node, or bitmaps of any node
    """

    node: str
    target: str
    bitmaps: list[BitmapSource]


class BitmapDigest(Answer, kw_only=True):
    """A hash of what a bitmap marks."""

    sha256: str
