# SPDX-License-Identifier: Apache-2.0
"""Crash everywhere, recover, and compare with what was promised.

Each state that a crash may leave goes through the life of an image after a crash:

    opened read-only     its content is one that was promised; where the image is marked as dirty,
                         what was just being written may be unreadable
    opened read-write    everything is readable, and what was readable is the same
    checked              nothing is wrong; clusters may be leaked
    checked with repair  nothing is wrong or leaked
    opened again         the same content, clean
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from blocklayer.base.errors import BlocklayerError
from blocklayer.core.checking import CheckResult, Repair
from blocklayer.core.node import FormatNode, Node
from blocklayer.testing.crash import CrashDisk, SectorDisk, Snapshot
from blocklayer.testing.crash_content import Content, read_content
from blocklayer.testing.crash_guest import Guest, View
from blocklayer.testing.crash_states import CrashState, Effort, crash_states

OpenImage = Callable[[Node, bool], FormatNode]
"""(storage, read-only) -> the image in it, with its backing file, activated."""

VIOLATIONS_KEPT = 5
"""An exploration ends when it has found so many."""


class Violation(AssertionError):
    """What a crash left breaks the promise."""


@dataclass(slots=True)
class Exploration:
    """candidates: states that were made; states: different ones that were examined."""

    candidates: int = 0
    states: int = 0
    violations: list[str] = field(default_factory=list)


def explore(
    storage: CrashDisk,
    guest: Guest,
    open_image: OpenImage,
    rng: random.Random,
    effort: Effort | None = None,
    *,
    damaged: bool = False,
) -> Exploration:
    """Examine what crashes may leave of the session that `storage` has recorded.

    With `damaged` the image has corruptions from before, that only a check with repair resolves.
    """
    result = Exploration()
    seen: set[tuple[int, tuple[int, ...]]] = set()
    distinct: set[int] = set()
    for state in crash_states(storage, effort or Effort(), rng):
        result.candidates += 1
        views = guest.views(state.first, state.last, state.killed)
        key = state.snapshot.key
        if (key, tuple(map(id, views))) in seen:
            continue
        seen.add((key, tuple(map(id, views))))
        distinct.add(key)
        result.states = len(distinct)
        problem = examine(state, guest, views, open_image, damaged=damaged)
        if problem is not None:
            result.violations.append(f"{problem}\n{state.describe(storage.operations)}")
            if len(result.violations) >= VIOLATIONS_KEPT:
                break
    return result


def examine(
    state: CrashState,
    guest: Guest,
    views: Iterable[View],
    open_image: OpenImage,
    *,
    damaged: bool = False,
) -> str | None:
    """Recover from one crash; what breaks the promise, or None."""

    def judge(content: Content) -> None:
        for view in views:
            problem = guest.judge(view, content)
            if problem is not None:
                raise Violation(problem)

    phase = "opening read-only"
    try:
        seen = _look(state.snapshot, open_image)
        judge(seen)
        phase = "opening read-write"
        storage = SectorDisk(state.snapshot)
        node = open_image(storage, False)
        recovered = read_content(node)
        _compare(seen, recovered)
        if seen.unreadable:
            judge(recovered)
        phase = "checking"
        if not damaged:
            _require_sound(node.check(Repair()))
        phase = "repairing"
        _require_clean(node.check(Repair(leaks=True, errors=True)))
        phase = "closing"
        node.close()
        phase = "opening again"
        _look_again(storage.snapshot(), recovered, open_image)
    except (BlocklayerError, Violation) as error:
        return f"{phase}: {type(error).__name__}: {error}"
    return None


def _look(snapshot: Snapshot, open_image: OpenImage) -> Content:
    """The content as a reader finds it, who changes nothing."""
    node = open_image(SectorDisk(snapshot, read_only=True), True)
    content = read_content(node)
    if content.unreadable and not is_dirty(node):
        raise Violation(f"{content.unreadable} cannot be read although the image is not dirty")
    node.close()
    return content


def _look_again(snapshot: Snapshot, expected: Content, open_image: OpenImage) -> None:
    node = open_image(SectorDisk(snapshot, read_only=True), True)
    if is_dirty(node):
        raise Violation("the repaired image is still marked as dirty")
    _require_clean(node.check(Repair()))
    _compare(expected, read_content(node))
    node.close()


def is_dirty(node: FormatNode) -> bool:
    """Whether the image says of itself that its tables may be wrong."""
    return bool(node.info().get("dirty-flag"))


def _compare(before: Content, after: Content) -> None:
    if after.unreadable:
        raise Violation(f"{after.unreadable} cannot be read")
    if not before.same_where_readable(after):
        raise Violation("the content has changed")


def _require_sound(result: CheckResult) -> None:
    if result.corruptions or result.check_errors:
        raise Violation("; ".join(problem.message for problem in result.problems))


def _require_clean(result: CheckResult) -> None:
    _require_sound(result)
    if result.leaks:
        raise Violation(f"{result.leaks} clusters are leaked")
