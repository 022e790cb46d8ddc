# SPDX-License-Identifier: Apache-2.0
"""`blk check`: what is wrong with an image, and repairing it.

Exit codes: 0 nothing is wrong (any more), 1 the check itself failed, 2 corruptions, 3 leaks,
63 the format has no check.
"""

from __future__ import annotations

import sys

from blocklayer.base.errors import NotSupported
from blocklayer.cli.failures import Failure, UsageError
from blocklayer.cli.output import complain, print_json
from blocklayer.cli.parsing import (
    FORCE_SHARE,
    FORMAT,
    IMAGE_OPTS,
    OUTPUT,
    QUIET,
    Arguments,
    Command,
    Option,
    cache_name,
    one_image,
    wants_json,
)

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.base.options import OptionTree
    from blocklayer.core.checking import CheckResult, Problem

COMMAND = Command(
    "check",
    "FILE",
    "Find what is wrong with an image's tables. Exit code: 0 nothing, 2 corruptions, 3 leaks.",
    (
        FORMAT,
        OUTPUT,
        Option("-r --repair", "WHAT", "repair leaks, or all"),
        Option("-T", "CACHE", "cache mode (default writeback)"),
        QUIET,
        IMAGE_OPTS,
        FORCE_SHARE,
    ),
)

UNSUPPORTED = 63
CORRUPTIONS = 2
LEAKS = 3


def run(arguments: Arguments) -> int:
    """The command."""
    repair = arguments.last("repair", "none")
    if "repair" in arguments and repair not in ("leaks", "all"):
        raise UsageError(f"Unknown option value for -r (expecting 'leaks' or 'all'): {repair}")
    image = one_image(arguments)
    as_json = wants_json(arguments)
    cache = cache_name(arguments, "T", "writeback", what="source ")
    quiet = "quiet" in arguments
    result = _check(arguments, image, repair, cache)
    if not quiet:
        _list_problems(result.problems)
    if result.corruptions_fixed or result.leaks_fixed:
        fixed = result
        if not quiet and not as_json:
            _print_repairs(fixed)
        result = _check(arguments, image, "none", cache)
        result.corruptions_fixed = fixed.corruptions_fixed
        result.leaks_fixed = fixed.leaks_fixed
    if not quiet:
        if as_json:
            print_json(_as_dict(result))
        else:
            _print_result(result)
    return _exit_code(result)


def _check(
    arguments: Arguments, image: tuple[str | OptionTree, str | None], repair: str, cache: str
) -> CheckResult:
    from blocklayer.ops.check import check

    name, format_name = image
    force_share = "force-share" in arguments
    try:
        return check(name, format=format_name, repair=repair, force_share=force_share, cache=cache)
    except NotSupported as error:
        raise Failure(str(error), UNSUPPORTED) from None


def _exit_code(result: CheckResult) -> int:
    if result.check_errors:
        complain("Check failed")
        return 1
    if result.corruptions:
        return CORRUPTIONS
    return LEAKS if result.leaks else 0


def _list_problems(problems: list[Problem]) -> None:
    """One line a problem on stderr: what stdout says is counts."""
    words = {"corruption": "ERROR", "leak": "Leaked", "error": "ERROR"}
    for problem in problems:
        state = " (repaired)" if problem.fixed else ""
        print(f"{words.get(problem.kind, 'ERROR')}: {problem.message}{state}", file=sys.stderr)


def _print_repairs(result: CheckResult) -> None:
    print("The following inconsistencies were found and repaired:\n")
    print(f"    {result.leaks_fixed} leaked clusters")
    print(f"    {result.corruptions_fixed} corruptions\n")
    print("Double checking the fixed image now...")


def _print_result(result: CheckResult) -> None:
    if result.clean:
        print("No errors were found on the image.")
    if result.corruptions:
        print(f"\n{result.corruptions} errors were found on the image.")
        print("Data may be corrupted, or further writes to the image may corrupt it.")
    if result.leaks:
        print(f"\n{result.leaks} leaked clusters were found on the image.")
        print("This means waste of disk space, but no harm to data.")
    if result.check_errors:
        print(f"\n{result.check_errors} internal errors have occurred during the check.")
    total, allocated = result.total_clusters, result.allocated_clusters
    if total and allocated:
        print(
            f"{allocated}/{total} = {allocated * 100 / total:.2f}% allocated,"
            f" {result.fragmented_clusters * 100 / allocated:.2f}% fragmented,"
            " 0.00% compressed clusters"
        )


def _as_dict(result: CheckResult) -> dict[str, Any]:
    """QEMU's ImageCheck: counts that are 0 are left out, but for the check's own errors."""
    counts = {
        "total-clusters": result.total_clusters,
        "corruptions-fixed": result.corruptions_fixed,
        "corruptions": result.corruptions,
        "check-errors": result.check_errors,
        "leaks": result.leaks,
        "leaks-fixed": result.leaks_fixed,
        "allocated-clusters": result.allocated_clusters,
        "filename": result.filename,
        "format": result.format,
        "fragmented-clusters": result.fragmented_clusters,
    }
    return {name: count for name, count in counts.items() if count or name == "check-errors"}
