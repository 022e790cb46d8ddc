# SPDX-License-Identifier: Apache-2.0
"""Results as text (Markdown, so that it can be pasted into a page) and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.harness import Kind, Outcome, Row, SideReport, Spread

MiB = 1024 * 1024


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    size = abs(value)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{decimals}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns also line up as plain text."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [line(header), rule, *(line(row) for row in rows)]


def describe_machine(machine: Mapping[str, str]) -> list[str]:
    return [f"- {key}: {value}" for key, value in machine.items()]


def side_value(side: SideReport | None, unit: str) -> str:
    return "-" if side is None else f"{number(side.value.median)} {unit}"


def result_cell(row: Row) -> str:
    if row.result is None or row.spread is None:
        return "-"
    text = f"{number(row.result)}{row.metric.result_unit}"
    if row.metric.kind is Kind.MAXIMUM:
        return f"{text} at most"
    return f"{text} ({number(row.spread.low)} - {number(row.spread.high)})"


def verdict_rows(outcome: Outcome) -> list[list[str]]:
    if outcome.failure is not None:
        return [[outcome.name, "-", "-", "-", "-", "-", "-", "FAILED"]]
    if outcome.skipped is not None:
        return [[outcome.name, "-", "-", "-", "-", "-", "-", "skipped"]]
    return [
        [
            outcome.name,
            row.metric.name,
            side_value(row.ours, row.metric.unit),
            side_value(row.peer, row.metric.unit),
            "-" if row.peer is None else row.peer.name,
            result_cell(row),
            row.metric.describe_target(),
            row.verdict,
        ]
        for row in outcome.rows
    ]


def side_rows(outcome: Outcome) -> list[list[str]]:
    rows = []
    for row in outcome.rows:
        if row.metric.target is None or row.metric.kind is Kind.MAXIMUM:
            continue
        ours = [] if row.ours is None else [row.ours]
        peer = [] if row.peer is None else [row.peer]
        for side in [*ours, *peer, *row.others]:
            rows.append(
                [
                    outcome.name,
                    row.metric.name,
                    side.name,
                    f"{number(side.value.median)} {row.metric.unit}",
                    f"{number(side.value.low)} {row.metric.unit}",
                    "-" if side.cpu is None else f"{number(side.cpu)} s",
                    "-" if side.peak_rss is None else f"{side.peak_rss / MiB:.0f} MiB",
                ]
            )
    return rows


def collect_notes(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """Every remark once, with the comparisons it is about."""
    notes: dict[str, list[str]] = {}
    for outcome in outcomes:
        texts = list(outcome.notes)
        if outcome.skipped is not None:
            texts.append(f"skipped: {outcome.skipped}")
        if outcome.failure is not None:
            texts.append(f"FAILED: {outcome.failure}")
        for text in texts:
            notes.setdefault(text, []).append(outcome.name)
    return notes


VERDICT_HEADER = ["bench", "metric", "ours", "peer", "best peer", "result", "target", "verdict"]
SIDE_HEADER = ["bench", "metric", "side", "median", "min", "CPU", "peak RSS"]


def render(outcomes: Sequence[Outcome]) -> str:
    lines = [""]
    lines.append("`ours` and `peer` are medians over the rounds; `result` is the median of the")
    lines.append("per-round results (smallest - largest in brackets).")
    lines.append("")
    lines += table(VERDICT_HEADER, [row for o in outcomes for row in verdict_rows(o)])
    sides = [row for o in outcomes for row in side_rows(o)]
    if sides:
        lines += ["", *table(SIDE_HEADER, sides)]
    notes = collect_notes(outcomes)
    if notes:
        lines.append("")
        lines += [f"- {', '.join(names)}: {text}" for text, names in notes.items()]
    return "\n".join(lines)


def spread_json(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else asdict(spread)


def row_json(row: Row) -> dict[str, Any]:
    target = row.metric.target
    return {
        "bench": row.bench,
        "metric": row.metric.name,
        "unit": row.metric.unit,
        "kind": row.metric.kind.value,
        "ours": None if row.ours is None else asdict(row.ours),
        "peer": None if row.peer is None else asdict(row.peer),
        "others": [asdict(side) for side in row.others],
        "result": row.result,
        "per_round": spread_json(row.spread),
        "target": None if target is None else asdict(target),
        "verdict": row.verdict,
    }


def to_json(
    machine: Mapping[str, str], arguments: Mapping[str, Any], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    return {
        "machine": dict(machine),
        "arguments": dict(arguments),
        "comparisons": [
            {
                "name": outcome.name,
                "failure": outcome.failure,
                "skipped": outcome.skipped,
                "notes": outcome.notes,
                "rows": [row_json(row) for row in outcome.rows],
                "rounds": [
                    {
                        "number": r.number,
                        "order": list(r.order),
                        "samples": {
                            name: {
                                "values": dict(sample.values),
                                "cpu": sample.cpu,
                                "peak_rss": sample.peak_rss,
                            }
                            for name, sample in r.samples.items()
                        },
                    }
                    for r in outcome.rounds
                ],
            }
            for outcome in outcomes
        ],
    }
