# SPDX-License-Identifier: Apache-2.0
"""Checking and repairing an image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from blocklayer.base.errors import BlocklayerError, InvalidArgument, NotSupported, TooDamaged
from blocklayer.base.progress import CancelToken, ProgressCallback, Watch
from blocklayer.base.record import Record
from blocklayer.core.checking import CheckResult, Repair, RepairPlan
from blocklayer.core.names import FilenameLike
from blocklayer.core.node import PROBLEMS_KEPT, FormatNode
from blocklayer.core.opening import Opener, OpenFlags, cache_mode

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.rehearsal import Rehearsal
    from blocklayer.core.trust import Trust

REPAIRS = {
    "none": Repair(),
    "leaks": Repair(leaks=True),
    "all": Repair(leaks=True, errors=True),
}


def check(
    name: FilenameLike,
    *,
    format: str | None = None,
    repair: str = "none",
    force_share: bool = False,
    cache: str = "writeback",
    locking: str = "auto",
    trust: Trust | None = None,
    dry_run: bool = False,
    force: bool = False,
    problems_max: int | None = PROBLEMS_KEPT,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> CheckResult:
    """Check an image's tables; the image itself only, not what it is backed by.

    repair        ``none`` opens read-only and changes nothing, ``leaks`` gives unused clusters
                  back, ``all`` also mends wrong entries
    trust         for an image that somebody else made: limits of its sizes
    dry_run       change nothing, but tell exactly what the repair does: the result has a `plan`
    force         repair also where nearly everything is wrong
    problems_max  how many problems are described one by one; None: all

    Raises `OpenError`, `NotSupported` for formats without a check, `IoError`, `TooDamaged` before
    anything is changed, `Cancelled`: a repair that was stopped leaves the image no worse than it
    was.
    """
    if repair not in REPAIRS:
        raise InvalidArgument(f"Invalid repair mode '{repair}': use none, leaks or all")
    wanted = REPAIRS[repair].replace(force=force)
    if force_share and wanted and not dry_run:
        raise InvalidArgument("force_share can only be used without repair")
    flags = OpenFlags(
        read_only=dry_run or not wanted,
        check=True,
        backing_chain=False,
        force_share=force_share,
        cache=cache_mode(cache),
        locking=locking,
        trust=trust,
    )
    node = Opener(flags).open_name(name, format)
    try:
        if not isinstance(node, FormatNode):
            raise NotSupported("This image format does not support checks")
        how = How(wanted, problems_max, Watch(progress, cancel))
        if dry_run:
            return rehearse(node, flags, how)
        with _told_if_stopped(node, wanted):
            return how.check(node)
    finally:
        node.close()


class How(Record, frozen=True):
    """What a check may change, and who hears of it."""

    repair: Repair
    problems_max: int | None = PROBLEMS_KEPT
    watch: Watch | None = None

    def check(self, node: FormatNode) -> CheckResult:
        """Check an open image."""
        node.watch = self.watch
        node.problems_max = self.problems_max
        return node.check(self.repair)


def rehearse(
    node: FormatNode, flags: OpenFlags, how: How, storage: Rehearsal | None = None
) -> CheckResult:
    """Do the whole repair of an image that is open read-only, in memory, and look at the result."""
    from blocklayer.core.rehearsal import Rehearsal

    if storage is None:
        storage = Rehearsal(node.file, node.cluster_size)
    size = storage.size
    result = _check_on(storage, node.driver, flags.replace(read_only=False, force_share=False), how)
    afterwards = _check_on(storage, node.driver, flags, how.replace(repair=Repair()))
    result.plan = RepairPlan(size, storage.size, storage.copied, afterwards)
    return result


def _check_on(storage: Rehearsal, driver: str, flags: OpenFlags, how: How) -> CheckResult:
    copy = Opener(flags).open_options({"driver": driver, "file": storage})
    try:
        assert isinstance(copy, FormatNode)
        return how.check(copy)
    finally:
        copy.close()


@contextlib.contextmanager
def _told_if_stopped(node: FormatNode, repair: Repair) -> Iterator[None]:
    try:
        yield
    except BlocklayerError as error:
        if repair and not isinstance(error, NotSupported | TooDamaged):
            error.add_note(
                f"What was repaired in '{node.filename}' so far stays; nothing else has changed:"
                " the check can be started again"
            )
        raise
