# SPDX-License-Identifier: Apache-2.0
"""Running a batch: after it every request is done, or has failed with its own error.

A failure of a merged write is reported to each of its parts; independent requests still run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blocklayer.base.buffers import Vector
from blocklayer.base.errors import BlocklayerError, InvalidArgument
from blocklayer.core import io as core_io
from blocklayer.core.batch import (
    DISCARD,
    FLUSH,
    READ,
    WRITE,
    WRITE_ZEROES,
    MergedRun,
    Request,
    merge_writes,
    phases,
)
from blocklayer.core.node import NO_FALLBACK, UNMAP

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.disk import Disk


def run_batch(disk: Disk, requests: Sequence[Request]) -> int:
    """Run requests inside a tracked request of the disk; how many writes were merged away."""
    merged = 0
    for phase in phases(requests):
        writes = [request for request in phase if request.kind == WRITE]
        reads = [request for request in phase if request.kind == READ]
        others = [request for request in phase if request.kind not in (READ, WRITE)]
        merged += _run_writes(disk, writes)
        _run_reads(disk, reads)
        for request in others:
            _run_one(disk, request)
        durable = [r for r in phase if r.error is None and _must_last(disk, r)]
        if durable and (failure := attempt(disk.node.flush)) is not None:
            for request in durable:
                request.error = failure
    return merged


def _must_last(disk: Disk, request: Request) -> bool:
    """Whether a request is done only when it is on stable storage."""
    writes = request.kind in (WRITE, WRITE_ZEROES)
    return request.kind != READ and (request.fua or (writes and disk.writethrough))


def attempt(action: Callable[..., object], *arguments: object) -> BlocklayerError | None:
    """Call `action`; the package's error if it fails with one."""
    try:
        action(*arguments)
    except BlocklayerError as error:
        return error
    return None


def _run_one(disk: Disk, request: Request) -> None:
    action = _ACTIONS.get(request.kind)
    if action is None:
        request.error = InvalidArgument(f"Unknown request kind '{request.kind}'")
    else:
        request.error = attempt(action, disk, request)


def _run_reads(disk: Disk, requests: list[Request]) -> None:
    """All together: far away they are in flight at the same time."""
    valid: list[tuple[Request, memoryview]] = []
    for request in requests:
        request.error = attempt(disk.check_range, "read", request.offset, request.length)
        if request.error is None:
            view = request.view
            valid.append((request, memoryview(bytearray(request.length)) if view is None else view))
    spans = [(request.offset, [view]) for request, view in valid if request.length]
    errors = iter(disk.node.read_each(spans) if spans else ())
    for request, view in valid:
        request.error = next(errors) if request.length else None
        if request.error is None and request.view is None:
            request.result = bytes(view)


def _write_zeroes(disk: Disk, request: Request) -> None:
    flags = (UNMAP if request.unmap else 0) | (NO_FALLBACK if request.no_fallback else 0)
    disk.zero_checked(request.offset, request.length, flags)


def _discard(disk: Disk, request: Request) -> None:
    disk.discard_checked(request.offset, request.length)


def _flush(disk: Disk, request: Request) -> None:
    disk.node.flush()


_ACTIONS: dict[str, Callable[[Disk, Request], None]] = {
    WRITE_ZEROES: _write_zeroes,
    DISCARD: _discard,
    FLUSH: _flush,
}


# --- writes ---------------------------------------------------------------------------------------


def _run_writes(disk: Disk, requests: list[Request]) -> int:
    writes = []
    for request in requests:
        assert request.view is not None
        writes.append((request.offset, request.view))
    errors, merged = write_checked(disk, writes)
    for index, request in enumerate(requests):
        request.error = errors.get(index)
    return merged


def write_checked(
    disk: Disk, writes: Sequence[tuple[int, memoryview]]
) -> tuple[dict[int, BlocklayerError], int]:
    """Write (offset, view) requests that may be refused, merged where they touch.

    The errors of those that failed by index, and how many were merged into others.
    """
    errors: dict[int, BlocklayerError] = {}
    valid = []
    for index, (offset, view) in enumerate(writes):
        error = attempt(disk.check_write, "write", offset, len(view))
        if error is None:
            valid.append(index)
        else:
            errors[index] = error
    runs = merge_writes([writes[index] for index in valid])
    for run, error in zip(runs, write_merged(disk, runs), strict=True):
        if error is not None:
            for owner in run.owners:
                errors.setdefault(valid[owner], error)
    return errors, sum(len(run.owners) for run in runs) - len(runs)


def write_merged(disk: Disk, runs: list[MergedRun]) -> list[BlocklayerError | None]:
    """Write merged runs: zeroes by their own verb, what has a place inline, the rest together."""
    errors: list[BlocklayerError | None] = [None] * len(runs)
    rest: list[int] = []
    try:
        for index, run in enumerate(runs):
            if not disk.write_inline(run):
                errors[index] = attempt(disk.begin_recorded, run.offset, run.length)
                if errors[index] is None:
                    rest.append(index)
        if rest:
            _write_rest(disk, runs, rest, errors)
    finally:
        for index in rest:
            disk.end_recorded(runs[index].offset, runs[index].length)
    return errors


def _write_rest(
    disk: Disk, runs: list[MergedRun], rest: list[int], errors: list[BlocklayerError | None]
) -> None:
    data: list[tuple[int, Vector]] = []
    owners: list[int] = []
    for index in rest:
        run = runs[index]
        try:
            parts = disk.zero_detected(run.offset, run.vector)
        except BlocklayerError as error:
            errors[index] = error
            continue
        data += parts
        owners += [index] * len(parts)
    for index, failure in zip(owners, core_io.write_each(disk.node, data), strict=True):
        errors[index] = errors[index] or failure
