# SPDX-License-Identifier: Apache-2.0
"""A job: something that goes on in a thread of its own, and is steered from others.

Subclasses do the work in `run`, in steps between which they call `pause_point`; then `prepare`
(may fail), and `commit` or `abort`, and `clean` in any case.

All state is guarded by the manager's lock, which is never held while data moves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from blocklayer.jobs import states
from blocklayer.jobs.errors import JobCancelled, WrongState, job_error
from blocklayer.jobs.manager import Jobs
from blocklayer.jobs.pace import SpeedLimit, check_speed
from blocklayer.jobs.policies import REPORT, STOP, action_for, is_out_of_space
from blocklayer.jobs.transaction import JobTransaction

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, ClassVar, TypedDict

    from blocklayer.base.errors import BlocklayerError

    class JobOptions(TypedDict, total=False):
        """What every job may be told when it is made, see `Job`; defaults are those there."""

        speed: int
        auto_finalize: bool
        auto_dismiss: bool
        transaction: JobTransaction | None


class Job:
    """Base of all jobs.

    id             unique among the jobs of a manager
    device         what events call it: its id
    current total  progress in bytes (or steps); neither `current` nor its share runs backwards
    error          why it failed, once it has
    auto_finalize  it ends by itself when its work is done
    auto_dismiss   it is forgotten by itself when it has ended
    """

    type: ClassVar[str] = ""
    is_block_job: ClassVar[bool] = True
    can_complete: ClassVar[bool] = False
    _entering = False
    """A thread is setting it up: who cancels it now leaves the rest to that thread."""
    _has_gone = False
    """It has been let go: before that, nothing it has done has met a guest's request."""
    is_told_of = True
    """Whether the world hears of its states; of some kinds not before they have begun."""

    def __init__(
        self,
        jobs: Jobs,
        job_id: str,
        *,
        speed: int = 0,
        auto_finalize: bool = True,
        auto_dismiss: bool = True,
        transaction: JobTransaction | None = None,
    ) -> None:
        check_speed(speed)
        self.id = job_id
        self.status = states.UNDEFINED
        self.error: str | None = None
        self.cause: Exception | None = None
        """What `error` tells of."""
        self.auto_finalize = auto_finalize
        self.auto_dismiss = auto_dismiss
        self.io_status = "ok"
        self.limit = SpeedLimit(speed)
        self.jobs = jobs
        self.changed = jobs.changed
        self.cancelled = False
        """It ends without a result."""
        self.completing = False
        """Somebody has called `complete`."""
        self._is_real = False
        """Its result cannot be undone: it succeeds, whatever others want now."""
        self.ended = threading.Event()
        """It has reached its end: its thread does nothing any more."""
        self._current = self._total = 0
        self._user_paused = False
        self._at_rest = False
        self._is_alone = transaction is None
        self._transaction = transaction or JobTransaction()
        jobs.register(self)  # raises if the id is not free
        self._transaction.join(self)
        self.transition(states.CREATED)

    # --- what it is -----------------------------------------------------------------------------

    @property
    def current(self) -> int:
        """Bytes done."""
        return self._current

    @property
    def total(self) -> int:
        """Bytes to do, as far as is known now."""
        return self._total

    @property
    def speed(self) -> int:
        """Bytes per second; 0 is no limit."""
        return self.limit.speed

    @property
    def paused(self) -> bool:
        """Whether somebody has paused it."""
        return self._user_paused

    @property
    def ready(self) -> bool:
        """Whether `complete` would be accepted."""
        return self.status in (states.READY, states.STANDBY)

    def info(self) -> dict[str, Any]:
        """A member of `query-jobs`."""
        with self.changed:
            info = {
                "id": self.id,
                "type": self.type,
                "status": self.status,
                "current-progress": self.current,
                "total-progress": self.total,
            }
            return info if self.error is None else info | {"error": self.error}

    def block_info(self) -> dict[str, Any]:
        """A member of `query-block-jobs`."""
        with self.changed:
            info = {
                "type": self.type,
                "device": self.id,
                "len": self.total,
                "offset": self.current,
                "busy": not self._at_rest and not self.ended.is_set(),
                "paused": self.paused,
                "speed": self.speed,
                "io-status": self.io_status,
                "ready": self.ready,
                "status": self.status,
                "auto-finalize": self.auto_finalize,
                "auto-dismiss": self.auto_dismiss,
            }
            return info if self.error is None else info | {"error": self.error}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.status} {self.current}/{self.total}>"

    # --- verbs ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, and go; returns at once."""
        self.begin()
        self.go()

    def start_if_alone(self) -> None:
        """Start, unless whoever has the job's transaction has all of its jobs begin, and go."""
        if self._is_alone:
            self.start()

    def begin(self) -> None:
        """All of a start that can fail, or that changes the graph; then comes `go` or `take_back`.

        Raises what went wrong, and then nothing of the job remains.
        """
        with self.changed:
            if self.status != states.CREATED:  # cancelled with its group
                return
            self._entering = True
        thread = threading.Thread(target=self._live, name=f"blocklayer-{self.id}", daemon=True)
        try:
            self.enter()
            thread.start()  # it waits: a thread that cannot be had is to be known now
        except BaseException:
            self.fail_early()
            raise
        self._tell_of_it()

    def go(self) -> None:
        """Work, after `begin`. Cannot fail."""
        with self.changed:
            if self.status == states.CREATED:
                self._entering = False
                self._has_gone = True
                self.transition(states.RUNNING)

    def take_back(self) -> None:
        """Instead of `go`: undo `begin` and forget the job. Raises what went wrong on the way."""
        with self.changed:
            if self.status != states.CREATED:
                return
            self.cancelled = True
            self._transaction.fail(self)
            self.transition(states.ABORTING)
        self._bury()
        if self.cause is not None:
            raise self.cause

    def pause(self) -> None:
        """Stop at the next pause point, until `resume`."""
        with self.changed:
            self._require("pause")
            if self._user_paused:
                raise WrongState("Job is already paused")
            self._user_paused = True
            self.changed.notify_all()

    def resume(self) -> None:
        """Undo `pause`, or go on after an error that has stopped the job."""
        with self.changed:
            self._require("resume")
            if not self._user_paused:
                raise WrongState("Can't resume a job that was not paused")
            self.io_status = "ok"
            self._user_paused = False
            self.changed.notify_all()

    def cancel(self, *, force: bool = False) -> None:
        """End without a result. What `force` means is the job's affair: see mirror."""
        with self.changed:
            self._require("cancel")
            if self._is_real:
                raise WrongState(f"Job '{self.id}' cannot be cancelled any more: it has its result")
            if self._user_paused and not force:
                raise WrongState(f"The block job for device '{self.id}' is currently paused")
            if self.status == states.CREATED and not self._entering:
                self._abandon()
            elif not (self.ready and not force and self.cancel_softly()):
                self.cancelled = True
                self._user_paused = False
            self.changed.notify_all()

    def cancel_softly(self) -> bool:
        """Asked to end without force while ready; False if that is no different. Lock held."""
        return False

    def cancel_with_group(self) -> None:
        """Another job of its transaction has failed. Lock held."""
        if self.status == states.CREATED and not self._entering:
            self._abandon()
        elif self.status not in (states.ABORTING, states.CONCLUDED, states.NULL):
            if self._is_real:
                return
            self.cancelled = True
            self._user_paused = False
            self.changed.notify_all()

    def complete(self) -> None:
        """End a job that is ready and would go on for ever."""
        with self.changed:
            self._require("complete")
            if self.cancelled or not self.can_complete:
                raise WrongState(f"The active block job '{self.id}' cannot be completed")
            self.check_completable()
            self.completing = True
            self.changed.notify_all()

    def check_completable(self) -> None:
        """Raise if completing is bound to fail. Lock held."""

    def finalize(self) -> None:
        """Let a job of which ``auto_finalize`` is off end, now that its work is done."""
        with self.changed:
            self._require("finalize")
            self._transaction.finalized = True
            self.changed.notify_all()

    def dismiss(self) -> None:
        """Forget a job that has ended."""
        with self.changed:
            self._require("dismiss")
            self._forget()

    def set_speed(self, speed: int) -> None:
        """Another limit in bytes per second, at once; 0 is no limit."""
        check_speed(speed)
        with self.changed:
            self._require("set-speed")
            self.limit.set(speed)
            self.changed.notify_all()

    def _require(self, verb: str) -> None:
        if self.status not in states.VERBS[verb]:
            raise WrongState(
                f"Job '{self.id}' in state '{self.status}' cannot accept command verb '{verb}'"
            )

    # --- for the job's own work -----------------------------------------------------------------

    def enter(self) -> None:
        """The job begins: in the thread of who starts it. What raises is undone with `abort`.

        So is all of it, if another job of a transaction cannot begin: `_has_gone` is False then.
        """

    def run(self) -> None:
        """Do the work. Raises `JobCancelled`, or what has gone wrong."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make the result real; raising undoes everything with `abort`.

        Before the first step that `abort` cannot undo it calls `make_real`.
        """

    def make_real(self) -> None:
        """From here on nobody can cancel the job. Raises `JobCancelled` if somebody has."""
        with self.changed:
            self._check_cancelled()
            self._is_real = True

    def commit(self) -> None:
        """The job has succeeded, and so have all of its transaction."""

    def abort(self) -> None:
        """The job has failed or was cancelled: nothing of it must remain."""

    def clean(self) -> None:
        """In any case: release what the job holds."""

    def pause_point(self) -> None:
        """Between two steps: rest while paused. Raises `JobCancelled`."""
        with self.changed:
            self._check_cancelled()
            if not self._user_paused:
                return
        self.at_rest()
        with self.changed:
            self._check_cancelled()
            if not self._user_paused:
                return
            resting, working = (
                (states.STANDBY, states.READY) if self.ready else (states.PAUSED, states.RUNNING)
            )
            self.transition(resting)
            self._rest(lambda: not self._user_paused)
            self.transition(working)
            self._check_cancelled()

    def is_to_rest(self) -> bool:
        """Whether the next `pause_point` will be one."""
        with self.changed:
            return self._user_paused

    def at_rest(self) -> None:
        """The job is about to rest: end what is in flight. The lock is not held."""

    def sleep(self, seconds: float, until: Callable[[], bool] | None = None) -> None:
        """Rest between two steps; ends early if `until`, or somebody wants something."""
        with self.changed:
            self._rest(
                lambda: self.cancelled or self._user_paused or (until is not None and until()),
                seconds,
            )

    def _rest(self, until: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait, and be seen not to be busy. Lock held."""
        self._at_rest = True
        self.changed.wait_for(until, seconds)
        self._at_rest = False

    def hold_back(self) -> None:
        """Wait until the speed limit allows more. Raises `JobCancelled`; rests while paused."""
        while True:
            self.pause_point()
            with self.changed:
                wait, speed = self.limit.wait(), self.limit.speed
            if not wait or self.has_failed():
                return
            self._wait_for_speed(wait, speed)

    def _wait_for_speed(self, seconds: float, speed: int) -> None:
        self.sleep(seconds, lambda: self.limit.speed != speed or self.has_failed())

    def has_failed(self) -> bool:
        """Whether the job's work is bound to end with an error, so that waiting makes no sense."""
        return False

    def fail_soon(self) -> None:
        """`has_failed` is true now: whoever waits should look."""
        with self.changed:
            self.changed.notify_all()

    def _check_cancelled(self) -> None:
        if self.cancelled:
            raise JobCancelled

    def advance(self, amount: int) -> None:
        """So many bytes more are done."""
        with self.changed:
            self._current += amount
            self._total = max(self._total, self._current)

    def set_remaining(self, amount: int) -> None:
        """So many bytes are left, as far as is known."""
        with self.changed:
            self._total = self._current + amount

    def become_ready(self) -> None:
        """The work is done, as far as it can be; what comes now is keeping up."""
        with self.changed:
            self.transition(states.READY)
            self.emit_block("BLOCK_JOB_READY")

    def on_error(self, policy: str, operation: str, error: BlocklayerError) -> str:
        """What to do about failed I/O: tells the world, and stops the job if that is the policy.

        operation  ``read`` or ``write``
        Returns the action: see `policies`.
        """
        action = action_for(policy, error)
        with self.changed:
            if action == STOP and self.status not in states.VERBS["resume"]:
                action = REPORT  # it is about to end: nobody could resume it
            if action == STOP and not self.cancelled:
                self._user_paused = True
                if self.io_status == "ok":
                    self.io_status = "nospace" if is_out_of_space(error) else "failed"
            data = {"device": self.id, "operation": operation, "action": action}
            self.jobs.emit("BLOCK_JOB_ERROR", data)
            self.changed.notify_all()
        return action

    def transition(self, status: str) -> None:
        """The next state. Lock held, except by who has just made the job."""
        with self.changed:
            assert status in states.TRANSITIONS[self.status], f"{self.status} -> {status}"
            self.status = status
            if self.is_told_of:
                self.jobs.emit("JOB_STATUS_CHANGE", {"id": self.id, "status": status})
            self.changed.notify_all()

    def _tell_of_it(self) -> None:
        """From now on the world hears of its states; first of that in which it is."""
        with self.changed:
            if not self.is_told_of:
                self.is_told_of = True
                self.jobs.emit("JOB_STATUS_CHANGE", {"id": self.id, "status": self.status})

    def emit_block(self, name: str, **more: Any) -> None:
        """An event with what block jobs tell of themselves. Lock held."""
        if self.is_block_job:
            progress = {"len": self.total, "offset": self.current, "speed": self.speed}
            self.jobs.emit(name, {"type": self.type, "device": self.id} | progress | more)

    # --- its thread -----------------------------------------------------------------------------

    def _live(self) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.status != states.CREATED)
            if not self._has_gone:
                return  # whoever has taken it back undoes what there is
            wanted = not self.cancelled
        try:
            if wanted and self._try(self.run) and self._pass_gates():
                self._succeed()
            else:
                self._fail()
        finally:
            with self.changed:
                self.ended.set()
                self.changed.notify_all()

    def _try(self, step: Callable[[], None]) -> bool:
        """Take a step; False, and the reason is noted, if it fails."""
        try:
            step()
        except JobCancelled:
            self.cancelled = True
        except Exception as error:
            # Mistakes of ours as well: they must not look like success, nor end in silence.
            self.error = self.error or job_error(error)
            self.cause = self.cause or error
        return self.error is None and not self.cancelled

    def _pass_gates(self) -> bool:
        """Wait for the others of the transaction, and for permission to end."""
        group = self._transaction
        with self.changed:
            self.transition(states.WAITING)
            self._wait_at("done")
            if not self._may_go_on():
                return False
            self.transition(states.PENDING)
            if not self.auto_finalize and self.is_block_job:
                self.jobs.emit("BLOCK_JOB_PENDING", {"type": self.type, "id": self.id})
            self._rest(lambda: self.cancelled or group.failed or not group.needs_finalize)
            if not self._may_go_on():
                return False
        if not self._try(self.prepare):
            return False
        with self.changed:
            # Too late for a cancellation of this one alone.
            self._wait_at("prepared", cancellable=False)
            return self._is_real or not group.failed

    def _wait_at(self, gate: str, *, cancellable: bool = True) -> None:
        group = self._transaction
        group.arrive(gate, self)
        self.changed.notify_all()
        self._rest(lambda: group.is_open(gate) or (cancellable and self.cancelled))

    def _may_go_on(self) -> bool:
        if self._transaction.failed:
            self.cancelled = True
        return not self.cancelled

    def _succeed(self) -> None:
        self._try(self.commit)
        self._try(self.clean)
        with self.changed:
            more = {} if self.error is None else {"error": self.error}
            self.emit_block("BLOCK_JOB_COMPLETED", **more)
            self._conclude()

    def _fail(self) -> None:
        with self.changed:
            if self._transaction.failed and self.error is None:
                self.cancelled = True
            self._transaction.fail(self)
            self.transition(states.ABORTING)
        cancelled = self.cancelled and self.error is None
        if cancelled:
            self.error = None
        self._try(self.abort)
        self._try(self.clean)
        with self.changed:
            if cancelled and self.error is None:
                self.error = "Operation canceled"
                self.emit_block("BLOCK_JOB_CANCELLED")
            else:
                self.emit_block("BLOCK_JOB_COMPLETED", error=self.error)
            self._conclude()

    def _abandon(self) -> None:
        """It was created and never ran. Lock held, so what is to be undone is another thread's."""
        self._tell_of_it()
        self.cancelled = True
        self._transaction.fail(self)
        self.transition(states.ABORTING)
        threading.Thread(target=self._bury, name=f"blocklayer-{self.id}", daemon=True).start()

    def _bury(self) -> None:
        self._try(self.abort)
        self._try(self.clean)
        with self.changed:
            self.transition(states.CONCLUDED)
            self._forget()  # also without auto_dismiss: it has no result to be looked at
            self.ended.set()
            self.changed.notify_all()

    def fail_early(self) -> None:
        """It could not even be set up: whoever wanted it gets the error, and nothing remains.

        Its group fails, as with every other failure.
        """
        self._try(self.abort)
        self._try(self.clean)
        with self.changed:
            self._transaction.fail(self)
            self._transaction.leave(self)
            self.transition(states.NULL)
            self.jobs.unregister(self)
            self.ended.set()

    def _conclude(self) -> None:
        self._at_rest = True
        self.transition(states.CONCLUDED)
        if self.auto_dismiss:
            self._forget()

    def _forget(self) -> None:
        self.transition(states.NULL)
        self.jobs.unregister(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the job; whether it has come."""
        return self.ended.wait(timeout)

    def wait_for_status(self, *wanted: str, timeout: float = 60) -> str:
        """Wait until it is in one of some states, or has ended; its state."""
        with self.changed:
            self.changed.wait_for(lambda: self.status in wanted or self.ended.is_set(), timeout)
            return self.status
