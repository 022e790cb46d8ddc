# SPDX-License-Identifier: Apache-2.0
"""What a job does about I/O that has failed: the policies, and the action that follows from one.

report  the job fails
ignore  it goes on, and tries again what it can
stop    it rests until somebody resumes it
enospc  stop if there was no space left, else report; auto is the same
"""

from __future__ import annotations

import errno

from blocklayer.base.errors import BlocklayerError, InvalidArgument

REPORT, IGNORE, STOP, ENOSPC, AUTO = "report", "ignore", "stop", "enospc", "auto"
POLICIES = (REPORT, IGNORE, ENOSPC, STOP, AUTO)


def check_policy(name: str, value: str) -> str:
    """Raise `InvalidArgument` unless `value` is an error policy."""
    if value not in POLICIES:
        raise InvalidArgument(f"Parameter '{name}' does not accept value '{value}'")
    return value


def action_for(policy: str, error: BlocklayerError) -> str:
    """What follows for a job that could go on later: `REPORT`, `IGNORE` or `STOP`."""
    if policy in (ENOSPC, AUTO):
        return STOP if is_out_of_space(error) else REPORT
    return policy


def is_out_of_space(error: BlocklayerError) -> bool:
    """Whether somebody could help by giving the storage more space."""
    return error.errno == errno.ENOSPC
