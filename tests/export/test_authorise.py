# SPDX-License-Identifier: Apache-2.0
"""Rules about names: whom they admit, and what is no rule."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from blocklayer.base.errors import InvalidArgument
from blocklayer.core import objects
from blocklayer.export.authorise import authoriser

LAPTOP, SERVER = "CN=laptop,O=Example,C=GB", "CN=server,O=Example,C=GB"


@pytest.fixture
def rule() -> Callable[..., Callable[[str], bool]]:
    """Define an object, and make it decide."""

    def make(kind: str, **properties: object) -> Callable[[str], bool]:
        names = {name.replace("_", "."): value for name, value in properties.items()}
        objects.define(objects.UserObject(kind=kind, name="rule", properties=names))
        try:
            return authoriser("rule")
        finally:
            objects.forget("rule")

    return make


Rule = Callable[..., Callable[[str], bool]]


def test_simple(rule: Rule) -> None:
    decide = rule("authz-simple", identity=LAPTOP)
    assert decide(LAPTOP)
    for name in ("", SERVER, LAPTOP + " ", LAPTOP.lower(), "laptop"):
        assert not decide(name)


@pytest.mark.parametrize("policy", ["allow", "deny"])
def test_the_first_rule_that_matches_decides(rule: Rule, policy: str) -> None:
    rules = [
        {"match": SERVER, "policy": "deny"},
        {"match": "CN=s*", "policy": "allow", "format": "glob"},
        {"match": "CN=*", "policy": "deny", "format": "exact"},
    ]
    decide = rule("authz-list", policy=policy, rules=rules)
    assert not decide(SERVER)
    assert decide("CN=second")
    assert not decide("CN=*")
    assert decide("CN=laptop") == (policy == "allow")
    assert decide("") == (policy == "allow")


def test_rules_of_a_command_line_are_in_the_order_of_their_numbers(rule: Rule) -> None:
    numbered = {}
    for number in range(12):
        numbered[f"rules_{number}_match"] = "CN=x" if number in (2, 10) else f"CN={number}"
        numbered[f"rules_{number}_policy"] = "deny" if number == 10 else "allow"
    assert rule("authz-list", **numbered)("CN=x"), "2 comes before 10"


def test_names_with_signs_of_patterns_are_taken_exactly(rule: Rule) -> None:
    decide = rule("authz-list", rules=[{"match": "CN=[a]", "policy": "allow"}])
    assert decide("CN=[a]")
    assert not decide("CN=a")


def test_a_file_is_read_again_when_it_changes(rule: Rule, tmp_path: Path) -> None:
    path = tmp_path / "rules.json"

    def write(text: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        os.replace(fresh, path)

    admit = {"policy": "deny", "rules": [{"match": LAPTOP, "policy": "allow"}]}
    write(json.dumps(admit))
    decide = rule("authz-list-file", filename=str(path))
    assert decide(LAPTOP)
    assert not decide(SERVER)
    write(json.dumps({"policy": "allow", "rules": []}))
    assert decide(SERVER)
    for text in ("", "{", "[]", '{"policy": "perhaps"}', '{"rules": [7]}', '{"rules": {"x": {}}}'):
        write(text)
        assert not decide(LAPTOP), f"nobody knows what {text!r} means"
    path.unlink()
    assert not decide(LAPTOP)
    write(json.dumps(admit))
    assert decide(LAPTOP)


@pytest.mark.parametrize(
    ("kind", "properties"),
    [
        ("authz-simple", {}),
        ("authz-simple", {"identity": 7}),
        ("authz-list", {"policy": "perhaps"}),
        ("authz-list", {"rules": [{"policy": "allow"}]}),
        ("authz-list", {"rules": [{"match": "x"}]}),
        ("authz-list", {"rules": [{"match": "x", "policy": "maybe"}]}),
        ("authz-list", {"rules": [{"match": "x", "policy": "allow", "format": "regex"}]}),
        ("authz-list", {"rules": ["x"]}),
        ("authz-list", {"rules": "x"}),
        ("authz-list", {"rules": {"x": {"match": "x", "policy": "allow"}}}),
        ("authz-list-file", {}),
        ("authz-list-file", {"filename": "/no/where"}),
        ("authz-pam", {"service": "nbd"}),
        ("secret", {"data": "x"}),
    ],
)
def test_what_is_no_rule(rule: Rule, kind: str, properties: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        rule(kind, **properties)
