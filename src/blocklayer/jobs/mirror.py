# SPDX-License-Identifier: Apache-2.0
"""Mirror: a disk that is being written to is brought to another place, and moves there.

    start      a filter above the source sees what guests write from now on
    scan       what has to be copied at first is marked dirty
    copy       dirty granules are copied until there are none: READY
    keep up    what guests write is copied, until somebody says complete, or cancel
    complete   while no request is in flight the rest is copied, and everybody stands on the target

Without `force`, cancelling a job that is ready ends it in the same way but for the last step: the
target is a copy of that moment.
"""

from __future__ import annotations

import itertools
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from blocklayer.base.align import align_up, is_power_of_two
from blocklayer.base.errors import BlocklayerError, Closed, InvalidArgument
from blocklayer.base.units import KiB, MiB
from blocklayer.core.graph_edges import skip_filters
from blocklayer.core.mapping import row_batches
from blocklayer.core.node import FormatNode
from blocklayer.core.requests import Retired
from blocklayer.jobs.errors import JobCancelled, WrongState, job_error
from blocklayer.jobs.job import IGNORE, REPORT, Job, check_policy
from blocklayer.jobs.mirror_engine import READ, Engine, IoFailed, Moved
from blocklayer.jobs.mirror_filter import MirrorFilter
from blocklayer.jobs.workers import EarlyFlush, Workers

if TYPE_CHECKING:
    from blocklayer.core.graph import Graph
    from blocklayer.core.node import Node
    from blocklayer.jobs.manager import Jobs
    from blocklayer.jobs.transaction import JobTransaction

BACKGROUND, WRITE_BLOCKING = "background", "write-blocking"
SYNC_MODES = ("full", "top", "none", "incremental", "bitmap")

GRANULARITY_MIN, GRANULARITY_MAX = 512, 64 * MiB
BUFFER_DEFAULT = 16 * MiB

STEP_BYTES = 2 * MiB
"""Data that one step copies: long enough for two threads to be busy, short enough to stop."""

STEP_SPAN = 8 * MiB
"""Steps collect small dirty runs that lie near each other."""

FLUSH_BYTES = 64 * MiB
"""Data after which the target is flushed while the copy goes on."""

WORKERS = 4
"""Steps in flight; more only make the same two memory buses wait for each other."""

IDLE_SECONDS = 0.1
"""How long guests' writes collect before a mirror that is ready copies them."""

RETRY_SECONDS = 0.05
"""Rest after an error that is to be ignored."""

REST_BYTES = 16 * MiB
"""What may be left to copy while nobody can write: a moment's work."""

PASSES_MAX = 3
"""A disk that is written to all the time is never quite clean: then little enough is enough."""

ROUNDS_MAX = 10
"""Guests that write faster than the copier will not wait for each other for ever."""


class MirrorJob(Job):
    """See the module. Commit of the active layer is this as well."""

    type = "mirror"
    can_complete = True

    def __init__(
        self, graph: Graph, jobs: Jobs, job_id: str, source: Node, options: dict[str, Any]
    ) -> None:
        self.graph = graph
        self.source = source
        self.options = options
        self.copy_mode: str = options["copy_mode"]
        self._failure: str | None = None
        self._soft_cancel = False
        self._moving = 0
        self._cursor = self._passes = 0
        self._counting = threading.Lock()
        self._filter: MirrorFilter | None = None
        self._entered = False
        super().__init__(
            jobs,
            job_id,
            **{
                name: options[name]
                for name in ("speed", "auto_finalize", "auto_dismiss", "transaction")
            },
        )
        try:
            self._set_up()
        except BaseException:
            self.fail_early()
            raise

    # --- setting up -----------------------------------------------------------------------------

    def _set_up(self) -> None:
        graph, options = self.graph, self.options
        target: Node = options["target"]
        user = f"{self.type} job '{self.id}'"
        self.target = graph.open_disk(
            target,
            writable=True,
            resizes=self.type == "commit",
            user=user,
            role="target",
            shares=frozenset({"consistent read"}) if self.type == "commit" else frozenset(),
            follows=False,
        )
        self.engine = Engine(
            self.source,
            self.target,
            options["granularity"] or default_granularity(target),
            unmap=options["unmap"],
            on_guest_error=self._guest_error,
            on_guest_moved=self._guest_moved,
        )
        step = max(min(STEP_BYTES, options["buf_size"] or BUFFER_DEFAULT), self.engine.granularity)
        self._step_bytes = step
        workers = max(1, min(WORKERS, (options["buf_size"] or BUFFER_DEFAULT) // step))
        self._workers: Workers[_Step] = Workers(
            f"blocklayer-{self.id}", workers, step, self._take_step
        )
        self._early = EarlyFlush(f"blocklayer-{self.id}-flush", FLUSH_BYTES, self.target.flush)
        busy = f"block device is in use by block job: {self.type}"
        for node in (self.source, target):
            graph.block(node, self, busy)
        self._filter = MirrorFilter(
            self.source, self.engine, f"Node '{graph.name_of(self.source)}' is busy: {busy}"
        )
        self._filter.children["target"] = target

    def start(self) -> None:
        """Begin to see what is written."""
        if self.status != "created":
            return
        assert self._filter is not None
        try:
            self.graph.insert_filter(self._filter, self.source, self.options["filter_node_name"])
        except BaseException:
            self.fail_early()
            raise
        self._entered = True
        self.graph.block(self._filter, self, f"block device is in use by block job: {self.type}")
        super().start()

    # --- progress -------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """What is done, and what is dirty or on its way."""
        if not hasattr(self, "engine"):
            return 0
        left = min(self.engine.dirty.count, self.engine.size)
        return self._current + left + max(0, self._moving)

    # --- verbs ----------------------------------------------------------------------------------

    def cancel_softly(self) -> bool:
        """The target is left as a copy of this moment."""
        self._soft_cancel = True
        return True

    def check_completable(self) -> None:
        """The node to replace must still be there."""
        name = self.options["replaces"]
        if name is not None and name not in self.graph:
            raise WrongState(f"Failed to find node with node-name='{name}'")

    def apply_change(self, options: dict[str, Any]) -> None:
        """`copy_mode`, from background to write-blocking or back."""
        mode = options.pop("copy_mode", self.copy_mode)
        if options:
            raise InvalidArgument(f"Parameter '{next(iter(options))}' is unexpected")
        check_copy_mode(mode)
        self.copy_mode = mode
        if self._copying:
            self.engine.write_blocking = mode == WRITE_BLOCKING

    _copying = False
    """The first scan is over: guests may write to the target."""

    # --- the work -------------------------------------------------------------------------------

    def run(self) -> None:
        """Scan, copy, keep up. Raises `JobCancelled`, and what went wrong."""
        self._check_sizes()
        self._mark_first()
        with self.changed:
            self._copying = True
            self.engine.write_blocking = self.copy_mode == WRITE_BLOCKING
        rounds = 0
        while True:
            self._copy_all()
            if not self.ready:
                self._flush_target()
                self.become_ready()
            if self.completing or self._soft_cancel:
                rounds += 1
                if self.engine.dirty.count <= REST_BYTES or rounds >= ROUNDS_MAX:
                    return
            else:
                self.sleep(IDLE_SECONDS, lambda: self.completing or self._soft_cancel)

    def _check_sizes(self) -> None:
        if self.type == "commit":
            if self.target.size < self.source.size:
                self.target.resize(self.source.size)
        elif self.target.size != self.source.size:
            raise InvalidArgument("Source and target image have different sizes")

    def _mark_first(self) -> None:
        """What has to be copied even if no guest writes, and what is known of the target."""
        engine, sync = self.engine, self.options["sync"]
        if sync == "none":
            return
        if sync == "top":
            self._mark(lambda row: bool(row[4]) and row[5] == 0)
            return
        punching = self.target.detect_zeroes == "unmap" and engine.unmap
        is_zero = self.options["target_is_zero"] or self._target_reads_as_zero()
        if is_zero and not punching:
            engine.zero.set(0, engine.size)
            self._mark(lambda row: not row[3])
        else:
            engine.dirty.set(0, engine.size)

    def _target_reads_as_zero(self) -> bool:
        """Asked once, before any guest waits for it."""
        node = self.target.node
        for batch in row_batches(node, 0, node.size):
            if not all(row[3] for row in batch):
                return False
            self.pause_point()
        return True

    def _mark(self, wanted: Any) -> None:
        for batch in row_batches(self.source, 0, self.engine.size):
            for row in batch:
                if wanted(row):
                    self.engine.dirty.set(row[0], row[1])
            self.pause_point()
            self._raise_failure()

    def _copy_all(self) -> None:
        """Copy until nothing is dirty, or hardly anything while guests go on writing.

        Raises `JobCancelled`, and what went wrong.
        """
        self._passes = 0
        while True:
            self.hold_back()
            self._raise_failure()
            if self._passes >= PASSES_MAX and self.engine.dirty.count <= REST_BYTES:
                self._workers.drain()
                return
            step = self._next_step()
            if step is not None:
                self._workers.submit(step)
            elif self._workers.in_flight:
                self._workers.drain()
            elif self.engine.dirty.is_empty:
                return

    def at_rest(self) -> None:
        """Nothing is in flight while the job rests."""
        self._workers.drain()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self._workers.drain()
            raise _Failed(self._failure)

    def _next_step(self) -> _Step | None:
        """The next dirty runs, no longer marked; None if there are none that nobody is at."""
        step = self._collect(self._cursor)
        if step is None and self._cursor:
            self._passes += 1
            step = self._collect(0)
        if step is None:
            return None
        self._cursor = step.end if step.end < self.engine.size else 0
        self._workers.wait_while(lambda: any(step.overlaps(each) for each in self._flying()))
        with self._counting:
            self._moving += step.length
        for offset, length in step.runs:
            self.engine.dirty.clear(offset, length)
        return step

    def _flying(self) -> list[_Step]:
        return list(self._workers.in_flight)

    def _collect(self, start: int) -> _Step | None:
        engine = self.engine
        limit = self._step_limit()
        runs: list[tuple[int, int]] = []
        size = 0
        for offset, length in engine.dirty.runs(start):
            offset, length = max(offset, start), length - max(0, start - offset)
            if runs and offset + min(length, limit) - runs[0][0] > STEP_SPAN:
                break
            if not runs and length > limit and (zeroes := self._zeroes_from(offset, length)):
                return _Step([(offset, zeroes)])
            count = min(length, limit - size)
            runs.append((offset, count))
            size += count
            if size >= limit:
                break
        return _Step(runs) if runs else None

    def _step_limit(self) -> int:
        limit = self._step_bytes
        if self.speed:
            limit = min(limit, align_up(max(self.speed // 10, 1), self.engine.granularity))
        return limit

    def _zeroes_from(self, offset: int, length: int) -> int:
        """Whole granules of zeroes that the source has there now: a hint, it is looked at again."""
        try:
            row = next(row_batches(self.source, offset, length))[0]
        except (BlocklayerError, StopIteration):
            return 0  # whoever copies it meets the same error and says where
        if not row[3] or row[1] <= self._step_bytes:
            return 0
        end = offset + row[1]
        granularity = self.engine.granularity
        return row[1] if end >= self.engine.size else end // granularity * granularity - offset

    def _take_step(self, step: _Step, buffer: bytearray) -> None:
        """In a worker: copy, as a request on the source, so that a drain of it waits for this."""
        while True:
            assert self._filter is not None
            try:
                self._filter.tracker.run(self._copy_step, step, buffer)
                return
            except Retired:
                continue
            except Closed as error:
                self._step_failed(step, IoFailed(READ, error))
                return

    def _copy_step(self, step: _Step, buffer: bytearray) -> None:
        moved = Moved()
        try:
            moved = self.engine.copy(step.runs, buffer)
        except IoFailed as failure:
            self._step_failed(step, failure)
        except Exception as error:
            self._mark_again(step)
            self._failure = f"internal error: {type(error).__name__}: {error}"
            raise
        finally:
            with self._counting:
                self._moving -= step.length
                self._current += moved.data + moved.zero
                self._early.written(moved.data)
            with self.changed:
                self.limit.account(moved.data)

    def _mark_again(self, step: _Step) -> None:
        for offset, length in step.runs:
            self.engine.dirty.set(offset, length)

    def _step_failed(self, step: _Step, failure: IoFailed) -> None:
        self._mark_again(step)
        self._on_failure(failure)

    def _on_failure(self, failure: IoFailed) -> None:
        reading = failure.side == READ
        policy = self.options["on_source_error" if reading else "on_target_error"]
        action = self.on_error(policy, "read" if reading else "write", failure.error)
        if action == REPORT:
            self._failure = self._failure or job_error(failure.error)
            self.engine.stopped = True
        elif action == IGNORE:
            self._ignored.wait(RETRY_SECONDS)

    _ignored = threading.Event()
    """Never set: to rest."""

    def _guest_error(self, error: BlocklayerError) -> None:
        """The target could not follow a guest, who must not suffer from it."""
        policy = self.options["on_target_error"]
        if self.on_error(policy, "write", error) == REPORT:
            self._failure = self._failure or job_error(error)
            self.engine.stopped = True

    def _guest_moved(self, amount: int) -> None:
        with self._counting:
            self._current += amount

    def _flush_target(self) -> None:
        while True:
            try:
                self.target.flush()
                return
            except BlocklayerError as error:
                if self.on_error(self.options["on_target_error"], "write", error) == REPORT:
                    raise
                self.sleep(RETRY_SECONDS)
                self.pause_point()

    # --- the end --------------------------------------------------------------------------------

    def prepare(self) -> None:
        """While nobody writes: copy the rest, and move everybody to the target, or let them go."""
        assert self._filter is not None
        with self.graph.drained(self._filter):
            self._workers.drain()
            self._copy_rest()
            self.target.flush()
            if self.completing:
                self._pivot()
            else:
                self._leave()

    def _copy_rest(self) -> None:
        buffer = bytearray(self._step_bytes)
        while not self.engine.dirty.is_empty:
            if self.cancelled:
                raise JobCancelled
            self._raise_failure()
            step = self._next_step()
            if step is not None:
                self._copy_step(step, buffer)
        self._raise_failure()

    def _pivot(self) -> None:
        assert self._filter is not None
        name = self.options["replaces"]
        above = self._filter if name is None else self.graph.find_node(name)
        if above in (self._filter, self.source):
            self._leave(self.target.node)
        else:
            self._leave()
            self.graph.replace(above, self.target.node)

    def _leave(self, to: Node | None = None) -> None:
        """Take the filter out: everybody stands on the source again, or on the target."""
        node = self._filter
        if node is not None and self._entered:
            self.engine.stopped = True
            node.children.pop("target", None)
            self.graph.remove_filter(node, self.source if to is None else to)
            self._entered = False

    def abort(self) -> None:
        """Everybody goes on where they are."""
        if hasattr(self, "engine"):
            self.engine.stopped = True
            self._workers.drain()
        if self._filter is not None and self._entered:
            self._leave()

    def clean(self) -> None:
        """Let go of the target and of the names."""
        if hasattr(self, "_early"):
            self._workers.close()
            self._early.wait()
        self.graph.unblock(self)
        if hasattr(self, "target"):
            self.target.close()


class _Failed(BlocklayerError, eq=False):
    """The job has failed; the message is what it reports."""


class _Step:
    """Dirty runs, in ascending order, that are copied by one thread."""

    __slots__ = ("end", "length", "runs", "start")

    def __init__(self, runs: list[tuple[int, int]]) -> None:
        self.runs = runs
        self.start = runs[0][0]
        self.end = sum(runs[-1])
        self.length = sum(length for _, length in runs)

    def overlaps(self, other: _Step) -> bool:
        """Whether both may touch the same granule."""
        return self.start < other.end and other.start < self.end


def default_granularity(target: Node) -> int:
    """The target's cluster size, from 4 KiB to 64 KiB; 64 KiB for what has none."""
    node = skip_filters(target)
    if isinstance(node, FormatNode) and node.cluster_size > 1:
        return min(max(node.cluster_size, 4 * KiB), 64 * KiB)
    return 64 * KiB


def check_copy_mode(mode: str) -> None:
    """Raise `InvalidArgument` unless there is such a mode."""
    if mode not in (BACKGROUND, WRITE_BLOCKING):
        raise InvalidArgument(f"Parameter 'copy-mode' does not accept value '{mode}'")


_counter = itertools.count(1)


def start(
    graph: Graph,
    jobs: Jobs,
    *,
    device: str,
    target: str,
    sync: str,
    job_id: str | None = None,
    replaces: str | None = None,
    speed: int = 0,
    granularity: int = 0,
    buf_size: int = 0,
    on_source_error: str = REPORT,
    on_target_error: str = REPORT,
    filter_node_name: str | None = None,
    copy_mode: str = BACKGROUND,
    unmap: bool = True,
    target_is_zero: bool = False,
    auto_finalize: bool = True,
    auto_dismiss: bool = True,
    transaction: JobTransaction | None = None,
) -> MirrorJob:
    """Mirror node `device` to node `target`; the names are QMP's. Returns the job.

    With a `transaction` the job is created and not started. Raises `InvalidArgument` and other
    errors of the package; then nothing has changed.
    """
    if sync not in SYNC_MODES:
        raise InvalidArgument(f"Parameter 'sync' does not accept value '{sync}'")
    if sync in ("incremental", "bitmap"):
        raise InvalidArgument(f"Sync mode '{sync}' not supported")
    check_copy_mode(copy_mode)
    check_granularity(granularity)
    if buf_size < 0:
        raise InvalidArgument("Invalid parameter 'buf-size'")
    source, destination = graph.find(device), graph.find(target)
    if job_id is None:
        job_id = device
    jobs.check_id(job_id)
    graph.require_unblocked(source)
    if source is destination:
        raise InvalidArgument("Can't mirror node into itself")
    graph.require_unblocked(destination)
    if filter_node_name is not None:
        graph.check_new_name(filter_node_name)
    if replaces is not None:
        _check_replaces(graph, replaces, source, device)
    options = {
        "target": destination,
        "sync": sync if _has_backing(source) or sync != "top" else "full",
        "replaces": replaces,
        "speed": speed,
        "granularity": granularity,
        "buf_size": buf_size,
        "on_source_error": check_policy("on-source-error", on_source_error),
        "on_target_error": check_policy("on-target-error", on_target_error),
        "filter_node_name": filter_node_name,
        "copy_mode": copy_mode,
        "unmap": unmap,
        "target_is_zero": target_is_zero,
        "auto_finalize": auto_finalize,
        "auto_dismiss": auto_dismiss,
        "transaction": transaction,
    }
    job = MirrorJob(graph, jobs, job_id, source, options)
    if transaction is None:
        job.start()
    return job


def _has_backing(node: Node) -> bool:
    node = skip_filters(node)
    return isinstance(node, FormatNode) and node.backing is not None


def check_granularity(granularity: int) -> None:
    """Raise `InvalidArgument` unless a mirror can have it; 0 is the default."""
    if granularity and not GRANULARITY_MIN <= granularity <= GRANULARITY_MAX:
        raise InvalidArgument("Parameter 'granularity' expects a value in range [512B, 64MB]")
    if granularity and not is_power_of_two(granularity):
        raise InvalidArgument("Parameter 'granularity' expects a power of 2")


def _check_replaces(graph: Graph, replaces: str, source: Node, device: str) -> None:
    node = graph.find_node(replaces)
    if skip_filters(node) is not skip_filters(source):
        raise InvalidArgument(
            f"Cannot replace '{replaces}' by a node mirrored from '{device}', because it cannot be"
            " guaranteed that doing so would not lead to an abrupt change of visible data"
        )
    with suppress(InvalidArgument):
        graph.require_unblocked(node)
