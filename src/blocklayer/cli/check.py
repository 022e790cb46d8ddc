# SPDX-License-Identifier: Apache-2.0
"""`blk check`: what is wrong with an image, and repairing it.

Exit codes: 0 nothing is wrong (any more), 1 the check itself failed, 2 corruptions, 3 leaks,
63 the format has no check.
"""

from __future__ import annotations

import os
import sys

from blocklayer.base.errors import NotSupported, TooDamaged
from blocklayer.cli.failures import Failure, UsageError
from blocklayer.cli.getopt import Option
from blocklayer.cli.output import print_json, speaks_json
from blocklayer.cli.parsing import (
    ALLOW,
    FORCE_SHARE,
    FORMAT,
    IMAGE_OPTS,
    LONG_PROGRESS,
    OUTPUT,
    QUIET,
    UNTRUSTED,
    Arguments,
    Command,
    cache_name,
    one_image,
    trust_argument,
    wants_json,
)
from blocklayer.cli.progress import Running

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.base.options import OptionTree
    from blocklayer.core.checking import CheckResult, Problem, RepairPlan

COMMAND = Command(
    "check",
    "FILE",
    "Find what is wrong with an image's tables. Exit code: 0 nothing, 2 corruptions, 3 leaks.",
    (
        FORMAT,
        OUTPUT,
        Option("-r --repair", "WHAT", "repair leaks, or all", choices=("leaks", "all")),
        Option("--dry-run", "", "with -r: change nothing, but tell exactly what would be done"),
        Option("--force", "", "with -r all: also where nearly everything is wrong"),
        Option("--all-problems", "", "list all problems, however many; with JSON, too"),
        LONG_PROGRESS,
        Option("-T --cache", "CACHE", "cache mode (default writeback)"),
        QUIET,
        IMAGE_OPTS,
        FORCE_SHARE,
        UNTRUSTED,
        ALLOW,
    ),
    details=(
        "A leak is space that nothing refers to: harmless. A corruption is an entry that cannot be"
        " right: data behind it may be lost. 'leaks' repairs what cannot do harm; 'all' also"
        " clears entries that point nowhere, and gives clusters that are used twice to one user"
        " each. What was found is listed on stderr, counts are on stdout.\n\n"
        "Leaks are kept where entries were cleared: they may be what these mapped, and can still be"
        " had. A second 'check -r leaks' gives them back. Where far more entries are wrong than"
        " right, nothing is repaired without --force: the header may name a wrong place, and what"
        " would be cleared are guests' data.\n\n"
        "With --dry-run the whole repair is done in memory: nothing is written, and the image may"
        " be in use by readers. What is told is what -r then does, to the byte. The exit code tells"
        " of the image as it is. Look at that before -r all, or repair a copy: what a repair has"
        " cleared does not come back.\n\n"
        "With --output=json there is no list on stderr. --dry-run and --all-problems add one to"
        " the object: each problem with the file offset of the wrong entry, its place in the"
        " tables, the guest offset, and what repair does about it."
    ),
    examples=(
        ("check disk.qed", "Look, and change nothing."),
        ("check -r all --dry-run disk.qed", "What would be repaired, and how?"),
        ("check -r all disk.qed", "Repair all that was found, and check again."),
        ("check --output=json disk.qed", "The result for a program."),
    ),
    exits=(
        (0, "nothing is wrong, or everything was repaired"),
        (1, "the check itself failed"),
        (2, "there are corruptions"),
        (3, "there are leaks, and nothing worse"),
        (63, "the format has nothing that could be checked"),
    ),
)

UNSUPPORTED = 63
CORRUPTIONS = 2
LEAKS = 3

KEPT = (
    "The leaked clusters were kept, since they may be what the cleared entries mapped;"
    " 'check -r leaks' gives them back"
)

LISTED_MAX = 20
"""Problems listed for people unless they ask for all."""


def run(arguments: Arguments) -> int:
    """The command."""
    repair = arguments.last("repair", "none")
    if "repair" in arguments and repair not in ("leaks", "all"):
        raise UsageError(f"Unknown option value for -r (expecting 'leaks' or 'all'): {repair}")
    dry_run = "dry-run" in arguments
    if dry_run and repair == "none":
        raise UsageError("--dry-run tells what a repair would do: give -r leaks or -r all as well")
    if "force" in arguments and repair != "all":
        raise UsageError("--force is for repairs: give -r all as well")
    image = one_image(arguments)
    as_json = wants_json(arguments)
    cache = cache_name(arguments, "cache", "writeback", what="source ")
    quiet = "quiet" in arguments
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's linear algebra is not used here
    result = _check(arguments, image, repair, cache)
    if not quiet and not as_json:
        _list_problems(result, dry_run)
    if dry_run:
        return _end_dry_run(result, as_json=as_json, quiet=quiet)
    if result.corruptions_fixed or result.leaks_fixed:
        fixed = result
        if not quiet and not as_json:
            _print_repairs(fixed)
        result = _check(arguments, image, "none", cache)
        result.corruptions_fixed = fixed.corruptions_fixed
        result.leaks_fixed = fixed.leaks_fixed
        result.problems = fixed.problems + [p for p in result.problems if p not in fixed.problems]
        if result.leaks and fixed.corruptions_fixed and not quiet and not as_json:
            print(KEPT, file=sys.stderr)
    if not quiet:
        if as_json:
            print_json(_as_dict(result) | _list("all-problems" in arguments, result))
        else:
            _print_result(result)
    return _exit_code(result)


def _check(
    arguments: Arguments, image: tuple[str | OptionTree, str | None], repair: str, cache: str
) -> CheckResult:
    from blocklayer.core.node import PROBLEMS_KEPT
    from blocklayer.ops.check import check

    name, format_name = image
    try:
        with Running(arguments, result=True) as running:
            return check(
                name,
                format=format_name,
                repair=repair,
                force_share="force-share" in arguments,
                cache=cache,
                trust=trust_argument(arguments),
                dry_run="dry-run" in arguments and repair != "none",
                force="force" in arguments,
                problems_max=None if "all-problems" in arguments else PROBLEMS_KEPT,
                progress=running.report,
                cancel=running.cancel,
            )
    except NotSupported as error:
        raise Failure(str(error), UNSUPPORTED) from None
    except TooDamaged as error:
        error.add_note("Look at the header, or repair a copy with --force")
        raise


def _exit_code(result: CheckResult) -> int:
    if result.check_errors:
        failure = Failure("Check failed")
        if speaks_json():
            failure.add_note(result.failure or "")
        raise failure
    if result.corruptions:
        return CORRUPTIONS
    return LEAKS if result.leaks else 0


# --- problems -----------------------------------------------------------------------------------


def _list_problems(result: CheckResult, dry_run: bool) -> None:
    """One line a problem on stderr, before anything is told of their number."""
    listed = result.problems
    more = result.more
    if result.problems_max is not None and len(listed) > LISTED_MAX:
        listed, more = listed[:LISTED_MAX], True
    for problem in listed:
        print(_line(problem, dry_run), file=sys.stderr)
    if more:
        print(f"... and others: --all-problems lists more than {len(listed)}", file=sys.stderr)


def _line(problem: Problem, dry_run: bool) -> str:
    kind = "Leaked" if problem.kind == "leak" else "ERROR"
    text = f"{kind}: {problem.message}"
    if problem.l1_index is not None and problem.offset is not None:
        text += f"; the entry is at {problem.offset:#x}"
    if not dry_run:
        return text + (" (repaired)" if problem.fixed else "")
    if problem.fixed:
        return f"{text}\n    repair would {problem.remedy}"
    return f"{text}\n    this repair would not mend it"


def _list(wanted: bool, result: CheckResult) -> dict[str, Any]:
    """The problems one by one, for programs."""
    if not wanted:
        return {}
    return {
        "problems": [_members(problem) for problem in result.problems],
        "more-problems": result.more,
    }


def _members(problem: Problem) -> dict[str, Any]:
    """What is known of a problem; offsets and lengths are bytes."""
    fields = problem.as_dict()
    return {name.replace("_", "-"): value for name, value in fields.items() if value is not None}


# --- repairing ----------------------------------------------------------------------------------


def _print_repairs(result: CheckResult) -> None:
    print("The following inconsistencies were found and repaired:\n")
    _print_fixed(result)
    print("Double checking the fixed image now...")


def _print_fixed(result: CheckResult) -> None:
    print(f"    {result.leaks_fixed} leaked clusters")
    print(f"    {result.corruptions_fixed} corruptions\n")


def _end_dry_run(result: CheckResult, *, as_json: bool, quiet: bool) -> int:
    """Tell of the plan; the exit code is that of the image, which is as it was."""
    plan = result.plan
    assert plan is not None
    if as_json and not quiet:
        members = {
            "file-size": plan.size,
            "file-size-after": plan.size_after,
            "copied": plan.copied,
            "afterwards": _as_dict(plan.afterwards),
        }
        print_json(_as_dict(result) | {"dry-run": True, "plan": members} | _list(True, result))
    elif not quiet:
        _print_plan(result, plan)
    return _exit_code(
        result.replace(
            corruptions=result.corruptions + result.corruptions_fixed,
            leaks=result.leaks + result.leaks_fixed,
        )
    )


def _print_plan(result: CheckResult, plan: RepairPlan) -> None:
    if result.corruptions_fixed or result.leaks_fixed:
        print("The following inconsistencies would be repaired:\n")
        _print_fixed(result)
    if plan.copied:
        print(f"{plan.copied} bytes would be copied within the file.")
    if plan.size_after != plan.size:
        print(f"The file would have {plan.size_after} bytes instead of {plan.size}.")
    print("Nothing was changed. After the repair a check would say:")
    _print_result(plan.afterwards)


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
