# SPDX-License-Identifier: Apache-2.0
"""Rules of the `fault` filter, and how options and configuration files say them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.options import OptionTree, parse_bool
from blocklayer.base.units import SECTOR

READ = "read"
WRITE = "write"
WRITE_ZEROES = "write-zeroes"
DISCARD = "discard"
FLUSH = "flush"
BLOCK_STATUS = "block-status"
TRUNCATE = "truncate"

IO_TYPES = (READ, WRITE, WRITE_ZEROES, DISCARD, FLUSH, BLOCK_STATUS, TRUNCATE)
MOVING = frozenset(IO_TYPES) - {BLOCK_STATUS, TRUNCATE}
"""What a rule matches that does not say."""
CHANGING = frozenset({WRITE, WRITE_ZEROES, DISCARD, FLUSH, TRUNCATE})

NO_EVENT = "none"
EVENTS = frozenset(
    f"""
    {NO_EVENT}
    l1_update l1_grow_alloc_table l1_grow_write_table l1_grow_activate_table l1_shrink_write_table
    l1_shrink_free_l2_clusters l2_load l2_update l2_update_compressed l2_alloc_cow_read
    l2_alloc_write read_aio read_backing_aio read_compressed write_aio write_compressed
    vmstate_load vmstate_save cow_read cow_write cor_write reftable_load reftable_grow
    reftable_update refblock_load refblock_update refblock_update_part refblock_alloc
    refblock_alloc_hookup refblock_alloc_write refblock_alloc_write_blocks
    refblock_alloc_write_table refblock_alloc_switch_table cluster_alloc cluster_alloc_bytes
    cluster_alloc_space cluster_free flush_to_os flush_to_disk pwritev_rmw_head
    pwritev_rmw_after_head pwritev_rmw_tail pwritev_rmw_after_tail pwritev pwritev_zero
    pwritev_done empty_image_prepare need_check_set need_check_clear
    """.split()
)
"""QEMU's names, and those of our drivers that QEMU has not."""

PROGRESS = ("none", "half", "all")


@dataclass(slots=True, eq=False)
class InjectError:
    """Make requests fail.

    iotypes      which; by default all that move or flush data
    sector       only requests that touch this sector of 512 bytes
    errno        the error; 0 lets the request go on and keeps later rules from being looked at
    once         the rule is used up by one failure
    immediately  fail when the event is announced, before there is a request (needs an event)
    state        only while the node is in this state; 0 for any
    nth          let so many requests less one go on first
    progress     how much of a failing write happens all the same: none, half or all of it
    """

    event: str = NO_EVENT
    iotypes: frozenset[str] = MOVING
    sector: int | None = None
    errno: int = errno.EIO
    once: bool = False
    immediately: bool = False
    state: int = 0
    nth: int = 1
    progress: str = "none"
    seen: int = field(default=0, init=False)

    def covers(self, iotype: str, offset: int, length: int) -> bool:
        """Whether the rule is about this request."""
        if iotype not in self.iotypes:
            return False
        if self.sector is None:
            return True
        start = self.sector * SECTOR
        return offset < start + SECTOR and start < offset + length


@dataclass(slots=True, eq=False)
class SetState:
    """Go to another state."""

    event: str
    new_state: int
    state: int = 0


Rule = InjectError | SetState

_R = TypeVar("_R", InjectError, SetState)


def check_event(event: str) -> None:
    """Raise `InvalidArgument` unless drivers may announce an event of this name."""
    if event not in EVENTS:
        raise InvalidArgument(f"There is no event '{event}'")


def check_inject(rule: InjectError) -> None:
    """Raise `InvalidArgument` for a rule that makes no sense."""
    unknown = rule.iotypes - set(IO_TYPES)
    if unknown:
        raise InvalidArgument(f"There is no I/O type '{min(unknown)}'")
    if rule.progress not in PROGRESS:
        raise InvalidArgument(f"Invalid progress '{rule.progress}': use {', '.join(PROGRESS)}")
    if rule.nth < 1 or rule.errno < 0:
        raise InvalidArgument("nth counts from 1, and errno is not negative")


def parse_rules(options: OptionTree) -> list[Rule]:
    """Take `config`, `inject-error` and `set-state` out of options."""
    groups: dict[str, list[OptionTree]] = {"inject-error": [], "set-state": []}
    config = options.pop("config", None)
    if config is not None:
        for section, values in _read_config(str(config)):
            if section not in groups:
                raise InvalidArgument(f"There is no group '{section}' in '{config}'")
            groups[section].append(values)
    for name, group in groups.items():
        group.extend(_as_list(options.pop(name, []), name))
    rules: list[Rule] = [_parse_inject(values) for values in groups["inject-error"]]
    return rules + [_parse_state(values) for values in groups["set-state"]]


def _as_list(value: object, name: str) -> list[OptionTree]:
    """A list, or what ``inject-error.0.event=…`` on a command line becomes: numbers as keys."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value, key=str)]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidArgument(f"Invalid parameter type for '{name}', expected: array")
    return [dict(item) for item in value]


def _read_config(path: str) -> Iterator[tuple[str, OptionTree]]:
    """Sections of QEMU's configuration format: ``[inject-error]`` and lines ``key = "value"``."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"Could not read '{path}': {error}") from None
    section, values = "", dict[str, Any]()
    for number, line in enumerate((line.strip() for line in lines), 1):
        key, equals, value = (part.strip() for part in line.partition("="))
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            if section:
                yield section, values
            section, values = line[1:-1].strip(), {}
        elif section and equals and len(value) > 1 and value[0] == value[-1] == '"':
            values[key] = value[1:-1]
        else:
            raise InvalidArgument(f'{path}:{number}: expected [group] or key = "value"')
    if section:
        yield section, values


def _parse_inject(values: OptionTree) -> InjectError:
    rule = InjectError(
        event=str(values.pop("event", NO_EVENT)),
        errno=_integer(values, "errno", errno.EIO),
        once=parse_bool(values.pop("once", False), "once"),
        immediately=parse_bool(values.pop("immediately", False), "immediately"),
        state=_integer(values, "state", 0),
        nth=_integer(values, "nth", 1),
        progress=str(values.pop("progress", "none")),
    )
    if "iotype" in values:
        rule.iotypes = frozenset({str(values.pop("iotype"))})
    if "sector" in values:
        sector = _integer(values, "sector", -1)
        rule.sector = None if sector < 0 else sector
    return _finished(rule, values)


def _parse_state(values: OptionTree) -> SetState:
    rule = SetState(
        event=str(values.pop("event", NO_EVENT)),
        new_state=_integer(values, "new_state", 0),
        state=_integer(values, "state", 0),
    )
    return _finished(rule, values)


def _finished(rule: _R, values: OptionTree) -> _R:
    if values:
        raise InvalidArgument(f"Invalid parameter '{next(iter(values))}'")
    return rule


def _integer(values: OptionTree, name: str, default: int) -> int:
    value = values.pop(name, default)
    try:
        return int(value, 0) if isinstance(value, str) else int(value)
    except (TypeError, ValueError):
        raise InvalidArgument(f"Parameter '{name}' expects a number") from None
