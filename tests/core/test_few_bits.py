# SPDX-License-Identifier: Apache-2.0
"""The bits of one integer do what those of a compressed bitmap do."""

from __future__ import annotations

import random

from pyroaring import BitMap64

from blocklayer.core.few_bits import FewBits

BITS = 70


def test_as_a_compressed_bitmap(rng: random.Random) -> None:
    few, many = FewBits(), BitMap64()
    for _ in range(2000):
        first, end = rng.randrange(BITS), rng.randrange(BITS)
        numbers = rng.sample(range(BITS), rng.randrange(3))
        verb = rng.choice(["add_range", "remove_range", "update", "and", "or"])
        if verb == "update":
            few.update(numbers)
            many.update(numbers)
        elif verb in ("and", "or"):
            other_few, other_many = FewBits(), BitMap64()
            other_few.add_range(first, end)
            other_many.add_range(first, end)
            if verb == "or":
                few |= other_few
                many |= other_many
            else:
                few &= other_few
                many &= other_many
        else:
            getattr(few, verb)(first, end)
            getattr(many, verb)(first, end)
        assert list(few.iter_equal_or_larger(0)) == list(many)
        assert list(few.iter_equal_or_larger(first)) == list(many.iter_equal_or_larger(first))
        assert few.contains_range(first, end) == many.contains_range(first, end)
        assert (first in few, len(few), bool(few)) == (first in many, len(many), bool(many))
        if many:
            assert few.max() == many.max()
