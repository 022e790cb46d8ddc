# SPDX-License-Identifier: Apache-2.0
"""JSON that is written here is what the library would have written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blocklayer.base.json_text import json_text

VALUES: list[Any] = [
    *(0, -1, 10**30, True, False, None, 1.5, -0.0, float("inf")),
    *("", "plain text, 'quoted'", '"', "back\\slash", "a\nb", "\x7f", "ü", "\U0001f4be", "\udcff"),
    *(
        [],
        (),
        {},
        [1, [2, ("three",)]],
        {"a": {"b": [], "c": "ü"}},
        {1: 2, None: 3},
        {"a": {2.5: []}},
    ),
]


@pytest.mark.parametrize("value", VALUES, ids=ascii)
def test_as_the_library_writes_it(value: Any) -> None:
    assert json_text(value) == json.dumps(value)
    assert json_text([{"nested": value}]) == json.dumps([{"nested": value}])


def test_what_has_no_json_is_refused() -> None:
    for value in (object(), b"bytes", {(1, 2): 3}):
        with pytest.raises(TypeError):
            json_text([value])
