# SPDX-License-Identifier: Apache-2.0
"""What a server offers to its clients, and what one of them has chosen."""

from __future__ import annotations

from collections.abc import Sequence

from blocklayer.base.record import Record
from blocklayer.nbd import wire

SIMPLE = "simple"
STRUCTURED = "structured"
EXTENDED = "extended"
"""Shapes of replies, each with more than the one before."""


class Offer(Record, frozen=True):
    """An export as the handshake tells of it; sizes are bytes."""

    name: str
    size: int
    flags: int
    """Transmission flags, without those that depend on what the client agreed to."""
    description: str = ""
    block_minimum: int = 1
    block_preferred: int = 4096
    block_maximum: int = wire.MAX_PAYLOAD
    contexts: Sequence[str] = (wire.BASE_ALLOCATION,)


class Choice(Record, frozen=True):
    """What client and server agreed on."""

    offer: Offer
    mode: str
    """SIMPLE, STRUCTURED or EXTENDED: the shape of replies."""
    contexts: dict[int, str]
    """Metadata contexts by their ids."""


class Offers:
    """What a server tells of its exports. Servers derive from it."""

    def names(self) -> list[tuple[str, str]]:
        """(name, description) of every export that is listed."""
        raise NotImplementedError

    def find(self, name: str) -> Offer | None:
        """The export of a name; None if there is none."""
        raise NotImplementedError


def matching_contexts(contexts: Sequence[str], queries: list[str], *, listing: bool) -> list[str]:
    """The contexts that queries ask for, each once, in the order of the offer.

    In a listing, no query asks for everything, and a namespace (``base:``) for all in it.
    """
    if listing and not queries:
        return list(contexts)
    wanted = set(queries)
    namespaces = tuple(query for query in wanted if listing and query.endswith(":"))
    return [each for each in contexts if each in wanted or each.startswith(namespaces)]
