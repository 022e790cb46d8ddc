# SPDX-License-Identifier: Apache-2.0
"""Images that commands name by their files: made on the way, and opened as nodes of the graph."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from blocklayer.base.errors import CreateError, InvalidArgument
from blocklayer.base.record import Record
from blocklayer.core.graph_edges import backing_of, skip_filters, supports_backing
from blocklayer.core.node import FormatNode, Node
from blocklayer.qmp.types import Undo

if TYPE_CHECKING:
    from blocklayer.core.graph import Graph


class Wanted(Record, frozen=True):
    """An image.

    made   it is to be made; otherwise it is there
    name   of its node
    alone  it is opened without what lies below it
    """

    path: str
    format: str
    made: bool
    name: str | None = None
    discard: str = "ignore"
    alone: bool = False


def below(source: Node, sync: str) -> Node | None:
    """What a copy of `source` is to lie over."""
    if sync == "none":
        return source
    return None if sync != "top" else backing_of(skip_filters(source))


def open_image(graph: Graph, wanted: Wanted, size: int, backing: Node | None) -> tuple[Node, Undo]:
    """The node of an image, and what undoes everything."""
    if wanted.made:
        _make(wanted, size, backing)
    options: dict[str, Any] = {
        "driver": wanted.format,
        "file": {"driver": "file", "filename": wanted.path},
        "discard": wanted.discard,
    }
    if wanted.name is not None:
        options["node-name"] = wanted.name
    if wanted.alone:
        options["backing"] = None
    try:
        node = graph.add(options)
    except BaseException:
        forget_file(wanted)
        raise

    def undo() -> None:
        graph.remove(graph.name_of(node))
        forget_file(wanted)

    return node, undo


def forget_file(wanted: Wanted) -> None:
    """Remove the file, if it was made for this."""
    if wanted.made:
        with suppress(FileNotFoundError):
            os.unlink(wanted.path)


def put_over(graph: Graph, target: Node, source: Node) -> None:
    """Let an image lie over a node that is in use."""
    if not isinstance(target, FormatNode) or not supports_backing(target):
        raise InvalidArgument(f"Format '{target.driver}' has no backing files")
    graph.set_backing(target, source)


def _make(wanted: Wanted, size: int, backing: Node | None) -> None:
    from blocklayer.ops.create import create

    options: dict[str, Any] = {}
    if backing is not None:
        options = {
            "backing": os.path.abspath(backing.filename),
            "backing_format": backing.driver,
            "check_backing": False,
        }
    try:
        create(wanted.path, format=wanted.format, size=size, **options)
    except CreateError as error:
        raise InvalidArgument(error.message) from error
