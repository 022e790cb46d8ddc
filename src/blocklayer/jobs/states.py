# SPDX-License-Identifier: Apache-2.0
"""The life cycle of a job: one table of transitions, one of the verbs that each state accepts.

created -> running -> waiting -> pending -> concluded -> null        it succeeds
             |  ^
             v  |  ready <-> standby                                 mirrors, in between
           paused
any of these -> aborting -> concluded -> null                        it fails, or is cancelled
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Final


UNDEFINED: Final = "undefined"
CREATED: Final = "created"
RUNNING: Final = "running"
PAUSED: Final = "paused"
READY: Final = "ready"
STANDBY: Final = "standby"
WAITING: Final = "waiting"
PENDING: Final = "pending"
ABORTING: Final = "aborting"
CONCLUDED: Final = "concluded"
NULL: Final = "null"

TRANSITIONS: Final = {
    UNDEFINED: {CREATED},
    CREATED: {RUNNING, ABORTING, NULL},
    RUNNING: {PAUSED, READY, WAITING, ABORTING},
    PAUSED: {RUNNING},
    READY: {STANDBY, WAITING, ABORTING},
    STANDBY: {READY},
    WAITING: {PENDING, ABORTING},
    PENDING: {ABORTING, CONCLUDED},
    ABORTING: {ABORTING, CONCLUDED},
    CONCLUDED: {NULL},
    NULL: set[str](),
}

_ALIVE = {CREATED, RUNNING, PAUSED, READY, STANDBY}

VERBS: Final = {
    "cancel": _ALIVE | {WAITING, PENDING},
    "pause": _ALIVE,
    "resume": _ALIVE,
    "set-speed": _ALIVE,
    "complete": {READY, STANDBY},
    "finalize": {PENDING},
    "dismiss": {CONCLUDED},
    "change": _ALIVE,
}
