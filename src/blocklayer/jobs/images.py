# SPDX-License-Identifier: Apache-2.0
"""Mirror between images by name, with nobody else at work on them."""

from __future__ import annotations

import contextlib

from blocklayer.base.align import align_up
from blocklayer.base.errors import BlocklayerError, Cancelled, InvalidArgument
from blocklayer.base.progress import CancelToken, Progress, ProgressCallback
from blocklayer.base.record import Record
from blocklayer.base.units import SECTOR, parse_size
from blocklayer.core.graph import Graph
from blocklayer.core.graph_options import Settings
from blocklayer.core.names import FilenameLike, is_export, path_of
from blocklayer.core.opening import Opener, OpenFlags, cache_mode
from blocklayer.jobs import mirror
from blocklayer.jobs.copying import CopyFailed
from blocklayer.jobs.manager import Jobs
from blocklayer.ops.create import create, remove
from blocklayer.ops.source_guard import refuse_part_of
from blocklayer.ops.told import tell_of_target

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.core.trust import Trust
    from blocklayer.jobs.job import Job

LOOK_SECONDS = 0.1


class MirrorFailed(BlocklayerError, eq=False):
    """The job has failed in a way that has no error of its own; the message is its report."""


class MirrorResult(Record):
    """Bytes: of the disk, and of what was moved to the target."""

    size: int
    moved: int


def mirror_images(
    source: FilenameLike,
    target: FilenameLike,
    *,
    source_format: str | None = None,
    format: str = "raw",
    options: dict[str, Any] | None = None,
    make: bool = True,
    sync: str = "full",
    granularity: int = 0,
    buf_size: int = 0,
    speed: int = 0,
    target_is_zero: bool = False,
    cache: str = "writeback",
    source_cache: str = "writeback",
    discard: str = "unmap",
    detect_zeroes: str = "off",
    force_share: bool = False,
    trust: Trust | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> MirrorResult:
    """Make `target` show what `source` shows, with a mirror job.

    make     the target is a new image of `format`, removed again on failure
    options  create options of the format, with ``backing_file`` and ``backing_fmt``: with ``top``
             that backing file shows what the source's does. A ``size`` must be the source's
    sync     ``full``, or ``top``: only what the source's own layer holds
    discard  ``unmap`` (default) or ``ignore``: whether zeroes may take space of a target away
    trust    for a source that somebody else made: what it may ask for

    Raises `CreateError`, `OpenError`, `InvalidArgument`, `IoError`, `MirrorFailed`, `Cancelled`.
    """
    make = make and not is_export(target)  # as on a device, there is something already
    graph, jobs = Graph(), Jobs()
    begun = made = False
    try:
        flags = OpenFlags(
            cache=cache_mode(source_cache, "source cache"), force_share=force_share, trust=trust
        )
        node = graph.add_node(Opener(flags).open_name(source, source_format), "source")
        if make:
            refuse_part_of(node, target)
            _create(path_of(target), format, node.size, dict(options or {}))
            made = True
        flags = OpenFlags(read_only=False, cache=cache_mode(cache))
        opener = Opener(flags, discard=discard, detect_zeroes=detect_zeroes)
        opened = opener.open_name(target, format)
        settings = Settings(opener.discard, opener.detect_zeroes, cache=flags.cache)
        graph.add_node(opened, "target", settings)
        job = mirror.start(
            graph,
            jobs,
            job_id="mirror",
            device="source",
            target="target",
            sync=sync,
            granularity=granularity,
            buf_size=buf_size,
            speed=speed,
            target_is_zero=target_is_zero,
        )
        begun = True
        _follow(job, progress, cancel)
        _end(graph, jobs)
        return MirrorResult(opened.size, job.current)
    except BaseException as error:
        with contextlib.suppress(BlocklayerError):
            _end(graph, jobs)
        if made:
            remove(path_of(target))
        if begun and not isinstance(error, InvalidArgument):
            tell_of_target(error, target, made=made)
        raise


def _create(target: str, format: str, size: int, options: dict[str, Any]) -> None:
    """A target must be as large as its source: nobody could move to it otherwise."""
    if align_up(parse_size(options.pop("size", size)), SECTOR) != size:
        raise InvalidArgument("Source and target image have different sizes")
    backing = options.pop("backing_file", None)
    backing_format = options.pop("backing_fmt", None)
    create(
        target,
        format=format,
        size=size,
        backing=backing,
        backing_format=backing_format,
        **options,
    )


def _end(graph: Graph, jobs: Jobs) -> None:
    jobs.end_all()
    graph.close()


def _follow(job: Job, progress: ProgressCallback | None, cancel: CancelToken | None) -> None:
    """Tell of a job until it is ready, then end it: the target stays a copy."""
    while job.status not in ("ready", "standby") and not job.ended.is_set():
        if progress is not None:
            progress(Progress("mirror", job.current, max(job.total, 1)))
        if cancel is not None and cancel.cancelled:
            job.cancel(force=True)
            job.wait()
            raise Cancelled("mirror was cancelled")
        job.wait_for_status("ready", timeout=LOOK_SECONDS)
    if not job.ended.is_set():
        job.cancel()
        job.wait()
    if job.error is not None:
        if isinstance(job.cause, BlocklayerError) and not isinstance(job.cause, CopyFailed):
            raise job.cause  # it knows the file, and where in it
        raise MirrorFailed(job.error) from job.cause
    if progress is not None:
        progress(Progress("mirror", max(job.current, 1), max(job.current, 1)))
