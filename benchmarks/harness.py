# SPDX-License-Identifier: Apache-2.0
"""How a comparison is measured and judged.

    round 0    ours   peer A  peer B     each run:   prepare -> settle -> run -> verify
    round 1    peer B peer A  ours                   (only `run` is measured)
    round 2    peer A peer B  ours
    ...

The sides are interleaved inside each round, and each ratio is taken between two runs of the same
round: what disturbs the machine for longer than a round disturbs both sides. The report is the
median of those ratios, not the ratio of two medians. Of several peers, the one with the lowest
median is *the* peer. References (`cp`, for instance) are shown, never judged against.

A run whose result is wrong has no speed: a failed verification fails the comparison.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.process import CommandFailed, Usage

if TYPE_CHECKING:
    from benchmarks.images import Images

MiB = 1024 * 1024


class VerificationFailed(Exception):
    """A side did its work fast and wrong."""


class Skipped(Exception):
    """A bench cannot run here; the message says why."""


class Kind(Enum):
    """How the result of a metric comes from the rounds."""

    RATIO = "ratio"  # median over the rounds of ours / peer
    DIFFERENCE = "difference"  # median over the rounds of ours - peer
    MAXIMUM = "maximum"  # the largest value of ours; the peer's is shown beside it


@dataclass(frozen=True, slots=True)
class Target:
    """An upper bound; `strict` excludes the bound itself."""

    limit: float
    strict: bool = False

    def met(self, value: float) -> bool:
        return value < self.limit if self.strict else value <= self.limit


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a sample: its key in `Sample.values`, its unit, and how it is judged."""

    name: str
    unit: str
    kind: Kind = Kind.RATIO
    target: Target | None = None

    @property
    def result_unit(self) -> str:
        return "x" if self.kind is Kind.RATIO else f" {self.unit}"

    def describe_target(self) -> str:
        if self.target is None:
            return "-"
        sign = "<" if self.target.strict else "<="
        return f"{sign} {self.target.limit:g}{self.result_unit}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one side: the values by metric, and what the process cost (seconds, bytes)."""

    values: Mapping[str, float]
    cpu: float | None = None
    peak_rss: int | None = None


def process_sample(usage: Usage, **extra: float) -> Sample:
    """The sample of a program that was run once: wall clock, CPU, peak RSS."""
    values = {
        "wall": usage.wall,
        "wall ms": usage.wall * 1e3,
        "CPU": usage.cpu,
        "peak RSS": usage.peak_rss / MiB,
        **extra,
    }
    return Sample(values, cpu=usage.cpu, peak_rss=usage.peak_rss)


def nothing() -> None:
    """A side that needs no preparation, or no verification."""


@dataclass(frozen=True, slots=True)
class Side:
    """One contestant. `run` gets the number of the round (-1: warm-up) as a seed."""

    name: str
    run: Callable[[int], Sample]
    prepare: Callable[[], None] = nothing
    verify: Callable[[], None] = nothing


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is run together. Without `ours` the peers are measured alone."""

    name: str
    metrics: Sequence[Metric]
    ours: Side | None
    peers: Sequence[Side]
    references: Sequence[Side] = ()
    verify_round: Callable[[], None] = nothing  # after all sides of a round
    rounds_factor: int = 1  # short runs need more rounds
    page_cache: int = 0  # bytes of it that a run fills
    note: str = ""

    @property
    def sides(self) -> list[Side]:
        first = [] if self.ours is None else [self.ours]
        return [*first, *self.peers, *self.references]


@dataclass(frozen=True, slots=True)
class Round:
    """The samples of one round by side name; `order` says who ran when."""

    number: int
    order: Sequence[str]
    samples: Mapping[str, Sample]


@dataclass(frozen=True, slots=True)
class Spread:
    """The statistics of one side, or of the per-round results."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class SideReport:
    """A side's share of a row."""

    name: str
    value: Spread
    cpu: float | None  # median, seconds
    peak_rss: int | None  # largest, bytes


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of one comparison, judged."""

    bench: str
    metric: Metric
    ours: SideReport | None
    peer: SideReport | None
    others: Sequence[SideReport]
    result: float | None
    spread: Spread | None  # of the per-round results

    @property
    def verdict(self) -> str:
        if self.result is None:
            return "not measured"
        if self.metric.target is None:
            return "-"
        return "met" if self.metric.target.met(self.result) else "NOT met"


@dataclass(slots=True)
class Outcome:
    """All that is known of one comparison after it ran."""

    name: str
    rows: list[Row] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failure: str | None = None
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What a bench is given."""

    directory: Path
    images: Images
    quick: bool
    blk: Sequence[str] | None  # the command, None if blocklayer is not importable

    @property
    def has_library(self) -> bool:
        return self.blk is not None

    def pick(self, full: int, *, quick: int) -> int:
        """A size or a count, the smaller one for a quick run."""
        return quick if self.quick else full


Bench = Callable[[Context], Iterable[Comparison]]
BENCHES: dict[str, Bench] = {}


def bench(name: str) -> Callable[[Bench], Bench]:
    """Register a generator of comparisons under `topic/name`."""

    def register(function: Bench) -> Bench:
        if name in BENCHES:
            raise ValueError(f"two benches are called {name}")
        BENCHES[name] = function
        return function

    return register


def select(names: Sequence[str], available: Iterable[str]) -> list[str]:
    """The benches that `names` mean: a topic, a full name, or everything if there are none."""
    known = list(available)
    if not names:
        return known
    for name in names:
        if not any(name in (full, full.partition("/")[0]) for full in known):
            raise ValueError(f"no bench is called {name}; there are: {', '.join(known)}")
    return [full for full in known if full in names or full.partition("/")[0] in names]


def running_order(sides: Sequence[Side], number: int) -> list[Side]:
    """The order of one round: reversed every other round, and rotated every second one.

    Reversing lets any two sides precede each other equally often; rotating gives each the first
    place.
    """
    turn = number // 2 % len(sides)
    rotated = [*sides[turn:], *sides[:turn]]
    return rotated[::-1] if number % 2 else rotated


@dataclass(frozen=True, slots=True)
class Tools:
    """What a run needs from outside: `settle` (bytes of page cache to expect) and `progress`."""

    settle: Callable[[int], None]
    progress: Callable[[str], None]


def run_side(side: Side, number: int, settle: Callable[[], None]) -> Sample:
    side.prepare()
    settle()
    sample = side.run(number)
    side.verify()
    return sample


def run_round(
    comparison: Comparison, sides: list[Side], number: int, tools: Tools, notes: list[str]
) -> Round:
    """Run every side once. A peer that fails is taken off `sides`, with a note; ours may not fail.

    What a peer did before it failed is not used: a side counts only with all of its rounds.
    """
    if not sides:
        raise Skipped("no side of the comparison can run")
    order = running_order(sides, max(number, 0))
    samples = {}
    for side in order:
        try:
            samples[side.name] = run_side(side, number, lambda: tools.settle(comparison.page_cache))
        except (CommandFailed, VerificationFailed) as error:
            if side is comparison.ours:
                raise
            notes.append(f"{side.name} is left out: {error}")
            sides.remove(side)
    if comparison.ours is not None:
        comparison.verify_round()
    return Round(number, [side.name for side in order], samples)


def measure(comparison: Comparison, rounds: int, notes: list[str], tools: Tools) -> list[Round]:
    sides = comparison.sides
    total = rounds * comparison.rounds_factor
    tools.progress(f"{comparison.name}: {total} rounds of {len(sides)} sides")
    run_round(comparison, sides, -1, tools, notes)  # to warm up
    return [run_round(comparison, sides, number, tools, notes) for number in range(total)]


def values_of(rounds: Sequence[Round], side: str, metric: str) -> list[float] | None:
    """A side's value in every round, or None if it does not have that metric."""
    found = [
        r.samples[side].values[metric]
        for r in rounds
        if side in r.samples and metric in r.samples[side].values
    ]
    return found if found and len(found) == len(rounds) else None


def per_round(kind: Kind, ours: Sequence[float], peer: Sequence[float] | None) -> list[float]:
    """The result of each round by itself; the answer to a metric is their median (or maximum)."""
    if kind is Kind.MAXIMUM:
        return list(ours)
    if peer is None:
        return []
    if kind is Kind.RATIO:
        return [a / b for a, b in zip(ours, peer, strict=True)]
    return [a - b for a, b in zip(ours, peer, strict=True)]


def report_side(rounds: Sequence[Round], name: str, metric: Metric) -> SideReport | None:
    values = values_of(rounds, name, metric.name)
    if values is None:
        return None
    samples = [r.samples[name] for r in rounds]
    cpu = [s.cpu for s in samples if s.cpu is not None]
    rss = [s.peak_rss for s in samples if s.peak_rss is not None]
    return SideReport(
        name=name,
        value=Spread.of(values),
        cpu=statistics.median(cpu) if cpu else None,
        peak_rss=max(rss) if rss else None,
    )


def judge(comparison: Comparison, rounds: Sequence[Round]) -> list[Row]:
    """One row a metric: the peer is the best of the peers by median."""
    rows = []
    for metric in comparison.metrics:
        ours = (
            report_side(rounds, comparison.ours.name, metric)
            if comparison.ours is not None
            else None
        )
        found = [report_side(rounds, side.name, metric) for side in comparison.peers]
        peers = sorted((p for p in found if p is not None), key=lambda p: p.value.median)
        found = [report_side(rounds, side.name, metric) for side in comparison.references]
        references = [r for r in found if r is not None]
        peer = peers[0] if peers else None
        results: list[float] = []
        if ours is not None:
            our_values = values_of(rounds, ours.name, metric.name) or []
            peer_values = values_of(rounds, peer.name, metric.name) if peer else None
            results = per_round(metric.kind, our_values, peer_values)
        spread = Spread.of(results) if results else None
        result = None
        if spread is not None:
            result = spread.high if metric.kind is Kind.MAXIMUM else spread.median
        others = [*peers[1:], *references]
        rows.append(Row(comparison.name, metric, ours, peer, others, result, spread))
    return rows


def run_comparison(comparison: Comparison, rounds: int, tools: Tools) -> Outcome:
    outcome = Outcome(comparison.name)
    if comparison.note:
        outcome.notes.append(comparison.note)
    try:
        outcome.rounds = measure(comparison, rounds, outcome.notes, tools)
    except Skipped as error:
        outcome.skipped = str(error)
    except (CommandFailed, VerificationFailed) as error:
        outcome.failure = str(error)
    else:
        outcome.rows = judge(comparison, outcome.rounds)
    return outcome
