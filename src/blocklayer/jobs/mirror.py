# SPDX-License-Identifier: Apache-2.0
"""Mirror: a disk that is being written to is brought to another place, and moves there.

    start      a filter above the source sees what guests write from now on
    scan       what has to be copied at first is marked dirty
    copy       dirty granules are copied until there are none: READY
    keep up    what guests write is copied, until somebody says complete, or cancel
    catch up   guests' writes go to both sides, so that ever less is left
    complete   while no request is in flight the rest is copied, and everybody stands on the target

Without `force`, cancelling a job that is ready ends it in the same way but for the last step: the
target is a copy of that moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from blocklayer.base.align import is_power_of_two
from blocklayer.base.errors import InvalidArgument
from blocklayer.base.units import MiB
from blocklayer.core.graph_edges import skip_filters
from blocklayer.core.node import FormatNode
from blocklayer.jobs.copying import BY_BITMAP, CopyFailed, CopyingJob, CopyOptions, check_sync
from blocklayer.jobs.errors import JobCancelled, WrongState
from blocklayer.jobs.mirror_filter import MirrorFilter
from blocklayer.jobs.policies import REPORT, check_policy
from blocklayer.jobs.workers import StepBuffer

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Unpack

    from blocklayer.core.graph import Graph
    from blocklayer.core.node import Node
    from blocklayer.jobs.job import JobOptions
    from blocklayer.jobs.manager import Jobs
    from blocklayer.jobs.steps import Step

BACKGROUND, WRITE_BLOCKING = "background", "write-blocking"

GRANULARITY_MIN, GRANULARITY_MAX = 512, 64 * MiB
IDLE_SECONDS = 0.1
"""How long guests' writes collect before a mirror that is ready copies them."""

REST_SECONDS_MAX = 1.0

REST_BYTES = 16 * MiB
"""What may be left to copy while nobody can write: a moment's work."""

PASSES_MAX = 3
"""A disk that is written to all the time is never quite clean: then little enough is enough."""

RETRIES_MAX = 10
"""Errors on the way to the switch, after which guests are let go."""

ROUNDS_MAX = 10
"""Guests that write faster than the copier will not wait for each other for ever."""


class MirrorJob(CopyingJob):
    """See the module. Commit of the active layer is this as well.

    sync            ``full`` or ``top``: what has to be copied even if no guest writes
    replaces        name of the node that the target is to take the place of; None: the source
    target_is_zero  whoever has made the target knows that it reads as zeroes
    """

    type = "mirror"
    can_complete = True

    def __init__(
        self,
        graph: Graph,
        jobs: Jobs,
        job_id: str,
        source: Node,
        options: CopyOptions,
        *,
        sync: str = "full",
        replaces: str | None = None,
        copy_mode: str = BACKGROUND,
        target_is_zero: bool = False,
        **common: Unpack[JobOptions],
    ) -> None:
        self.copy_mode = copy_mode
        self._sync = sync
        self._replaces = replaces
        self._target_is_zero = target_is_zero
        self._soft_cancel = False
        self._keeping_up = False
        """The first scan is over: guests may write to the target."""
        self._judged = -1
        self._left_before = self._failures_before = 0
        self._falls_behind = False
        super().__init__(graph, jobs, job_id, source, options, **common)

    def make_filter(self, below: Node) -> MirrorFilter:
        """Sees guests' writes."""
        return MirrorFilter(below, self.engine, self.source_is_busy)

    # --- verbs ----------------------------------------------------------------------------------

    def cancel_softly(self) -> bool:
        """The target is left as a copy of this moment."""
        self._soft_cancel = True
        return True

    def check_completable(self) -> None:
        """Not after a cancellation; and the node to replace must still be there."""
        if self._soft_cancel:
            raise WrongState(f"The active block job '{self.id}' cannot be completed")
        name = self._replaces
        if name is not None and name not in self.graph:
            raise WrongState(f"Failed to find node with node-name='{name}'")

    def change(self, *, copy_mode: str) -> None:
        """From background to write-blocking or back, while it runs."""
        with self.changed:
            self._require("change")
            check_copy_mode(copy_mode)
            self.copy_mode = copy_mode
            if self._keeping_up:
                self.engine.write_blocking = copy_mode == WRITE_BLOCKING
            self.changed.notify_all()

    # --- the work -------------------------------------------------------------------------------

    def run(self) -> None:
        """Scan, copy, keep up. Raises `JobCancelled`, and what went wrong."""
        self.check_sizes()
        self.mark_first()
        with self.changed:
            self._keeping_up = True
            self.engine.write_blocking = self.copy_mode == WRITE_BLOCKING
        rounds = 0
        while True:
            started = time.monotonic()
            self.copy_all()
            if not self.ready:
                self.flush_target()
                self.become_ready()
            if self.is_ending():
                rounds += 1
                if self.engine.dirty.count <= REST_BYTES or rounds >= ROUNDS_MAX:
                    self._let_guests_follow(self.copy_mode == WRITE_BLOCKING)
                    return
                self._let_guests_follow(True)
            else:
                # As long as it has worked at least: guests have the machine for half of the time.
                rest = max(IDLE_SECONDS, min(time.monotonic() - started, REST_SECONDS_MAX))
                self.sleep(rest, self.is_ending)

    def is_ending(self) -> bool:
        """Somebody has said complete, or cancel, and waits for it."""
        return self.completing or self._soft_cancel

    def _let_guests_follow(self, follow: bool) -> None:
        with self.changed:
            self.engine.write_blocking = follow

    def has_done_enough(self) -> bool:
        """Keeping up with guests means a pass over what they have written, and a rest.

        Guests may write faster than is copied. Then more passes are of no use: they will have to
        follow, or to wait, while the rest is copied, when somebody wants the end.
        """
        if self.ready:
            if self.is_ending() and not self.engine.write_blocking:
                return True
            return self._steps.passes >= 1
        if self._steps.passes != self._judged:
            self._judge_pass()
        little = self._steps.passes >= PASSES_MAX and self.engine.dirty.count <= REST_BYTES
        return little or self._falls_behind

    def _judge_pass(self) -> None:
        """All that was dirty when a pass began was copied in it, unless something failed."""
        self._workers.drain()
        left, failures = self.engine.dirty.count, self.failures
        if self._judged >= 0 and failures == self._failures_before:
            self._falls_behind = left * 2 > self._left_before
        self._judged, self._left_before, self._failures_before = self._steps.passes, left, failures

    def check_sizes(self) -> None:
        """Nothing else is possible with a target of another size."""
        if self.target.size != self.source.size:
            raise InvalidArgument("Source and target image have different sizes")

    def mark_first(self) -> None:
        """What has to be copied even if no guest writes, and what is known of the target."""
        if self._sync == "top":
            self.mark(lambda row: row[4] and row[5] == 0)
        elif self._sync == "full":
            self._mark_all()

    def _mark_all(self) -> None:
        """Mark what makes the target equal to the source, and find out what is zero there."""
        engine = self.engine
        punching = self.target.detect_zeroes == "unmap" and engine.unmap
        is_zero = self._target_is_zero or self.target_reads_as_zero()
        if is_zero and not punching:
            engine.zero.set(0, engine.size)
            self.mark_data()
        else:
            engine.dirty.set(0, engine.size)

    # --- the end --------------------------------------------------------------------------------

    def prepare(self) -> None:
        """While nobody writes: copy the rest, and move everybody to the target, or let them go."""
        assert self._filter is not None
        self._catch_up()
        self.flush_target()  # so that the flush while guests wait has little left to do
        with self.graph.drained(self._filter):
            with self.graph.unchanged():
                self._workers.drain()
                self._copy_while(self.copy_step, lambda: not self.engine.dirty.is_empty)
                self.flush_rest()
            if self.completing and self._replaces is not None:
                # The graph may have changed since the job began.
                check_replaces(self.graph, self._replaces, self.source)
            self.make_real()
            if self.completing:
                self.pivot()
            else:
                self.leave()

    def _catch_up(self) -> None:
        """The job may have waited long for others: what was written since. Guests follow."""
        self._steps.passes = 0
        self._let_guests_follow(True)
        self._copy_while(
            self._take_step,
            lambda: self._steps.passes < ROUNDS_MAX and not self.engine.dirty.is_empty,
        )

    def _copy_while(
        self, take: Callable[[Step, StepBuffer], None], wanted: Callable[[], bool]
    ) -> None:
        """Others wait, so errors that are to be ignored are soon too many."""
        buffer = StepBuffer(self._step_bytes)
        failures = self.failures
        while wanted():
            if self.cancelled:
                raise JobCancelled
            self.raise_failure()
            if self.failures - failures >= RETRIES_MAX:
                raise CopyFailed(self.last_failure)
            step = self.next_step()
            if step is not None:
                take(step, buffer)
        self.raise_failure()

    def pivot(self) -> None:
        """Everybody stands on the target from now on."""
        name = self._replaces
        above = self._filter if name is None else self.graph.find_node(name)
        if above in (self._filter, self.source):
            self.leave(self.target.node)
        else:
            assert above is not None
            self.leave()
            self.graph.replace(above, self.target.node)


def check_copy_mode(mode: str) -> None:
    """Raise `InvalidArgument` unless there is such a mode."""
    if mode not in (BACKGROUND, WRITE_BLOCKING):
        raise InvalidArgument(f"Parameter 'copy-mode' does not accept value '{mode}'")


def start(
    graph: Graph,
    jobs: Jobs,
    *,
    device: str,
    target: str,
    sync: str,
    job_id: str | None = None,
    replaces: str | None = None,
    granularity: int = 0,
    buf_size: int = 0,
    on_source_error: str = REPORT,
    on_target_error: str = REPORT,
    filter_node_name: str | None = None,
    copy_mode: str = BACKGROUND,
    unmap: bool = True,
    target_is_zero: bool = False,
    **common: Unpack[JobOptions],
) -> MirrorJob:
    """Mirror node `device` to node `target`; the names are QMP's. Returns the job.

    With a `transaction` the job is created and not started. Raises `InvalidArgument` and other
    errors of the package; then nothing has changed.
    """
    check_sync(sync)
    if sync in BY_BITMAP:
        raise InvalidArgument(f"Sync mode '{sync}' not supported")
    check_copy_mode(copy_mode)
    check_granularity(granularity)
    if buf_size < 0:
        raise InvalidArgument("Invalid parameter 'buf-size'")
    source, destination = graph.find(device), graph.find(target)
    job_id = jobs.id_for(device, job_id)
    graph.require_unblocked(source)
    if source is destination:
        raise InvalidArgument("Can't mirror node into itself")
    graph.require_unblocked(destination)
    graph.require_no_overlay(destination)  # its bytes are going to change
    if filter_node_name is not None:
        graph.check_new_name(filter_node_name)
    if replaces is not None:
        check_replaces(graph, replaces, source)
    options = CopyOptions(
        target=destination,
        on_source_error=check_policy("on-source-error", on_source_error),
        on_target_error=check_policy("on-target-error", on_target_error),
        filter_node_name=filter_node_name,
        granularity=granularity,
        buf_size=buf_size,
        unmap=unmap,
    )
    job = MirrorJob(
        graph,
        jobs,
        job_id,
        source,
        options,
        sync=sync if has_backing(source) or sync != "top" else "full",
        replaces=replaces,
        copy_mode=copy_mode,
        target_is_zero=target_is_zero,
        **common,
    )
    job.start_if_alone()
    return job


def has_backing(node: Node) -> bool:
    """Whether there is an image below the node, filters aside."""
    node = skip_filters(node)
    return isinstance(node, FormatNode) and node.backing is not None


def check_granularity(granularity: int) -> None:
    """Raise `InvalidArgument` unless a mirror can have it; 0 is the default."""
    if granularity and not GRANULARITY_MIN <= granularity <= GRANULARITY_MAX:
        raise InvalidArgument("Parameter 'granularity' expects a value in range [512B, 64MB]")
    if granularity and not is_power_of_two(granularity):
        raise InvalidArgument("Parameter 'granularity' expects a power of 2")


def check_replaces(graph: Graph, replaces: str, source: Node) -> None:
    """Raise `InvalidArgument` unless what stands on a node would find the same on a copy."""
    node = graph.find_node(replaces)
    if skip_filters(node) is not skip_filters(source):
        name = graph.name_of(source)
        raise InvalidArgument(
            f"Cannot replace '{replaces}' by a node mirrored from '{name}', because it cannot be"
            " guaranteed that doing so would not lead to an abrupt change of visible data"
        )
