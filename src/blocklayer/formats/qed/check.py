# SPDX-License-Identifier: Apache-2.0
"""Consistency check and repair (QED specification, "Consistency checking").

A first look (`quick_check`) is enough where nothing is wrong. Where there is a doubt, a scan of all
entries (`careful_check`) names it; if there is something to mend, a second scan does it. What they
can find:

    corruption  an entry that points where nothing can be, or to a cluster already referenced
    leak        a cluster nobody references, or one referenced from behind the end of the disk
    error       a table that could not be read

Repair mends the tables, and gives leaks back by moving clusters from the end of the file
(`compact`). Not in the run that has cleared entries: what is leaked then may be what they mapped,
and somebody may know where they belong. It clears NEED_CHECK only if nothing wrong is left.
"""

from __future__ import annotations

from blocklayer.base.errors import BlocklayerError, Cancelled, IoError
from blocklayer.core.checking import CheckResult, Problem, Repair
from blocklayer.formats.qed import quick_check

HOPELESS_TABLES = 2
"""Wrong entries, in tables full of them, that are mended whatever the rest is like."""

HOPELESS_RATIO = 4
"""More wrong entries for each right one are no damage: what is read as tables is something else."""

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.formats.qed.careful_check import Checker
    from blocklayer.formats.qed.driver import QedNode


def check(node: QedNode, repair: Repair, *, copy_shared: bool = True) -> CheckResult:
    """Check an image that nobody else uses; repair what `repair` says.

    Raises `IoError`, and `TooDamaged` before anything is changed.
    """
    node.tables.forget()
    failure: IoError | None = None
    try:
        flawless = quick_check.look(node)
        if flawless is not None:
            if repair and not node.read_only:
                _settle_need_check(node, flawless)
            return flawless
    except IoError as error:
        failure = error
    from blocklayer.formats.qed.careful_check import Checker

    checker = Checker(node, Repair())
    if repair.errors and not repair.force:
        checker.wrong_max = _wrong_max(checker, checker.used.clusters)
    result = checker.scan()
    if failure is not None and not result.check_errors:
        # It does not happen again; whoever owns the storage should know of it all the same.
        result.report(Problem("error", f"A table could not be read at first: {failure}"))
    if (repair.errors and result.corruptions) or (repair.leaks and checker.beyond):
        if not repair.force and result.corruptions > _wrong_max(checker, checker.used.used):
            raise checker.too_damaged()
        # Who claims what must be known before anything is mended: a table may lie over data.
        contested = frozenset(checker.contested)
        checker = Checker(node, repair, copy_shared=copy_shared, contested=contested)
        failures = [problem for problem in result.problems if problem.kind == "error"]
        result = checker.scan()
        for problem in failures:
            if problem not in result.problems:
                result.report(problem)
    if repair:
        node.file.flush()
        node.tables.forget()
    if not result.check_errors:
        checker.count_leaks()
        some = result.leaks or result.leaks_fixed
        if repair.leaks and some and not result.corruptions and not checker.cleared:
            _give_leaks_back(node, checker)
    if repair and not node.read_only:
        _settle_need_check(node, result)
    return result


def _wrong_max(checker: Checker, right: int) -> int:
    """Wrong entries that are mended where so many clusters are in use.

    A header that names a wrong place for the L1 table makes tables of guests' data: to clear
    entries there is to write all over them.
    """
    return max(HOPELESS_TABLES * checker.geometry.table_entries, HOPELESS_RATIO * right)


def _give_leaks_back(node: QedNode, checker: Checker) -> None:
    from blocklayer.formats.qed.compact import compact

    result = checker.result
    try:
        given_back = compact(node, checker.used)
    except Cancelled:
        raise
    except BlocklayerError as error:
        result.report(Problem("error", f"Giving leaked clusters back failed: {error}"))
        return
    result.leaks -= given_back
    result.leaks_fixed += given_back
    if not result.leaks:
        result.problems = [
            problem.replace(fixed=problem.fixed or problem.kind == "leak")
            for problem in result.problems
        ]


def _settle_need_check(node: QedNode, result: CheckResult) -> None:
    """NEED_CHECK says whether tables can be trusted; leaks do not matter for that."""
    if result.corruptions or result.check_errors:
        node.keep_need_check()
    else:
        node.mark_clean()
