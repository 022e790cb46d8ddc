# SPDX-License-Identifier: Apache-2.0
"""What checking an image finds, the same for every format."""

from __future__ import annotations

from blocklayer.base.record import Record, fresh

PROBLEMS_KEPT = 1000
"""Problems described one by one; more are counted only, so that no image fills memory."""


class Repair(Record, frozen=True):
    """What a check may change."""

    leaks: bool = False
    errors: bool = False

    def __bool__(self) -> bool:
        return self.leaks or self.errors


class Problem(Record, frozen=True):
    """One finding.

    kind      ``corruption``, ``leak`` or ``error`` (something could not be read)
    message   what is wrong, and where
    remedy    what repair does, or did, about it; empty if nothing can be done
    fixed     it was repaired
    offset    where in the file the wrong entry (or the leaked cluster) is, in bytes
    """

    kind: str
    message: str
    remedy: str = ""
    fixed: bool = False
    offset: int | None = None


class CheckResult(Record):
    """Counts as qemu-img has them, and the problems themselves."""

    filename: str
    format: str
    check_errors: int = 0
    corruptions: int = 0
    corruptions_fixed: int = 0
    leaks: int = 0
    leaks_fixed: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    problems: list[Problem] = fresh(factory=list)

    @property
    def clean(self) -> bool:
        """Nothing is wrong, or nothing is wrong any more."""
        return not (self.check_errors or self.corruptions or self.leaks)

    @property
    def failure(self) -> str | None:
        """What could not be read or written, if anything: the words for the first of it."""
        if not self.check_errors:
            return None
        errors = (problem.message for problem in self.problems if problem.kind == "error")
        return next(errors, "the check could not be finished")

    def report(self, problem: Problem, count: int = 1) -> None:
        """Count a problem and keep its description while there is room."""
        if problem.kind == "error":
            self.check_errors += count
        elif problem.kind == "leak":
            if problem.fixed:
                self.leaks_fixed += count
            else:
                self.leaks += count
        elif problem.fixed:
            self.corruptions_fixed += count
        else:
            self.corruptions += count
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(problem)
