# SPDX-License-Identifier: Apache-2.0
"""The `throttle` filter: limits on bytes and operations per second, with bursts.

Six leaky buckets: bytes and operations, each in total, for reads and for writes. A request pours
its size into the buckets that concern it, and waits first while one of them is over its brim:

    average                leaks out per second
    burst (…-max)          may flow per second for `burst length` seconds before the average holds
    neither                that bucket does not limit

Filters that name the same group share its buckets: a ``throttle-group`` object, or, without an
object, the group of a filter that says the limits itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from weakref import WeakValueDictionary

from blocklayer.base.align import div_ceil
from blocklayer.base.buffers import Vector, vector_length
from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.base.options import OptionTree
from blocklayer.base.units import parse_size
from blocklayer.core import objects, throttle_limits
from blocklayer.core.drivers import FILTER, Driver
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import Node
from blocklayer.core.opening import Opener
from blocklayer.core.throttle_limits import KINDS, MEMBERS

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from collections.abc import Callable

    from blocklayer.core.objects import UserObject

BRIM_SECONDS = 0.1
"""How much of a second's flow a bucket holds before requests wait: what keeps flow smooth."""

READS, WRITES = "read", "write"


class Bucket:
    """One leaky bucket; the caller holds its group's lock.

    average and burst are units per second, burst_length is seconds; 0 is no limit.
    """

    def __init__(self, average: float = 0, burst: float = 0, burst_length: float = 1) -> None:
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
    """Buckets shared by any number of filters. Requests of one direction pass in their order.

    definition  the object that it is the group of
    """

    def __init__(
        self,
        limits: dict[str, Bucket] | None = None,
        *,
        operation_size: int = 0,
        definition: UserObject | None = None,
    ) -> None:
        self.definition = definition
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

    def hurry(self) -> Callable[[], None]:
        """Somebody waits for requests in flight: all pass; later ones wait the longer for them.

        Until the result is called.
        """
        self._hurries.append(None)
        return self._hurries.pop

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


def group_named(name: str) -> Group:
    """The group of an object, or one that a filter has defined; forgotten with its last filter.

    Raises `InvalidArgument` if there is none.
    """
    definition = _object(name)
    with _groups_lock:
        found = _groups.get(name)
        if definition is not None and (found is None or found.definition is not definition):
            numbers = throttle_limits.of_group(definition.properties)
            found = _groups[name] = _new_group(numbers, definition)
        if found is None or (definition is None and found.definition is not None):
            raise InvalidArgument(f"Throttle group '{name}' does not exist")
        return found


def define_group(name: str, numbers: Mapping[str, int]) -> Group:
    """The group of filters that say its limits themselves: the last one to come decides."""
    if _object(name) is not None:
        raise InvalidArgument(f"Throttle group '{name}' is an object, which has the limits")
    with _groups_lock:
        found = _groups.get(name)
        if found is None or found.definition is not None:
            found = _groups[name] = _new_group(numbers)
        else:
            found.set_limits(
                _buckets(numbers), operation_size=throttle_limits.operation_size(numbers)
            )
        return found


def _object(name: str) -> UserObject | None:
    found = objects.find(name)
    return found if found is not None and found.kind == "throttle-group" else None


def _new_group(numbers: Mapping[str, int], definition: UserObject | None = None) -> Group:
    return Group(
        _buckets(numbers),
        operation_size=throttle_limits.operation_size(numbers),
        definition=definition,
    )


def _buckets(numbers: Mapping[str, int]) -> dict[str, Bucket]:
    def bucket(kind: str) -> Bucket:
        average, burst = numbers.get(kind, 0), numbers.get(f"{kind}-max", 0)
        return Bucket(average, burst, numbers.get(f"{kind}-max-length", 1))

    return {kind: bucket(kind) for kind in KINDS}


class ThrottleNode(FilterNode):
    """Admits requests through a group's buckets."""

    driver = "throttle"
    delays = True
    changeable = {"throttle-group": None}  # noqa: RUF012  # never changed
    changes_in_use = True

    def __init__(self, child: Node, limits: Group) -> None:
        super().__init__(child)
        self.group = limits

    def hurry(self) -> Callable[[], None]:
        """As the group of now, whose requests pass in their order."""
        return self.group.hurry()

    def change(self, options: OptionTree) -> Callable[[], None]:
        """Another group."""
        before, self.group = self.group, _group(options.get("throttle-group"), {})
        return lambda: setattr(self, "group", before)

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


def take_limits(options: OptionTree) -> dict[str, int]:
    """Take limits that a filter says itself out of its options, sizes as people write them."""
    given = options.pop("limits", {})
    if not isinstance(given, dict):
        raise InvalidArgument("Invalid parameter type for 'limits', expected: object")
    own = {key: options.pop(key) for key in list(options) if key.startswith(("bps-", "iops-"))}
    tree = {**given, **own}
    for name in tree:
        if name not in MEMBERS:
            raise InvalidArgument(f"Invalid parameter '{name}'")
    numbers = {name: parse_size(value, name) for name, value in tree.items()}
    throttle_limits.check(numbers)
    return numbers


def _open(opener: Opener, options: OptionTree) -> Node:
    name = options.pop("throttle-group", None)
    limits = take_limits(options)
    file = opener.open_child(options, "file")
    try:
        return ThrottleNode(file, _group(name, limits))
    except BaseException:
        file.close()
        raise


def _group(name: object, limits: Mapping[str, int]) -> Group:
    if name is None and not limits:
        raise InvalidArgument("Please specify a throttle group")
    if name is None:
        return _new_group(limits)
    return define_group(str(name), limits) if limits else group_named(str(name))


DRIVER = Driver(name="throttle", kind=FILTER, open=_open)
