# SPDX-License-Identifier: Apache-2.0
"""Options of the daemon as dictionaries: ``driver=raw,file.driver=file`` or JSON."""

from __future__ import annotations

import re

from blocklayer.cli.failures import Failure

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
DEPTH_MAX = 100
"""Levels of keys: no node is described as deep."""


def read_options(text: str, implied: str) -> tuple[dict[str, Any], bool]:
    """The options, and whether their scalars are strings. Raises `Failure`.

    implied  what a first word without ``=`` is the value of
    """
    if text.startswith("{"):
        return read_json(text), False
    return keyval(text, implied), True


def read_json(text: str) -> dict[str, Any]:
    """A JSON object. Raises `Failure`."""
    from blocklayer.qmp.framing import loads
    from blocklayer.qmp.parser import JsonError

    try:
        value = loads(text)
    except JsonError as error:
        raise Failure(str(error)) from None
    assert isinstance(value, dict)  # it begins with a brace
    return value


def split_pairs(text: str, implied: str, *, bare: bool = False) -> list[tuple[str, str]]:
    """(key, value) pairs; a doubled comma is a comma. Raises `Failure`.

    bare  a word without ``=`` stands for ``word=on``
    """
    pairs: list[tuple[str, str]] = []
    items = text.replace(",,", "\0").split(",") if text else []
    for number, item in enumerate(items):
        key, equals, value = item.replace("\0", ",").partition("=")
        if not equals and number == 0 and implied:
            key, value = implied, key
        elif not equals and bare:
            value = "on"
        elif not equals and (number < len(items) - 1 or key):
            raise Failure(f"Expected '=' after parameter '{key}'")
        elif not equals:
            continue  # a comma at the end
        if not _KEY.fullmatch(key):
            raise Failure(f"Invalid parameter '{key}'")
        pairs.append((key, value))
    return pairs


def keyval(text: str, implied: str = "") -> dict[str, Any]:
    """``a.b=1,a.c=2`` as ``{"a": {"b": "1", "c": "2"}}``; the last of equal keys counts."""
    tree: dict[str, Any] = {}
    for key, value in split_pairs(text, implied):
        *path, last = key.split(".")
        if len(path) > DEPTH_MAX:
            raise Failure(f"Invalid parameter '{key}': it is nested too deeply")
        branch = tree
        for number, step in enumerate(path):
            branch = branch.setdefault(step, {})
            if not isinstance(branch, dict):
                prefix = ".".join(path[: number + 1])
                raise Failure(f"Parameters '{prefix}.*' used inconsistently")
        if isinstance(branch.get(last), dict):
            raise Failure(f"Parameters '{key}.*' used inconsistently")
        branch[last] = value
    return tree
