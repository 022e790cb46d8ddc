# SPDX-License-Identifier: Apache-2.0
"""Jobs that succeed together or fail together (``completion-mode=grouped``).

Each job waits at two gates: until all have done their work, and until all may be finalized. Whoever
fails cancels the others.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.jobs.job import Job


class JobTransaction:
    """A group of jobs; a job of its own is a group of one. The manager's lock guards it."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.failed = False
        self.finalized = False
        self._arrived: dict[str, set[Job]] = {}

    def join(self, job: Job) -> None:
        """The job belongs to this group."""
        self.jobs.append(job)

    def leave(self, job: Job) -> None:
        """The job could not begin: nobody waits for it."""
        self.jobs.remove(job)

    def arrive(self, gate: str, job: Job) -> None:
        """A job has reached a gate."""
        self._arrived.setdefault(gate, set()).add(job)

    def is_open(self, gate: str) -> bool:
        """Whether all have reached it, or somebody has failed."""
        return self.failed or len(self._arrived.get(gate, ())) == len(self.jobs)

    @property
    def needs_finalize(self) -> bool:
        """Whether somebody has to say so before the jobs may end."""
        return not self.finalized and any(not job.auto_finalize for job in self.jobs)

    def fail(self, job: Job) -> None:
        """A job has failed or was cancelled: so are all."""
        if self.failed:
            return
        self.failed = True
        for other in self.jobs:
            if other is not job:
                other.cancel_with_group()
