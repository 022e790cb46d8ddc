# SPDX-License-Identifier: Apache-2.0
"""The benchmark harness: what is reported must be what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from benchmarks.harness import (
    Comparison,
    Kind,
    Metric,
    Round,
    Sample,
    Side,
    Skipped,
    Spread,
    Target,
    Tools,
    VerificationFailed,
    judge,
    per_round,
    run_comparison,
    running_order,
    select,
)
from benchmarks.process import CommandFailed

WALL = Metric("wall", "s", target=Target(1.0))


def idle(name: str) -> Side:
    return Side(name, lambda _: Sample({"wall": 1.0}))


def scripted(values: Mapping[str, Sequence[float]], metric: str = "wall") -> list[Round]:
    """Rounds in which every side has the values of its list."""
    count = len(next(iter(values.values())))
    return [
        Round(n, list(values), {name: Sample({metric: v[n]}) for name, v in values.items()})
        for n in range(count)
    ]


TOOLS = Tools(settle=lambda _: None, progress=lambda _: None)


# Statistics


def test_spread_is_median_and_extremes() -> None:
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(median=2.0, low=1.0, high=5.0)
    assert Spread.of([4.0, 1.0, 2.0, 3.0]).median == 2.5


def test_a_ratio_is_taken_inside_its_round() -> None:
    assert per_round(Kind.RATIO, [1.0, 20.0], [2.0, 10.0]) == [0.5, 2.0]


def test_a_difference_is_taken_inside_its_round() -> None:
    assert per_round(Kind.DIFFERENCE, [3.0, 5.0], [1.0, 1.0]) == [2.0, 4.0]


def test_a_maximum_needs_no_peer() -> None:
    assert per_round(Kind.MAXIMUM, [3.0, 5.0], None) == [3.0, 5.0]
    assert per_round(Kind.RATIO, [3.0, 5.0], None) == []


def test_sides_without_a_common_round_are_not_paired() -> None:
    with pytest.raises(ValueError, match="shorter"):
        per_round(Kind.RATIO, [1.0, 2.0], [1.0])


def test_the_result_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    rounds = scripted({"ours": [1.0, 10.0, 6.0], "peer": [2.0, 4.0, 5.0]})
    [row] = judge(Comparison("x", [WALL], idle("ours"), [idle("peer")]), rounds)
    assert row.result == pytest.approx(1.2)  # of 0.5, 2.5, 1.2; the medians would give 6 / 4
    assert row.spread == Spread(median=1.2, low=0.5, high=2.5)
    assert row.ours is not None
    assert row.ours.value == Spread(6.0, 1.0, 10.0)


def test_one_slow_round_of_the_machine_does_not_change_the_result() -> None:
    rounds = scripted({"ours": [1.0, 1.0, 9.0], "peer": [2.0, 2.0, 18.0]})
    [row] = judge(Comparison("x", [WALL], idle("ours"), [idle("peer")]), rounds)
    assert row.spread == Spread(0.5, 0.5, 0.5)


def test_the_peer_is_the_best_of_the_peers_and_never_a_reference() -> None:
    rounds = scripted({"ours": [2.0], "slow": [4.0], "fast": [1.0], "cp": [0.1]})
    comparison = Comparison(
        "x", [WALL], idle("ours"), [idle("slow"), idle("fast")], references=[idle("cp")]
    )
    [row] = judge(comparison, rounds)
    assert row.peer is not None
    assert row.peer.name == "fast"
    assert row.result == 2.0
    assert row.verdict == "NOT met"
    assert [other.name for other in row.others] == ["slow", "cp"]


def test_a_maximum_reports_the_worst_round() -> None:
    metric = Metric("peak RSS", "MiB", Kind.MAXIMUM, Target(100, strict=True))
    rounds = scripted({"ours": [20.0, 100.0, 30.0], "peer": [1.0, 1.0, 1.0]}, "peak RSS")
    [row] = judge(Comparison("x", [metric], idle("ours"), [idle("peer")]), rounds)
    assert row.result == 100.0
    assert row.verdict == "NOT met"


def test_a_peer_without_the_metric_is_not_compared() -> None:
    rounds = [Round(0, ["ours", "peer"], {"ours": Sample({"wall": 1.0}), "peer": Sample({})})]
    [row] = judge(Comparison("x", [WALL], idle("ours"), [idle("peer")]), rounds)
    assert row.peer is None
    assert row.result is None
    assert row.verdict == "not measured"


def test_without_ours_the_peers_are_shown_and_nothing_is_claimed() -> None:
    [row] = judge(Comparison("x", [WALL], None, [idle("peer")]), scripted({"peer": [3.0]}))
    assert row.peer is not None
    assert row.verdict == "not measured"


def test_a_metric_without_a_target_has_no_verdict() -> None:
    rounds = scripted({"ours": [1.0], "peer": [1.0]})
    comparison = Comparison("x", [Metric("wall", "s")], idle("ours"), [idle("peer")])
    [row] = judge(comparison, rounds)
    assert row.verdict == "-"


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (Target(1.0), 1.0, True),
        (Target(1.0), 1.001, False),
        (Target(1.0, strict=True), 1.0, False),
        (Target(1.0, strict=True), 0.999, True),
    ],
)
def test_target(target: Target, value: float, met: bool) -> None:
    assert target.met(value) is met


# The rounds


def test_any_two_sides_precede_each_other_equally_often() -> None:
    sides = [idle(name) for name in "abc"]
    orders = [[s.name for s in running_order(sides, n)] for n in range(6)]
    for one, other in ("ab", "ac", "bc"):
        assert sum(o.index(one) < o.index(other) for o in orders) == 3
    for name in "abc":
        assert sum(o[0] == name for o in orders) == 2


class Log:
    """Sides that write down what happens to them."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def note(self, event: str) -> Callable[[], None]:
        return lambda: self.events.append(event)

    def side(self, name: str) -> Side:
        def run(number: int) -> Sample:
            self.events.append(f"{name} run {number}")
            return Sample({"wall": 1.0})

        return Side(name, run, self.note(f"{name} prepare"), self.note(f"{name} verify"))


def test_each_run_is_prepared_and_verified_and_the_order_alternates() -> None:
    log = Log()
    comparison = Comparison(
        "x", [WALL], log.side("a"), [log.side("b")], verify_round=log.note("round")
    )
    outcome = run_comparison(comparison, 2, TOOLS)

    def steps(name: str, number: int) -> list[str]:
        return [f"{name} prepare", f"{name} run {number}", f"{name} verify"]

    warm_up = [*steps("a", -1), *steps("b", -1), "round"]
    first = [*steps("a", 0), *steps("b", 0), "round"]
    second = [*steps("b", 1), *steps("a", 1), "round"]
    assert log.events == [*warm_up, *first, *second]
    assert [r.order for r in outcome.rounds] == [["a", "b"], ["b", "a"]]
    assert outcome.failure is None


def test_short_benches_may_ask_for_more_rounds() -> None:
    comparison = Comparison("x", [WALL], idle("a"), [idle("b")], rounds_factor=4)
    assert len(run_comparison(comparison, 3, TOOLS).rounds) == 12


def failing(error: Exception) -> Callable[..., Sample]:
    def fail(*_: int) -> Sample:
        raise error

    return fail


def test_a_wrong_result_has_no_speed() -> None:
    def verify() -> None:
        raise VerificationFailed("differs at 42")

    ours = Side("ours", lambda _: Sample({"wall": 0.001}), verify=verify)
    outcome = run_comparison(Comparison("x", [WALL], ours, [idle("peer")]), 1, TOOLS)
    assert outcome.failure == "differs at 42"
    assert outcome.rows == []


def test_ours_that_does_not_run_is_a_failure() -> None:
    ours = Side("ours", failing(CommandFailed(["blk"], "ended with 1", "no")))
    outcome = run_comparison(Comparison("x", [WALL], ours, [idle("peer")]), 1, TOOLS)
    assert outcome.failure is not None
    assert "`blk` ended with 1: no" in outcome.failure


def test_a_peer_that_does_not_run_leaves_with_a_note() -> None:
    peer = Side("peer", failing(CommandFailed(["peer"], "ended with 1", "unknown option")))
    comparison = Comparison("x", [WALL], idle("ours"), [peer, idle("other")])
    outcome = run_comparison(comparison, 1, TOOLS)
    assert outcome.failure is None
    assert outcome.rows[0].peer is not None
    assert outcome.rows[0].peer.name == "other"
    assert "unknown option" in outcome.notes[0]


def test_a_peer_that_fails_later_takes_its_rounds_along() -> None:
    def run(number: int) -> Sample:
        if number == 1:
            raise CommandFailed(["peer"], "ended with -6", "assertion")
        return Sample({"wall": 0.001})

    comparison = Comparison("x", [WALL], idle("ours"), [Side("peer", run), idle("other")])
    outcome = run_comparison(comparison, 3, TOOLS)
    assert outcome.failure is None
    [row] = outcome.rows
    assert row.peer is not None
    assert (row.peer.name, row.others) == ("other", [])
    assert len(outcome.notes) == 1


def test_a_comparison_without_any_side_that_runs_is_skipped() -> None:
    peer = Side("peer", failing(CommandFailed(["peer"], "ended with 1", "no")))
    outcome = run_comparison(Comparison("x", [WALL], None, [peer]), 2, TOOLS)
    assert outcome.skipped == "no side of the comparison can run"


def test_a_missing_verb_skips_the_comparison() -> None:
    ours = Side("ours", failing(Skipped("the library has no disk.read_many yet")))
    outcome = run_comparison(Comparison("x", [WALL], ours, [idle("peer")]), 1, TOOLS)
    assert outcome.skipped == "the library has no disk.read_many yet"
    assert outcome.failure is None


# Names


def test_select_by_topic_and_by_name() -> None:
    known = ["convert/a", "convert/b", "startup/a"]
    assert select([], known) == known
    assert select(["convert"], known) == ["convert/a", "convert/b"]
    assert select(["startup/a", "convert/b"], known) == ["convert/b", "startup/a"]
    with pytest.raises(ValueError, match="no bench is called nbd"):
        select(["nbd"], known)
