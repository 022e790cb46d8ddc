# SPDX-License-Identifier: Apache-2.0
"""Copying from file to file inside the kernel: no byte passes through this process.

On file systems that can share blocks hardly anything is moved at all. It is tried where both ends
are plain files on such a one; elsewhere the kernel copies page by page, and two threads that read
and write are faster. Whoever calls this has another way for everything else, and for every failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from blocklayer.base.align import align_down
from blocklayer.core.disk import Disk
from blocklayer.core.drivers import PROBE_LENGTH
from blocklayer.core.node import FormatNode, Node
from blocklayer.core.share import locate

AVAILABLE = hasattr(os, "copy_file_range")

SAMPLE_STEP = 64 * 1024
"""Data is looked at in so many places for zeroes, which are better not copied at all."""


def may_copy(source: Node, target: Disk) -> bool:
    """Whether `copy_in_kernel` has a chance anywhere: it is of no use to ask it otherwise."""
    storage = _storage(target.node)
    return AVAILABLE and any(storage.can_share(found) for found in _descriptors(source))


def _storage(node: Node) -> Node:
    return node.file if isinstance(node, FormatNode) else node


def _descriptors(node: Node) -> Iterator[int]:
    """Of the plain files below a node."""
    for child in node.children.values():
        yield from _descriptors(child)
    if not node.children and node.inline_descriptor is not None:
        yield node.inline_descriptor


def copy_in_kernel(source: Node, target: Disk, offset: int, length: int) -> int:
    """Copy a prefix of a range to the same offset of the target; its length.

    0: it cannot be done for the first byte, or there seem to be zeroes that a closer look would
    find. The source must not be changed by others meanwhile, or be copied again.
    """
    if not AVAILABLE or target.detect_zeroes != "off" or target.read_only:
        return 0
    found = locate(source, offset, length)
    if found is None:
        return 0
    file, host, count = found
    descriptor = file.inline_descriptor
    if descriptor is None or host + count > file.size:
        return 0
    if not _storage(target.node).can_share(descriptor) or _shows_zeroes(descriptor, host, count):
        return 0
    return target.copy_range(descriptor, host, offset, count)


def _shows_zeroes(descriptor: int, offset: int, length: int) -> bool:
    """Whether one of a few samples is zero."""
    try:
        return any(
            not any(os.pread(descriptor, 64, position))
            for position in range(offset, offset + length, SAMPLE_STEP)
        )
    except OSError:
        return True  # whoever reads it meets the same error and says where


def copy_range(node: Node, descriptor: int, host: int, offset: int, length: int) -> int:
    """Copy bytes of an open file into a node; how many of the first ones, 0 if none can be."""
    if not isinstance(node, FormatNode):
        return _copy(descriptor, host, node, offset, min(length, node.size - offset))
    if node.probed and offset < PROBE_LENGTH:
        return 0  # a guess of the format is to be guarded
    placed = node.place(offset, length)
    if placed is not None:
        child, place, count = placed
        return _copy(descriptor, host, child, place, min(count, child.size - place))
    size = align_down(length, node.cluster_size)
    if offset % node.cluster_size or not size or _to_write(node.file) is None:
        return 0
    return node.ranges.run(
        [(offset, offset + size)], _allocate, node, descriptor, host, offset, size
    )


def _allocate(node: FormatNode, descriptor: int, host: int, offset: int, length: int) -> int:
    """New clusters for a prefix of a range, with a file's bytes in them."""
    if node.place(offset, 1) is not None:
        return 0
    plan = node.plan_write(offset, length)
    try:
        node.file.zero(plan.host, plan.length)  # the file grows as its node knows it
        if _copy(descriptor, host, node.file, plan.host, plan.length) < plan.length:
            node.abandon_writes([plan])
            return 0
        node.commit_writes([plan])
    except BaseException:
        node.abandon_writes([plan])
        raise
    return plan.length


def _copy(descriptor: int, host: int, file: Node, place: int, length: int) -> int:
    target = _to_write(file)
    if target is None or length <= 0:
        return 0
    done = 0
    try:
        while done < length:
            count = os.copy_file_range(descriptor, target, length - done, host + done, place + done)
            if not count:
                break
            done += count
    except OSError:
        return done  # whoever goes on with the rest meets the same error and says where
    return done


def _to_write(file: Node) -> int | None:
    """The descriptor of a plain file that may be written past its node: nobody wants to be told."""
    return None if file.read_only or file.children or file.watched else file.inline_descriptor
