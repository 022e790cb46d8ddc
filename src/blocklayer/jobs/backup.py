# SPDX-License-Identifier: Apache-2.0
"""Backup: the disk as it was when the job began, while guests go on writing to it.

What is left to copy is in one bitmap. Before a guest changes something that is left, it copies that
to the target itself; the job copies the rest. Nobody copies anything twice:

    under the lock of the granules:  is it left?  copy it, then it is not
    after that the guest may write:  whoever looks finds that nothing is left there

A guest never fails because the target does: then the backup has failed.

The target may be an overlay of the source, and be read meanwhile: see `fleecing`.

Several backups of one node have a filter each, the later ones further up. A guest's write passes
all of them before it reaches the node; none knows of the others, and each ends when it likes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from blocklayer.base.buffers import Vector
from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.base.units import KiB
from blocklayer.core.bitmap import Bitmap, DirtyBitmap
from blocklayer.core.graph_edges import skip_filters
from blocklayer.core.mapping import row_batches
from blocklayer.core.node import FormatNode
from blocklayer.core.permissions import ALL, RESIZE
from blocklayer.jobs.copying import (
    BY_BITMAP,
    CopyingJob,
    CopyOptions,
    check_sync,
    default_granularity,
)
from blocklayer.jobs.fleecing import Fleecing, layer_over
from blocklayer.jobs.job_filter import JobFilter
from blocklayer.jobs.mirror_engine import IoFailed, Moved
from blocklayer.jobs.policies import REPORT, check_policy
from blocklayer.jobs.workers import StepBuffer

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, Unpack

    from blocklayer.core.graph import Graph
    from blocklayer.core.node import Node
    from blocklayer.jobs.job import JobOptions
    from blocklayer.jobs.manager import Jobs
    from blocklayer.jobs.steps import Step

BITMAP_MODES = ("on-success", "never", "always")

GUEST_BUFFER = 1024 * KiB

WORKERS_MAX = 2**31 - 1


class BeforeWriteFilter(JobFilter):
    """Copies what is there before it is changed."""

    driver = "copy-before-write"
    writes_target = True

    def __init__(self, child: Node, job: BackupJob, busy: str) -> None:
        super().__init__(child, busy)
        self._job = job

    def writev(self, offset: int, vector: Vector) -> None:
        """Copy, then write."""
        self._job.before_change(offset, sum(map(len, vector)))
        super().writev(offset, vector)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Copy, then zero."""
        self._job.before_change(offset, length)
        super().zero(offset, length, flags)

    def discard(self, offset: int, length: int) -> None:
        """Copy, then discard."""
        self._job.before_change(offset, length)
        super().discard(offset, length)


class BackupJob(CopyingJob):
    """See the module.

    bitmap       what is copied if `sync` is ``incremental`` or ``bitmap``
    bitmap_mode  what becomes of it: one of `BITMAP_MODES`
    layer        the target's chain lies over the source: its lowest layer, and the target
    """

    type = "backup"
    is_told_of = False
    target_shares = ALL - {RESIZE}
    _has_bitmap = False
    """Nobody else may change the bitmap: from when the job is made, so in a transaction as well."""
    _saved: Bitmap | None = None
    """What the bitmap held when the job began."""
    _fleecing: Fleecing | None = None

    def __init__(
        self,
        graph: Graph,
        jobs: Jobs,
        job_id: str,
        source: Node,
        options: CopyOptions,
        *,
        sync: str,
        bitmap: DirtyBitmap | None,
        bitmap_mode: str | None,
        layer: tuple[FormatNode, FormatNode] | None,
        **common: Unpack[JobOptions],
    ) -> None:
        self._sync = sync
        self._bitmap = bitmap
        self._bitmap_mode = bitmap_mode
        self._layer = layer
        super().__init__(graph, jobs, job_id, source, options, **common)

    def _set_up(self) -> None:
        super()._set_up()
        if self._bitmap is not None:
            self._has_bitmap = self._bitmap.busy = True

    def make_filter(self, below: Node) -> BeforeWriteFilter:
        """Sees guests' writes."""
        return BeforeWriteFilter(below, self, self.source_is_busy)

    def enter(self) -> None:
        """The moment that is kept: what the bitmap holds is taken, everything after it is new."""
        with self.graph.drained(self.source):
            super().enter()  # what may fail comes first
            if self._layer is not None:
                self._fleecing = Fleecing(self.graph, self.engine, *self._layer)
                self._fleecing.begin()
            bitmap = self._bitmap
            if bitmap is not None:
                self._saved = bitmap.copy()
                if self._bitmap_mode != "never":
                    bitmap.clear()
            if self._sync in BY_BITMAP:
                assert self._saved is not None
                self.engine.dirty.merge(self._saved)
            else:
                self.engine.dirty.set(0, self.engine.size)

    def leave(self, to: Node | None = None) -> None:
        """Take the filter out; nothing is kept any more."""
        if self._fleecing is None:
            super().leave(to)
            return
        with self.graph.drained(self.source):
            kept = not (self.engine.stopped and self._has_gone)
            self._fleecing.end(complete=kept)
            super().leave(to)

    def _copying_up(self) -> AbstractContextManager[None]:
        return nullcontext() if self._fleecing is None else self._fleecing.copying()

    # --- guests ---------------------------------------------------------------------------------

    def before_change(self, offset: int, length: int) -> None:
        """A guest is going to change a range."""
        engine = self.engine
        if engine.stopped or not engine.dirty.any_set(offset, length):
            return
        try:
            with self._copying_up():
                moved = engine.copy_marked([(offset, length)], StepBuffer(GUEST_BUFFER), whole=True)
            self._guest_moved(moved.data + moved.zero)
        except IoFailed as failure:
            self.on_error(REPORT, failure.side, failure.error)
            self.set_failure(failure.error)

    # --- the work -------------------------------------------------------------------------------

    def run(self) -> None:
        """Copy what is left until nothing is. Raises `JobCancelled`, and what went wrong."""
        sync = self._sync
        if sync == "none":
            while True:  # guests' writes alone; until it is cancelled
                self.pause_point()
                self.raise_failure()
                self.sleep(1, self.has_failed)
        if sync == "top":
            self._leave_out_backing()
        punching = self.target.detect_zeroes == "unmap"
        alone = self._fleecing is None  # else what is zero there is what the source has now
        if sync == "full" and alone and not punching and self.target_reads_as_zero():
            self.engine.know_dirty_as_zero()
        self.copy_all()
        self.flush_target()

    def _leave_out_backing(self) -> None:
        """Unmark what the top layer does not have. What a guest adds to it meanwhile was copied."""
        wanted = Bitmap(self.engine.size, self.engine.granularity)
        for batch in row_batches(self.source, 0, self.engine.size):
            for row in batch:
                if row[4] and row[5] == 0:
                    wanted.set(row[0], row[1])
            self.pause_point()
            self.raise_failure()
        self.engine.dirty.keep_only(wanted)

    @property
    def total(self) -> int:
        """What is done and what is left: that stays marked until it is done."""
        if not hasattr(self, "engine"):
            return 0
        return self._current + min(self.engine.dirty.count, self.engine.size)

    def unclaim(self, step: Step) -> None:
        """Nothing: it is marked still, but for what guests have copied meanwhile."""

    def claim(self, step: Step) -> None:
        """Nothing: what is left is unmarked when it has been copied."""

    def do_step(self, step: Step, buffer: StepBuffer) -> Moved:
        """Copy what is still left of a step."""
        with self._copying_up():
            return self.engine.copy_marked(step.runs, buffer)

    # --- the end --------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Guests need not copy any more."""
        self.flush_rest()
        self.leave()

    def commit(self) -> None:
        """What was written since the beginning is what the next backup has to copy."""
        self._release_bitmap()

    def abort(self) -> None:
        """What was to be copied is to be copied the next time."""
        super().abort()
        bitmap, saved = self._bitmap, self._saved
        if bitmap is not None and saved is not None:
            if self._bitmap_mode == "on-success" or not self._has_gone:
                bitmap.merge(saved)
            elif self._bitmap_mode == "always":
                for offset, length in self.engine.dirty.runs():
                    bitmap.set(offset, length)
                if self._sync not in BY_BITMAP:
                    bitmap.merge(saved)
        self._release_bitmap()

    def _release_bitmap(self) -> None:
        if self._has_bitmap:
            assert self._bitmap is not None
            self._bitmap.busy = self._has_bitmap = False


def start(
    graph: Graph,
    jobs: Jobs,
    *,
    device: str,
    target: str,
    sync: str,
    job_id: str | None = None,
    bitmap: str | None = None,
    bitmap_mode: str | None = None,
    compress: bool = False,
    on_source_error: str = REPORT,
    on_target_error: str = REPORT,
    filter_node_name: str | None = None,
    x_perf: dict[str, Any] | None = None,
    **common: Unpack[JobOptions],
) -> BackupJob:
    """Back up node `device` to node `target`; the names are QMP's. Returns the job.

    With a `transaction` the job is created and not started. Raises `InvalidArgument` and other
    errors of the package; then nothing has changed.
    """
    check_sync(sync)
    source, destination = graph.find(device), graph.find(target)
    job_id = jobs.id_for(device, job_id)
    if source is destination:
        raise InvalidArgument("Source and target cannot be the same")
    if compress:
        raise NotSupported("Compression is not supported for this drive ")
    if sync in BY_BITMAP and bitmap is None:
        raise InvalidArgument(f"must provide a valid bitmap name for '{sync}' sync mode")
    found = find_bitmap(source, bitmap)
    sync, bitmap_mode = check_bitmap_options(sync, bitmap, bitmap_mode)
    graph.require_unblocked(source, but=lambda owner: _backs_up(owner, source))
    graph.require_unblocked(destination)
    perf = x_perf or {}
    _check_perf(perf)
    if source.size != destination.size:
        raise InvalidArgument("Source and target image have different sizes")
    if filter_node_name is not None:
        _check_filter_name(graph, filter_node_name)
    _check_chunk(perf, destination)
    granularity = max(64 * KiB, default_granularity(destination))
    layer = layer_over(graph, destination, source)
    options = CopyOptions(
        target=destination,
        on_source_error=check_policy("on-source-error", on_source_error),
        on_target_error=check_policy("on-target-error", on_target_error),
        filter_node_name=filter_node_name,
        granularity=granularity if found is None else min(granularity, found.granularity),
        max_chunk=perf.get("max-chunk", 0),
        max_workers=perf.get("max-workers", 0),
    )
    job = BackupJob(
        graph,
        jobs,
        job_id,
        source,
        options,
        sync=sync,
        bitmap=found,
        bitmap_mode=bitmap_mode,
        layer=layer,
        **common,
    )
    job.start_if_alone()
    return job


def _check_perf(perf: dict[str, Any]) -> None:
    """Raise `InvalidArgument` for limits without a meaning."""
    if not 1 <= perf.get("max-workers", 1) <= WORKERS_MAX:
        raise InvalidArgument(f"max-workers must be between 1 and {WORKERS_MAX}")
    if perf.get("max-chunk", 0) < 0:
        raise InvalidArgument("max-chunk must be zero (which means no limit) or positive")


def _check_chunk(perf: dict[str, Any], target: Node) -> None:
    """Raise `InvalidArgument` for chunks of which the target could hold no whole one."""
    node = skip_filters(target)
    least = max(64 * KiB, node.cluster_size if isinstance(node, FormatNode) else 0)
    chunk = perf.get("max-chunk", 0)
    if 0 < chunk < least:
        raise InvalidArgument(
            f"Required max-chunk ({chunk}) is less than backup cluster size ({least})"
        )


def _check_filter_name(graph: Graph, name: str) -> None:
    try:
        graph.check_new_name(name)
    except InvalidArgument as error:
        raise InvalidArgument(f"Could not create node: {error.message}") from error


def _backs_up(owner: object, source: Node) -> bool:
    """Whether a job is a backup of this node, which others may back up as well."""
    return isinstance(owner, BackupJob) and owner.source is source


def check_bitmap_options(sync: str, bitmap: str | None, mode: str | None) -> tuple[str, str | None]:
    """Raise `InvalidArgument` for combinations without a meaning; sync and bitmap mode to use."""
    if mode is not None and mode not in BITMAP_MODES:
        raise InvalidArgument(f"Parameter 'bitmap-mode' does not accept value '{mode}'")
    if sync == "incremental":
        if mode not in (None, "on-success"):
            raise InvalidArgument(
                "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'"
            )
        mode = "on-success"
    if bitmap is None:
        if mode is not None:
            raise InvalidArgument("Cannot specify bitmap sync mode without a bitmap")
        return sync, None
    if mode is None:
        raise InvalidArgument("Bitmap sync mode must be given when providing a bitmap")
    if sync == "none":
        raise InvalidArgument("sync mode 'none' does not produce meaningful bitmap outputs")
    if mode == "never" and sync != "bitmap":
        raise InvalidArgument(
            "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode"
            f" '{sync}'"
        )
    return sync, mode


def find_bitmap(node: Node, name: str | None) -> DirtyBitmap | None:
    """The bitmap of a node, if one is wanted. Raises `InvalidArgument`."""
    if name is None:
        return None
    bitmap = node.hooks.bitmaps.get(name) if node.hooks is not None else None
    if bitmap is None:
        raise InvalidArgument(f"Bitmap '{name}' could not be found")
    bitmap.require_free()
    return bitmap
