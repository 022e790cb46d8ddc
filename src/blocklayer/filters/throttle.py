# SPDX-License-Identifier: Apache-2.0
"""The `throttle` filter: limits on bytes and operations per second, with bursts.

Six leaky buckets: bytes and operations, each in total, for reads and for writes. A request pours
its size into the buckets that concern it, and waits first while one of them is over its brim:

    average                leaks out per second
    burst (…-max)          may flow per second for `burst length` seconds before the average holds
    neither                that bucket does not limit

Filters that name the same group share its buckets.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

from blocklayer.base.align import div_ceil
from blocklayer.base.buffers import Vector, vector_length
from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.base.options import OptionTree, nest
from blocklayer.base.units import parse_size
from blocklayer.core import objects
from blocklayer.core.drivers import FILTER, Driver
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import Node
from blocklayer.core.opening import Opener

BRIM_SECONDS = 0.1
"""How much of a second's flow a bucket holds before requests wait: what keeps flow smooth."""

READS, WRITES = "read", "write"
KINDS = tuple(f"{unit}-{what}" for unit in ("bps", "iops") for what in ("total", READS, WRITES))


class Bucket:
    """One leaky bucket; the caller holds its group's lock.

    average and burst are units per second, burst_length is seconds; 0 is no limit.
    """

    def __init__(self, average: float = 0, burst: float = 0, burst_length: float = 1) -> None:
        if burst and not average:
            raise InvalidArgument("bps_max/iops_max require corresponding bps/iops values")
        if burst and burst < average:
            raise InvalidArgument("bps_max/iops_max cannot be lower than bps/iops")
        if burst_length < 1:
            raise InvalidArgument("the burst length cannot be 0")
        if burst_length > 1 and not burst:
            raise InvalidArgument("burst length set without burst rate")
        self.average = average
        self.burst = burst
        self.burst_length = burst_length
        self._level = 0.0
        self._burst_level = 0.0

    def leak(self, seconds: float) -> None:
        """Time has passed."""
        self._level = max(0.0, self._level - self.average * seconds)
        self._burst_level = max(0.0, self._burst_level - self.burst * seconds)

    def wait(self) -> float:
        """Seconds until another request may pour something in."""
        if not self.average:
            return 0.0
        brim = self.burst * self.burst_length if self.burst else self.average * BRIM_SECONDS
        over = self._level - brim
        if over > 0:
            return over / self.average
        if self.burst_length > 1:
            over = self._burst_level - self.burst * BRIM_SECONDS
            if over > 0:
                return over / self.burst
        return 0.0

    def pour(self, amount: float) -> None:
        """A request passes; negative if one has not."""
        self._level = max(0.0, self._level + amount)
        self._burst_level = max(0.0, self._burst_level + amount)


class Group:
    """Buckets shared by any number of filters. Requests of one direction pass in their order."""

    def __init__(self, limits: dict[str, Bucket] | None = None, *, operation_size: int = 0) -> None:
        self._buckets = {kind: Bucket() for kind in KINDS} | (limits or {})
        self._operation_size = operation_size
        self._lock = threading.Lock()
        self._turns = {READS: threading.Lock(), WRITES: threading.Lock()}
        self._last = time.monotonic()
        self._hurries: list[None] = []

    def set_limits(self, limits: dict[str, Bucket], *, operation_size: int = 0) -> None:
        """Other limits from now on, also for requests that wait."""
        with self._lock:
            self._buckets = {kind: Bucket() for kind in KINDS} | limits
            self._operation_size = operation_size

    def admit(self, direction: str, length: int) -> None:
        """Wait until a request of `length` bytes may pass, and account for it."""
        with self._turns[direction]:
            while wait := self._try(direction, length):
                # In steps, so that limits that are lifted meanwhile are noticed.
                time.sleep(min(wait, 0.1))

    def hurry(self, on: bool) -> None:
        """Somebody waits for requests in flight: all pass; later ones wait the longer for them."""
        if on:
            self._hurries.append(None)
        else:
            self._hurries.pop()

    def take_back(self, direction: str, length: int) -> None:
        """A request that was admitted has not happened: it comes again in another way."""
        with self._lock:
            self._account(direction, length, -1)

    def _account(self, direction: str, length: int, sign: int = 1) -> None:
        size = self._operation_size
        operations = max(1, div_ceil(length, size)) if size else 1
        for bucket, is_bytes in self._of(direction):
            bucket.pour(sign * (length if is_bytes else operations))

    def _try(self, direction: str, length: int) -> float:
        with self._lock:
            now = time.monotonic()
            elapsed, self._last = now - self._last, now
            for bucket in self._buckets.values():
                bucket.leak(elapsed)
            wait = max(bucket.wait() for bucket, _ in self._of(direction))
            if wait <= 0 or self._hurries:
                self._account(direction, length)
                return 0.0
            return wait

    def _of(self, direction: str) -> Iterator[tuple[Bucket, bool]]:
        for unit in ("bps", "iops"):
            for what in ("total", direction):
                yield self._buckets[f"{unit}-{what}"], unit == "bps"


_groups: WeakValueDictionary[str, Group] = WeakValueDictionary()
_groups_lock = threading.Lock()


def group(name: str, make: Callable[[], Group] = Group) -> Group:
    """The group of that name; made if there is none, forgotten with its last filter."""
    with _groups_lock:
        found = _groups.get(name)
        if found is None:
            found = _groups[name] = make()
        return found


class ThrottleNode(FilterNode):
    """Admits requests through a group's buckets."""

    driver = "throttle"
    delays = True

    def __init__(self, child: Node, limits: Group) -> None:
        super().__init__(child)
        self.group = limits

    def hurry(self, on: bool) -> None:
        """As the group, whose requests pass in their order."""
        self.group.hurry(on)

    def readv(self, offset: int, vector: Vector) -> None:
        """Wait, then read."""
        self.group.admit(READS, vector_length(vector))
        super().readv(offset, vector)

    def writev(self, offset: int, vector: Vector) -> None:
        """Wait, then write."""
        self.group.admit(WRITES, vector_length(vector))
        super().writev(offset, vector)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Zeroing counts as a write of its length, once: if it must be written, as writes."""
        self.group.admit(WRITES, length)
        try:
            super().zero(offset, length, flags)
        except NotSupported:
            self.group.take_back(WRITES, length)
            raise

    def discard(self, offset: int, length: int) -> None:
        """Discarding counts as a write of its length."""
        self.group.admit(WRITES, length)
        super().discard(offset, length)


def parse_limits(options: OptionTree) -> dict[str, Bucket]:
    """Take ``bps-total``, ``iops-read-max``, ``bps-write-max-length`` … out of options."""
    limits = {}
    for kind in KINDS:
        average = parse_size(options.pop(kind, 0), kind)
        burst = parse_size(options.pop(f"{kind}-max", 0), f"{kind}-max")
        length = parse_size(options.pop(f"{kind}-max-length", 1), f"{kind}-max-length")
        if average or burst or length != 1:
            limits[kind] = Bucket(average, burst, length)
    return limits


def _open(opener: Opener, options: OptionTree) -> Node:
    name = options.pop("throttle-group", None)
    limits_given = options.pop("limits", {}) or _defined_limits(name)
    if not isinstance(limits_given, dict):
        raise InvalidArgument("Invalid parameter type for 'limits', expected: object")
    tree = {**limits_given, **{key: options.pop(key) for key in list(options) if _is_limit(key)}}
    limits = parse_limits(tree)
    size = parse_size(tree.pop("iops-size", 0), "iops-size")
    if tree:
        raise InvalidArgument(f"Invalid parameter '{next(iter(tree))}'")
    shared = Group() if name is None else group(str(name))
    if limits:
        shared.set_limits(limits, operation_size=size)
    return ThrottleNode(opener.open_child(options, "file"), shared)


def _defined_limits(name: object) -> OptionTree:
    """What a ``throttle-group`` object of that name says."""
    found = objects.find(name) if isinstance(name, str) else None
    if found is None or found.kind != "throttle-group":
        return {}
    limits: OptionTree = nest(found.properties).get("limits", {})
    return dict(limits)


def _is_limit(key: str) -> bool:
    return key.startswith(("bps-", "iops-"))


DRIVER = Driver(name="throttle", kind=FILTER, open=_open)
