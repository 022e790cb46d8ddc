# SPDX-License-Identifier: Apache-2.0
"""The `fault` filter (QEMU's name: blkdebug): makes requests fail, or wait, by rules.

A rule hangs on an *event*: what the parent announces before it touches its file (`l2_update`,
`write_aio` …), or what this node announces itself: `pwritev` and `pwritev_zero` before a write
reaches it, `pwritev_done` after. Rules of the event `none` always hold.

    InjectError   from the event on, requests that match fail; until another event's rules replace
                  it, or after one failure (`once`)
    SetState      an integer, 1 at first, on which other rules may depend
    break point   the request that announces the event waits until it is resumed by its tag

Rules without an event are the ones to count with: `InjectError(nth=7)` fails the seventh request
and all that follow, with `once` the seventh alone.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from blocklayer.base.align import align_down
from blocklayer.base.buffers import Vector, slice_vector, vector_length
from blocklayer.base.errors import BlocklayerError, InvalidArgument, IoError, NotSupported
from blocklayer.base.options import OptionTree
from blocklayer.base.units import SECTOR, parse_size
from blocklayer.core.drivers import FILTER, Driver
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import Mapped, Node
from blocklayer.core.opening import Opener
from blocklayer.filters.fault_rules import (
    BLOCK_STATUS,
    DISCARD,
    FLUSH,
    NO_EVENT,
    READ,
    TRUNCATE,
    WRITE,
    WRITE_ZEROES,
    InjectError,
    Rule,
    SetState,
    check_event,
    check_inject,
    parse_rules,
)

LIMIT_MAX = 2**31 - 2
"""Bytes that a limit may say, as in QEMU: less than its largest int."""


@dataclass(slots=True)
class _Break:
    event: str
    tag: str


@dataclass(slots=True, eq=False)
class _Suspended:
    tag: str
    resumed: threading.Event = field(default_factory=threading.Event)


class FaultNode(FilterNode):
    """Fails and suspends requests to its child by rules, and counts them by I/O type."""

    driver = "fault"

    def __init__(self, child: Node, rules: Iterable[Rule] = ()) -> None:
        super().__init__(child)
        self.state = 1
        self.requests: Counter[str] = Counter()
        self._rules: list[Rule | _Break] = []
        self._active: list[InjectError] = []
        self._suspended: list[_Suspended] = []
        self._changed = threading.Condition()
        for rule in rules:
            self.add_rule(rule)

    # --- rules ----------------------------------------------------------------------------------

    def add_rule(self, rule: Rule) -> None:
        """A rule that holds from now on."""
        check_event(rule.event)
        if isinstance(rule, InjectError):
            check_inject(rule)
        with self._changed:
            self._rules.append(rule)

    def clear_rules(self) -> None:
        """No rule holds any more; requests that are suspended stay so."""
        with self._changed:
            self._rules = [rule for rule in self._rules if isinstance(rule, _Break)]
            self._active = []

    @property
    def hears(self) -> bool:  # type: ignore[override]
        """Always."""
        return True

    def on_event(self, node: Node, name: str, fields: dict[str, Any]) -> None:
        """Follow the rules of an event; may wait at a break point, or raise."""
        self._hear(name)
        super().on_event(node, name, fields)

    def _hear(self, name: str) -> None:
        with self._changed:
            found = [rule for rule in self._rules if rule.event == name]
            failing = self._follow(found) if found else None
            waiting = [self._suspend(rule) for rule in found if isinstance(rule, _Break)]
        for suspended in waiting:
            suspended.resumed.wait()
        if failing is not None:
            raise self._failure(failing, name, -1, -1)

    def _follow(self, rules: list[Rule | _Break]) -> InjectError | None:
        """Activate rules and change the state; a rule that fails the event itself."""
        state = self.state
        fresh = []
        for rule in rules:
            if isinstance(rule, _Break) or rule.state not in (0, state):
                continue
            if isinstance(rule, SetState):
                self.state = rule.new_state
            elif rule.immediately and rule.sector is None:
                if self._is_due(rule):
                    return rule if rule.errno else None
            else:
                fresh.append(rule)
        if fresh:
            self._active = fresh
        return None

    def _is_due(self, rule: InjectError) -> bool:
        """Count a match; whether it is the rule's turn."""
        rule.seen += 1
        if rule.seen < rule.nth:
            return False
        if rule.once:
            self._rules.remove(rule)
            if rule in self._active:
                self._active.remove(rule)
        return True

    def _meet(self, iotype: str, offset: int, length: int) -> InjectError | None:
        """Count a request; the rule by which it has to fail."""
        with self._changed:
            self.requests[iotype] += 1
            for rule in self._holding():
                if rule.covers(iotype, offset, length) and self._is_due(rule):
                    return rule if rule.errno else None
        return None

    def _holding(self) -> Iterator[InjectError]:
        yield from list(self._active)
        for rule in list(self._rules):
            if (
                isinstance(rule, InjectError)
                and rule.event == NO_EVENT
                and rule.state in (0, self.state)
            ):
                yield rule

    def _failure(
        self, rule: InjectError, operation: str, offset: int, length: int
    ) -> BlocklayerError:
        reason = os.strerror(rule.errno)
        if rule.errno == errno.ENOTSUP and operation in (WRITE_ZEROES, DISCARD):
            return NotSupported(f"{reason} (injected)")
        name = operation.replace("-", "_")
        return IoError(f"{reason} (injected)", self.filename, rule.errno, name, offset, length)

    # --- break points ---------------------------------------------------------------------------

    def add_break(self, event: str, tag: str) -> None:
        """Suspend the next request that announces `event`."""
        check_event(event)
        with self._changed:
            self._rules.append(_Break(event, tag))

    def _suspend(self, rule: _Break) -> _Suspended:
        self._rules.remove(rule)
        suspended = _Suspended(rule.tag)
        self._suspended.append(suspended)
        self._changed.notify_all()
        return suspended

    def resume(self, tag: str) -> None:
        """Let one request go on that waits with this tag. Raises `InvalidArgument`."""
        with self._changed:
            for suspended in self._suspended:
                if suspended.tag == tag:
                    self._release(suspended)
                    return
        raise InvalidArgument(f"No request is suspended with the tag '{tag}'")

    def remove_break(self, tag: str) -> None:
        """Remove break points with this tag, and let go on whoever waits at them."""
        with self._changed:
            breaks = [r for r in self._rules if isinstance(r, _Break) and r.tag == tag]
            waiting = [suspended for suspended in self._suspended if suspended.tag == tag]
            for rule in breaks:
                self._rules.remove(rule)
            for suspended in waiting:
                self._release(suspended)
        if not breaks and not waiting:
            raise InvalidArgument(f"There is no break point with the tag '{tag}'")

    def _release(self, suspended: _Suspended) -> None:
        self._suspended.remove(suspended)
        suspended.resumed.set()

    def is_suspended(self, tag: str) -> bool:
        """Whether a request waits with this tag."""
        with self._changed:
            return any(suspended.tag == tag for suspended in self._suspended)

    def wait_break(self, tag: str, timeout: float | None = None) -> bool:
        """Wait until a request is suspended with this tag; False if the time is up before."""
        with self._changed:
            return self._changed.wait_for(
                lambda: any(suspended.tag == tag for suspended in self._suspended), timeout
            )

    # --- requests -------------------------------------------------------------------------------

    def readv(self, offset: int, vector: Vector) -> None:
        """Read, or fail."""
        self._pass(READ, offset, vector_length(vector))
        super().readv(offset, vector)

    def _pass(self, iotype: str, offset: int = 0, length: int = 0) -> None:
        rule = self._meet(iotype, offset, length)
        if rule is not None:
            raise self._failure(rule, iotype, offset, length)

    def writev(self, offset: int, vector: Vector) -> None:
        """Write, or fail with nothing, half or all of it written."""
        length = vector_length(vector)
        self._hear("pwritev")
        rule = self._meet(WRITE, offset, length)
        if rule is None:
            super().writev(offset, vector)
        else:
            half = align_down(offset + length // 2, SECTOR) - offset
            done = {"none": 0, "half": half, "all": length}[rule.progress]
            if done > 0:
                super().writev(offset, slice_vector(vector, 0, done))
        self._hear("pwritev_done")
        if rule is not None:
            raise self._failure(rule, WRITE, offset, length)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Zero, or fail."""
        self._hear("pwritev_zero")
        rule = self._meet(WRITE_ZEROES, offset, length)
        if rule is None or rule.progress == "all":
            super().zero(offset, length, flags)
        self._hear("pwritev_done")
        if rule is not None:
            raise self._failure(rule, WRITE_ZEROES, offset, length)

    def discard(self, offset: int, length: int) -> None:
        """Discard, or fail."""
        self._pass(DISCARD, offset, length)
        super().discard(offset, length)

    def flush(self) -> None:
        """Flush, or fail."""
        self._pass(FLUSH)
        super().flush()

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Resize, or fail."""
        rule = self._meet(TRUNCATE, size, 0)
        if rule is None or rule.progress == "all":
            super().truncate(size, preallocation)
        if rule is not None:
            raise self._failure(rule, TRUNCATE, size, -1)

    def map(self, offset: int, length: int) -> Mapped:
        """Tell where the bytes are, or fail."""
        self._pass(BLOCK_STATUS, offset, length)
        return super().map(offset, length)


def _take_limit(options: OptionTree, name: str, unit: int) -> int:
    """A number of bytes, of whole units; 0 if none is given."""
    value = parse_size(options.pop(name, 0), name)
    if value > LIMIT_MAX or value % max(unit, 1):
        raise InvalidArgument(f"Cannot meet constraints with {name} {value}")
    return value


def _open(opener: Opener, options: OptionTree) -> Node:
    rules = parse_rules(options)
    align = _take_limit(options, "align", 1)
    if align & (align - 1):
        raise InvalidArgument(f"Cannot meet constraints with align {align}")
    max_transfer = _take_limit(options, "max-transfer", align)
    for operation in ("write-zero", "discard"):  # checked; such requests are passed on as they are
        best = _take_limit(options, f"opt-{operation}", align)
        _take_limit(options, f"max-{operation}", max(best, align))
    child = opener.open_child(options, "image" if "image" in options else "file")
    try:
        node = FaultNode(child, rules)
    except BaseException:
        child.close()
        raise
    node.limits.request_alignment = max(align, 1)
    node.limits.max_transfer = max_transfer
    return node


DRIVER = Driver(name="fault", kind=FILTER, open=_open)
