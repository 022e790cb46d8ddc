# SPDX-License-Identifier: Apache-2.0
"""All jobs of a process, by their ids, and who hears of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from blocklayer.base.errors import InvalidArgument
from blocklayer.core.node_names import is_well_formed
from blocklayer.jobs.errors import JobNotFound

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from blocklayer.jobs.job import Job

Listener: TypeAlias = "Callable[[str, dict[str, Any]], None]"
"""(event name, data) as QMP has them. Called in the order of the events, with the lock held: it may
note what it hears, and must not wait for anybody."""


class Jobs:
    """The jobs. `changed` is the lock of all of them, and rings with every change."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._jobs: dict[str, Job] = {}
        self._listeners: list[Listener] = []

    def add_listener(self, listener: Listener) -> None:
        """Tell of every event from now on."""
        with self.changed:
            self._listeners.append(listener)

    def emit(self, name: str, data: dict[str, Any]) -> None:
        """Tell the listeners."""
        with self.changed:
            for listener in list(self._listeners):
                listener(name, data)

    def register(self, job: Job) -> None:
        """A new job. Raises `InvalidArgument` if it cannot have its id."""
        with self.changed:
            self.check_id(job.id)
            self._jobs[job.id] = job

    def check_id(self, job_id: str) -> None:
        """Raise `InvalidArgument` unless a new job may have this id."""
        if not is_well_formed(job_id):
            raise InvalidArgument(f"Invalid job ID '{job_id}'")
        if job_id in self._jobs:
            raise InvalidArgument(f"Job ID '{job_id}' already in use")

    def id_for(self, device: str, job_id: str | None) -> str:
        """The id of a new block job of `device`: the one wanted, or else the device's name.

        Raises `InvalidArgument` if the job cannot have it.
        """
        wanted = device if job_id is None else job_id
        self.check_id(wanted)
        return wanted

    def unregister(self, job: Job) -> None:
        """A job is forgotten."""
        with self.changed:
            self._jobs.pop(job.id, None)

    def find(self, job_id: str) -> Job:
        """For the `job-…` commands. Raises `InvalidArgument`."""
        job = self._jobs.get(job_id)
        if job is None:
            raise InvalidArgument("Job not found")
        return job

    def find_block_job(self, job_id: str) -> Job:
        """For the `block-job-…` commands. Raises `JobNotFound`."""
        job = self._jobs.get(job_id)
        if job is None or not job.is_block_job:
            raise JobNotFound(f"Block job '{job_id}' not found")
        return job

    def all(self) -> list[Job]:
        """In the order of their coming."""
        with self.changed:
            return list(self._jobs.values())

    def end_all(self, timeout: float = 60) -> bool:
        """Cancel everything by force and wait; whether all have ended."""
        for job in self.all():
            with self.changed:
                job.cancel_with_group()
        return all(job.wait(timeout) for job in self.all() if job.status != "concluded")
