# SPDX-License-Identifier: Apache-2.0
"""Who may do what with a node that several use: what each needs, and what it leaves to others.

user A  needs   {consistent read, write}     ─┐  allowed if each one's needs lie
user B  shares  {consistent read, …}         ─┘  within what all the others share
"""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.record import Record

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Final

READ: Final = "consistent read"
LIE_OVER: Final = "consistent backing"
"""Being an image over the node: somebody who reads it may mind less that it changes."""
WRITE: Final = "write"
RESIZE: Final = "resize"
ALL: Final = frozenset({READ, LIE_OVER, WRITE, RESIZE})
READING: Final = frozenset({READ, LIE_OVER})


class Use(Record, frozen=True):
    """One user of a node.

    who     as errors call it: ``node 'top'``, ``mirror job 'j'``, ``an unnamed block device``
    role    the edge: ``root``, ``file``, ``backing``, ``target`` …
    """

    who: str
    role: str
    needs: frozenset[str] = frozenset({READ})
    shares: frozenset[str] = ALL


def require_compatible(name: str, uses: list[Use], new: Use) -> None:
    """Raise `InvalidArgument` unless `new` can use the node called `name` beside the others."""
    for other in uses:
        for asks, refuses in ((other, new), (new, other)):
            wanted = asks.needs - refuses.shares
            if wanted:
                kept = (READ, WRITE, RESIZE) if READ in wanted else (LIE_OVER, WRITE, RESIZE)
                listed = ", ".join(each for each in kept if each in wanted)
                raise InvalidArgument(
                    f"Permission conflict on node '{name}': permissions '{listed}' are both"
                    f" required by {asks.who} (uses node '{name}' as '{asks.role}' child) and"
                    f" unshared by {refuses.who} (uses node '{name}' as '{refuses.role}' child)."
                )
