# SPDX-License-Identifier: Apache-2.0
"""Errors that are expected."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from blocklayer.base.errors import BlocklayerError


def refusal(action: Callable[[], object]) -> str:
    """What the error says with which an action ends."""
    with pytest.raises(BlocklayerError) as caught:
        action()
    return str(caught.value)
