# SPDX-License-Identifier: Apache-2.0
"""What is printed: the verdict, also an unpleasant one."""

from __future__ import annotations

import json

import pytest

from benchmarks.harness import (
    Comparison,
    Kind,
    Metric,
    Outcome,
    Sample,
    Side,
    Target,
    Tools,
    run_comparison,
)
from benchmarks.report import number, render, table, to_json

MiB = 1024 * 1024
TOOLS = Tools(settle=lambda _: None, progress=lambda _: None)


def side(name: str, wall: float) -> Side:
    sample = Sample({"wall": wall, "peak RSS": 20.0}, cpu=0.25, peak_rss=20 * MiB)
    return Side(name, lambda _: sample)


def outcome(ours: float, peer: float) -> Outcome:
    metrics = [
        Metric("wall", "s", target=Target(1.0)),
        Metric("peak RSS", "MiB", Kind.MAXIMUM, Target(100, strict=True)),
    ]
    comparison = Comparison("topic/name", metrics, side("blk", ours), [side("qemu-img", peer)])
    return run_comparison(comparison, 3, TOOLS)


def lines(*outcomes: Outcome) -> list[str]:
    return [" ".join(line.split()) for line in render(outcomes).splitlines()]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1234"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123"), (-2.5, "-2.50")],
)
def test_numbers_have_about_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_table_is_markdown_and_lines_up() -> None:
    assert table(["a", "long"], [["wide", "b"]]) == [
        "| a    | long |",
        "|------|------|",
        "| wide | b    |",
    ]


def test_a_target_that_is_met() -> None:
    found = lines(outcome(1.0, 2.0))
    ratio = "0.500x (0.500 - 0.500) | <= 1x | met |"
    assert f"| topic/name | wall | 1.00 s | 2.00 s | qemu-img | {ratio}" in found
    assert "| topic/name | wall | blk | 1.00 s | 1.00 s | 0.250 s | 20 MiB |" in found


def test_a_target_that_is_not_met() -> None:
    assert any(
        line.endswith("2.00x (2.00 - 2.00) | <= 1x | NOT met |")
        for line in lines(outcome(2.0, 1.0))
    )


def test_failures_and_skips_are_shown_with_their_reason() -> None:
    found = lines(Outcome("a/b", failure="differs at 42"), Outcome("c/d", skipped="no verb"))
    assert any(line.startswith("| a/b") and line.endswith("FAILED |") for line in found)
    assert "- a/b: FAILED: differs at 42" in found
    assert "- c/d: skipped: no verb" in found


def test_a_note_is_printed_once() -> None:
    found = lines(Outcome("a/b", notes=["same"]), Outcome("c/d", notes=["same"]))
    assert "- a/b, c/d: same" in found


def test_json_has_every_sample() -> None:
    content = to_json({"CPU": "x"}, {"rounds": 3}, [outcome(1.0, 2.0)])
    again = json.loads(json.dumps(content))
    [comparison] = again["comparisons"]
    assert again["machine"] == {"CPU": "x"}
    assert comparison["rows"][0]["result"] == 0.5
    assert comparison["rows"][0]["verdict"] == "met"
    assert [r["samples"]["blk"]["values"]["wall"] for r in comparison["rounds"]] == [1.0] * 3
