# SPDX-License-Identifier: Apache-2.0
"""What jobs that bring one node's bytes to another have in common.

engine   the bitmap of what is left to do, and the copying itself (`mirror_engine`)
steps    a few dirty runs each, taken by a few threads, in ascending order
errors   of either side, by the policies that the job was started with
filter   what the job puts above the source, to see writes; taken out at the end
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from blocklayer.base.errors import BlocklayerError, Closed, InvalidArgument
from blocklayer.base.record import Record
from blocklayer.base.units import KiB, MiB
from blocklayer.core.graph_edges import skip_filters
from blocklayer.core.graph_uses import require_peace
from blocklayer.core.mapping import row_batches
from blocklayer.core.node import FormatNode
from blocklayer.jobs.errors import job_error
from blocklayer.jobs.job import Job
from blocklayer.jobs.mirror_engine import READ, SMALL_EXTENT, WRITE, Engine, IoFailed, Moved
from blocklayer.jobs.pace import Courtesy
from blocklayer.jobs.policies import IGNORE, REPORT
from blocklayer.jobs.steps import Step, Steps
from blocklayer.jobs.workers import EarlyFlush, StepBuffer, Workers

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Unpack

    from blocklayer.base.extent import Row
    from blocklayer.core.graph import Graph
    from blocklayer.core.graph_disk import GraphDisk
    from blocklayer.core.node import Node
    from blocklayer.jobs.job import JobOptions
    from blocklayer.jobs.job_filter import JobFilter
    from blocklayer.jobs.manager import Jobs

BY_BITMAP = ("incremental", "bitmap")
"""Values of `sync` with which a bitmap says what is copied."""

SYNC_MODES = ("full", "top", "none", *BY_BITMAP)

BUFFER_DEFAULT = 16 * MiB

STEP_BYTES = 2 * MiB
"""Data that one step copies: long enough for two threads to be busy, short enough to stop."""

WRITEBACK_BYTES = 8 * MiB
"""Data after which the target's storage is told to begin to write it, while the copy goes on."""

FLUSH_BYTES = 64 * MiB
"""Data after which a target that cannot be told so is flushed."""

QUESTIONS = 32
"""Asked of the source before the answers' lengths are judged."""

LEAP = 64 * MiB
"""What is left to whoever copies it, where asking would take longer: small extents of a file."""

WORKERS = 4
"""Steps in flight where one side is far away."""

WORKERS_LOCAL = max(2, min(WORKERS, os.cpu_count() or 1))
"""Steps in flight from file to file: more only wait for each other."""

COURTESY_SECONDS_MAX = 0.2
"""The longest rest between two steps, however long one took."""

READY_FACTOR = 4
"""Nobody waits for a job that is ready: it rests longer, since busy guests overtake it anyway."""

RETRY_SECONDS = 0.05
"""Rest after an error that is to be ignored."""


class CopyOptions(Record, frozen=True):
    """Where and how a job copies.

    granularity       bytes that a bit of the bitmap stands for; 0: what suits the target
    buf_size          bytes in flight, at most; 0: the default
    max_chunk         bytes of a step, at most; 0: no limit
    max_workers       steps in flight, at most; 0: no limit
    unmap             zeroes may take space of the target away
    filter_node_name  name of what is put above the source; None: the graph makes one up
    """

    target: Node
    on_source_error: str
    on_target_error: str
    filter_node_name: str | None
    granularity: int = 0
    buf_size: int = 0
    max_chunk: int = 0
    max_workers: int = 0
    unmap: bool = True


class CopyingJob(Job):
    """Base of mirror, backup and commit."""

    target_shares: frozenset[str] = frozenset()

    def __init__(
        self,
        graph: Graph,
        jobs: Jobs,
        job_id: str,
        source: Node,
        options: CopyOptions,
        **common: Unpack[JobOptions],
    ) -> None:
        self.graph = graph
        self.source = source
        self.options = options
        self.target: GraphDisk
        self.engine: Engine
        self.failures = 0
        """Steps that have failed; `last_failure` says how the last one did."""
        self.last_failure = ""
        self._failure: str | None = None
        self._moving = 0
        self._counting = threading.Lock()
        self._courtesy = Courtesy()
        self._filter: JobFilter | None = None
        self._entered = False
        self._entering = True
        super().__init__(jobs, job_id, **common)
        try:
            self._set_up()
        except BaseException:
            self.fail_early()
            raise
        with self.changed:
            self._entering = False

    @property
    def busy(self) -> str:
        """Why others cannot have the nodes."""
        return f"block device is in use by block job: {self.type}"

    @property
    def source_is_busy(self) -> str:
        """The same for whoever wants the source, by its name."""
        return f"Node '{self.graph.name_of(self.source)}' is busy: {self.busy}"

    def _set_up(self) -> None:
        options = self.options
        self.target = self.open_target(options.target)
        self.engine = Engine(
            self.source,
            self.target,
            options.granularity or default_granularity(options.target),
            unmap=options.unmap,
            on_guest_error=self._guest_error,
            on_guest_moved=self._guest_moved,
        )
        buffer = options.buf_size or BUFFER_DEFAULT
        longest = min(STEP_BYTES, buffer, options.max_chunk or STEP_BYTES)
        self._step_bytes = max(longest, self.engine.granularity)
        self._steps = Steps(self.source, self.engine, self._step_bytes)
        name = f"blocklayer-{self.id}"
        is_local = self.source.is_local and options.target.is_local
        workers = WORKERS_LOCAL if is_local else WORKERS
        workers = min(workers, options.max_workers or workers)
        count = max(1, min(workers, buffer // self._step_bytes))
        self._workers = Workers(name, count, self._step_bytes, self._take_step)
        self._early = EarlyFlush(
            f"{name}-flush",
            every=WRITEBACK_BYTES,
            whole=FLUSH_BYTES,
            begin=self.target.node.begin_flush,
            flush=self.target.flush,
            failed=self._early_flush_failed,
        )
        for node in (self.source, options.target):
            self.graph.block(node, self, self.busy)

    def open_target(self, node: Node) -> GraphDisk:
        """The disk that the job writes to."""
        return self.graph.open_disk(
            node,
            writable=True,
            user=f"{self.type} job '{self.id}'",
            role="target",
            shares=self.target_shares,
            follows=False,
        )

    def make_filter(self, below: Node) -> JobFilter | None:
        """What shall stand above the source while the job runs, if anything.

        below  the source, or the filter that another job has there
        """
        return None

    def enter(self) -> None:
        """Put the filter in: from now on the job sees what is written."""
        with self.graph.drained(self.source):
            below = self.graph.top_of(self.source)
            node = self._filter = self.make_filter(below)
            if node is not None:
                node.children["target"] = self.options.target
                self.graph.insert_filter(node, below, self.options.filter_node_name)
                self._entered = True
                self.graph.block(node, self, self.busy)
                require_peace(self.graph, below)  # nobody writes past the filter

    def leave(self, to: Node | None = None) -> None:
        """Take the filter out: everybody stands on what was below it, or on `to`."""
        self.engine.stopped = True
        node = self._filter
        if node is not None and self._entered:
            node.children.pop("target", None)
            self.graph.remove_filter(node, to)
            self._entered = False

    def abort(self) -> None:
        """Everybody goes on where they are."""
        if hasattr(self, "_early"):
            self.engine.stopped = True
            self._workers.drain()
            self.leave()

    def clean(self) -> None:
        """Let go of the target and of the names."""
        if hasattr(self, "_early"):
            self._workers.close()
            self._early.close()
        self.graph.unblock(self)
        if hasattr(self, "target"):
            self.target.close()

    # --- progress -------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """What is done, and what is dirty or on its way."""
        if not hasattr(self, "engine"):
            return 0
        left = self.engine.dirty.count + max(0, self._moving)
        return self._current + min(left, self.engine.size)

    # --- what there is to do --------------------------------------------------------------------

    def mark(self, wanted: Callable[[Row], bool]) -> None:
        """Mark the source's extents that are wanted."""
        self._mark_some(0, wanted, leaps=False)

    def _mark_some(self, start: int, wanted: Callable[[Row], bool], *, leaps: bool) -> int:
        """Mark from `start` on; where it ends: with `leaps`, where the extents are too small."""
        asked = 0
        for batch in row_batches(self.source, start, self.engine.size - start):
            for row in batch:
                if wanted(row):
                    self.engine.dirty.set(row[0], row[1])
            self.pause_point()
            self.raise_failure()
            asked += 1
            end = batch[-1][0] + batch[-1][1]
            if leaps and asked >= QUESTIONS and end - start < asked * SMALL_EXTENT:
                return end
            if asked >= QUESTIONS:
                start, asked = end, 0
        return self.engine.size

    def mark_data(self) -> None:
        """Mark what does not read as zeroes, and whole stretches of which that is hard to tell."""
        size, dirty = self.engine.size, self.engine.dirty
        position = 0
        while position < size:
            position = self._mark_some(position, lambda row: not row[3], leaps=True)
            dirty.set(position, min(LEAP, size - position))
            position += LEAP

    def target_reads_as_zero(self) -> bool:
        """Asked once, before anything is copied in the background."""
        node = self.target.node
        for batch in row_batches(node, 0, node.size):
            if not all(row[3] for row in batch):
                return False
            self.pause_point()
        return True

    # --- doing it -------------------------------------------------------------------------------

    def copy_all(self) -> None:
        """Copy until nothing is dirty, or `has_done_enough`.

        Raises `JobCancelled`, and what went wrong.
        """
        self._steps.passes = 0
        while True:
            self.hold_back()
            self.give_way()
            self.raise_failure()
            if self.has_done_enough():
                self._workers.drain()
                return
            step = self.next_step(unless_resting=True)
            if step is not None:
                is_all = self.engine.dirty.is_empty and not self._workers.in_flight
                (self._workers.do if is_all else self._workers.submit)(step)
            elif self._workers.in_flight:
                self._workers.drain()
            elif self.engine.dirty.is_empty:
                return

    def give_way(self) -> None:
        """Between two steps: guests who are busy keep most of the machine."""
        requests = self.engine.guest_requests
        if not self.is_ending() and self._courtesy.is_due(requests):
            self._workers.drain()
            seconds = self._courtesy.rest(requests) * (READY_FACTOR if self.ready else 1)
            self.sleep(min(seconds, COURTESY_SECONDS_MAX), self.is_ending)

    def is_ending(self) -> bool:
        """Whether somebody waits for the end, so that it matters more than guests' speed."""
        return False

    def has_done_enough(self) -> bool:
        """Whether what is still dirty may be left: only to a `prepare` that copies it."""
        return False

    def at_rest(self) -> None:
        """Nothing is in flight while the job rests."""
        self._workers.drain()

    def has_failed(self) -> bool:
        """Whether a step, or a guest's, has failed for good."""
        return self._failure is not None

    def set_failure(self, error: Exception) -> None:
        """The job fails; the first reason counts."""
        self._failure = self._failure or job_error(error)
        self.cause = self.cause or error
        self.engine.stopped = True
        self.fail_soon()

    def raise_failure(self) -> None:
        """Raise `CopyFailed` if the job has failed for good; nothing is in flight then."""
        if self._failure is not None:
            self._workers.drain()
            raise CopyFailed(self._failure)

    def next_step(self, *, unless_resting: bool = False) -> Step | None:
        """The next dirty runs, no longer marked; None if there are none that nobody is at.

        unless_resting  also None if the job is to rest, which what was in flight may be the reason
                        for: it has failed, and must not be tried again before somebody says so
        """
        step = self._steps.find(self.speed)
        if step is None:
            return None
        self._workers.wait_while(lambda: any(step.overlaps(each) for each in self._flying()))
        if unless_resting and self.is_to_rest():
            return None
        self._steps.take(step)
        with self._counting:
            self._moving += step.length
        self.claim(step)
        return step

    def claim(self, step: Step) -> None:
        """A step is going to be taken: guests' writes to it from now on are to be copied again."""
        for offset, length in step.runs:
            self.engine.dirty.clear(offset, length)

    def do_step(self, step: Step, buffer: StepBuffer) -> Moved:
        """Copy the runs of a step that was claimed. Raises `IoFailed`."""
        return self.engine.copy(step.runs, buffer)

    def _flying(self) -> list[Step]:
        return list(self._workers.in_flight)

    def _take_step(self, step: Step, buffer: StepBuffer) -> None:
        """In a worker: copy, as a request on the source, so that a drain of it waits for this."""
        try:
            self.source.run(self.copy_step, step, buffer)
        except Closed as error:
            self._step_failed(step, IoFailed(READ, error))
        except Exception as error:  # noted; the worker is needed still
            self.unclaim(step)
            self.set_failure(error)

    def copy_step(self, step: Step, buffer: StepBuffer) -> None:
        """Copy, count what was moved, and leave errors to the policies."""
        moved = Moved()
        started = time.thread_time()
        try:
            moved = self.do_step(step, buffer)
            self._steps.went_well()
        except IoFailed as failure:
            self._step_failed(step, failure)
        finally:
            with self._counting:
                self._moving -= step.length
                self._current += moved.data + moved.zero
                self._courtesy.worked(time.thread_time() - started)
                self._early.written(moved.data)
            with self.changed:
                self.limit.account(moved.data)

    def unclaim(self, step: Step) -> None:
        """A step has failed: it is to be taken again."""
        for offset, length in step.runs:
            self.engine.dirty.set(offset, length)

    def _step_failed(self, step: Step, failure: IoFailed) -> None:
        self.unclaim(step)
        self.failures += 1
        self._steps.went_wrong()
        self.last_failure = job_error(failure.error)
        self._on_failure(failure)

    def _on_failure(self, failure: IoFailed) -> None:
        options = self.options
        policy = options.on_source_error if failure.side == READ else options.on_target_error
        action = self.on_error(policy, failure.side, failure.error)
        if action == REPORT:
            self.set_failure(failure.error)
        elif action == IGNORE:
            time.sleep(RETRY_SECONDS)

    def _guest_error(self, error: BlocklayerError) -> None:
        """The target could not follow a guest, who must not suffer from it."""
        if self.on_error(self.options.on_target_error, WRITE, error) == REPORT:
            self.set_failure(error)

    def _guest_moved(self, amount: int) -> None:
        with self._counting:
            self._current += amount

    def _early_flush_failed(self, error: Exception) -> None:
        """Something that was copied may be lost, and nobody knows what: no policy can help."""
        if isinstance(error, BlocklayerError):
            self.on_error(REPORT, WRITE, error)
        self.set_failure(error)

    def flush_rest(self) -> None:
        """Raises what went wrong with any flush until now."""
        self._early.wait()
        self.raise_failure()
        self.target.flush()

    def flush_target(self) -> None:
        """Flush what was copied; errors by the policy."""
        self._early.wait()
        self.raise_failure()
        while True:
            try:
                self.target.flush()
                return
            except BlocklayerError as error:
                if self.on_error(self.options.on_target_error, WRITE, error) == REPORT:
                    raise
                self.sleep(RETRY_SECONDS)
                self.pause_point()


class CopyFailed(BlocklayerError, eq=False):
    """The job has failed; the message is what it reports."""


def check_sync(sync: str) -> None:
    """Raise `InvalidArgument` unless `sync` is a word for what is copied."""
    if sync not in SYNC_MODES:
        raise InvalidArgument(f"Parameter 'sync' does not accept value '{sync}'")


def default_granularity(target: Node) -> int:
    """The target's cluster size, from 4 KiB to 64 KiB; 64 KiB for what has none."""
    node = skip_filters(target)
    if isinstance(node, FormatNode) and node.cluster_size > 1:
        return min(max(node.cluster_size, 4 * KiB), 64 * KiB)
    return 64 * KiB
