# SPDX-License-Identifier: Apache-2.0
"""What checking an image finds, the same for every format."""

from __future__ import annotations

from blocklayer.base.record import Record, fresh
from blocklayer.core.node import PROBLEMS_KEPT


class Repair(Record, frozen=True):
    """What a check may change; `force`: even if nearly everything is wrong."""

    leaks: bool = False
    errors: bool = False
    force: bool = False

    def __bool__(self) -> bool:
        return self.leaks or self.errors


class Problem(Record, frozen=True):
    """One finding.

    kind      ``corruption``, ``leak`` or ``error`` (something could not be read)
    message   what is wrong, and where
    remedy    what repair does, or did, about it; empty if nothing can be done
    fixed     it was repaired
    offset    where in the file the wrong entry (or the leaked cluster) is, in bytes

    And what it concerns, as far as there is such a thing:

    l1_index, l2_index  the entry's place in the tables
    guest_offset        the first byte of the disk that the entry maps
    cluster             where in the file the entry points
    length              bytes of the file that are leaked
    """

    kind: str
    message: str
    remedy: str = ""
    fixed: bool = False
    offset: int | None = None
    l1_index: int | None = None
    l2_index: int | None = None
    guest_offset: int | None = None
    cluster: int | None = None
    length: int | None = None


class RepairPlan(Record, frozen=True):
    """What a repair would do to the file, in bytes; its findings are in `CheckResult`.

    size, size_after  of the file, before and after the repair
    copied            bytes that would be copied from one place in the file to another
    afterwards        what a check would find then
    """

    size: int
    size_after: int
    copied: int
    afterwards: CheckResult


class CheckResult(Record):
    """Counts as qemu-img has them, and the problems themselves.

    problems      as many as were asked for; `more` tells that there are others, counted only
    plan          after a dry run: what would become of the file. Then nothing was changed, and
                  "fixed" means that it would be.
    """

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
    problems_max: int | None = PROBLEMS_KEPT
    more: bool = False
    plan: RepairPlan | None = None

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

    @property
    def full(self) -> bool:
        """There is no room for descriptions any more: what comes is counted only."""
        return self.problems_max is not None and len(self.problems) >= self.problems_max

    def report(self, problem: Problem, count: int = 1) -> None:
        """Count a problem and keep its description while there is room."""
        if self.full:
            self.count(problem.kind, fixed=problem.fixed, count=count)
        else:
            self._count(problem.kind, problem.fixed, count)
            self.problems.append(problem)

    def count(self, kind: str, *, fixed: bool, count: int = 1) -> None:
        """Count a problem that nobody describes."""
        self._count(kind, fixed, count)
        self.more = True

    def _count(self, kind: str, fixed: bool, count: int) -> None:
        if kind == "error":
            self.check_errors += count
        elif kind == "leak":
            if fixed:
                self.leaks_fixed += count
            else:
                self.leaks += count
        elif fixed:
            self.corruptions_fixed += count
        else:
            self.corruptions += count
