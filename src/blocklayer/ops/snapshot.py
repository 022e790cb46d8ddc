# SPDX-License-Identifier: Apache-2.0
"""Internal snapshots: none of the formats that there are has them."""

from __future__ import annotations

from blocklayer.base.errors import NotSupported
from blocklayer.core.names import FilenameLike
from blocklayer.ops.open_image import open_disk

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.trust import Trust

_REFUSALS = {
    "create": "Could not create snapshot '{}': -95 (Operation not supported)",
    "apply": "Could not apply snapshot '{}': Block driver does not support snapshots",
    "delete": "Could not delete snapshot '{}': snapshot not found",
}
"""What can be done with a snapshot, and why it is not."""


def snapshots(
    name: FilenameLike,
    *,
    format: str | None = None,
    force_share: bool = False,
    trust: Trust | None = None,
) -> list[str]:
    """The names of an image's snapshots. Raises `OpenError`."""
    with open_disk(name, format=format, force_share=force_share, trust=trust):
        return []


def change_snapshot(
    name: FilenameLike,
    action: str,
    snapshot: str,
    *,
    format: str | None = None,
    trust: Trust | None = None,
) -> None:
    """``create``, ``apply`` or ``delete`` a snapshot. Raises `OpenError`, `NotSupported`."""
    with open_disk(name, mode="r+", format=format, trust=trust):
        raise NotSupported(_REFUSALS[action].format(snapshot))
