# SPDX-License-Identifier: Apache-2.0
"""What an image is, without opening what it is backed by."""

from __future__ import annotations

from blocklayer.base.errors import ChainError, LockError, OpenError
from blocklayer.base.record import Record, fresh
from blocklayer.core.identity import file_identity
from blocklayer.core.names import FilenameLike, backing_path
from blocklayer.core.node import FormatNode, Node
from blocklayer.core.opening import CHAIN_DEPTH_MAX, Opener, OpenFlags
from blocklayer.ops.shown_name import shown_name

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.core.trust import Reach, Trust


WITHOUT_FLAGS = ("nbd", "null-aio", "null-co")
"""Storage of which QEMU tells no dirty flag, unless the format above it has one."""

_COMMON = ("cluster-size", "dirty-flag")


class ImageInfo(Record, frozen=True):
    """Facts about an image; sizes in bytes, None for what does not apply.

    actual_size            bytes its file takes on the file system
    dirty_flag             it was not closed in order; None for what is stored in no file
    backing_filename       as stored in the image
    full_backing_filename  as seen from here; None if it cannot be told
    limits                 alignments and largest transfer; zero-ability: native, emulate or none
    reaches                with a `Trust`: what the image asks for, and what would be refused
    """

    filename: str
    format: str
    virtual_size: int
    actual_size: int | None = None
    cluster_size: int | None = None
    dirty_flag: bool | None = False
    backing_filename: str | None = None
    full_backing_filename: str | None = None
    backing_format: str | None = None
    format_specific: dict[str, Any] = fresh(factory=dict)
    limits: dict[str, Any] = fresh(factory=dict)
    reaches: list[Reach] | None = None

    def as_dict(self) -> dict[str, Any]:
        """QEMU's ImageInfo: its names, and only the members that apply."""
        members: dict[str, Any] = {
            "virtual-size": self.virtual_size,
            "filename": self.filename,
            "cluster-size": self.cluster_size,
            "format": self.format,
            "actual-size": self.actual_size,
            "full-backing-filename": self.full_backing_filename,
            "backing-filename": self.backing_filename,
            "backing-filename-format": self.backing_format,
            "dirty-flag": self.dirty_flag,
            "reaches": None if self.reaches is None else [r.as_dict() for r in self.reaches],
        }
        return {name: value for name, value in members.items() if value is not None}


def info(
    name: FilenameLike,
    *,
    format: str | None = None,
    force_share: bool = False,
    trust: Trust | None = None,
) -> ImageInfo:
    """Facts about one image. Raises `OpenError`.

    With a `trust` for images that somebody else made, `reaches` tells what this one asks for.
    Nothing of that is opened or even looked for, and it is told rather than refused.
    """
    return _inspect(name, format, force_share, trust=trust)[0]


def info_chain(
    name: FilenameLike,
    *,
    format: str | None = None,
    force_share: bool = False,
    trust: Trust | None = None,
) -> list[ImageInfo]:
    """Facts about an image and everything below it, top first. Raises `OpenError`, `ChainError`.

    With a `trust` the chain is opened as `blocklayer.open` would: what it forbids is an error.
    """
    if trust is not None:
        return _trusted_chain(name, format, force_share, trust)
    chain: list[ImageInfo] = []
    seen: set[tuple[int, int]] = set()
    next_name: FilenameLike | None = name
    while next_name is not None:
        found, identity = _inspect(next_name, format, force_share, stored=bool(chain))
        if identity is not None and identity in seen:
            raise ChainError(
                f"Backing file '{found.filename}' creates an infinite loop.", found.filename
            )
        if len(chain) > CHAIN_DEPTH_MAX:
            raise ChainError(
                f"The backing chain of '{name}' is deeper than {CHAIN_DEPTH_MAX} layers",
                chain[0].filename,
            )
        if identity is not None:
            seen.add(identity)
        chain.append(found)
        next_name, format = found.full_backing_filename, found.backing_format
    return chain


def _trusted_chain(
    name: FilenameLike, format_name: str | None, force_share: bool, trust: Trust
) -> list[ImageInfo]:
    """By the very descriptors that were found to be good: names could mean other files by now."""
    flags = OpenFlags(force_share=force_share, trust=trust)
    top = Opener(flags).open_name(name, format_name)
    try:
        chain: list[ImageInfo] = []
        node: Node | None = top
        while node is not None:
            shown = node.filename if chain else shown_name(name, node)
            chain.append(_describe(node, shown, trust))
            trust = trust.anchored(node.filename)
            node = node.backing if isinstance(node, FormatNode) else None
        return chain
    finally:
        top.close()


def _inspect(
    name: FilenameLike,
    format_name: str | None,
    force_share: bool,
    *,
    stored: bool = False,
    trust: Trust | None = None,
) -> tuple[ImageInfo, tuple[int, int] | None]:
    if trust is not None:
        trust.check_given(name)
    flags = OpenFlags(force_share=force_share, backing_chain=False)
    try:
        node = Opener(flags, stored=stored).open_name(name, format_name)
    except OpenError as error:
        node = _open_shared_raw(name, format_name, error)
    try:
        return _describe(node, shown_name(name, node), trust), file_identity(node)
    finally:
        node.close()


def _open_shared_raw(name: FilenameLike, format_name: str | None, error: OpenError) -> Node:
    """A raw image has no tables that a writer could be changing: a lock is no reason to refuse."""
    if not isinstance(error.__cause__, LockError):
        raise error
    flags = OpenFlags(force_share=True, backing_chain=False)
    node = Opener(flags).open_name(name, format_name)
    if node.driver != "raw":
        node.close()
        raise error
    return node


def _describe(node: Node, shown: str, trust: Trust | None) -> ImageInfo:
    specific = dict(node.info())
    backing = node.backing_filename if isinstance(node, FormatNode) else None
    full = None
    if backing is not None:
        try:
            full = backing_path(node.filename, backing)
        except OpenError:
            full = None
    return ImageInfo(
        filename=shown,
        format=node.driver,
        virtual_size=node.size,
        actual_size=_actual_size(node),
        cluster_size=specific.get("cluster-size"),
        dirty_flag=dirty_flag(node, specific),
        backing_filename=backing,
        full_backing_filename=full,
        backing_format=node.backing_format if isinstance(node, FormatNode) else None,
        format_specific={key: specific[key] for key in specific if key not in _COMMON},
        limits=_limits(node),
        reaches=_reaches(node, trust),
    )


def _reaches(node: Node, trust: Trust | None) -> list[Reach] | None:
    if trust is None or not isinstance(node, FormatNode):
        return None
    from blocklayer.core.trust import reaches

    return reaches(node, trust)


def _limits(node: Node) -> dict[str, Any]:
    """What requests should look like, in bytes, and how zeroing is done if it is allowed."""
    return {
        "request-alignment": node.limits.request_alignment,
        "max-transfer": node.limits.max_transfer,
        "opt-transfer": node.limits.opt_transfer,
        "zero-alignment": node.limits.zero_alignment,
        "zero-ability": node.zero_ability,
    }


def dirty_flag(node: Node, specific: dict[str, Any]) -> bool | None:
    """Whether an image says that it was not closed in order; None where there can be none."""
    flag: bool | None = specific.get("dirty-flag")
    if flag is None and _storage(node).driver not in WITHOUT_FLAGS:
        flag = False
    return flag


def _storage(node: Node) -> Node:
    while below := node.children.get("file") or node.children.get("image"):
        node = below
    return node


def _actual_size(node: Node) -> int | None:
    size = _storage(node).info().get("actual-size")
    return size if isinstance(size, int) else None
