# SPDX-License-Identifier: Apache-2.0
"""Every field of the header and every kind of table entry, with every value worth trying."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from blocklayer.formats.qed.layout import Header
from tests.hostile.images import (
    BASES,
    Image,
    entry_damages,
    header_damages,
    lengths,
)
from tests.hostile.prison import BROKEN, Prison
from tests.hostile.verbs import EVERYTHING

FIELDS = [field.name for field in Header.FIELDS]
SAMPLE = 6
"""Values tried of each field and entry in a run that is not long; of the smallest image more."""
SAMPLE_SMALL = 24
PAIRS = 40
PAIRS_LONG = 5000

Damages = Iterable[tuple[str, Image]]


def some(rng: random.Random, base: str, damages: Damages) -> Damages:
    """A random sample of damages."""
    every = list(damages)
    return rng.sample(every, min(SAMPLE_SMALL if base == "small" else SAMPLE, len(every)))


def attack(prison: Prison, directory: Path, damages: Damages) -> None:
    """Do everything to every image; what must not happen, with the image it happened to."""
    found = []
    count = 0
    for name, image in damages:
        count += 1
        sentence = prison.run(directory, *EVERYTHING, image=image)
        found += [f"{name}: {text}" for text in sentence.broken()]
        if len(found) > 20:
            break
    assert count
    assert not found, f"{len(found)} of {count}:\n" + "\n".join(found)


@pytest.mark.parametrize("base", BASES)
def test_honest_images(prison: Prison, memory_path: Path, base: str) -> None:
    """The verbs succeed where nothing is wrong: what they find elsewhere is meant."""
    sentence = prison.run(memory_path, *EVERYTHING, image=BASES[base])
    assert sentence.broken() == []
    refused = {outcome.verb for outcome in sentence.outcomes if outcome.kind != "done"}
    # A base without a backing file has nothing to commit to.
    assert refused <= ({"commit"} if base in ("small", "huge") else set())
    assert sentence.of("check").value == (0, 0)


def test_the_prison_sees_what_it_must(prison: Prison, memory_path: Path) -> None:
    """An oracle that finds nothing is worth nothing."""
    image = BASES["small"]
    wrong = image.with_entry(image.entries[4], image.places[4])
    sentence = prison.run(memory_path, "read", "no such verb", image=wrong)
    assert sentence.outcomes[-1].kind == BROKEN
    assert sentence.of("read").kind == "done"


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("base", BASES)
def test_header_fields(
    prison: Prison, memory_path: Path, rng: random.Random, base: str, field: str
) -> None:
    attack(prison, memory_path, some(rng, base, header_damages(BASES[base], field)))


@pytest.mark.parametrize("number", range(len(BASES["small"].entries)))
@pytest.mark.parametrize("base", BASES)
def test_table_entries(
    prison: Prison, memory_path: Path, rng: random.Random, base: str, number: int
) -> None:
    image = BASES[base]
    attack(prison, memory_path, some(rng, base, entry_damages(image, image.entries[number])))


@pytest.mark.long
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("base", BASES)
def test_header_fields_fully(prison: Prison, memory_path: Path, base: str, field: str) -> None:
    attack(prison, memory_path, header_damages(BASES[base], field))


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(BASES["small"].entries)))
@pytest.mark.parametrize("base", BASES)
def test_table_entries_fully(prison: Prison, memory_path: Path, base: str, number: int) -> None:
    image = BASES[base]
    attack(prison, memory_path, entry_damages(image, image.entries[number]))


@pytest.mark.parametrize("base", BASES)
def test_lengths(prison: Prison, memory_path: Path, base: str) -> None:
    image = BASES[base]
    attack(prison, memory_path, ((f"{n} bytes", image.with_length(n)) for n in lengths(image)))


def one_of_all(rng: random.Random, base: Image) -> tuple[str, Image]:
    """A random single damage."""
    kind = rng.randrange(3)
    if kind == 0:
        return rng.choice(list(header_damages(base, rng.choice(FIELDS))))
    if kind == 1:
        return rng.choice(list(entry_damages(base, rng.choice(base.entries))))
    length = rng.choice(lengths(base))
    return f"{length} bytes", base.with_length(length)


def two_of_all(rng: random.Random, base: Image) -> tuple[str, Image]:
    """Two random damages of one image."""
    (first, one), (second, two) = one_of_all(rng, base), one_of_all(rng, base)
    both = Image(
        (*one.pieces, *two.pieces[len(base.pieces) :]),
        two.length if one.length == base.length else one.length,
    )
    return f"{first}, {second}", both


@pytest.mark.parametrize("base", BASES)
def test_pairs(prison: Prison, memory_path: Path, rng: random.Random, base: str) -> None:
    attack(prison, memory_path, (two_of_all(rng, BASES[base]) for _ in range(PAIRS)))


@pytest.mark.long
@pytest.mark.parametrize("base", BASES)
def test_many_pairs(prison: Prison, memory_path: Path, rng: random.Random, base: str) -> None:
    attack(prison, memory_path, (two_of_all(rng, BASES[base]) for _ in range(PAIRS_LONG)))
